"""Numerical precision of the forward pass."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pspexp.engine.cpu_bf16 import bf16_on_this_cpu
from pspexp.engine.device import HOST, Device
from pspexp.errors import UserError, setting
from pspexp.utils.arguments import checked
from pspexp.utils.text import first_line

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Precision of the forward pass; parameters and optimizer state stay in float32.

    Args:
        name: ``fp32``; ``tf32`` (float32 with products rounded to TF32 where the hardware supports it, NVIDIA since
            Ampere); ``bf16`` and ``fp16`` (autocast; fp16 with a gradient scaler); or ``auto``, the fastest format
            of the device: the first of its ``amp_dtypes``; without these, bf16 if torch reports native support, fp16
            if it reports none; on CPUs, bf16 if they multiply it in hardware; otherwise fp32.
        resolved: What ``auto`` meant in the training that the weights are from. It is used again, unless this device
            does not gain by it.
    """

    @checked
    def __init__(
        self, name: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto", resolved: str | None = None
    ) -> None:
        self.name, self.resolved = name, resolved

    def apply(self) -> None:
        """Let float32 products in this process use TF32 for ``tf32`` only.

        By default torch uses it in convolutions, but not in matrix products.
        """
        torch.set_float32_matmul_precision("high" if self.name == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self.name == "tf32"

    def resolve(self, device: Device) -> str:
        """The format used on ``device``: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.

        Raises:
            UserError: The device does not support the format.
        """
        if self.name == "auto":
            found = [name for name in preferred_dtypes(device) if unsupported_reason(name, device) is None]
            return self.resolved if self.resolved in (*found, "fp32") else (*found, "fp32")[0]
        if reason := unsupported_reason(self.name, device):
            raise UserError(
                f"{setting('precision', self.name)}: not supported on {device.describe()} ({reason}); "
                f"use {setting('precision', 'fp32')}"
            )
        return self.name

    def explain(self, device: Device) -> str:
        """The format used on ``device``, and for ``auto`` why, in a few words."""
        resolved = self.resolve(device)
        if self.name != "auto":
            return resolved
        if self.resolved == resolved:
            return f"{resolved} (as in the training)"
        return f"{resolved} ({bf16_on_this_cpu()[1]})" if device.type == HOST else resolved

    def autocast(self, device: Device) -> AbstractContextManager[Any]:
        """Context of the forward passes on ``device``."""
        dtype = AUTOCAST_DTYPES.get(self.resolve(device))
        # Not a disabled autocast: older torch refuses to create one for devices without autocast.
        return nullcontext() if dtype is None else device.autocast(dtype)

    def prepare(self, model: nn.Module, device: Device) -> None:
        """Let ``model`` avoid what is slow in this format on ``device``.

        In bf16 on CPUs, depthwise convolutions compute in float32: oneDNN's kernels for their gradients are two to
        seven times slower in bf16 (docs/benchmarks.md).
        """
        if device.type == HOST and self.resolve(device) == "bf16":
            for module in model.modules():
                if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
                    # Bound to the module, so that copies of the model call their own.
                    module.forward = MethodType(float32_forward, module)  # type: ignore[method-assign]

    def grad_scaler(self, device: Device) -> torch.amp.GradScaler | None:
        """The scaler that keeps fp16 gradients from underflowing; None for other formats."""
        return device.grad_scaler() if self.resolve(device) == "fp16" else None


def float32_forward(module: nn.Module, features: Tensor) -> Tensor:
    """The module's own forward pass in float32, regardless of autocast; the result has the dtype of ``features``."""
    with torch.autocast(features.device.type, enabled=False):
        return type(module).forward(module, features.float()).to(features.dtype)  # type: ignore[no-any-return]


def preferred_dtypes(device: Device) -> Sequence[str]:
    """The mixed-precision formats that speed up a device, best first."""
    if device.amp_dtypes is not None:
        return device.amp_dtypes
    if device.type == HOST:
        return ("bf16",) if bf16_on_this_cpu()[0] else ()
    native = getattr(getattr(torch, device.type, None), "is_bf16_supported", None)
    if native is None:
        return ()
    try:
        return ("bf16",) if native(including_emulation=False) else ("fp16",)
    except TypeError:  # a plugin's function without this argument
        return ("bf16",) if native() else ("fp16",)


def unsupported_reason(name: str, device: Device) -> str | None:
    """Why a device does not support a format; None if it does."""
    if name not in AUTOCAST_DTYPES:
        return None
    if device.amp_dtypes is not None and name not in device.amp_dtypes:
        return setting("device.amp_dtypes", list(device.amp_dtypes))
    return autocast_failure(name, device)


@cache
def autocast_failure(name: str, device: Device) -> str | None:
    """What fails when autocast, and for fp16 the gradient scaler, is tried on a small product; None if nothing does."""
    try:
        with device.autocast(AUTOCAST_DTYPES[name]):
            sample = torch.ones(2, 2, device=device.torch)
            if (sample @ sample).dtype != AUTOCAST_DTYPES[name]:
                return "autocast has no effect"
        if name == "fp16" and not device.grad_scaler().is_enabled():
            return "the gradient scaler disables itself"
    except (RuntimeError, TypeError, ValueError) as error:
        return first_line(error)
    return None
