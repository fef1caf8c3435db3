"""Pyramid pooling (Zhao et al., CVPR 2017, arXiv 1612.01105, section 3.2)."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """Convolution without bias that keeps height and width, batch norm, ReLU.

    PyTorch's own initialisation is kept, as semseg does. In front of a batch norm a weight's size only sets
    how far one optimizer step turns it, and these are small: the fresh head learns faster than the backbone.
    """
    padding = kernel_size // 2
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False),
            bn=nn.BatchNorm2d(out_channels),
            relu=nn.ReLU(inplace=True),
        )
    )


def region_masks(bins: int, size: int, like: Tensor) -> Tensor:
    """Which of ``size`` positions each of ``bins`` adaptive-pooling regions covers: 0/1 ``[bins, size]``.

    Region i goes from ``floor(i * size / bins)`` to ``ceil((i + 1) * size / bins)``, as in
    ``AdaptiveAvgPool2d``.
    """
    region = torch.arange(bins, device=like.device)[:, None]
    position = torch.arange(size, device=like.device)
    covered = (position >= region * size // bins) & (position < ((region + 1) * size + bins - 1) // bins)
    return covered.to(like.dtype)


def adaptive_average(features: Tensor, bins: int) -> Tensor:
    """Means over ``bins × bins`` regions: ``[N, C, h, w]`` to ``[N, C, bins, bins]``.

    The same as ``F.adaptive_avg_pool2d``, which MPS refuses when a side is not a multiple of ``bins`` and
    whose gradient on CUDA differs from run to run. Dividing after each sum, rather than multiplying by
    rounded reciprocals, keeps means unbiased in half precision; short sums stay within float16's range.
    """
    rows = region_masks(bins, features.shape[-2], features)
    columns = region_masks(bins, features.shape[-1], features)
    across = features @ columns.T / columns.sum(1)
    return rows @ across / rows.sum(1)[:, None]


class ConcatPyramid(nn.Module):
    """Features beside their own region means at several scales, fused by one 3×3 convolution.

    Args:
        in_channels: channels of the features.
        bins: regions per side of each branch.
        branch_channels: channels each branch is reduced to.
        out_channels: channels after the fusing convolution.
        align_corners: how the branches are enlarged.
    """

    def __init__(
        self,
        in_channels: int,
        bins: Sequence[int],
        branch_channels: int,
        out_channels: int,
        align_corners: bool,
    ) -> None:
        super().__init__()
        self.bins = tuple(bins)
        self.align_corners = align_corners
        self.branches = nn.ModuleList(conv_bn_relu(in_channels, branch_channels, 1) for _ in self.bins)
        self.fuse = conv_bn_relu(in_channels + branch_channels * len(self.bins), out_channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        """``[N, in_channels, h, w]`` to ``[N, out_channels, h, w]``."""
        levels = [features]
        for bins, branch in zip(self.bins, self.branches, strict=True):
            means = branch(adaptive_average(features, bins))
            levels.append(F.interpolate(means, features.shape[-2:], mode="bilinear", align_corners=self.align_corners))
        return self.fuse(torch.cat(levels, 1))  # type: ignore[no-any-return]


HEADS = {"concat": ConcatPyramid}
