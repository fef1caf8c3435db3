"""Where tensors live and in which precision the network computes.

No branch here asks for a device's *name*: what a device can do is found by trying it.
"""

from contextlib import AbstractContextManager
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

    @property
    def _module(self) -> Any:
        return getattr(torch, self.type, None)

    @property
    def pin_memory(self) -> bool:
        """Whether page-locked host memory speeds up copies to this device."""
        return hasattr(self._module, "get_device_properties")

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` on this device; from pinned memory without waiting for the copy."""
        return tensor.to(self.torch, non_blocking=True)

    def describe(self) -> str:
        """Name for people, e.g. ``cpu (2 threads)`` or ``cuda (NVIDIA H100, 80 GiB)``."""
        if hasattr(self._module, "get_device_properties"):
            properties = self._module.get_device_properties(self.torch)
            return f"{self.type} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)"
        return f"{self.type} ({torch.get_num_threads()} threads)" if self.type == "cpu" else self.type


class Precision:
    """The number format of the forward pass; parameters and optimizer stay in float32.

    Args:
        name: ``fp32``; ``bf16`` (autocast); ``auto``: bf16 on devices that compute it natively, else fp32.
            On CPUs ``auto`` means fp32: bf16 autocast is slower there without matrix units for it.
    """

    def __init__(self, name: Literal["auto", "fp32", "bf16"] = "auto") -> None:
        self.name = name

    def resolve(self, device: Device) -> str:
        """``fp32`` or ``bf16``.

        Raises:
            UserError: the device refuses bf16.
        """
        if self.name == "auto":
            return "bf16" if device.type != "cpu" and supports_bf16(device) else "fp32"
        if self.name == "bf16" and not supports_bf16(device):
            raise UserError(f"precision=bf16: {device.describe()} does not support it; use precision=fp32")
        return self.name

    def autocast(self, device: Device) -> AbstractContextManager[Any]:
        """Context for forward passes on ``device``."""
        dtype = AUTOCAST_DTYPES.get(self.resolve(device))
        # Disabled autocast, not a null context: then an outer autocast cannot leak in.
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def supports_bf16(device: Device) -> bool:
    """Whether bf16 autocast works natively on ``device``."""
    module: Any = getattr(torch, device.type, None)
    if hasattr(module, "is_bf16_supported"):
        return bool(module.is_bf16_supported(including_emulation=False))
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            sample = torch.ones(2, 2, device=device.torch)
            return (sample @ sample).dtype == torch.bfloat16
    except (RuntimeError, TypeError):
        return False
