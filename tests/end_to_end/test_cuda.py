"""``device=cuda`` gives the CPU's results within the precision of the format. Run with ``pytest -m cuda``."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pspexp.engine.trainer import Trainer
from tests.conftest import PSPNET18, Cli, last, losses
from tests.engine.test_trainer import assert_same

pytestmark = [pytest.mark.cuda, pytest.mark.slow]

CHECKOUT = Path(__file__).parents[2]
CUDA = (*PSPNET18, "device=cuda", "model.dropout=0")
# NCCL allows two processes on one GPU if they appear to run on different hosts.
DISTINCT_HOSTS = "import os\nos.environ['NCCL_HOSTID'] = f'host{os.getpid()}'\n"


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.03), ("fp16", 0.03)])
def test_losses_match_the_cpu_within_tolerance(cli: Cli, tmp_path: Path, precision: str, tolerance: float) -> None:
    assert cli(*CUDA, "device=cpu", "precision=fp32", "hydra.run.dir=cpu") == 0
    assert cli(*CUDA, f"precision={precision}", "hydra.run.dir=cuda") == 0
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=tolerance)
    overrides = ("mode=test", "checkpoint.path=cuda/checkpoints/last.pt", "loader.num_workers=0", "tracking=none")
    assert cli(*overrides, "device=cpu", "precision=fp32", "hydra.run.dir=test") == 0  # readable without a GPU
    tested = json.loads((tmp_path / "test" / "summary.json").read_text())["last"]["test/loss"]
    assert tested == pytest.approx(losses(tmp_path / "cuda")[-1], rel=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # in fp16, the scaler reads whether to skip a step
def test_steps_read_nothing_from_the_gpu(cli: Cli, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    step = Trainer._step

    def watched(trainer: Trainer, batches: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(trainer, batches)
            with pytest.raises(RuntimeError, match="synchroniz"):  # it would have been noticed
                torch.ones(1, device="cuda").item()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_step", watched)
    assert cli(*CUDA, f"precision={precision}", "trainer.log_every=4", "trainer.grad_clip=1") == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resume_reproduces_an_uninterrupted_run(cli: Cli, tmp_path: Path, precision: str) -> None:
    overrides = (*PSPNET18, "device=cuda", f"precision={precision}", "trainer.ema=0.9")
    assert cli(*overrides, "hydra.run.dir=whole") == 0
    assert cli(*overrides, "hydra.run.dir=part", "trainer.max_steps=1") == 0
    assert cli(*overrides, "hydra.run.dir=part", "checkpoint.resume=auto") == 0
    assert losses(tmp_path / "part")[-1] == pytest.approx(losses(tmp_path / "whole")[-1], rel=1e-4)
    if precision == "fp32":
        return  # cuDNN is not deterministic: even two identical runs differ in the last bits
    whole, part = last(tmp_path / "whole"), last(tmp_path / "part")
    for key in ("model", "ema", "metrics"):
        assert_same(whole[key], part[key], key)
    assert_same(whole["training"], part["training"])


def test_compiled_network_matches_eager_losses(cli: Cli, tmp_path: Path) -> None:
    assert cli(*CUDA, "precision=fp32", "hydra.run.dir=plain") == 0
    assert cli(*CUDA, "precision=fp32", "trainer.compile=true", "hydra.run.dir=compiled") == 0
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-3)


def test_two_processes_with_sync_batch_norm_match_one(cli: Cli, tmp_path: Path) -> None:
    shared = (*CUDA, "dataset.num_train=8", "precision=fp32")
    assert cli(*shared, "loader.batch_size=4", "hydra.run.dir=one") == 0
    (tmp_path / "sitecustomize.py").write_text(DISTINCT_HOSTS)
    path = f"{tmp_path}{os.pathsep}{CHECKOUT}"
    one_gpu = {"NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    two = ("launcher=ddp", "launcher.nproc_per_node=2", "device.index=0", "hydra.run.dir=two")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[
        0
    ]  # index 0 is refused if several GPUs are visible
    done = subprocess.run(
        [sys.executable, "-m", "pspexp", *shared, *two],
        cwd=tmp_path,
        env={**os.environ, **one_gpu, "CUDA_VISIBLE_DEVICES": visible},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sync_batch_norm" not in done.stdout
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


def test_check_describes_the_gpu(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("mode=check", *CUDA) == 0
    output = capsys.readouterr().out
    for fact in ("cuda:0", "precision=fp16: yes, with a gradient scaler", "nccl", "configuration is valid"):
        assert fact in output
