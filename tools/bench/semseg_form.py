"""PSPNet in the form in which it was published, for comparison: nothing is factorised, cached or fused.

Zhao et al., CVPR 2017, arXiv 1612.01105, figure 3, with the settings of its PyTorch implementation.
"""

from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BINS = (1, 2, 3, 6)


def conv_block(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def classifier(in_channels: int, channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(conv_block(in_channels, channels, 3), nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))


class PyramidPooling(nn.Module):
    """Means over 1, 4, 9 and 36 cells, upsampled and concatenated with the features."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), conv_block(in_channels, channels, 1)) for size in BINS
        )

    def forward(self, features: Tensor) -> Tensor:
        size = features.shape[2:]
        pooled = [
            F.interpolate(branch(features), size, mode="bilinear", align_corners=True) for branch in self.branches
        ]
        return torch.cat([features, *pooled], 1)


class SemsegForm(nn.Module):
    """PSPNet-50 with a deep stem and output stride 8: ``[N, 3, H, W]`` to logits ``{"out", "aux"}`` of this size."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone: Any = timm.create_model("resnet50s", features_only=True, output_stride=8, out_indices=(3, 4))
        self.pyramid = PyramidPooling(2048, 512)
        self.main, self.auxiliary = classifier(4096, 512, num_classes), classifier(1024, 256, num_classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        stage3, stage4 = self.backbone(images)
        found = {"out": self.main(self.pyramid(stage4))}
        if self.training:
            found["aux"] = self.auxiliary(stage3)
        size = images.shape[2:]
        return {
            name: F.interpolate(logits, size, mode="bilinear", align_corners=True) for name, logits in found.items()
        }
