"""The number format in which the network computes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal

import torch

from pspexp.engine.device import Device, first_line
from pspexp.errors import UserError

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The number format of the forward pass; parameters and optimizer stay in float32.

    Args:
        name: ``fp32``; ``tf32``: float32 whose products are rounded to TF32 on devices that can, NVIDIA's since
            Ampere; ``bf16`` and ``fp16``: autocast, fp16 with a gradient scaler; ``auto``: the format that the
            device gains by: the first of its ``amp_dtypes``, else bf16 where it says it computes that natively,
            else fp16 where it asks to be asked, else fp32, as on CPUs, where it depends on the network whether
            bf16 is faster or slower.
    """

    def __init__(self, name: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto") -> None:
        self.name = name

    def apply(self) -> None:
        """Set for this process how torch multiplies float32 numbers: exactly, unless this is ``tf32``.

        Torch by itself would round in convolutions but not in matrix products.
        """
        torch.set_float32_matmul_precision("high" if self.name == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self.name == "tf32"

    def resolve(self, device: Device) -> str:
        """``fp32``, ``tf32``, ``bf16`` or ``fp16``.

        Raises:
            UserError: the device refuses it.
        """
        if self.name == "auto":
            return next((name for name in preferred(device) if why_not(name, device) is None), "fp32")
        if reason := why_not(self.name, device):
            raise UserError(f"precision={self.name}: not on {device.describe()} ({reason}); use precision=fp32")
        return self.name

    def autocast(self, device: Device) -> AbstractContextManager[Any]:
        """Context for forward passes on ``device``."""
        dtype = AUTOCAST_DTYPES.get(self.resolve(device))
        # Not a disabled autocast: older torch refuses to make one for devices that know none.
        return nullcontext() if dtype is None else device.autocast(dtype)

    def grad_scaler(self, device: Device) -> torch.amp.GradScaler | None:
        """The scaler that keeps fp16 gradients from vanishing; None in other formats."""
        return device.grad_scaler() if self.resolve(device) == "fp16" else None


def preferred(device: Device) -> Sequence[str]:
    """The formats of mixed precision that a device gains by, best first."""
    if device.amp_dtypes is not None:
        return device.amp_dtypes
    native = getattr(getattr(torch, device.type, None), "is_bf16_supported", None)
    if native is None:
        return ()
    try:
        return ("bf16",) if native(including_emulation=False) else ("fp16",)
    except TypeError:  # only torch's own knows of emulation
        return ("bf16",) if native() else ("fp16",)


def why_not(name: str, device: Device) -> str | None:
    """None if a device computes in a format, else the reason."""
    if name not in AUTOCAST_DTYPES:
        return None
    if device.amp_dtypes is not None and name not in device.amp_dtypes:
        return f"device.amp_dtypes={list(device.amp_dtypes)}"
    return trial(name, device)


@cache
def trial(name: str, device: Device) -> str | None:
    """What goes wrong with a small product under autocast, and with the scaler of fp16; None if nothing does."""
    try:
        with device.autocast(AUTOCAST_DTYPES[name]):
            sample = torch.ones(2, 2, device=device.torch)
            if (sample @ sample).dtype != AUTOCAST_DTYPES[name]:
                return "autocast does nothing there"
        if name == "fp16" and not device.grad_scaler().is_enabled():
            return "the gradient scaler turns itself off there"
    except (RuntimeError, TypeError, ValueError) as error:
        return first_line(error)
    return None
