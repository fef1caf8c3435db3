"""A PSPNet with a backbone of a few convolutions, for tests of everything but the network: fast to start and save."""

from functools import wraps
from math import log2
from typing import Any
from unittest import mock

from torch import Tensor, nn

from pspexp.models import pspnet as models
from pspexp.models.pyramid import conv_bn_relu

CHANNELS = 8


class Backbone(nn.Module):
    """Halves the size ``log2(output_stride)`` times; the third and fourth stage have the same size."""

    def __init__(self, output_stride: int, in_channels: int) -> None:
        super().__init__()
        halvings = [in_channels, *[CHANNELS] * int(log2(output_stride))]
        stages = [conv_bn_relu(before, CHANNELS, 3) for before in halvings[:-1]]
        for stage in stages:
            stage.conv.stride = (2, 2)  # type: ignore[union-attr]
        self.third, self.fourth = nn.Sequential(*stages), conv_bn_relu(CHANNELS, CHANNELS, 3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        third = self.third(images)
        return third, self.fourth(third)


@wraps(models.pspnet)  # with its signature
def pspnet(**arguments: Any) -> models.PSPNet:
    def build_backbone(
        name: str, output_stride: int, contract_dilation: bool, in_channels: int, checkpointing: bool
    ) -> tuple[nn.Module, tuple[int, int], tuple[int, int]]:
        return Backbone(output_stride, in_channels), (CHANNELS, CHANNELS), (output_stride, output_stride)

    with mock.patch.object(models, "build_backbone", build_backbone):
        return models.pspnet(**arguments)
