"""The last lines of a command, for settings that a real run would take long to reach."""

import math
import shlex
from pathlib import Path
from typing import Any

import pytest

import pspexp
from pspexp.jobs.job import Job
from pspexp.jobs.next_steps import after_test, after_training, how_to_resume
from pspexp.jobs.records import default_name

STRETCH = "scheduler.on_extend=stretch"


def make_job(folder: Path, *overrides: str, **more: Any) -> Job:
    """A finished training, or what ``overrides`` say, that can be resumed."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints" / "last.pt").touch()
    config = pspexp.compose(["dataset=shapes", "model=pspnet18", *overrides])
    return Job(config, folder, list(overrides), **{"command": "python -m pspexp dataset=shapes", **more})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([], "  mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db"),
        (["output_root='a b'"], "  mlflow ui --backend-store-uri 'sqlite:///a b/mlflow.db'"),
        (["tracking.tracking_uri=file:runs"], "  mlflow ui --backend-store-uri file:runs"),
        (["tracking.tracking_uri='http://me:secret@host:5000'"], "also in MLflow: http://"),
        (["tracking=none"], None),
    ],
)
def test_mlflow_is_shown_where_the_run_is(overrides: list[str], line: str | None, home: Path) -> None:
    lines = after_training(make_job(home / "run", *overrides), {}, 8, 8, 8)
    assert lines[0] == "no validation: best.pt holds the latest weights; results in run"
    introduction = 'view it in MLflow (choose "Model training" there, if offered):'
    found = [one for one in lines if "mlflow" in one.lower() and one != introduction]
    assert [one.startswith(line or "") for one in found] == ([] if line is None else [True])
    assert "secret" not in "".join(lines)


@pytest.mark.parametrize(
    ("overrides", "steps", "settings"),
    [
        ([], (8, 8, 8), ["trainer.epochs=100", STRETCH]),
        (["trainer.steps=8"], (8, 8, 8), ["trainer.steps=16", STRETCH]),
        (["scheduler.on_extend=restart"], (8, 8, 8), ["trainer.epochs=100"]),
        (["scheduler=constant"], (8, 8, 8), ["trainer.epochs=100"]),
        (["trainer.max_steps=4"], (4, 4, 8), ["trainer.max_steps=null"]),
        (["trainer.max_steps=8"], (8, 8, 8), ["trainer.epochs=100", "trainer.max_steps=null", STRETCH]),
        (["hooks.early_stopping.patience=1"], (4, 8, 8), None),
        (["launcher=ddp", "launcher.nnodes=2", "launcher.master_port=29505"], (8, 8, 8), None),
    ],
)  # fmt: skip
def test_training_can_be_extended(
    overrides: list[str], steps: tuple[int, int, int], settings: list[str] | None, home: Path
) -> None:
    lines = after_training(make_job(home / "run", *overrides), {"best/mean_iou": 0.5, "best/epoch": 3}, *steps)
    assert lines[0] == "best mean IoU 50.00 % (epoch 3); results in run"
    found = [shlex.split(line)[3:] for line in lines if "checkpoint.resume" in line]
    assert found == ([] if settings is None else [["checkpoint.resume=run", *settings]])


def test_training_without_a_saved_state_cannot_be_extended(home: Path) -> None:
    job = make_job(home / "run")
    (home / "run" / "checkpoints" / "last.pt").unlink()
    assert "checkpoint.resume" not in "".join(after_training(job, {}, 8, 8, 8))


def test_interrupted_training_is_resumed_as_it_was_started(home: Path) -> None:
    assert how_to_resume(make_job(home / "run")) == "resume with\n  python -m pspexp checkpoint.resume=run"
    in_sweep = make_job(home / "0", tags={"sweep": "s"})
    assert how_to_resume(in_sweep) == "re-run the sweep's command to resume"
    machines = make_job(home / "my run", "launcher=ddp", "launcher.nnodes=2", "launcher.master_port=29505")
    text = """resume with the same launcher and 'checkpoint.resume='"'"'my run'"'"''"""
    assert how_to_resume(machines) == text


def test_checkpoint_from_elsewhere_needs_more_than_its_path(home: Path) -> None:
    job = make_job(home / "run", "tracking=none")
    job.config.checkpoint.path = str(home / "foreign.pth")
    assert after_test(job, math.nan, 1) == ["tested on 1 image; results in run"]


@pytest.mark.parametrize(
    ("mode", "folder", "name"),
    [
        ("train", "2030-01-02_03-04-05", "shapes pspnet18 01-02_03-04-05"),
        ("test", "2030-01-02_03-04-05-2", "test shapes pspnet18 01-02_03-04-05-2"),
        ("train", "second try", "shapes pspnet18 second try"),
    ],
)
def test_names_tell_runs_apart(mode: str, folder: str, name: str) -> None:
    config = pspexp.compose(["dataset=shapes", "model=pspnet18"])
    config.mode = mode
    assert default_name(config, Path("outputs/shapes", folder)) == name
