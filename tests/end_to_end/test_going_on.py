"""Going on: a run is continued by its folder alone, extended by a stated rule, or not found."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import pspexp
from pspexp.utils.trees import flatten
from tests.conftest import TINY, Cli, last, run_commands
from tests.engine.test_trainer import assert_same

RATE = 5e-05  # of adam


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs with two steps each, that tests only copy."""
    home = tmp_path_factory.mktemp("finished")
    run_commands(home, (*TINY, "optimizer.weight_decay=0.5", "hydra.run.dir=run"))
    return home / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def rates(run: Path) -> list[float]:
    """Return the learning rate of each step, as recorded after it: that of the next step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/lr" in line] == list(range(1, last(run)["step"] + 1))
    return [line["train/lr"] for line in lines if "train/lr" in line]


def trained(run: Path) -> dict[str, Any]:
    """Return what training has led to; an early end adds a validation, which may have been the best."""
    saved = last(run)
    return {key: saved[key] for key in ("model", "ema")} | {
        key: saved["training"][key] for key in ("optimizer", "scheduler", "hooks")
    }


def cosine(step: int, total: int) -> float:
    return RATE * (0.01 + 0.99 * (1 + math.cos(math.pi * min(step / total, 1))) / 2)


def test_run_folder_alone_continues_the_run(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("optimizer=sgd", "optimizer.lr=0.01", "trainer.ema=0.5", "seed=3", "run_name=mine")
    assert cli(*TINY, *overrides, "hydra.run.dir=whole") == 0
    assert cli(*TINY, *overrides, "trainer.max_steps=1", "hydra.run.dir=part") == 0
    capsys.readouterr()
    assert cli("checkpoint.resume=part") == 0
    assert "complete (step 1 of 1)" in (log := capsys.readouterr().out)
    assert "to continue, increase trainer.max_steps, or set it to null" in log
    assert cli("checkpoint.resume=part/checkpoints/last.pt", "trainer.max_steps=null", "loader.num_workers=1") == 0
    assert_same(*(trained(tmp_path / name) for name in ("part", "whole")))
    then, now = (flatten(last(tmp_path / name)["config"]) for name in ("whole", "part"))
    assert {key for key in then.keys() | now.keys() if then.get(key) != now.get(key)} == {
        "checkpoint.resume", "loader.num_workers",
    }  # fmt: skip


def test_conflicts_with_the_run_are_refused(cli: Cli, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "config.yaml").read_text()
    assert cli("checkpoint.resume=run", "optimizer.lr=0.1", "crop_size=49") == 2
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "augment.crop_size=49", "crop_size=49", "optimizer.lr=0.1",
    ]  # fmt: skip
    assert cli("checkpoint.resume=run", "experiment=quickstart") == 2
    assert capsys.readouterr().err == (
        "experiment=quickstart: checkpoint.resume=run is a run without an experiment, whose configuration it continues "
        "with; remove one of them\n"
    )
    assert (run / "config.yaml").read_text() == before


def test_configuration_of_the_run_is_shown_and_composed(
    cli: Cli, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("--cfg", "job", "checkpoint.resume=run") == 0
    assert "weight_decay: 0.5" in capsys.readouterr().out
    config = pspexp.compose(["mode=check", "checkpoint.resume=run", "scheduler=poly"])
    assert (config.choices.dataset, config.choices.scheduler, config.scheduler.power) == ("shapes", "poly", 0.9)
    assert (config.crop_size, config.optimizer.weight_decay) == (33, 0.5)


RULES = {
    "stretch": lambda step: cosine(step, 8),
    "restart": lambda step: cosine(step - 4, 4),
    "constant": lambda step: cosine(3, 4),
}


@pytest.mark.parametrize("rule", RULES)
def test_finished_run_is_extended(cli: Cli, run: Path, rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("checkpoint.resume=run", "trainer.epochs=4", f"scheduler.on_extend={rule}") == 0
    assert f"8 steps of training instead of 4 (scheduler.on_extend={rule})" in capsys.readouterr().out
    assert rates(run)[:4] == pytest.approx([cosine(step, 4) for step in range(1, 5)])
    assert rates(run)[4:] == pytest.approx([RULES[rule](step) for step in range(5, 9)])


def test_interrupted_extension_is_bit_exact(cli: Cli, run: Path, tmp_path: Path) -> None:
    """Interrupted before the extended state was saved, and after."""
    extend = ("trainer.epochs=4", "scheduler.on_extend=stretch")
    shutil.copytree(run, tmp_path / "part")
    assert cli("checkpoint.resume=run", *extend) == 0
    for steps in (4, 6):
        assert cli("checkpoint.resume=part", *extend, f"trainer.max_steps={steps}") == 0
    assert cli("checkpoint.resume=part", "trainer.max_steps=null") == 0
    assert_same(trained(tmp_path / "part"), trained(run))
    assert rates(tmp_path / "part") == rates(run)


def test_run_is_extended_twice_and_in_steps(cli: Cli, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("checkpoint.resume=run", "trainer.steps=5", "scheduler.on_extend=restart") == 0
    assert cli("checkpoint.resume=run", "trainer.epochs=9") == 2
    assert capsys.readouterr().err == (
        "trainer.epochs=9: has no effect, since trainer.steps=5 takes precedence; change that instead\n"
    )
    assert cli("checkpoint.resume=run", "trainer.steps=8", "scheduler.on_extend=stretch") == 0
    assert rates(run)[4:] == pytest.approx([cosine(1, 1), *(cosine(step - 4, 4) for step in range(6, 9))])
    assert last(run)["epoch"] == 4


def test_extension_without_a_rule_is_refused(cli: Cli, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "checkpoints" / "last.pt").read_bytes()
    assert cli("checkpoint.resume=run", "trainer.epochs=3") == 2
    assert capsys.readouterr().err == (
        "trainer.epochs=3: the saved run has 2; to extend it, choose how the learning rate continues: "
        "scheduler.on_extend=stretch (as if planned with the new length), restart (a new cycle from the full rate, "
        "warm-up included) or constant (stays at the last rate)\n"
    )
    assert (run / "checkpoints" / "last.pt").read_bytes() == before


def test_extension_is_recorded(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MLflow keeps the parameter and gets a tag; auto finds a finished run that is extended."""
    from mlflow import MlflowClient

    logged = ("tracking=mlflow", "tracking.log_checkpoints=all")
    assert cli(*TINY, *logged, "trainer.epochs=1") == 0
    (folder,) = (tmp_path / "outputs" / "shapes").iterdir()
    extended = (*TINY, *logged, "trainer.epochs=2", "checkpoint.resume=auto", "scheduler.on_extend=stretch")
    capsys.readouterr()
    assert cli(*extended) == 0
    assert "disabled" not in capsys.readouterr().out
    assert list((tmp_path / "outputs" / "shapes").iterdir()) == [folder]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("pspexp").experiment_id])
    assert run.data.params["trainer.epochs"] == "1"
    assert run.data.tags["extended"] == "trainer.epochs=2 from step 2 on, 1 before (scheduler.on_extend=stretch)"
    assert "epochs: 2" in (folder / "config.yaml").read_text()

    assert cli(f"checkpoint.resume=runs:/{run.info.run_id}", "trainer.epochs=3") == 0  # the rule is the run's
    assert list((tmp_path / "outputs" / "shapes").iterdir()) == [folder]
    assert last(folder)["step"] == 6
    shutil.move(folder, tmp_path / "gone")
    assert cli(f"checkpoint.resume=runs:/{run.info.run_id}", "trainer.epochs=4") == 0  # from MLflow's copy
    (other,) = (tmp_path / "outputs" / "shapes").iterdir()
    assert last(other)["step"] == 8


