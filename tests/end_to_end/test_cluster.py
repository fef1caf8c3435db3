"""Several machines, SLURM tasks and sweeps on a cluster: imitated on this machine, as docs/cluster.md tells to type."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pspexp.cli import LEADER_TELLS_S, get_args_parser
from pspexp.config import compose as composition
from tests.conftest import TINY, Cli
from tests.end_to_end.conftest import CHECKOUT, LIMIT_S, Start, ends, until

TEMPLATE = CHECKOUT / "docs" / "slurm" / "train.sbatch"
SHORT = (*TINY, "trainer.epochs=1", "loader.max_eval_images=2")  # one step in two processes
LONG = (*TINY, "dataset.num_train=400", "hydra.run.dir=run")  # 100 steps an epoch


def slurm_task(rank: int, tasks: int = 2) -> dict[str, str]:
    """What ``srun`` puts into the environment of a task."""
    numbers = {"PROCID": rank, "NTASKS": tasks, "LOCALID": rank, "JOB_ID": 7, "STEP_ID": 0}
    return {f"SLURM_{name}": str(number) for name, number in numbers.items()}


def set_task(monkeypatch: pytest.MonkeyPatch, task: Mapping[str, str]) -> None:
    """Make this process look like a SLURM task; nothing of a real one is left."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in task.items():
        monkeypatch.setenv(name, value)


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def only_run(home: Path) -> Path:
    """The one run folder; there must be no other."""
    (folder,) = (home / "outputs" / "shapes").iterdir()
    return folder


