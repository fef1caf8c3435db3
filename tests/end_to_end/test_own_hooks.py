"""A user-defined hook, used from the command line."""

import json
from pathlib import Path

import pytest

from tests.conftest import TINY, Cli, last

HOOK = """
from pspexp.engine.hooks import Hook


class StepCount(Hook):
    def __init__(self, start: int = 0) -> None:
        self.steps = start

    def on_step_end(self, trainer):
        self.steps += 1
        if self.steps == 13:
            raise ValueError("unlucky")

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


class NoHook:
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the hook, in the working directory."""
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "my_hooks.py"
    file.write_text(HOOK)
    return file


def test_custom_hook_runs_with_builtin_hooks_and_resumes(cli: Cli, own: Path, tmp_path: Path) -> None:
    overrides = (*TINY, "+hooks.count._target_=my_hooks.StepCount", "hooks.early_stopping.patience=5")
    overrides += ("hydra.run.dir=run", "hooks.data_wait_warning=null")
    assert cli(*overrides, "trainer.max_steps=1") == 0
    assert cli(*overrides, "checkpoint.resume=auto") == 0
    hooks = last(tmp_path / "run")["training"]["hooks"]
    assert hooks["count"] == {"steps": 4}
    assert list(hooks) == ["weight_averaging", "periodic_save", "early_stopping", "count"]
    assert hooks["early_stopping"]["best"] is not None


def test_early_stopping_from_the_command_line(cli: Cli, tmp_path: Path) -> None:
    overrides = (*TINY, "trainer.epochs=9", "hydra.run.dir=run", "optimizer.lr=1e-30", "optimizer=sgd")
    assert cli(*overrides, "hooks.early_stopping.patience=2", "hooks.early_stopping.min_delta=1.0") == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(record["epoch"] for record in records) == 3
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "FINISHED"


def test_failing_hook_is_named_in_the_log(cli: Cli, own: Path, tmp_path: Path) -> None:
    overrides = (*TINY, "+hooks.count._target_=my_hooks.StepCount", "+hooks.count.start=12", "hydra.run.dir=run")
    assert cli(*overrides) == 1
    assert "hooks.count: on_step_end failed: ValueError('unlucky')" in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hooks.early_stopping.patience=0", "hooks.early_stopping.patience=0: must be greater than or equal to 1"),
        ("hooks.early_stopping.metric=loss", "hooks.early_stopping.metric=loss"),
        ("hooks.early_stoping.patience=3", "did you mean 'hooks.early_stopping.patience'?"),
        ("+hooks.count._target_=my_hooks.Missing", "my_hooks.Missing"),
        ("+hooks.count._target_=my_hooks.NoHook", "hooks.count: NoHook is not a subclass of pspexp.engine.hooks.Hook"),
    ],
)
def test_invalid_hook_is_refused_before_the_run(
    cli: Cli, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert cli(*TINY, override, "hydra.run.dir=run") == 2
    shown = capsys.readouterr()
    assert message in shown.err + shown.out
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
