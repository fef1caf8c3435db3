"""What may be resumed and started from, and what a message says about everything else."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import TINY, Cli, last, run_commands

CONSTANT = (*TINY, "scheduler=constant")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a constant learning rate, that tests only copy."""
    home = tmp_path_factory.mktemp("finished")
    run_commands(home, (*CONSTANT, "hydra.run.dir=run"))
    return home / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def steps(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "train/loss" in line]


def test_best_checkpoint_cannot_be_resumed(cli: Cli, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = run / "checkpoints" / "best.pt"
    assert cli(*CONSTANT, f"checkpoint.resume={best}") == 2
    assert capsys.readouterr().err == f"{best}: holds weights only; resume from {best.with_name('last.pt')}\n"
    (run / "checkpoints" / "last.pt").unlink()
    assert cli(*CONSTANT, f"checkpoint.resume={best}") == 2
    assert capsys.readouterr().err == f"{best}: holds weights only; resume from the run's last.pt\n"


@pytest.mark.parametrize("key", ["model.weights", "model.backbone_weights"])
def test_training_starts_from_the_best_checkpoint_of_a_run(cli: Cli, run: Path, key: str, tmp_path: Path) -> None:
    assert cli(*CONSTANT, f"{key}=run", "trainer.max_steps=1", "hydra.run.dir=next") == 0
    (attempt,) = json.loads((tmp_path / "next" / "provenance.json").read_text())["attempts"]
    assert list(attempt["weights"]) == [key]
    config = last(tmp_path / "next")["config"]["model"]
    assert config[key.partition(".")[2]] == str(run / "checkpoints" / "best.pt")


def test_run_without_a_best_checkpoint_is_named(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert cli(*CONSTANT, "model.weights=empty") == 2
    assert capsys.readouterr().err == (
        f"model.weights=empty: no checkpoint there (looked for {tmp_path}/empty/checkpoints/best.pt)\n"
    )


def test_run_without_a_training_state_is_named(cli: Cli, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last_pt = run / "checkpoints" / "last.pt"
    last_pt.unlink()
    assert cli("checkpoint.resume=run") == 2
    assert capsys.readouterr().err == (
        f"checkpoint.resume=run: no checkpoint there (looked for {last_pt}); give a run that has saved one, or remove "
        "checkpoint.resume to start a new run\n"
    )


def test_finished_run_is_complete(cli: Cli, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = steps(run)
    assert cli(*CONSTANT, f"checkpoint.resume={run}") == 0
    assert f"{run}: this run is already complete (step 4 of 4), and nothing is left to train" in capsys.readouterr().out
    assert steps(run) == before


def test_constant_learning_rate_allows_more_epochs(
    cli: Cli, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*CONSTANT, "trainer.epochs=3", f"checkpoint.resume={run}") == 0
    assert "already complete" not in capsys.readouterr().out
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    assert cli(*CONSTANT, "trainer.epochs=3", "hydra.run.dir=whole") == 0
    resumed, whole = last(run), last(tmp_path / "whole")
    assert all((value == whole["model"][key]).all() for key, value in resumed["model"].items())


def test_other_schedules_need_a_rule_for_more_epochs(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*TINY, "trainer.max_steps=1", "hydra.run.dir=run") == 0
    capsys.readouterr()
    assert cli(*TINY, "trainer.epochs=3", "checkpoint.resume=run") == 2
    assert capsys.readouterr().err.startswith("trainer.epochs=3: the saved run has 2; to extend it, choose how")