def test_steps_determine_length_and_schedule(cli: Cli, tmp_path: Path) -> None:
    assert cli(*TINY, "trainer.steps=3", "scheduler=poly", "scheduler.final_factor=0.1", "hydra.run.dir=run") == 0
    expected = [RATE * (0.9 * (1 - step / 3) ** 0.9 + 0.1) for step in (1, 2, 3)]
    assert rates(tmp_path / "run") == pytest.approx(expected)
    assert last(tmp_path / "run")["epoch"] == 2


def test_auto_that_finds_nothing_says_so(
    cli: Cli, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = (*TINY, "checkpoint.resume=auto", "trainer.max_steps=1")
    nothing = "nothing to resume: no unfinished run with this configuration under outputs/shapes; a new run begins"
    assert cli(*auto, "optimizer.weight_decay=0.5") == 0
    assert nothing in (log := capsys.readouterr().out)
    assert "nearest" not in log

    earlier = tmp_path / "outputs" / "shapes" / "earlier"
    shutil.copytree(run, earlier)
    (earlier / "summary.json").write_text('{"status": "KILLED"}')
    assert cli(*auto, "optimizer.weight_decay=0.25") == 0
    (folder,) = [one for one in earlier.parent.iterdir() if "weight_decay: 0.25" in (one / "config.yaml").read_text()]
    text = " ".join((folder / "run.log").read_text().split())
    assert nothing in text
    assert "nearest: outputs/shapes/earlier differs in optimizer.weight_decay: 0.5 there, 0.25 here" in text
    assert cli(*auto, "hydra.run.dir=here") == 0
    assert (
        f"nothing to resume: {tmp_path}/here holds no checkpoints/last.pt; a new run begins" in capsys.readouterr().out
    )
