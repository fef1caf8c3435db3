"""Targets of the user's own: found by their dotted path, checked against their signatures."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import pspexp
from pspexp.config.build import build, build_partial
from pspexp.config.signatures import target_problems
from pspexp.config.targets import TargetError, find_target, takes
from pspexp.errors import UserError

MODULE = """
from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from nowhere import Missing


class Base(nn.Module):
    def __init__(self, size: tuple[int, int] = (1, 2), *, name: str = "a", sizes: tuple[int, ...] | None = None):
        super().__init__()


class Open(Base):
    def __init__(self, width: int = 3, **kwargs) -> None:
        super().__init__(**kwargs)


class Inner:
    def __init__(self, gamma: float, parts: list[Base] | None = None) -> None:
        self.gamma = gamma


class Outer:
    def __init__(self, inner: Inner, make=None, hint: Missing = None) -> None:
        self.inner, self.make = inner, make


class Crop:
    def __init__(self, ignore_index: int, gamma: float = 1.0) -> None:
        pass


class Loss(nn.Module):
    def __init__(self, ignore_index: int, gamma: float = 1.0) -> None:
        super().__init__()


preset = functools.partial(Base, name="x")


def any_arguments(**kwargs):
    return kwargs
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_targets.py").write_text(MODULE)
    (tmp_path / "broken_module.py").write_text("\nimport torch\nvalue = torch.nothing\n")
    (tmp_path / "needing_module.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))


BASE = {"_target_": "my_targets.Base"}


def problems(group: str = "loss", /, **node: Any) -> list[str]:
    return [line for _, line in target_problems(group, node)]


def inner(**arguments: Any) -> dict[str, Any]:
    return {"_target_": "my_targets.Inner", **arguments}


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "my_targets.Base", "size": [1, 2], "sizes": [1, 2, 3]},
        {"_target_": "my_targets.Open", "width": 4, "name": "b", "anything": 1},
        {"_target_": "my_targets.Outer", "inner": inner(gamma=1.0, parts=[{"_target_": "my_targets.Base"}])},
        {"_target_": "my_targets.Outer", "inner": inner(gamma=1.0), "make": inner(_partial_=True)},
        {"_target_": "my_targets.Outer", "inner": inner(gamma=1.0), "hint": 3},
        {"_target_": "my_targets.Inner", "_args_": [1.0]},
        {"_target_": "my_targets.preset"},
        {"_target_": "torch.nn.CrossEntropyLoss", "label_smoothing": 0.1},
    ],
)
def test_valid_nodes_are_accepted(node: dict[str, Any]) -> None:
    assert problems(**node) == []


@pytest.mark.parametrize(
    ("node", "lines"),
    [
        ({"_target_": "my_targets.Base", "size": [1, "a"]}, ["loss.size.1=a: must be a valid integer"]),
        ({"_target_": "my_targets.Base", "naem": 1}, ["loss.naem: unknown key; did you mean 'name'?"]),
        (
            {"_target_": "my_targets.Outer", "inner": inner(gama=1.0)},
            ["loss.inner.gamma: missing; give it a value", "loss.inner.gama: unknown key; did you mean 'gamma'?"],
        ),
        (
            {"_target_": "my_targets.Outer", "inner": inner(gamma=1.0, parts=[BASE | {"k": 1}])},
            ["loss.inner.parts.0.k: unknown key; my_targets.Base takes no argument of this name: "
             "remove it with ~loss.inner.parts.0.k"],
        ),
        (
            {"_target_": "my_targets.Loss", "ignore_index": 255, "main_weight": 1},
            ["loss.main_weight: unknown key; my_targets.Loss takes no argument of this name: remove it with "
             "~loss.main_weight, or choose loss=custom, without the keys of another option"],
        ),
        ({"_target_": "my_targets"}, ["loss._target_=my_targets: is a module; name a class or function in it"]),
        ({"_target_": "???"}, ["loss._target_=???: missing; name your class or function, e.g. my_module.MyClass"]),
    ],
)  # fmt: skip
def test_mistakes_are_named_at_every_depth(node: dict[str, Any], lines: list[str]) -> None:
    assert problems(**node) == lines


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "absent_module.MyNet",
            "cannot be imported: there is no module absent_module here; run from the folder that holds "
            "absent_module.py, or add that folder to PYTHONPATH",
        ),
        ("my_targets.Opne", "has no Opne; did you mean 'Open'?"),
        ("my_targets.Open.make", "my_targets.Open has no attribute make"),
        ("broken_module.Net", "cannot be imported: AttributeError: module 'torch' has no attribute 'nothing' ("),
        ("broken_module.Net", "broken_module.py:3)"),
        ("needing_module.Net", "cannot be imported: ModuleNotFoundError: No module named 'no_such_package' ("),
        ("..Net", "must be the dotted path of a class or function"),
    ],
)
def test_what_cannot_be_imported_is_explained(path: str, message: str) -> None:
    with pytest.raises(TargetError) as refused:
        find_target(path)
    assert message in str(refused.value)


