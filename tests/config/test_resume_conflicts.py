"""Comparison of data and length of a training with those of a saved training state."""

from typing import Any

import pytest

from pspexp.config.class_weights import uncounted
from pspexp.config.resume import data_conflicts, resume_conflicts


def state(names: str = "n", files: str = "f", images: int = 4) -> dict[str, Any]:
    return {"images": images, "names": names, "files": files}


def saved(best: dict[str, float] | None = None) -> dict[str, Any]:
    return {"data": {"train": state(), "val": state(images=2)}, "state": {"best": best or {}}}


def test_equal_data_and_states_without_data_are_accepted() -> None:
    assert data_conflicts(saved(), saved()["data"]) == ([], [])
    assert data_conflicts({"state": {}}, saved()["data"]) == ([], [])


def test_training_images_are_refused_and_validation_images_warned_of() -> None:
    data = {"train": state("other"), "val": state("other", images=3)}
    (refused,), (warning,) = data_conflicts(saved({"best/mean_iou": 0.5}), data)
    assert refused.startswith("dataset: the training images or their order differ from the saved run (4 in both); ")
    assert warning == (
        "dataset: 3 validation images here, 2 in the saved run; the best mean IoU so far, 50.00 %, was measured on "
        "those images"
    )


def test_changed_files_are_warned_of() -> None:
    refused, warnings = data_conflicts(saved(), {"train": state(files="x"), "val": state(images=2, files="x")})
    assert refused == []
    assert warnings == [
        "dataset: files of the training images have changed since the saved run: their sizes differ",
        "dataset: files of the validation images have changed since the saved run: their sizes differ",
    ]


def test_counted_class_weights_are_those_of_the_method_that_is_named() -> None:
    terms = [{"name": "dice", "class_weights": "inverse"}, "lovasz"]
    now = {
        "loss": {"class_weights": "auto", "gamma": 2.0, "terms": terms},
        "checkpoint": {"allow_world_size_change": False},
    }
    then = {
        "loss": {
            "class_weights": [1.0, 2.0],
            "gamma": 2.0,
            "terms": [terms[0] | {"class_weights": [3.0, 4.0]}, "lovasz"],
        }
    }
    assert resume_conflicts({"config": then}, now, 1) == []
    then["choices"] = {"loss.class_weights": "auto", "loss.terms.0.class_weights": "auto"}
    (line,) = resume_conflicts({"config": then}, now, 1)
    assert line.startswith("loss.terms=[{'name': 'dice', 'class_weights': 'inverse'}, lovasz]: the saved run has ")
    del then["choices"]  # as in files of older versions, which did not record the methods
    now["loss"] |= {"class_weights": [1.0, 2.5], "terms": terms[:1]}  # type: ignore[operator]
    lines = resume_conflicts({"config": then}, now, 1)
    assert [line.partition("=")[0] for line in lines] == ["loss.class_weights", "loss.terms"]
    assert lines[0].startswith("loss.class_weights=[1.0, 2.5]: the saved run has [1.0, 2.0]; ")


def test_job_of_a_sweep_is_compared_as_it_was_before_counting() -> None:
    composed = {"loss.class_weights": "auto", "choices.loss": "focal"}
    recorded = {**composed, "loss.class_weights": [1.0, 2.0], "choices.loss.class_weights": "auto"}
    assert uncounted(recorded, composed) == uncounted(composed, composed) == composed
    other = {**composed, "loss.class_weights": "inverse"}
    assert uncounted(recorded, other)["loss.class_weights"] == "auto"


def test_weights_that_a_training_started_from_may_have_moved() -> None:
    names = ("weights", "backbone_weights", "pretrained")
    then, now = (
        {"model": dict.fromkeys(names, value), "checkpoint": {"allow_world_size_change": False}} for value in "ab"
    )
    assert resume_conflicts({"config": then}, now, 1) == []


POLY = {"_target_": "pspexp.optim.poly", "warmup_steps": 3, "on_extend": None}


def config(epochs: int = 2, steps: int | None = None, **scheduler: Any) -> dict[str, Any]:
    return {
        "trainer": {"epochs": epochs, "steps": steps},
        "scheduler": {**POLY, **scheduler},
        "checkpoint": {"allow_world_size_change": False},
    }


def conflicts(then: dict[str, Any], now: dict[str, Any], step: int = 8) -> list[str]:
    """With four steps per epoch."""
    training = {"world_size": 1, "steps_per_epoch": 4, "state": {"step": step}}
    return resume_conflicts({"config": then, "training": training}, now, 1)


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (config(), config(on_extend="stretch")),  # does not matter yet
        (config(), config(epochs=3, on_extend="stretch")),
        (config(), config(epochs=3, on_extend="restart")),
        (config(on_extend="stretch"), config(epochs=3, on_extend="constant")),
        (config(2), config(steps=8)),  # the same length
        (config(7, steps=8), config(2)),
        (config(2), config(7, steps=8)),
        (config(steps=8), config(steps=9, on_extend="constant")),
        (config(_target_="pspexp.optim.constant"), config(3, _target_="pspexp.optim.constant")),
        (config(_target_="pspexp.optim.constant"), config(1, _target_="pspexp.optim.constant")),
    ],
)
def test_lengths_that_go_together(then: dict[str, Any], now: dict[str, Any]) -> None:
    assert conflicts(then, now) == []


@pytest.mark.parametrize(
    ("then", "now", "line"),
    [
        (config(), config(3), "trainer.epochs=3: the saved run has 2; to extend it, choose how the learning rate"),
        (config(), config(steps=9), "trainer.steps=9: the saved run has trainer.epochs=2; to extend it, choose how"),
        (
            config(steps=8),
            config(steps=7, on_extend="stretch"),
            "trainer.steps=7: the saved run has 8, and a training can be extended, but not shortened; resume with "
            "that, and set trainer.max_steps=<steps> to stop earlier",
        ),
        (
            config(steps=8),
            config(steps=11, on_extend="restart"),
            "scheduler.warmup_steps=3: scheduler.on_extend=restart repeats the warm-up, but trainer.steps=11 leaves 3 "
            "steps; increase that, or choose another scheduler.on_extend",
        ),
        (
            config(steps=8),
            config(9, steps=8),
            "trainer.epochs=9: has no effect, since trainer.steps=8 takes precedence; change that instead",
        ),
    ],
)
def test_lengths_that_do_not_go_together(then: dict[str, Any], now: dict[str, Any], line: str) -> None:
    (found,) = conflicts(then, now)
    assert found.startswith(line)


def test_schedule_of_ones_own_cannot_be_extended() -> None:
    then, now = config(), config(3)
    for one in (then, now):
        one["scheduler"] = {"_target_": "mine.Schedule"}
    (line,) = conflicts(then, now)
    assert line == (
        "trainer.epochs=3: the saved run has 2, and mine.Schedule cannot be extended; resume with that, or start a new "
        "run from its weights with model.weights=<checkpoint>"
    )
