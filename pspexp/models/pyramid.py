"""Pyramid pooling (Zhao et al., CVPR 2017, arXiv 1612.01105, section 3.2), as published and factorised."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pspexp.models.interpolation import constant, interpolation_matrix

Head = Literal["concat", "factorised"]
Matrices = tuple[Tensor, ...]


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """Convolution without bias that keeps height and width, batch norm, ReLU.

    PyTorch's default initialisation is kept, as in semseg. In front of a batch norm the norm of a weight only sets
    how far one optimizer step rotates it. Here it is small, so the new head learns faster than the backbone.
    """
    padding = kernel_size // 2
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False),
            bn=nn.BatchNorm2d(out_channels),
            relu=nn.ReLU(inplace=True),
        )
    )


def auxiliary_head(in_channels: int, channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Features by a 3×3 convolution, dropout of channels, a 1×1 classifier: ``[N, in_channels, h, w]`` to logits."""
    return nn.Sequential(
        OrderedDict(
            features=conv_bn_relu(in_channels, channels, 3),
            dropout=nn.Dropout2d(dropout),
            classifier=nn.Conv2d(channels, num_classes, 1),
        )
    )


@constant
def region_masks(bins: Sequence[int], size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which of ``size`` positions each adaptive-pooling region covers, with the regions of all ``bins`` stacked.

    Of n regions, region i extends from ``floor(i * size / n)`` to ``ceil((i + 1) * size / n)``, as in
    ``AdaptiveAvgPool2d``.

    Returns:
        0/1 ``[sum(bins), size]`` and the regions' lengths ``[sum(bins), 1]``.
    """
    position = torch.arange(size, device=device)
    masks = []
    for n in bins:
        region = torch.arange(n, device=device)[:, None]
        masks.append((position >= region * size // n) & (position < ((region + 1) * size + n - 1) // n))
    covered = torch.cat(masks).to(dtype)
    return covered, covered.sum(1, keepdim=True)


def adaptive_averages(features: Tensor, bins: Sequence[int]) -> list[Tensor]:
    """Means over n × n regions, for each n in ``bins``: ``[N, C, h, w]`` to ``[N, C, n, n]`` each.

    Equivalent to ``F.adaptive_avg_pool2d``, which reads the features once for each n, is not supported on MPS for
    sides that are not multiples of n, and has a gradient that differs from run to run on CUDA. Dividing after each
    sum, rather than multiplying by rounded reciprocals, keeps the means unbiased in half precision, and the short
    sums stay within float16's range.
    """
    height, width = features.shape[-2:]
    rows, row_lengths = region_masks(tuple(bins), height, features.dtype, features.device)
    columns, column_lengths = region_masks(tuple(bins), width, features.dtype, features.device)
    parts = list(bins)
    row_parts = zip(torch.split(rows, parts), torch.split(row_lengths, parts), strict=True)
    column_parts = zip(torch.split(columns, parts), torch.split(column_lengths, parts), strict=True)
    if _is_channels_last(features):
        by_row = features.permute(0, 2, 3, 1).flatten(2)
        down = ((rows @ by_row) / row_lengths).view(features.shape[0], sum(parts), width, -1)
        means = [(mask @ d) / n for (mask, n), d in zip(column_parts, torch.split(down, parts, 1), strict=True)]
        return [m.permute(0, 3, 1, 2) for m in means]
    across = torch.split((features @ columns.T) / column_lengths.T, parts, 3)
    return [(mask @ a) / n for (mask, n), a in zip(row_parts, across, strict=True)]


@constant
def tap_matrices(
    bins: Sequence[int], size: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> Matrices:
    """One axis of "upsample n positions to ``size``, then apply a 3-tap convolution", as matrices ``[size, 3n]``.

    Column ``3 * i + k`` is the weight of position i in each output position through tap k: linear interpolation
    shifted by ``k - 1``, with the convolution's zero padding beyond the ends.
    """
    precise = torch.promote_types(dtype, torch.float32)
    matrices = []
    for n in bins:
        padded = F.pad(interpolation_matrix(n, size, align_corners, precise, device), (0, 0, 1, 1))
        matrices.append(torch.stack([padded[k : k + size] for k in range(3)], 2).flatten(1).to(dtype))
    return tuple(matrices)


class ConcatPyramid(nn.Module):
    """Concatenates the features with their region means at several scales and fuses them by a 3×3 convolution.

    Args:
        in_channels: Channels of the features.
        bins: Regions per side of each branch.
        branch_channels: Channels of each branch after its 1×1 convolution.
        out_channels: Channels after the fusing convolution.
        align_corners: Whether the branches are upsampled with aligned corners.
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
        size = features.shape[-2:]
        upsampled = [
            F.interpolate(level, size, mode="bilinear", align_corners=self.align_corners)
            for level in self.levels(features)
        ]
        return self.fuse(torch.cat([features, *upsampled], 1))  # type: ignore[no-any-return]

    def levels(self, features: Tensor) -> list[Tensor]:
        """The branches before they are upsampled: ``[N, branch_channels, n, n]`` for each n in ``bins``."""
        averages = adaptive_averages(features, self.bins)
        return [branch(means) for branch, means in zip(self.branches, averages, strict=True)]


class FactorisedPyramid(ConcatPyramid):
    """The same function of the same weights, without the concatenation.

    The fusing convolution is linear, and an upsampled branch is a constant linear map of its few positions. So the
    kernel is split by input channels: the features are convolved as usual, while the nine taps are applied to each
    branch at its n × n positions, and one matrix per axis (`tap_matrices`) both upsamples and shifts the results.
    At 513×513 and output stride 8 the head takes half the multiplications and does without its largest tensor. The
    result differs from `ConcatPyramid`'s in rounding only.
    """

    def forward(self, features: Tensor) -> Tensor:
        """``[N, in_channels, h, w]`` to ``[N, out_channels, h, w]``."""
        levels = self.levels(features)
        conv, norm, relu = self.fuse
        assert isinstance(conv, nn.Conv2d)
        own, *taps = torch.split(conv.weight, [features.shape[1], *(level.shape[1] for level in levels)], 1)
        fused = F.conv2d(features, own, conv.bias, padding=1)
        constants = (self.align_corners, fused.dtype, fused.device)
        rows = tap_matrices(self.bins, fused.shape[2], *constants)
        columns = tap_matrices(self.bins, fused.shape[3], *constants)
        add = _add_channels_last if _is_channels_last(fused) else _add_contiguous
        return relu(norm(add(fused, levels, taps, rows, columns)))  # type: ignore[no-any-return]


def _add_contiguous(
    fused: Tensor, levels: Sequence[Tensor], taps: Sequence[Tensor], rows: Matrices, columns: Matrices
) -> Tensor:
    """Add the branches' contributions to ``fused [N, O, h, w]`` in place, by one product over all branches.

    Args:
        levels: One ``[N, C, n, n]`` per branch.
        taps: The branches' parts of the kernel, ``[O, C, 3, 3]``.
        rows, columns: The branches' `tap_matrices` of h and w.
    """
    images, channels, _, width = fused.shape
    parts = []
    for level, kernel, row in zip(levels, taps, rows, strict=True):
        n = level.shape[-1]
        positions = level.transpose(0, 1).flatten(1)  # [C, N n n]
        tapped = kernel.permute(0, 2, 3, 1).flatten(0, 2) @ positions
        grid = tapped.view(channels, 3, 3, images, n, n).permute(3, 0, 4, 1, 5, 2)
        parts.append(row @ grid.reshape(images * channels, 3 * n, 3 * n))  # [N O, h, 3n]
    product = torch.cat(parts, 2).flatten(0, 1), torch.cat(columns, 1).T
    if _is_traced():
        return fused.reshape(-1, width).addmm(*product).reshape(fused.shape)
    fused.view(-1, width).addmm_(*product)
    return fused


def _add_channels_last(
    fused: Tensor, levels: Sequence[Tensor], taps: Sequence[Tensor], rows: Matrices, columns: Matrices
) -> Tensor:
    """`_add_contiguous` for channels-last tensors: the last dimension of every product is the channels."""
    images, channels, height, width = fused.shape
    parts = []
    for level, kernel, column in zip(levels, taps, columns, strict=True):
        n = level.shape[-1]
        positions = level.permute(0, 2, 3, 1).flatten(0, 2)  # [N n n, C]
        tapped = positions @ kernel.permute(0, 2, 3, 1).flatten(0, 2).T
        grid = tapped.view(images, n, n, channels, 3, 3).permute(0, 1, 4, 2, 5, 3)
        parts.append((column @ grid.reshape(images, 3 * n, 3 * n, channels)).flatten(2))  # [N, 3n, w O]
    by_row = fused.permute(0, 2, 3, 1).view(images, height, width * channels)
    product = torch.cat(rows, 1).expand(images, -1, -1), torch.cat(parts, 1)
    if _is_traced():
        return by_row.baddbmm(*product).view(images, height, width, channels).permute(0, 3, 1, 2)
    by_row.baddbmm_(*product)
    return fused


def _is_traced() -> bool:
    """Whether the operations are recorded: TorchScript loses writes through views, torch.export changes strides."""
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.stride(1) == 1  # `is_contiguous` does not detect it when compiled for any batch size


HEADS: dict[Head, type[ConcatPyramid]] = {"concat": ConcatPyramid, "factorised": FactorisedPyramid}