def test_arguments_that_a_target_takes() -> None:
    taken = {
        name: [one for one in ("width", "size", "name", "other") if takes(find_target(f"my_targets.{name}"), one)]
        for name in ("Base", "Open", "any_arguments")
    }
    assert taken == {
        "Base": ["size", "name"],
        "Open": ["width", "size", "name"],
        "any_arguments": ["width", "size", "name", "other"],
    }


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"dataset=shapes output_root={tmp_path}"


def test_custom_option_passes_what_the_target_takes(root: str) -> None:
    chosen = [*root.split(), "augment=custom", "augment._target_=my_targets.Crop", "+augment.gamma=2.0"]
    config = pspexp.compose([*chosen, "model=custom", "model._target_=my_targets.Open"])
    assert dict(config.augment) == {"_target_": "my_targets.Crop", "ignore_index": 255, "gamma": 2.0}
    assert dict(config.model) == {"_target_": "my_targets.Open", "weights": None}


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model=custom"], "model._target_=???: missing; name your class or function, e.g. my_module.MyClass"),
        (
            ["loss=custom", "loss._target_=my_targets.Loss", "+loss.gama=2.0"],
            "loss.gama: unknown key; did you mean 'gamma'?",
        ),
        (
            ["model=custom", "model._target_=my_targets.Base", "model.num_classes=5"],
            "model.num_classes: unknown key; my_targets.Base takes no argument of this name: remove it with "
            "~model.num_classes, or choose model=custom, without the keys of another option",
        ),
        (["loss._target_=my_targets.Loss"], "loss.main_weight: unknown key; my_targets.Loss takes no argument"),
        (["augment=custom", "augment._target_=my_targets.Inner"], "augment.gamma: missing; give it a value"),
    ],
)
def test_mistakes_with_a_target_of_ones_own(root: str, overrides: list[str], line: str) -> None:
    with pytest.raises(UserError) as refused:
        pspexp.compose([*root.split(), *overrides])
    assert any(problem.startswith(line) for problem in refused.value.problems), refused.value


def test_optimizers_and_schedules_of_torch(root: str) -> None:
    import torch

    choose = ["optimizer=custom", "optimizer._target_=torch.optim.RMSprop", "+optimizer.momentum=0.5"]
    step = ["scheduler=custom", "scheduler._target_=torch.optim.lr_scheduler.StepLR", "+scheduler.step_size=3"]
    config = pspexp.compose([*root.split(), *choose, *step])
    model = torch.nn.Linear(2, 2)
    optimizer = build_partial(config.optimizer, model=model, params=list(model.parameters()))
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (1e-3, 0.5)
    schedule = build_partial(config.scheduler, optimizer=optimizer, total_steps=10)
    assert schedule.step_size == 3
    with pytest.raises(UserError, match=r"^optimizer\.momentun: unknown key; did you mean 'momentum'"):
        pspexp.compose([*root.split(), *choose[:2], "+optimizer.momentun=0.5"])


def test_arguments_that_a_base_class_refuses_are_named() -> None:
    node = OmegaConf.create({"loss": {"_target_": "my_targets.Open", "nmae": 1}})
    with pytest.raises(UserError, match=r"^loss: .*unexpected keyword argument 'nmae'.* \(.*my_targets\.py:\d+\)$"):
        build(node.loss)
