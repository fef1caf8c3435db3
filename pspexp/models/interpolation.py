"""Enlarging as multiplication by fixed matrices, one for each axis."""

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
    """Keep the small fixed matrices that ``make`` returns: making them takes dozens of tiny device operations."""
    cached = lru_cache(maxsize=64)(make)

    @wraps(make)
    def get(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        # The sizes may be symbols, the tensors fake.
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if traced or is_in_torch_dispatch_mode():
            return make(*args, **kwargs)
        with torch.inference_mode(False):  # an inference tensor could not serve training later
            return cached(*args, **kwargs)  # type: ignore[arg-type]

    return get


@constant
def interpolation_matrix(
    length: int, size: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``[size, length]``: the share of each of ``length`` positions in each of ``size``, linearly interpolated.

    The upsampled rows of an identity matrix, so they are torch's own weights, to the last bit.
    """
    unit = torch.eye(length, dtype=dtype, device=device)[None]
    return F.interpolate(unit, size, mode="linear", align_corners=align_corners)[0].T.contiguous()


def upsample(maps: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bilinear interpolation: ``[N, C, h, w]``, float32 or better, to ``[N, C, *size]``, whatever autocast is on.

    Where a gradient is wanted, by matrix products: on CUDA the gradient of ``F.interpolate`` adds atomically, so
    that it differs from run to run and takes a tenth of a training step.
    """
    if not maps.requires_grad:
        return F.interpolate(maps, size, mode="bilinear", align_corners=align_corners)
    rows, columns = (
        interpolation_matrix(length, wanted, align_corners, maps.dtype, maps.device)
        for length, wanted in zip(maps.shape[-2:], size, strict=True)
    )
    kind = maps.device.type
    # Asking about a device that knows no autocast raises; the compiler cannot trace the question and needs none.
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(kind)
    if known and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return rows @ (maps @ columns.T)
    return rows @ (maps @ columns.T)
