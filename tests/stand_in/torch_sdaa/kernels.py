"""The five operators of SyncBatchNorm, which torch implements only for CUDA, so there is no CPU fallback."""

from collections.abc import Callable

import torch
from torch import Tensor

_library = torch.library.Library("aten", "IMPL")


def _kernel(function: Callable) -> Callable:
    _library.impl(function.__name__, function, "PrivateUse1")
    return function


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


@_kernel
def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    dims = _all_but_channels(x)
    return x.float().mean(dims), (x.float().var(dims, unbiased=False) + eps).rsqrt()


@_kernel
def batch_norm_gather_stats_with_counts(
    x: Tensor,
    means: Tensor,
    invstds: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    share = (counts / counts.sum()).view(-1, 1)
    mean = (means * share).sum(0)
    var = ((invstds.pow(-2) - eps + (means - mean).pow(2)) * share).sum(0)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (counts.sum() / (counts.sum() - 1)), momentum)
    return mean, (var + eps).rsqrt()


@_kernel
def batch_norm_elemt(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    y = (x.float() - _per_channel(mean, x)) * _per_channel(invstd, x)
    if weight is not None and bias is not None:
        y = y * _per_channel(weight, x) + _per_channel(bias, x)
    return y.to(x.dtype)


@_kernel
def batch_norm_backward_reduce(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    input_wanted: bool,
    weight_wanted: bool,
    bias_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dims, dy = _all_but_channels(x), dy.float()
    sum_dy = dy.sum(dims)
    sum_dy_xmu = (dy * (x.float() - _per_channel(mean, x))).sum(dims)
    return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd, sum_dy.clone()  # the caller ignores what it does not need


@_kernel
def batch_norm_backward_elemt(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: Tensor,
) -> Tensor:
    n = count.sum()
    slope = _per_channel(invstd.pow(2) * sum_dy_xmu / n, x)
    dx = dy.float() - _per_channel(sum_dy / n, x) - (x.float() - _per_channel(mean, x)) * slope
    return (dx * _per_channel(invstd if weight is None else invstd * weight, x)).to(x.dtype)
