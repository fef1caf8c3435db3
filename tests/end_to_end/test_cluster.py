"""Multi-node jobs, SLURM tasks and cluster sweeps, simulated on one machine as described in docs/cluster.md."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pspexp.cli import REPORT_DELAY_S, get_args_parser
from pspexp.config import compose as composition
from pspexp.config.build import build
from pspexp.config.resolve import resolve
from tests.conftest import TINY, Cli
from tests.end_to_end.conftest import CHECKOUT, TIMEOUT_S, Start, wait_for, wait_until

TEMPLATE = CHECKOUT / "docs" / "slurm" / "train.sbatch"
SHORT = (*TINY, "trainer.epochs=1", "loader.max_eval_images=2")  # one step with two processes
LONG = (*TINY, "dataset.num_train=4000", "hydra.run.dir=run")  # 1000 steps per epoch


def slurm_task(rank: int, tasks: int = 2) -> dict[str, str]:
    """Return the variables that ``srun`` sets for a task."""
    numbers = {"PROCID": rank, "NTASKS": tasks, "LOCALID": rank, "JOB_ID": 7, "STEP_ID": 0}
    return {f"SLURM_{name}": str(number) for name, number in numbers.items()}


def set_task(monkeypatch: pytest.MonkeyPatch, task: Mapping[str, str]) -> None:
    """Make this process look like a SLURM task, without the variables of a real one."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in task.items():
        monkeypatch.setenv(name, value)


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def only_run(home: Path) -> Path:
    """Return the only run folder."""
    (folder,) = (home / "outputs" / "shapes").iterdir()
    return folder


@pytest.mark.slow
def test_two_nodes_make_one_run(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    overrides = (*SHORT, "launcher=ddp", "launcher.nnodes=2", f"launcher.master_port={port}")
    codes, outs, errors = wait_for([start(*overrides, f"launcher.node_rank={rank}") for rank in (0, 1)])
    assert codes == [0, 0], errors
    finished = summary(only_run(tmp_path))
    assert finished["status"] == "FINISHED"
    assert "2 processes" in outs[0]
    assert "1 steps per epoch; the last 1 of 5 images" in outs[0]  # each process takes two of the five
    shown = re.search(r"^mean +(\S+)", outs[0], re.MULTILINE)
    assert shown is not None
    assert shown[1] == f"{100 * finished['last']['val/mean_iou']:.2f}"
    assert outs[1] == errors[1] == ""


@pytest.mark.slow
def test_two_slurm_tasks_make_one_run(start: Start, tmp_path: Path) -> None:
    tasks = [start(*SHORT, "launcher=slurm", **slurm_task(rank)) for rank in (0, 1)]
    rendezvous = tmp_path / "outputs" / ".slurm" / "7.0.0"
    wait_until(rendezvous.is_file, *tasks)
    codes, outs, errors = wait_for(tasks)
    assert codes == [0, 0], errors
    assert summary(only_run(tmp_path))["status"] == "FINISHED"
    assert "2 processes" in outs[0]
    assert outs[1] == errors[1] == ""
    assert not rendezvous.exists()


@pytest.mark.slow
def test_killed_slurm_task_ends_the_other_task(start: Start, tmp_path: Path) -> None:
    tasks = [start(*LONG, "launcher=slurm", **slurm_task(rank)) for rank in (0, 1)]
    records = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: records.is_file() and '"step": 2,' in records.read_text(), *tasks)
    tasks[1].kill()
    began = time.monotonic()
    codes, _, _ = wait_for(tasks)
    assert codes == [1, -signal.SIGKILL]
    assert time.monotonic() - began < 30
    assert summary(tmp_path / "run")["status"] == "FAILED"


@pytest.mark.slow
def test_stopped_slurm_job_saves_before_any_task_exits(start: Start, tmp_path: Path) -> None:
    """``srun --kill-on-bad-exit`` kills all tasks when the first one exits; here task 0 has a slow disk."""
    (tmp_path / "slow").mkdir()
    slow = "import os, time\nif os.environ['SLURM_PROCID'] == '0':\n    os.fsync = lambda _: time.sleep(2)\n"
    (tmp_path / "slow" / "sitecustomize.py").write_text(slow)
    path = f"{tmp_path / 'slow'}{os.pathsep}{CHECKOUT}"
    tasks = [start(*LONG, "launcher=slurm", PYTHONPATH=path, **slurm_task(rank)) for rank in (0, 1)]
    records = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: records.is_file() and '"step": 2,' in records.read_text(), *tasks)
    tasks[0].terminate()  # which notifies the other task
    assert tasks[1].wait(TIMEOUT_S) == 128 + signal.SIGTERM
    assert (tmp_path / "run" / "checkpoints" / "last.pt").is_file()
    assert summary(tmp_path / "run")["status"] == "KILLED"
    assert wait_for(tasks)[0] == [143, 143]


