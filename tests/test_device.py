"""Devices are what they can do, not what they are called."""

import pytest
import torch

from pspexp.device import Device, Precision, supports_bf16, why_unusable
from pspexp.errors import UserError


def test_auto_is_usable_and_the_cpu_always_is() -> None:
    assert why_unusable("cpu") is None
    assert why_unusable(Device("auto").type) is None
    assert Device("cpu").move(torch.ones(1)).device.type == "cpu"
    assert "threads" in Device("cpu").describe()


def test_a_missing_device_is_refused_with_torchs_reason() -> None:
    missing = next(kind for kind in ("cuda", "mps", "xpu") if why_unusable(kind))
    with pytest.raises(UserError, match=f"device={missing}: not usable here .*; try device=auto or device=cpu"):
        Device(missing)


@pytest.mark.parametrize(
    ("name", "dtype"), [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_precision_on_the_cpu(name: str, dtype: torch.dtype) -> None:
    device = Device("cpu")
    assert supports_bf16("cpu")
    with Precision(name).autocast(device):  # type: ignore[arg-type]
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