@pytest.mark.slow
def test_two_machines_make_one_run(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    words = (*SHORT, "launcher=ddp", "launcher.nnodes=2", f"launcher.master_port={port}")
    codes, outs, errors = ends([start(*words, f"launcher.node_rank={rank}") for rank in (0, 1)])
    assert codes == [0, 0], errors
    told = summary(only_run(tmp_path))
    assert told["status"] == "FINISHED"
    assert "2 processes" in outs[0]
    assert "1 steps an epoch; 1 of 5 images" in outs[0]  # each takes two of the five
    shown = re.search(r"^mean +(\S+)", outs[0], re.MULTILINE)
    assert shown is not None
    assert shown[1] == f"{100 * told['last']['val/mean_iou']:.2f}"
    assert outs[1] == errors[1] == ""


@pytest.mark.slow
def test_two_slurm_tasks_make_one_run(start: Start, tmp_path: Path) -> None:
    tasks = [start(*SHORT, "launcher=slurm", **slurm_task(rank)) for rank in (0, 1)]
    meeting = tmp_path / "outputs" / ".slurm" / "7.0.0"
    until(meeting.is_file, *tasks)
    codes, outs, errors = ends(tasks)
    assert codes == [0, 0], errors
    assert summary(only_run(tmp_path))["status"] == "FINISHED"
    assert "2 processes" in outs[0]
    assert outs[1] == errors[1] == ""
    assert not meeting.exists()


@pytest.mark.slow
def test_a_killed_slurm_task_ends_the_other(start: Start, tmp_path: Path) -> None:
    tasks = [start(*LONG, "launcher=slurm", **slurm_task(rank)) for rank in (0, 1)]
    records = tmp_path / "run" / "metrics.jsonl"
    until(lambda: records.is_file() and '"step": 2,' in records.read_text(), *tasks)
    tasks[1].kill()
    began = time.monotonic()
    codes, _, _ = ends(tasks)
    assert codes == [1, -signal.SIGKILL]
    assert time.monotonic() - began < 30
    assert summary(tmp_path / "run")["status"] == "FAILED"


@pytest.mark.slow
def test_a_stopped_slurm_job_saves_before_any_task_ends(start: Start, tmp_path: Path) -> None:
    """The first task that ends has ``srun --kill-on-bad-exit`` kill the others: here the first one has a slow disk."""
    (tmp_path / "slow").mkdir()
    slow = "import os, time\nif os.environ['SLURM_PROCID'] == '0':\n    os.fsync = lambda _: time.sleep(2)\n"
    (tmp_path / "slow" / "sitecustomize.py").write_text(slow)
    path = f"{tmp_path / 'slow'}{os.pathsep}{CHECKOUT}"
    tasks = [start(*LONG, "launcher=slurm", PYTHONPATH=path, **slurm_task(rank)) for rank in (0, 1)]
    records = tmp_path / "run" / "metrics.jsonl"
    until(lambda: records.is_file() and '"step": 2,' in records.read_text(), *tasks)
    tasks[0].terminate()  # all hear of it
    assert tasks[1].wait(LIMIT_S) == 128 + signal.SIGTERM
    assert (tmp_path / "run" / "checkpoints" / "last.pt").is_file()
    assert summary(tmp_path / "run")["status"] == "KILLED"
    assert ends(tasks)[0] == [143, 143]


@pytest.mark.parametrize("missing", sorted(slurm_task(0)))
def test_a_missing_slurm_variable_is_named(
    missing: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_task(monkeypatch, {name: value for name, value in slurm_task(0).items() if name != missing})
    assert cli(*TINY, "launcher=slurm") == 2
    said = capsys.readouterr().err
    assert missing in said
    assert "srun" in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_wrong_words_are_told_by_the_first_task_who_ends_the_others_before_they_tell(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("pspexp.cli.time.sleep", waited.append)
    for rank, waits in ((0, []), (1, [LEADER_TELLS_S])):
        set_task(monkeypatch, slurm_task(rank))
        assert cli(*TINY, "launcher=slurm", "trainer.epoch=3") == 2
        assert "did you mean 'trainer.epochs'?" in capsys.readouterr().err
        assert waited == waits
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_in_several_tasks_is_refused(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_task(monkeypatch, slurm_task(0))
    assert cli("-m", *TINY, "launcher=slurm", "seed=1,2") == 2
    assert "a sweep cannot be started in several places" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_through_submitit(start: Start, tmp_path: Path) -> None:
    """Two jobs: one process, and two processes that the job starts."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra 'slurm'")
    (tmp_path / "own" / "launcher").mkdir(parents=True)
    (tmp_path / "own" / "launcher" / "two.yaml").write_text("defaults: [ddp]\nnproc_per_node: 2\n")
    words = ("hydra/launcher=submitit_local", "hydra.sweep.dir=sweep", "launcher=single,two", "trainer.max_steps=2")
    codes, _, errors = ends([start("-m", "--config-dir", "own", *TINY, *words, "trainer.validate_every=2")])
    assert codes == [0], errors
    jobs = [tmp_path / "sweep" / number for number in "01"]
    assert [summary(job)["status"] for job in jobs] == ["FINISHED", "FINISHED"]
    logs = [(job / "run.log").read_text() for job in jobs]
    assert [len(re.findall("2 processes;|2 processes,", log)) for log in logs] == [0, 1]


def test_a_sweep_on_slurm_composes() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra 'slurm'")
    words = ("hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=4", "hydra.launcher.timeout_min=600")
    config = composition.compose_checked(
        [*TINY, *words, "launcher=ddp", "launcher.nproc_per_node=4", "optimizer.lr=1e-3,1e-4"], sweep=True
    )
    assert config.hydra.launcher._target_.endswith("SlurmLauncher")
    assert (config.hydra.launcher.gpus_per_node, config.launcher.nproc_per_node) == (4, 4)


def srun_words(job: Mapping[str, str], typed: Sequence[str]) -> list[str]:
    """What pspexp is given by the template's ``srun``: bash replaces the variables, a function stands for ``srun``."""
    script = 'srun() { printf "%s\\n" "$@"; }\n' + TEMPLATE.read_text()
    done = subprocess.run(
        ["bash", "-c", script, "train.sbatch", *typed], env={**os.environ, **job}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    words = done.stdout.splitlines()
    assert "--kill-on-bad-exit=1" in words
    at = words.index("-m")
    assert words[at - 1 : at + 2] == ["python", "-m", "pspexp"]
    return words[at + 2 :]


def test_the_sbatch_template_is_a_script_with_settings() -> None:
    subprocess.run(["bash", "-n", str(TEMPLATE)], check=True)
    settings = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", TEMPLATE.read_text(), re.MULTILINE))
    assert {"nodes", "ntasks-per-node", "gpus-per-node", "time", "requeue"} <= settings.keys()
    assert settings["ntasks-per-node"] == settings["gpus-per-node"]  # one task per card
    assert settings["signal"].startswith("TERM@")  # to the tasks, not to the script (B:TERM)


def test_the_sbatch_templates_command_composes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "camvid").mkdir()
    job = {**slurm_task(0, 8), "SLURM_CPUS_PER_TASK": "8", "SLURM_SUBMIT_DIR": str(tmp_path)}
    words = srun_words(job, [f"dataset.root={tmp_path / 'camvid'}", "hydra.run.dir=elsewhere"])
    set_task(monkeypatch, job)
    config = composition.compose_checked(get_args_parser().parse_args(words).overrides)
    assert "hydra.run.dir=outputs/slurm/7" in words
    assert config.hydra.run.dir == "elsewhere"  # a word that is typed wins
    job_config = composition.finish(composition.without_hydra(config), words)
    assert (job_config.choices.launcher, job_config.checkpoint.resume) == ("slurm", "auto")

    from pspexp.cli import built_launcher

    launcher = built_launcher(job_config)
    assert (launcher.is_main_process, launcher.world_size) == (True, 8)


def commands_of_the_page() -> list[str]:
    """The words after each ``-m pspexp`` in the page's blocks, without what stands for something else."""
    page = (CHECKOUT / "docs" / "cluster.md").read_text().replace("\\\n", "")
    blocks = "\n".join(re.findall(r"```\n(.*?)```", page, re.DOTALL))
    return [words.replace("…", "") for words in re.findall(r"-m pspexp(.*)$", blocks, re.MULTILINE)]


@pytest.mark.parametrize("command", commands_of_the_page())
def test_a_command_of_the_page_composes(command: str) -> None:
    if "submitit" in command:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra 'slurm'")
    arguments = get_args_parser().parse_args(shlex.split(command, comments=True))
    composition.compose_checked(arguments.overrides, sweep=arguments.multirun)


def test_the_page_has_commands() -> None:
    assert len(commands_of_the_page()) >= 5