@pytest.mark.parametrize("missing", sorted(slurm_task(0)))
def test_missing_slurm_variable_is_named(
    missing: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_task(monkeypatch, {name: value for name, value in slurm_task(0).items() if name != missing})
    assert cli(*TINY, "launcher=slurm") == 2
    errors = capsys.readouterr().err
    assert missing in errors
    assert "srun" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_invalid_overrides_are_reported_by_task_0_first(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("pspexp.cli.time.sleep", waited.append)
    for rank, waits in ((0, []), (1, [REPORT_DELAY_S])):
        set_task(monkeypatch, slurm_task(rank))
        assert cli(*TINY, "launcher=slurm", "trainer.epoch=3") == 2
        assert "did you mean 'trainer.epochs'?" in capsys.readouterr().err
        assert waited == waits
    assert list(tmp_path.iterdir()) == []


def test_sweep_in_several_slurm_tasks_is_refused(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_task(monkeypatch, slurm_task(0))
    assert cli("-m", *TINY, "launcher=slurm", "seed=1,2") == 2
    assert "a sweep cannot be started by several processes" in capsys.readouterr().err


@pytest.mark.slow
def test_sweep_through_submitit(start: Start, tmp_path: Path) -> None:
    """Two jobs: one with a single process, one with two."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra 'slurm'")
    (tmp_path / "own" / "launcher").mkdir(parents=True)
    (tmp_path / "own" / "launcher" / "two.yaml").write_text("defaults: [ddp]\nnproc_per_node: 2\n")
    overrides = ("hydra/launcher=submitit_local", "hydra.sweep.dir=sweep", "launcher=single,two", "trainer.max_steps=2")
    codes, _, errors = wait_for([start("-m", "--config-dir", "own", *TINY, *overrides, "trainer.validate_every=2")])
    assert codes == [0], errors
    jobs = [tmp_path / "sweep" / number for number in "01"]
    assert [summary(job)["status"] for job in jobs] == ["FINISHED", "FINISHED"]
    logs = [(job / "run.log").read_text() for job in jobs]
    assert [len(re.findall("2 processes;|2 processes,", log)) for log in logs] == [0, 1]


def test_slurm_sweep_composes() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra 'slurm'")
    overrides = ("hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=4", "hydra.launcher.timeout_min=600")
    config = composition.compose_checked(
        [*TINY, *overrides, "launcher=ddp", "launcher.nproc_per_node=4", "optimizer.lr=1e-3,1e-4"], sweep=True
    )
    assert config.hydra.launcher._target_.endswith("SlurmLauncher")
    assert (config.hydra.launcher.gpus_per_node, config.launcher.nproc_per_node) == (4, 4)


def srun_arguments(job: Mapping[str, str], arguments: Sequence[str]) -> list[str]:
    """Return the arguments that the template's ``srun`` passes to pspexp, expanded by bash with a fake ``srun``."""
    script = 'srun() { printf "%s\\n" "$@"; }\n' + TEMPLATE.read_text()
    done = subprocess.run(
        ["bash", "-c", script, "train.sbatch", *arguments], env={**os.environ, **job}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    overrides = done.stdout.splitlines()
    assert "--kill-on-bad-exit=1" in overrides
    at = overrides.index("-m")
    assert overrides[at - 1 : at + 2] == ["python", "-m", "pspexp"]
    return overrides[at + 2 :]


def test_sbatch_template_is_a_valid_script_with_settings() -> None:
    subprocess.run(["bash", "-n", str(TEMPLATE)], check=True)
    settings = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", TEMPLATE.read_text(), re.MULTILINE))
    assert {"nodes", "ntasks-per-node", "gpus-per-node", "time", "requeue"} <= settings.keys()
    assert settings["ntasks-per-node"] == settings["gpus-per-node"]  # one task per card
    assert settings["signal"].startswith("TERM@")  # to the tasks, not to the script (B:TERM)


def test_sbatch_template_command_composes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "camvid").mkdir()
    job = {**slurm_task(0, 8), "SLURM_CPUS_PER_TASK": "8", "SLURM_SUBMIT_DIR": str(tmp_path)}
    overrides = srun_arguments(job, [f"dataset.root={tmp_path / 'camvid'}", "hydra.run.dir=elsewhere"])
    set_task(monkeypatch, job)
    config = composition.compose_checked(get_args_parser().parse_args(overrides).overrides)
    assert "hydra.run.dir=outputs/slurm/7" in overrides
    assert config.hydra.run.dir == "elsewhere"  # explicit overrides win
    job_config = resolve(composition.without_hydra(config), overrides)
    assert (job_config.choices.launcher, job_config.checkpoint.resume) == ("slurm", "auto")

    launcher = build(job_config.launcher)
    assert (launcher.is_main_process, launcher.world_size) == (True, 8)
