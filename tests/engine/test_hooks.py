"""Hooks: when they are called, what they keep across a resume, and what happens if one fails."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pspexp.engine.hooks import EarlyStopping, Hook
from pspexp.errors import ArgumentError, Interrupted, UserError
from tests.engine.test_trainer import records, state
from tests.training import make_components, make_trainer


class EventRecorder(Hook):
    """Records every event; its state is the number of steps."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events, self.steps = name, events, 0

    def __getattribute__(self, attribute: str) -> Any:
        if attribute.startswith("on_"):
            self.events.append(f"{self.name} {attribute.removeprefix('on_')}")
        return super().__getattribute__(attribute)

    def on_step_end(self, trainer: Any) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def test_order_of_events(tmp_path: Path) -> None:
    events: list[str] = []
    hooks = {"b": EventRecorder("b", events), "a": EventRecorder("a", events)}
    make_trainer(tmp_path, make_components(), hooks=hooks, max_steps=2).fit()
    expected = ["fit_start", "step_end", "step_end", "log", "validation_end", "save", "save", "fit_end"]
    assert events == [f"{name} {event}" for event in expected for name in "ba"]


def test_hook_state_is_resumed_and_new_hooks_start_fresh(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        make_trainer(tmp_path, make_components(), hooks={"old": EventRecorder("old", [])}, stop_after=3).fit()
    assert state_of(tmp_path) == {"old": {"steps": 3}}
    hooks = {"new": EventRecorder("new", []), "old": EventRecorder("old", events := [])}
    make_trainer(tmp_path, make_components(), hooks=hooks).fit()
    assert state_of(tmp_path) == {"new": {"steps": 12}, "old": {"steps": 15}}
    assert events[:2] == ["old fit_start", "old resume"]


def state_of(run: Path) -> Any:
    from pspexp.engine import checkpoint

    return checkpoint.read(run / "checkpoints" / "last.pt")["training"]["hooks"]


class Scripted(Hook):
    """Replaces validation results with given values."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)

    def on_validation_end(self, trainer: Any, metrics: dict[str, float]) -> None:
        metrics["val/mean_iou"] = self.values.pop(0)


def test_early_stopping_after_validations_without_improvement(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    hooks = {
        "script": Scripted([0.5, 0.6, 0.6, 0.605, 0.9]),
        "early_stopping": EarlyStopping(patience=2, min_delta=0.01),
    }
    trainer = make_trainer(tmp_path, make_components(epochs=9), hooks=hooks, epochs=9, validate_every=1)
    trainer.fit()
    assert trainer.state.step == trainer.state.validated_step == 20
    assert [record["step"] for record in records(trainer) if "val/mean_iou" in record] == [5, 10, 15, 20]
    assert "val/mean_iou has not improved on 0.6000 for 2 validations" in caplog.text
    assert (tmp_path / "checkpoints" / "best.pt").is_file()

    same = {"early_stopping": EarlyStopping(patience=2, min_delta=0.01)}
    make_trainer(tmp_path, make_components(epochs=9), hooks=same, epochs=9, validate_every=1).fit()
    assert state(trainer)["step"] == 20  # nothing left to train
    patient = {"script": Scripted([0.9] * 9), "early_stopping": EarlyStopping(patience=3, min_delta=0.01)}
    longer = make_trainer(tmp_path, make_components(epochs=9), hooks=patient, epochs=9, validate_every=1)
    longer.fit()
    assert longer.state.step == 40  # best after 25 steps, then three validations without improvement


def test_lower_values_are_better_with_mode_min(tmp_path: Path) -> None:
    hook = EarlyStopping("val/loss", "min", patience=1)
    for value, stops in ((1.0, False), (0.9, False), (float("nan"), True)):
        trainer = StopList()
        hook.on_validation_end(trainer, {"val/loss": value})  # type: ignore[arg-type]
        assert bool(trainer.reasons) is stops


class StopList:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def stop(self, reason: str) -> None:
        self.reasons.append(reason)


def test_hook_may_stop_after_any_step_with_a_validation(tmp_path: Path) -> None:
    class StopAt3(Hook):
        def on_step_end(self, trainer: Any) -> None:
            if trainer.state.step == 3:
                trainer.stop("enough")

    trainer = make_trainer(tmp_path, make_components(), hooks={"stop": StopAt3()})
    trainer.fit()
    assert [record["step"] for record in records(trainer)] == [2, 3, 3]
    assert state(trainer)["step"] == 3


@pytest.mark.parametrize(
    ("event", "error"),
    [("on_fit_start", ValueError("no")), ("on_log", KeyError("x")), ("on_validation_end", OSError("disk"))],
)
def test_failing_hook_is_named(tmp_path: Path, event: str, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    broken = Hook()
    setattr(broken, event, fail)
    with pytest.raises(RuntimeError, match=rf"^hooks\.broken: {event} failed: {type(error).__name__}"):
        make_trainer(tmp_path, make_components(), hooks={"fine": Hook(), "broken": broken}).fit()


def test_unknown_metric_is_named_with_its_key(tmp_path: Path) -> None:
    hooks = {"early_stopping": EarlyStopping("val/iou/striped dics", patience=1)}
    with pytest.raises(UserError, match=r"^hooks\.early_stopping\.metric=.*did you mean 'striped disc'"):
        make_trainer(tmp_path, make_components(), hooks=hooks).fit()


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ArgumentError) as caught:
        EarlyStopping("train/loss", "best", patience=0, min_delta=-1.0)  # type: ignore[arg-type]
    assert [problem.partition("=")[0] for problem in caught.value.problems] == [
        "metric",
        "mode",
        "patience",
        "min_delta",
    ]
