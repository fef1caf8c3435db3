"""Where tensors live and in which precision the network computes.

No branch here asks for a device's *name*: what a device can do is found by trying it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal

import torch

from pspexp.errors import UserError

AUTO_ORDER = ("cuda", "mps")  # what ``auto`` tries before the CPU
AUTOCAST_DTYPES = {"bf16": torch.bfloat16}


def why_unusable(kind: str) -> str | None:
    """None if a tensor can be made on the device ``kind``, else torch's own reason in one line."""
    try:
        torch.zeros(1, device=kind)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return str(error).strip().split("\n")[0].split(". ")[0].rstrip(".")
    return None


class Device:
    """One place for tensors.

    Args:
        type: a torch device type, or ``auto``: the first usable of CUDA and MPS, else the CPU.

    Raises:
        UserError: the device cannot be used on this machine; names torch's reason.
    """

    def __init__(self, type: str = "auto") -> None:
        if type == "auto":
            type = next((kind for kind in AUTO_ORDER if why_unusable(kind) is None), "cpu")
        elif reason := why_unusable(type):
            raise UserError(f"device={type}: not usable here ({reason}); try device=auto or device=cpu")
        self.type = type
        self.torch = torch.device(type)
        # Copies in a stream of their own need not wait for the work that is queued.
        self._copies: Any = self._module.Stream() if self.pin_memory and hasattr(self._module, "Stream") else None

    @property
    def _module(self) -> Any:
        return getattr(torch, self.type, None)

    @property
    def pin_memory(self) -> bool:
        """Whether page-locked host memory speeds up copies to this device."""
        return hasattr(self._module, "get_device_properties")

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` on this device; from pinned memory without waiting, and beside the work that is queued."""
        if self._copies is None or not tensor.is_pinned():
            return tensor.to(self.torch, non_blocking=True)
        with self._module.stream(self._copies):
            moved = tensor.to(self.torch, non_blocking=True)
        now = self._module.current_stream()
        now.wait_stream(self._copies)
        moved.record_stream(now)  # else its memory could be given away while it is still read
        return moved

    def mark(self) -> Callable[[], None]:
        """Mark the end of the work queued so far; calling the result waits until the device has come there."""
        if self._copies is None:
            return lambda: None  # computes at once, or queues without telling
        event = self._module.Event()
        event.record()
        wait: Callable[[], None] = event.synchronize
        return wait

    def describe(self) -> str:
        """Name for people, e.g. ``cpu (2 threads)`` or ``cuda (NVIDIA H100, 80 GiB)``."""
        if hasattr(self._module, "get_device_properties"):
            properties = self._module.get_device_properties(self.torch)
            return f"{self.type} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)"
        return f"{self.type} ({torch.get_num_threads()} threads)" if self.type == "cpu" else self.type


class Precision:
    """The number format of the forward pass; parameters and optimizer stay in float32.

    Args:
        name: ``fp32``; ``tf32``: float32 whose products are rounded to TF32 on devices that can, NVIDIA's since
            Ampere; ``bf16`` (autocast); ``auto``: bf16 on devices that say they compute it natively, else fp32,
            as on CPUs, where it depends on the network whether bf16 is faster or slower.
    """

    def __init__(self, name: Literal["auto", "fp32", "tf32", "bf16"] = "auto") -> None:
        self.name = name

    def apply(self) -> None:
        """Set for this process how torch multiplies float32 numbers: exactly, unless this is ``tf32``.

        Torch by itself would round in convolutions but not in matrix products.
        """
        torch.set_float32_matmul_precision("high" if self.name == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self.name == "tf32"

    def resolve(self, device: Device) -> str:
        """``fp32``, ``tf32`` or ``bf16``.

        Raises:
            UserError: the device refuses bf16.
        """
        if self.name == "auto":
            return "bf16" if computes_bf16(device.type) else "fp32"
        if self.name == "bf16" and not supports_bf16(device.type):
            raise UserError(f"precision=bf16: {device.describe()} does not support it; use precision=fp32")
        return self.name

    def autocast(self, device: Device) -> AbstractContextManager[Any]:
        """Context for forward passes on ``device``."""
        dtype = AUTOCAST_DTYPES.get(self.resolve(device))
        # Not a disabled autocast: older torch refuses to make one for devices that know none.
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def computes_bf16(kind: str) -> bool:
    """Whether a device type says of itself that it computes bf16 natively, and so gains by it."""
    module: Any = getattr(torch, kind, None)
    return hasattr(module, "is_bf16_supported") and bool(module.is_bf16_supported(including_emulation=False))


@cache
def supports_bf16(kind: str) -> bool:
    """Whether bf16 autocast works on a device type, fast or not; tried with a small product."""
    try:
        with torch.autocast(kind, dtype=torch.bfloat16):
            sample = torch.ones(2, 2, device=kind)
            return (sample @ sample).dtype == torch.bfloat16
    except (RuntimeError, TypeError):
        return False
