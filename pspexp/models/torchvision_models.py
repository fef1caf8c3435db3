"""torchvision's segmentation networks behind this project's interface.

Built from torchvision's parts, since its own constructors fix the output stride and fetch weights unasked.
The parameters keep torchvision's names, so its published files load as they are.
"""

from typing import ClassVar, Literal

from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from pspexp.errors import UserError
from pspexp.models.backbone import backbone_problems
from pspexp.models.segmenter import Segmenter
from pspexp.models.weights import start_from

BACKBONE = "resnet50"  # timm's name of the same network, parameter for parameter


class TorchvisionSegmenter(Segmenter):
    """A ResNet-50 with a head of torchvision on its fourth stage, and its auxiliary head on the third.

    Args:
        classifier: maps ``[N, 2048, h, w]`` to logits ``[N, C, h, w]``.
        num_classes: C.
        output_stride: 8, 16 or 32; stages beyond it are dilated instead of strided.
        auxiliary_head: whether there is one.
    """

    class_layers: ClassVar[tuple[str, ...]] = ("classifier.4", "aux_classifier.4")
    auxiliary_layer: ClassVar[str] = "aux_classifier"

    def __init__(self, classifier: nn.Module, num_classes: int, output_stride: int, auxiliary_head: bool) -> None:
        super().__init__(num_classes, output_stride, align_corners=False)
        dilate = [False, output_stride < 32, output_stride < 16]  # instead of the stride of stages 2 to 4
        net = resnet50(weights=None, replace_stride_with_dilation=dilate, zero_init_residual=True)
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


def fcn_resnet50(
    *,
    num_classes: int,
    output_stride: Literal[8, 16, 32] = 8,
    auxiliary_head: bool = True,
    backbone_weights: str | None = None,
    weights: str | None = None,
) -> TorchvisionSegmenter:
    """FCN (Long et al., CVPR 2015, arXiv 1411.4038) as torchvision has it.

    Args:
        backbone_weights: None (random), ``"timm"`` (ImageNet) or a checkpoint's path, to take its backbone.
        weights: path of a whole checkpoint to start from; layers of another class count start fresh.
        (the rest): see `TorchvisionSegmenter`.

    Raises:
        UserError: naming every argument that cannot be, or every weight that does not fit.
    """
    _check(num_classes, output_stride)
    model = TorchvisionSegmenter(FCNHead(2048, num_classes), num_classes, output_stride, auxiliary_head)
    start_from(model, BACKBONE, backbone_weights, weights)
    return model


def deeplabv3_resnet50(
    *,
    num_classes: int,
    output_stride: Literal[8, 16, 32] = 8,
    auxiliary_head: bool = True,
    backbone_weights: str | None = None,
    weights: str | None = None,
) -> TorchvisionSegmenter:
    """DeepLabV3 (Chen et al., 2017, arXiv 1706.05587) as torchvision has it; see `fcn_resnet50`."""
    _check(num_classes, output_stride)
    model = TorchvisionSegmenter(DeepLabHead(2048, num_classes), num_classes, output_stride, auxiliary_head)
    start_from(model, BACKBONE, backbone_weights, weights)
    return model


def _check(num_classes: int, output_stride: int) -> None:
    problems = backbone_problems(BACKBONE, output_stride)
    if num_classes < 1:
        problems.append(f"model.num_classes={num_classes}: must be at least 1")
    if problems:
        raise UserError(*problems)
