"""PSPNet (Zhao et al., CVPR 2017, arXiv 1612.01105)."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from pspexp.errors import UserError, did_you_mean
from pspexp.models.backbone import backbone_problems, build_backbone
from pspexp.models.pyramid import HEADS, conv_bn_relu
from pspexp.models.segmenter import Segmenter
from pspexp.models.weights import start_from


class PSPNet(Segmenter):
    """Dilated backbone, pyramid pooling, a 1×1 classifier; while training, a head on the third stage too.

    Args:
        backbone: maps ``[N, 3, H, W]`` to the feature maps of its third and fourth stage.
        pyramid: maps the fourth's to ``[N, head_channels, h, w]``.
        num_classes: C.
        output_stride: of the fourth stage.
        head_channels: channels in front of the classifier.
        third_channels: channels of the third stage.
        aux_channels: channels of the auxiliary head; 0 leaves it out.
        align_corners: how maps are upsampled.
        dropout: probability of dropping a channel in front of each classifier.
    """

    class_layers: ClassVar[tuple[str, ...]] = ("classifier", "auxiliary.classifier")

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
            self.auxiliary = nn.Sequential(
                OrderedDict(
                    features=conv_bn_relu(third_channels, aux_channels, 3),
                    dropout=nn.Dropout2d(dropout),
                    classifier=nn.Conv2d(aux_channels, num_classes, 1),
                )
            )

    def low_resolution(self, images: Tensor) -> dict[str, Tensor]:
        """See `Segmenter.low_resolution`."""
        third, fourth = self.backbone(images)
        outputs = {"out": self.classifier(self.dropout(self.pyramid(fourth)))}
        if self.training and self.auxiliary is not None:
            outputs["aux"] = self.auxiliary(third)
        return outputs


def pspnet(
    *,
    num_classes: int,
    backbone: str = "resnet50s",
    output_stride: Literal[8, 16, 32] = 8,
    contract_dilation: bool = False,
    bins: Sequence[int] = (1, 2, 3, 6),
    pyramid_channels: int = 512,
    head_channels: int = 512,
    aux_channels: int = 256,
    align_corners: bool = True,
    dropout: float = 0.1,
    head: Literal["concat", "factorised"] = "factorised",
    backbone_weights: str | None = None,
    weights: str | None = None,
) -> PSPNet:
    """Build a PSPNet; the defaults are semseg's PSPNet-50.

    Args:
        backbone: a name of `pspexp.models.backbone.BACKBONES`.
        contract_dilation: see `build_backbone`.
        bins: regions per side of each pyramid branch.
        pyramid_channels: channels of each branch.
        head: how the pyramid is computed; a name of `pspexp.models.pyramid.HEADS`.
        backbone_weights: None (random), ``"timm"`` (ImageNet) or a checkpoint's path, to take its backbone.
        weights: path of a whole checkpoint to start from; layers of another class count start fresh.
        (the rest): see `PSPNet`.

    Raises:
        UserError: naming every argument that cannot be, or every weight that does not fit.
    """
    problems = backbone_problems(backbone, output_stride)
    problems += _head_problems(head, bins, pyramid_channels, head_channels, aux_channels, dropout)
    if num_classes < 1:
        problems.append(f"model.num_classes={num_classes}: must be at least 1")
    if problems:
        raise UserError(*problems)

    net, (third, fourth) = build_backbone(backbone, output_stride, contract_dilation)
    model = PSPNet(
        net,
        HEADS[head](fourth, bins, pyramid_channels, head_channels, align_corners),
        num_classes=num_classes,
        output_stride=output_stride,
        head_channels=head_channels,
        third_channels=third,
        aux_channels=aux_channels,
        align_corners=align_corners,
        dropout=dropout,
    )
    start_from(model, backbone, backbone_weights, weights)
    return model


def _head_problems(
    head: str, bins: Sequence[int], pyramid_channels: int, head_channels: int, aux_channels: int, dropout: float
) -> list[str]:
    """What is wrong with these arguments of `pspnet`, one line each."""
    problems = []
    if head not in HEADS:
        problems.append(f"model.head={head}: choose one of {', '.join(HEADS)}{did_you_mean(head, HEADS)}")
    if not bins or min(bins) < 1:
        problems.append(f"model.bins={list(bins)}: needs one or more numbers of at least 1")
    for name, channels in (("pyramid_channels", pyramid_channels), ("head_channels", head_channels)):
        if channels < 1:
            problems.append(f"model.{name}={channels}: must be at least 1")
    if aux_channels < 0:
        problems.append(f"model.aux_channels={aux_channels}: must be at least 0 (0 = no auxiliary head)")
    if not 0 <= dropout < 1:
        problems.append(f"model.dropout={dropout}: must be at least 0 and below 1")
    return problems
