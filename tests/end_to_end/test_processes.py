"""Multi-process jobs: starting, failing, stopping and resuming."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pspexp.losses import CrossEntropy
from tests.conftest import TINY, Cli, last
from tests.end_to_end.conftest import TIMEOUT_S, Start, children, wait_until
from tests.engine.test_trainer import assert_same

TWO = (*TINY, "launcher=ddp", "launcher.nproc_per_node=2")
LONG = (*TWO, "trainer.epochs=1000", "trainer.validate_every=1000", "trainer.log_every=4", "checkpoint.every_steps=4")


def status(run: Path) -> str:
    found: str = json.loads((run / "summary.json").read_text())["status"]
    return found


def steps(run: Path) -> list[int]:
    if not (run / "metrics.jsonl").exists():
        return []
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def finished(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Return the exit code and the output."""
    output, errors = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, output + errors


def assert_logged_once(output: str) -> None:
    lines = [
        re.sub(r"  [\d.]+ images/s", "", line)
        for line in output.splitlines()
        if line.startswith(("train ", "epoch ", "val "))
    ]
    assert any(line.startswith("train  step 1/") for line in lines)
    assert len(lines) == len(set(lines)) + sum(line.startswith("val ") for line in lines) - 1  # one per validation


@pytest.mark.slow
def test_torchrun_and_ddp_give_the_same_results(start: Start, tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "pspexp")
    overrides = (*TINY, "tracking=mlflow")
    both = [  # concurrently: they must not interfere
        start(*overrides, "launcher=torchrun", "output_root=torchrun", command=torchrun),
        start(*overrides, "launcher=ddp", "launcher.nproc_per_node=2", "output_root=ddp"),
    ]
    runs = []
    for process, root in zip(both, ("torchrun", "ddp"), strict=True):
        code, output = finished(process)
        assert code == 0, output
        assert_logged_once(output)
        (run,) = (tmp_path / root / "shapes").iterdir()
        runs.append(run)
        assert status(run) == "FINISHED"
        assert mlflow_statuses(tmp_path / root) == ["FINISHED"]
    for part in ("model", "metrics"):
        assert_same(*(last(run)[part] for run in runs))
    assert len(list(tmp_path.glob("*/shapes/*/run.log"))) == 2


def mlflow_statuses(root: Path) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run.info.status for run in client.search_runs(experiments)]


@pytest.mark.slow
def test_killed_worker_fails_the_job_and_names_the_signal(start: Start, tmp_path: Path) -> None:
    process = start(*LONG, "tracking=mlflow", "hydra.run.dir=run")
    wait_until(lambda: max(steps(tmp_path / "run"), default=0) >= 4, process)
    # A job that fails before MLflow has opened its run leaves it to mode=sync: there are only seconds left then.
    wait_until(lambda: json.loads((tmp_path / "run" / "summary.json").read_text())["mlflow_run_id"], process)
    began = time.monotonic()
    os.kill(children(process.pid)[1], signal.SIGKILL)
    code, output = finished(process)
    assert time.monotonic() - began < 30
    assert code == 1
    assert "process 1 failed, killed by SIGKILL" in output
    assert "Traceback" not in output
    assert status(tmp_path / "run") == "FAILED"
    assert mlflow_statuses(tmp_path / "outputs") == ["FAILED"]
    assert children(process.pid) == []


@pytest.mark.slow
def test_restarted_job_resumes_bit_exactly(start: Start, tmp_path: Path, cli: Cli) -> None:
    overrides = (*LONG, "trainer.epochs=80", "trainer.validate_every=40")
    process = start(*overrides, "tracking=mlflow", "hydra.run.dir=run", "launcher.max_restarts=1")
    wait_until(lambda: max(steps(tmp_path / "run"), default=0) >= 4, process)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    code, output = finished(process)
    assert code == 0, output
    assert "restarting all processes" in output
    assert status(tmp_path / "run") == "FINISHED"
    assert mlflow_statuses(tmp_path / "outputs") == ["FINISHED"]
    assert cli(*overrides, "hydra.run.dir=undisturbed") == 0
    ours, theirs = last(tmp_path / "run"), last(tmp_path / "undisturbed")
    assert_same(ours["model"], theirs["model"])
    assert_same(ours["training"]["optimizer"], theirs["training"]["optimizer"])


