"""Bilinear upsampling as multiplication by a constant matrix per axis."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_P = ParamSpec("_P")
_T = TypeVar("_T")


def constant(make: Callable[_P, _T]) -> Callable[_P, _T]:
    """Cache the small constant matrices that ``make`` returns: building them takes dozens of tiny device operations."""
    cached = lru_cache(maxsize=64)(make)

    @wraps(make)
    def get(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        # While tracing, sizes may be symbolic and tensors fake.
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if traced or is_in_torch_dispatch_mode():
            return make(*args, **kwargs)
        with torch.inference_mode(False):  # training cannot use inference tensors
            return cached(*args, **kwargs)  # type: ignore[arg-type]

    return get


@constant
def interpolation_matrix(
    length: int, size: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``[size, length]``: the weight of each of ``length`` positions in each of ``size`` interpolated ones.

    These are the upsampled rows of an identity matrix, hence exactly torch's own weights.
    """
    unit = torch.eye(length, dtype=dtype, device=device)[None]
    return F.interpolate(unit, size, mode="linear", align_corners=align_corners)[0].T.contiguous()


def upsample(maps: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bilinear interpolation of ``[N, C, h, w]`` to ``[N, C, *size]`` of the same dtype, regardless of autocast.

    Where gradients are needed, matrix products are used: on CUDA the gradient of ``F.interpolate`` uses atomic
    additions, so it differs from run to run and takes a tenth of a training step.
    """
    if not maps.requires_grad:
        return F.interpolate(maps, size, mode="bilinear", align_corners=align_corners)
    rows, columns = (
        interpolation_matrix(length, wanted, align_corners, maps.dtype, maps.device)
        for length, wanted in zip(maps.shape[-2:], size, strict=True)
    )
    kind = maps.device.type
    # `is_autocast_enabled` raises for devices without autocast; the compiler cannot trace the check and needs none.
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(kind)
    if known and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return rows @ (maps @ columns.T)
    return rows @ (maps @ columns.T)
