"""Devices and precisions: availability, capabilities and plugins."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pspexp.engine.device import Device, unavailable_reason
from pspexp.engine.precision import Precision, unsupported_reason
from pspexp.errors import ArgumentError, UserError


def test_auto_and_cpu_are_available() -> None:
    assert unavailable_reason("cpu") is None
    assert unavailable_reason(Device("auto").type) is None
    assert Device("cpu").move(torch.ones(1)).device.type == "cpu"
    assert "thread" in Device("cpu").describe()


def test_missing_device_is_refused_with_torchs_reason() -> None:
    missing = next(kind for kind in ("cuda", "mps", "xpu") if unavailable_reason(kind))
    with pytest.raises(UserError, match=f"device={missing}: not available here .*; try device=auto or device=cpu"):
        Device(missing)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp32", torch.float32),
        ("tf32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
    ],
)
def test_precision_on_the_cpu(name: str, dtype: torch.dtype) -> None:
    device = Device("cpu")
    assert unsupported_reason("bf16", device) is None
    with Precision(name).autocast(device):  # type: ignore[arg-type]
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_depthwise_convolutions_compute_in_float32_in_bf16_on_cpus() -> None:
    device, precision = Device("cpu"), Precision("bf16")
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 5, groups=8, padding=2), nn.Conv2d(8, 4, 3, groups=2))
    precision.prepare(model, device)
    images = torch.rand(2, 3, 9, 9)
    for network in (model, deepcopy(model)):
        nn.init.uniform_(network[1].weight)  # another one for the copy
        with precision.autocast(device):
            pointwise = network[0](images)
            depthwise = network[1](pointwise)
            assert network[2](depthwise).dtype == depthwise.dtype == torch.bfloat16
        exact = F.conv2d(pointwise.float(), network[1].weight, network[1].bias, padding=2, groups=8)
        assert torch.equal(depthwise, exact.bfloat16())


@pytest.fixture
def _restore_tf32() -> Iterator[None]:
    """Restore torch's settings for float32 matrix products."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.usefixtures("_restore_tf32")
def test_only_tf32_rounds_float32_matrix_products() -> None:
    for name, rounds in (("tf32", True), ("fp32", False), ("bf16", False)):
        Precision(name).apply()  # type: ignore[arg-type]
        assert torch.backends.cudnn.allow_tf32 is rounds
        assert torch.get_float32_matmul_precision() == ("high" if rounds else "highest")


@pytest.mark.cuda
def test_asynchronous_copies_finish_before_use() -> None:
    device = Device("cuda")
    busy = torch.randn(4096, 4096, device="cuda")
    for number in range(20):
        for _ in range(5):
            busy = busy @ busy / 4096
        moved = device.move(torch.full((1 << 22,), number).pin_memory())
        assert int((moved != number).sum()) == 0
    device.record_event()()


def test_missing_plugin_is_named() -> None:
    with pytest.raises(UserError, match="device=npu: plugin torch_nowhere is not installed; follow the vendor's instr"):
        Device("npu", plugin="torch_nowhere")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise OSError('libcard.so: cannot open')", "OSError: libcard.so: cannot open"),
        ("import missing_module", "ModuleNotFoundError: No module named 'missing_module'"),
    ],
)
def test_plugin_that_fails_to_import_is_named_with_its_error(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch_broken.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError) as caught:
        Device("npu", plugin="torch_broken")
    assert str(caught.value) == (
        f"device=npu: plugin torch_broken fails to import ({reason}); repair it or its driver, or use device=cpu"
    )


def test_missing_class_is_named_with_its_argument() -> None:
    with pytest.raises(ArgumentError, match=r"^grad_scaler=torch.amp.Scaler: cannot be imported \(.*Scaler"):
        Device("cpu", grad_scaler="torch.amp.Scaler")


def test_invalid_arguments_are_reported_together() -> None:
    with pytest.raises(ArgumentError) as caught:
        Device("cpu", index=-1, amp_dtypes=["fp8"])  # type: ignore[list-item]
    assert caught.value.problems == (
        "index=-1: must be greater than or equal to 0",
        "amp_dtypes.0=fp8: must be 'bf16' or 'fp16'",
    )
    with pytest.raises(ArgumentError, match=r"^name=fp8: must be 'auto', 'fp32', 'tf32', 'bf16' or 'fp16'$"):
        Precision("fp8")  # type: ignore[arg-type]


def test_device_index_is_refused_on_the_cpu() -> None:
    with pytest.raises(ArgumentError, match=r"^index=1: device=cpu has no cards"):
        Device("cpu", index=1)


class NoAutocast:
    """A replacement for ``torch.autocast`` without effect."""

    def __init__(self, dtype: torch.dtype) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def disabled_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=False)


def test_precision_without_effect_is_refused() -> None:
    device = Device("cpu", autocast=f"{__name__}.NoAutocast")
    with pytest.raises(
        UserError, match=r"precision=bf16: not supported on cpu .* \(autocast has no effect\); use prec"
    ):
        Precision("bf16").resolve(device)


def test_disabled_scaler_is_refused() -> None:
    device = Device("cpu", grad_scaler=f"{__name__}.disabled_scaler")
    with pytest.raises(UserError, match=r"precision=fp16: .* \(the gradient scaler disables itself\)"):
        Precision("fp16").resolve(device)


def test_process_groups_use_gloo_on_the_cpu_and_the_device_backend() -> None:
    assert Device("cpu").backends() == "cpu:gloo"
    device = Device("cpu", dist_backend="ncll")
    device.type = "cuda"  # as if there were a GPU
    with pytest.raises(UserError, match=r"device\.dist_backend=ncll: not available in this torch; use one of .*gloo"):
        device.backends()
