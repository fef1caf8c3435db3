"""Targets of the user's own: found by their dotted path, checked against their signatures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import pspexp
from pspexp.config.build import build, build_components, build_partial
from pspexp.config.signatures import target_problems
from pspexp.config.targets import TargetError, find_target, superseded_weights, takes, without_start_weights
from pspexp.engine.device import Device
from pspexp.engine.distributed import ProcessInfo, World
from pspexp.errors import UserError

MODULE = """
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
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


class Pretrained(nn.Module):
    def __init__(self, classes: int, encoder_weights: str | None = "imagenet", pretrained: bool = True, weights=None):
        super().__init__()
        if encoder_weights or pretrained or weights:
            raise AssertionError("looked for weights")
        self.layer = nn.Conv2d(3, classes, 1)

    def forward(self, images):
        return self.layer(images)


class Colour(Enum):
    RED = 1
    BLUE = "blue"


class Typed:
    def __init__(
        self,
        root: Path,
        roots: dict[str, Path] | None = None,
        colour: Colour = Colour.RED,
        pairs: list[tuple[int, int]] = (),
        more: Sequence[tuple[int, int]] = (),
        named: dict[str, tuple[int, int]] | None = None,
        ranged: Annotated[list[tuple[float, float]], Field(max_length=2)] = (),
        inner: Typed | None = None,
        call: Callable[[int], tuple[int, int]] | None = None,
    ) -> None:
        self.__dict__.update(locals())


class Encoder(nn.Module):
    def __init__(self, encoder_weights: str | None = "imagenet"):
        super().__init__()


class Inherited(Pretrained):
    def __init__(self, width: int = 3, weights: list[float] | None = None, **kwargs) -> None:
        super().__init__(**kwargs)


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


