"""``device=sdaa`` on the stand-in, an out-of-tree backend, gives the CPU's results."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pspexp.engine.trainer import Trainer
from tests.conftest import TINY, Cli, last, losses
from tests.engine.test_trainer import assert_same

STAND_IN = Path(__file__).parents[1] / "stand_in"
CHECKOUT = STAND_IN.parents[1]
ONE_EPOCH = (*TINY, "trainer.epochs=1")


@pytest.fixture(scope="module", autouse=True)
def _plug_in() -> Iterator[None]:
    sys.path.insert(0, str(STAND_IN))
    pytest.importorskip("torch_sdaa", exc_type=ImportError)
    yield
    torch.sdaa.set_device(0)  # type: ignore[attr-defined]
    sys.path.remove(str(STAND_IN))


def run_command(folder: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that can import the stand-in."""
    path = os.pathsep.join([*environment.pop("PYTHONPATH", "").split(os.pathsep), str(CHECKOUT), str(STAND_IN)])
    return subprocess.run(
        [sys.executable, "-m", "pspexp", *overrides],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path.lstrip(os.pathsep), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_training_is_bit_identical_to_the_cpu(cli: Cli, tmp_path: Path) -> None:
    for device in ("cpu", "sdaa"):
        overrides = (*TINY, f"device={device}", "precision=fp32", "trainer.accumulate=2", "trainer.ema=0.9")
        assert cli(*overrides, f"hydra.run.dir={device}") == 0
    on_cpu, on_sdaa = last(tmp_path / "cpu"), last(tmp_path / "sdaa")
    assert all(weight.device.type == "cpu" for weight in on_sdaa["model"].values())  # readable without the plugin
    for part in ("model", "ema", "metrics"):
        assert_same(on_cpu[part], on_sdaa[part])
    assert losses(tmp_path / "cpu") == losses(tmp_path / "sdaa")


class HostReads(TorchDispatchMode):
    """Records operators that make the host read from the device.

    Their results are on the host, or their output shapes depend on values on the device.
    """

    SHAPED = tuple(
        f"aten::{name}" for name in ("nonzero", "masked_select", "_unique2", "bincount", "repeat_interleave")
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        taken, given = (
            [one for one in tree_leaves(values) if isinstance(one, torch.Tensor)] for values in ([args, kwargs], result)
        )
        name = function._schema.name
        here = result is not None and all(one.device.type == "cpu" for one in given)
        by_mask = name in ("aten::index", "aten::index_put_") and any(one.dtype == torch.bool for one in taken)
        if any(one.device.type == "sdaa" for one in taken) and (here or by_mask or name in self.SHAPED):
            self.found.append(name)
        return result


@pytest.mark.parametrize(("optimizer", "precision"), [("sgd", "bf16"), ("adamw", "fp32")])
def test_steps_read_nothing_from_the_device(
    optimizer: str, precision: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are read where they are recorded; on a GPU, any other read would leave it idle."""
    steps, reads, step = [], HostReads(), Trainer._step

    def watched(trainer: Trainer, batches: Any) -> None:
        with reads:
            step(trainer, batches)
        steps.append(list(reads.found))

    monkeypatch.setattr(Trainer, "_step", watched)
    overrides = (f"optimizer={optimizer}", f"precision={precision}", "trainer.log_every=4", "trainer.grad_clip=1")
    assert cli(*TINY, "device=sdaa", "trainer.ema=0.9", *overrides) == 0
    assert steps == [[]] * 4
    ones = torch.ones(2, device="sdaa")
    with reads:  # it would have been noticed
        ones.sum().item()
        ones.cpu()
        ones.nonzero()
        ones[ones > 0]
    assert reads.found == ["aten::_local_scalar_dense", "aten::_to_copy", "aten::nonzero", "aten::index"]


@pytest.mark.parametrize(("precision", "saved_as"), [("auto", "fp16"), ("bf16", "bf16")])
def test_mixed_precision_is_close_to_float32_on_the_cpu(
    cli: Cli, tmp_path: Path, precision: str, saved_as: str
) -> None:
    assert cli(*ONE_EPOCH, "device=cpu", "precision=fp32", "hydra.run.dir=cpu") == 0
    assert cli(*ONE_EPOCH, "device=sdaa", f"precision={precision}", "hydra.run.dir=sdaa") == 0
    expected, found = losses(tmp_path / "cpu"), losses(tmp_path / "sdaa")
    assert found == pytest.approx(expected, rel=0.01)
    assert found != expected
    assert saved_as in (tmp_path / "sdaa" / "run.log").read_text()


@pytest.mark.slow
def test_fp16_resume_with_scaler_is_bit_exact(cli: Cli, tmp_path: Path) -> None:
    overrides = (*TINY, "device=sdaa", "precision=fp16")
    assert cli(*overrides, "hydra.run.dir=whole") == 0
    assert cli(*overrides, "hydra.run.dir=part", "trainer.max_steps=1") == 0
    assert cli(*overrides, "hydra.run.dir=part", "checkpoint.resume=auto") == 0
    whole, part = last(tmp_path / "whole"), last(tmp_path / "part")
    assert whole["training"]["scaler"]["scale"] == 65536.0
    whole["training"].pop("state"), part["training"].pop("state")  # the best result is from different validation steps
    for saved in (whole, part):
        saved.pop("config")
    assert_same(whole, part)


def test_checkpoints_are_portable_between_card_and_cpu(cli: Cli, tmp_path: Path) -> None:
    for device, other in (("sdaa", "cpu"), ("cpu", "sdaa")):
        assert cli(*ONE_EPOCH, f"device={device}", "precision=fp32", f"hydra.run.dir={device}") == 0
        overrides = ("mode=test", f"checkpoint.path={device}", "loader.num_workers=0", "tracking=none")
        assert cli(*overrides, f"device={other}", f"hydra.run.dir=test_{device}") == 0
        trained, tested = tmp_path / device / "tables", tmp_path / f"test_{device}" / "tables"
        assert (trained / "val_iou.csv").read_text() == (tested / "test_iou.csv").read_text()


def test_resume_with_another_precision_is_refused(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(*TINY, "precision=auto", "trainer.max_steps=1", "device=sdaa", "hydra.run.dir=run") == 0
    command = (*TINY, "precision=auto", "device=cpu", "hydra.run.dir=run", "checkpoint.resume=auto")
    assert cli(*command) == 2
    assert "precision=auto: fp16 in the saved run, " in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "FINISHED"


@pytest.mark.slow
def test_two_processes_with_sync_batch_norm_match_one(cli: Cli, tmp_path: Path) -> None:
    shared = (*TINY, "dataset.num_train=8", "precision=fp32", "model.dropout=0", "device=sdaa")
    assert cli(*shared, "loader.batch_size=4", "hydra.run.dir=one") == 0
    done = run_command(tmp_path, *shared, "launcher=ddp", "launcher.nproc_per_node=2", "hydra.run.dir=two")
    assert done.returncode == 0, done.stderr
    assert "sync_batch_norm" not in done.stdout
    test = ("mode=test", "checkpoint.path=two/checkpoints/last.pt", "loader.num_workers=0", "tracking=none")
    assert cli(*test, "device=sdaa", "precision=fp32", "hydra.run.dir=test") == 0
    assert (tmp_path / "two/tables/val_iou.csv").read_text() == (tmp_path / "test/tables/test_iou.csv").read_text()
    tested = json.loads((tmp_path / "test" / "summary.json").read_text())["last"]["test/loss"]
    assert losses(tmp_path / "two")[-1] == tested  # exactly equal: both fold the batch norms

    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = last(tmp_path / "one")["model"], last(tmp_path / "two")["model"]
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_missing_card_is_refused(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(*TINY, "device=sdaa", "device.index=5") == 2
    assert "device.index=5: this machine has 2 sdaa cards; use 0 to 1" in capsys.readouterr().err


def test_unsupported_precision_is_refused(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(*TINY, "device=sdaa", "device.amp_dtypes=[bf16]", "precision=fp16") == 2
    assert (
        "precision=fp16: not supported on sdaa:0 (device.amp_dtypes=[bf16]); use precision=fp32"
        in capsys.readouterr().err
    )


def test_check_describes_the_card(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("mode=check", *TINY, "device=sdaa") == 0
    output = " ".join(capsys.readouterr().out.split())
    for fact in ("2 × sdaa:0", "precision=fp16: yes, with a gradient scaler", "precision=auto: fp16", "gloo", "tccl"):
        assert fact in output


def test_plugin_that_breaks_the_torch_import_is_named(tmp_path: Path) -> None:
    info = tmp_path / "site" / "torch_sdaa-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-sdaa\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\ntorch_sdaa = broken_sdaa:_autoload\n")
    (tmp_path / "site" / "broken_sdaa.py").write_text("raise OSError('the driver is missing')")
    done = run_command(tmp_path, *TINY, "device=cpu", PYTHONPATH=str(tmp_path / "site"))
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 5):
        assert done.returncode == 0  # older torch does not load such plugins automatically
        return
    assert done.returncode == 2
    assert "torch_sdaa" in done.stderr
    assert "the driver is missing" in done.stderr
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("outputs/*")) == []
