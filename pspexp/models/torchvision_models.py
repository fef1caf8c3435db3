"""torchvision's segmentation networks with this project's interface.

They are built from torchvision's parts, since its own constructors fix the output stride and download weights. The
parameters keep torchvision's names, so its published files load as they are.
"""

from typing import ClassVar

from pydantic import PositiveInt
from torch import Tensor, nn

from pspexp.models.backbone import OutputStride
from pspexp.models.segmenter import Segmenter
from pspexp.models.weights import start_from
from pspexp.utils.arguments import checked
from pspexp.utils.imports import without_compiler

# torchvision is imported in functions: it takes time, and a wrong command needs none of it.

BACKBONE = "resnet50"  # timm's network of this name has the same parameters


class TorchvisionSegmenter(Segmenter):
    """A ResNet-50 with one of torchvision's heads on its fourth stage and an auxiliary head on the third.

    Args:
        classifier: Module that maps ``[N, 2048, h, w]`` to logits ``[N, C, h, w]``.
        num_classes: Number of classes, C.
        output_stride: Output stride; stages beyond it are dilated instead of strided.
        auxiliary_head: Whether to add the auxiliary head.
        in_channels: Number of bands of the images.
    """

    class_layers: tuple[str, ...] = ("classifier.4", "aux_classifier.4")
    auxiliary_layer: ClassVar[str] = "aux_classifier"

    def __init__(
        self,
        classifier: nn.Module,
        num_classes: int,
        output_stride: OutputStride,
        auxiliary_head: bool,
        in_channels: int = 3,
    ) -> None:
        without_compiler("torchvision")
        from torchvision.models import resnet50
        from torchvision.models._utils import IntermediateLayerGetter
        from torchvision.models.segmentation.fcn import FCNHead

        super().__init__(num_classes, output_stride, align_corners=False)
        dilate = [False, output_stride < 32, output_stride < 16]  # instead of the stride of stages 2 to 4
        net = resnet50(weights=None, replace_stride_with_dilation=dilate, zero_init_residual=True)
        if in_channels != 3:
            net.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as in torchvision
        self.backbone = IntermediateLayerGetter(net, {"layer3": "third", "layer4": "fourth"})
        self.classifier = classifier
        self.aux_classifier = FCNHead(1024, num_classes) if auxiliary_head else None

    def low_resolution(self, images: Tensor) -> dict[str, Tensor]:
        """See `Segmenter.low_resolution`."""
        features = self.backbone(images)
        outputs = {"out": self.classifier(features["fourth"])}
        if self.training and self.aux_classifier is not None:
            outputs["aux"] = self.aux_classifier(features["third"])
        return outputs


@checked
def fcn_resnet50(
    *,
    num_classes: PositiveInt,
    output_stride: OutputStride = 8,
    auxiliary_head: bool = True,
    in_channels: PositiveInt = 3,
    backbone_weights: str | None = None,
    weights: str | None = None,
) -> TorchvisionSegmenter:
    """FCN (Long et al., CVPR 2015, arXiv 1411.4038) as in torchvision.

    Args:
        num_classes, output_stride, auxiliary_head, in_channels: See `TorchvisionSegmenter`.
        backbone_weights: None (random), ``"timm"`` (ImageNet) or the path of a checkpoint to load the backbone from.
        weights: Path of a whole checkpoint to start from; classifiers for another number of classes are not loaded.

    Raises:
        UserError: The weights do not fit the network.
    """
    from torchvision.models.segmentation.fcn import FCNHead

    model = TorchvisionSegmenter(FCNHead(2048, num_classes), num_classes, output_stride, auxiliary_head, in_channels)
    start_from(model, BACKBONE, backbone_weights, weights, in_channels)
    return model


@checked
def deeplabv3_resnet50(
    *,
    num_classes: PositiveInt,
    output_stride: OutputStride = 8,
    auxiliary_head: bool = True,
    in_channels: PositiveInt = 3,
    backbone_weights: str | None = None,
    weights: str | None = None,
) -> TorchvisionSegmenter:
    """DeepLabV3 (Chen et al., 2017, arXiv 1706.05587) as in torchvision; see `fcn_resnet50`."""
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead

    model = TorchvisionSegmenter(
        DeepLabHead(2048, num_classes), num_classes, output_stride, auxiliary_head, in_channels
    )
    start_from(model, BACKBONE, backbone_weights, weights, in_channels)
    return model
