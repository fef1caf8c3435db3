"""A small network: an encoder that halves the image three times, and a decoder that adds its finer feature maps."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


def convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 3×3 convolution with batch norm and ReLU."""
    layer = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out_channels), nn.ReLU())


class MyNet(nn.Module):
    """Maps images ``[N, 3, H, W]`` of any size to logits ``[N, num_classes, H, W]``.

    Args:
        num_classes: Number of classes.
        width: Channels of the first layer; the deeper ones have 2, 4 and 8 times as many.
    """

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        steps = list(pairwise(widths))
        self.stem = convolution(3, width)
        self.encoder = nn.ModuleList(convolution(fine, coarse, stride=2) for fine, coarse in steps)
        self.decoder = nn.ModuleList(convolution(fine + coarse, fine) for fine, coarse in reversed(steps))
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """The logits; pspexp computes the loss."""
        maps = [self.stem(images)]
        for layer in self.encoder:
            maps.append(layer(maps[-1]))
        features = maps.pop()
        for layer in self.decoder:
            finer = maps.pop()
            upsampled = interpolate(features, size=finer.shape[-2:], mode="bilinear")
            features = layer(torch.cat([finer, upsampled], dim=1))
        logits: Tensor = self.classifier(features)
        return logits
