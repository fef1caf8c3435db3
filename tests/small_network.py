"""A PSPNet with a backbone of a few convolutions, for tests of everything but the network: fast to start and save."""

from functools import wraps
from math import log2
from typing import Any

from torch import Tensor, nn

from pspexp.models import pspnet as models
from pspexp.models.pyramid import HEADS, conv_bn_relu
from pspexp.models.weights import start_from

CHANNELS = 8


class Backbone(nn.Module):
    """Halves the size ``log2(output_stride)`` times; the third and fourth stage have the same size."""

    def __init__(self, output_stride: int) -> None:
        super().__init__()
        halvings = [3, *[CHANNELS] * int(log2(output_stride))]
        stages = [conv_bn_relu(before, CHANNELS, 3) for before in halvings[:-1]]
        for stage in stages:
            stage.conv.stride = (2, 2)  # type: ignore[union-attr]
        self.third, self.fourth = nn.Sequential(*stages), conv_bn_relu(CHANNELS, CHANNELS, 3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        third = self.third(images)
        return third, self.fourth(third)


@wraps(models.pspnet)  # with its signature
def pspnet(
    *,
    num_classes: int,
    backbone: str,
    output_stride: int,
    bins: list[int],
    pyramid_channels: int,
    head_channels: int,
    align_corners: bool,
    head: Any,
    backbone_weights: str | None,
    weights: str | None,
    contract_dilation: bool,
    **options: Any,
) -> models.PSPNet:
    model = models.PSPNet(
        Backbone(output_stride),
        HEADS[head](CHANNELS, bins, pyramid_channels, head_channels, align_corners),
        num_classes=num_classes,
        output_stride=output_stride,
        head_channels=head_channels,
        third_channels=CHANNELS,
        align_corners=align_corners,
        **options,
    )
    start_from(model, backbone, backbone_weights, weights)
    return model