TYPED = {
    "_target_": "my_targets.Typed",
    "root": "data",
    "roots": {"a": "b"},
    "colour": "RED",
    "pairs": [[1, 2]],
    "more": [[3, 4], [5, 6]],
    "named": {"a": [7, 8]},
    "ranged": [[0.5, 1.0]],
}


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
        TYPED | {"inner": TYPED, "call": {"_target_": "my_targets.preset", "_partial_": True}},
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
        (
            TYPED | {"colour": "green", "pairs": [[1, "a"]], "root": 3, "ranged": [[1.0, 2.0]] * 3, "inner": TYPED},
            ["loss.root=3: must be the path of a file or folder",
             "loss.colour=green: must be one of RED, BLUE",
             "loss.pairs.0.1=a: must be a valid integer",
             "loss.ranged=[[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]: must have at most 2 items, not 3"],
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


@pytest.mark.parametrize(
    ("node", "arguments"),
    [
        ({"_target_": "my_targets.Pretrained"}, {"encoder_weights": None, "pretrained": False}),
        (
            {"_target_": "my_targets.Pretrained", "pretrained": False, "weights": "DEFAULT"},
            {"encoder_weights": None, "pretrained": False, "weights": None},
        ),
        (
            {"_target_": "my_targets.Inherited", "encoder_weights": "x", "weights": [1.0]},
            {"encoder_weights": None, "pretrained": False},
        ),
        ({"_target_": "my_targets.Base", "weights": "file.pt"}, {"weights": None}),  # loaded by pspexp
        ({"_target_": "my_targets.preset"}, {}),
        ({"_target_": "nowhere.Net"}, {}),
        ({"_target_": "torchvision.models.segmentation.lraspp_mobilenet_v3_large"}, {"weights_backbone": None}),
    ],
)
def test_arguments_with_which_a_network_starts_from_random_weights(
    node: dict[str, Any], arguments: dict[str, Any]
) -> None:
    assert without_start_weights(node) == arguments


def test_whole_checkpoint_supersedes_weights_of_the_backbone() -> None:
    base, own = {"_target_": "my_targets.Encoder"}, {"_target_": "my_targets.Pretrained", "weights": "DEFAULT"}
    assert superseded_weights(base | {"weights": "file.pt"}) == {"encoder_weights": None}
    assert superseded_weights(base | {"weights": None}) == superseded_weights(own) == {}


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"dataset=shapes output_root={tmp_path}"


def test_custom_option_passes_what_the_target_takes(root: str) -> None:
    chosen = [*root.split(), "augment=custom", "augment._target_=my_targets.Crop", "+augment.gamma=2.0"]
    config = pspexp.compose([*chosen, "model=custom", "model._target_=my_targets.Open"])
    assert dict(config.augment) == {"_target_": "my_targets.Crop", "ignore_index": 255, "gamma": 2.0}
    assert dict(config.model) == {"_target_": "my_targets.Open", "weights": None}


def test_weights_of_another_package_need_not_be_a_file(root: str, tmp_path: Path) -> None:
    own = (*root.split(), "model=custom", "model._target_=my_targets.Pretrained", "+model.classes=5")
    assert pspexp.compose([*own, "model.weights=DEFAULT"]).model.weights == "DEFAULT"
    assert pspexp.compose([*own, f"model.weights={tmp_path}"]).model.weights == str(tmp_path)  # no run is looked for
    loaded_here = (*root.split(), "model=custom", "model._target_=my_targets.Base", "model.weights=DEFAULT")
    with pytest.raises(UserError, match=r"^model\.weights=DEFAULT: no such file or folder"):
        pspexp.compose(loaded_here)


def test_test_of_a_network_looks_for_no_weights(root: str) -> None:
    own = (*root.split(), "model=custom", "model._target_=my_targets.Pretrained", "+model.classes=5", "device=cpu")
    config = pspexp.compose(own)
    config.mode = "test"
    components = build_components(config, Device("cpu"), World(ProcessInfo(), Device("cpu")))
    assert components.model(torch.zeros(1, 3, 16, 16))["out"].shape == (1, 5, 16, 16)


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


@pytest.mark.parametrize(
    ("key", "target", "line"),
    [
        (
            "optimizer",
            "torch.optim.LBFGS",
            "optimizer._target_: made a LBFGS, whose step() needs closure, which a training does not supply; choose "
            "one that needs no argument, such as optimizer=adamw",
        ),
        (
            "scheduler",
            "torch.optim.lr_scheduler.ReduceLROnPlateau",
            "scheduler._target_: made a ReduceLROnPlateau, whose step() needs metrics, which a training does not "
            "supply; choose one that needs no argument, such as scheduler=cosine",
        ),
        ("scheduler", "my_targets.any_arguments", "scheduler._target_: made a dict, which has no method step"),
    ],
)
def test_optimizer_or_schedule_whose_step_needs_arguments_is_refused(
    root: str, key: str, target: str, line: str
) -> None:
    import torch

    config = pspexp.compose([*root.split(), f"{key}=custom", f"{key}._target_={target}"])
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    with pytest.raises(UserError) as refused:
        build_partial(config[key], params=parameters, optimizer=torch.optim.SGD(parameters, lr=0.1), total_steps=10)
    assert str(refused.value).startswith(line)


def test_targets_get_the_types_that_they_promise() -> None:
    inner = {"_target_": "my_targets.Typed", "root": "inner", "colour": "blue"}
    config = OmegaConf.create({"dataset": TYPED | {"inner": inner}, "hooks": {"one": inner}})
    built, one = build(config.dataset), build(config.hooks)["one"]
    assert (built.root, built.roots) == (Path("data"), {"a": Path("b")})
    assert [built.colour.name, built.inner.colour.name, one.colour.name] == ["RED", "BLUE", "BLUE"]
    assert one.root == built.inner.root == Path("inner")
    assert config.dataset.root == "data"  # as recorded
    with pytest.raises(UserError, match=r"^dataset: .*unexpected keyword argument 'nmae'"):
        build(OmegaConf.create({"dataset": {"_target_": "my_targets.Open", "nmae": 1}}).dataset)


def test_arguments_that_a_base_class_refuses_are_named() -> None:
    node = OmegaConf.create({"loss": {"_target_": "my_targets.Open", "nmae": 1}})
    with pytest.raises(UserError, match=r"^loss: .*unexpected keyword argument 'nmae'.* \(.*my_targets\.py:\d+\)$"):
        build(node.loss)