@pytest.mark.slow
def test_user_errors_are_not_retried(cli: Cli, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli(*TINY, "trainer.max_steps=1", "hydra.run.dir=first") == 0
    before = last(tmp_path / "first")
    again = (*TWO, "launcher.max_restarts=1", "loader.batch_size=2")
    assert cli(*again, "hydra.run.dir=first") == 2
    assert capfd.readouterr().err.count("first: holds a run that would be overwritten") == 1
    assert_same(last(tmp_path / "first"), before)


def test_check_takes_the_number_of_processes_into_account(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("mode=check", *TINY, "launcher=ddp", "launcher.nproc_per_node=64") == 2
    assert "loader.batch_size=2 × trainer.accumulate=1 × 64 processes is more than the 5" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("target", ["parent", "all processes", "parent is killed"])
def test_stopped_job_saves_and_leaves_no_processes(start: Start, tmp_path: Path, target: str) -> None:
    process = start(*LONG, "checkpoint.every_steps=null", "hydra.run.dir=run")
    wait_until(lambda: max(steps(tmp_path / "run"), default=0) >= 4, process)
    workers = children(process.pid)
    if target == "all processes":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM if target == "parent" else signal.SIGKILL)
    code, output = finished(process)
    assert code == (-signal.SIGKILL if "killed" in target else 128 + signal.SIGTERM), output
    if "killed" not in target:
        assert output.count("stopped after step") == 1
    for _ in range(20 * TIMEOUT_S):
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            break
        time.sleep(0.05)
    assert status(tmp_path / "run") == "KILLED"
    assert last(tmp_path / "run")["step"] >= 4


@pytest.mark.slow
def test_world_size_may_change_if_images_per_step_stay_the_same(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (*TINY, "hydra.run.dir=run", "dataset.num_train=8", "checkpoint.resume=auto")
    two = (*overrides, "launcher=ddp", "launcher.nproc_per_node=2")
    assert cli(*two, "trainer.max_steps=2") == 0
    allowed = "checkpoint.allow_world_size_change=true"
    assert cli(*overrides) == 2
    assert "1 process now, but 2 processes in the saved run" in capsys.readouterr().err
    assert cli(*overrides, allowed) == 2
    assert "4 × 1" not in (output := capsys.readouterr().err)
    assert "= 2 × 1: the saved run takes 2 × 2 images per step" in output
    assert cli(*overrides, allowed, "loader.batch_size=4") == 0
    assert steps(tmp_path / "run") == sorted(steps(tmp_path / "run"))
    assert last(tmp_path / "run")["step"] == 4
    assert cli(*two, allowed, "loader.batch_size=2", "trainer.epochs=2") == 0  # and back; nothing is left to train


@pytest.mark.slow
def test_bad_image_is_reported_once_without_a_traceback(
    cli: Cli, voc: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (voc / "JPEGImages" / "2.jpg").write_bytes(b"not an image")
    overrides = [override for override in TWO if not override.startswith("dataset")]
    more = ("dataset=voc_folder", f"dataset.root={voc}", "dataset.class_names=[a,b,c]", "trainer.epochs=3")
    assert cli(*overrides, *more, "hydra.run.dir=run") == 2
    output = capfd.readouterr()
    assert output.err.count("JPEGImages/2.jpg: ") == 1
    assert "Traceback" not in output.out + output.err


@pytest.mark.slow
def test_crashed_worker_shows_its_traceback(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli(*TWO, "loss._target_=tests.end_to_end.test_processes.Crashing") == 1
    output = capfd.readouterr()
    assert output.err.count("ZeroDivisionError: in the second process") == 1
    assert "process 1 failed:\nTraceback" in output.err
    assert output.err.index("test_processes.py") < output.err.index("ZeroDivisionError")


def test_crash_at_interpreter_shutdown_does_not_fail_the_job(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SABOTAGE", "end")
    overrides = ("trainer.max_steps=1", "+device.plugin=tests.end_to_end.saboteur", "hydra.run.dir=run")
    assert cli(*TINY, "launcher=ddp", "launcher.nproc_per_node=1", *overrides) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "FINISHED"


class Crashing(CrossEntropy):
    """A loss that crashes in the second process."""

    def forward(self, outputs: Any, target: torch.Tensor) -> torch.Tensor:
        if os.environ.get("RANK") == "1":
            raise ZeroDivisionError("in the second process")
        return super().forward(outputs, target)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("launcher=torchrun",), "launcher=torchrun: 'RANK' is not set in the environment; start with 'torchrun"),
        (("launcher=slurm",), "launcher=slurm: SLURM_PROCID=, SLURM_NTASKS=, "),
        (("-m", "launcher=torchrun", "seed=1,2"), "launcher=torchrun: a sweep cannot be started by several processes"),
        (("launcher=ddp", "launcher.nnodes=2"), "launcher.master_port=null: must be the same on all machines"),
        (
            ("launcher=ddp", "launcher.nproc_per_node=0"),
            "launcher.nproc_per_node=0: must be greater than or equal to 1",
        ),
        (("-m", "launcher=ddp", "launcher.nnodes=2", "launcher.master_port=2", "seed=1,2"), "by several processes"),
        (("launcher=ddp", "launcher.nproc_per_nod=2"), "did you mean 'launcher.nproc_per_node'?"),
    ],
)
def test_invalid_launcher_settings_are_explained(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...], message: str
) -> None:
    assert cli(*overrides, *TINY) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
