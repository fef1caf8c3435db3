"""Parameter groups, and updates compared with the published formulas."""

import inspect
import math
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from pspexp import optim
from pspexp.errors import ArgumentError
from pspexp.optim.optimizers import load_optimizer_state, supports_found_inf

CONF = Path(__file__).parents[2] / "conf"
OPTIMIZERS = {"adam": optim.adam, "adamw": optim.adamw, "sgd": optim.sgd}
SCHEDULES = {"cosine": optim.cosine, "poly": optim.poly, "step": optim.step, "constant": optim.constant}


class Net(nn.Module):
    """Backbone and head, each with a convolution and a norm; one parameter of the backbone is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(4, 2, 1, bias=True), nn.BatchNorm2d(2))
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.backbone_like = nn.Linear(2, 2, bias=False)
        self.backbone.register_parameter("frozen", nn.Parameter(torch.ones(3), requires_grad=False))


def names(model: nn.Module, group: dict[str, Any]) -> set[str]:
    known = {id(p): name for name, p in model.named_parameters()}
    return {known[id(p)] for p in group["params"]}


def test_groups_split_backbone_from_head() -> None:
    model = Net()
    backbone, head = optim.sgd(model, lr=0.1, weight_decay=0.01, head_lr_factor=10.0).param_groups
    assert (backbone["name"], head["name"]) == ("backbone", "head")
    assert names(model, backbone) == {"backbone.0.weight", "backbone.1.weight", "backbone.1.bias"}
    assert names(model, head) == {
        "head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias", "backbone_like.weight",
    }  # fmt: skip
    assert (backbone["lr"], head["lr"]) == (0.1, 1.0)
    assert backbone["weight_decay"] == head["weight_decay"] == 0.01


@pytest.mark.parametrize("build", OPTIMIZERS.values())
def test_norms_and_biases_can_be_excluded_from_weight_decay(build: Callable[..., torch.optim.Optimizer]) -> None:
    model = Net()
    groups = build(model, lr=0.1, weight_decay=0.01, decay_norm_and_bias=False).param_groups
    assert {group["name"]: group["weight_decay"] for group in groups} == {
        "backbone": 0.01, "backbone/no_decay": 0.0, "head": 0.01, "head/no_decay": 0.0,
    }  # fmt: skip
    dimensions = {g["name"]: {p.ndim for p in g["params"]} for g in groups}
    assert dimensions == {"backbone": {4}, "backbone/no_decay": {1}, "head": {2, 4}, "head/no_decay": {1}}
    together = [p for g in groups for p in g["params"]]
    assert {id(p) for p in together} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(together) == len(set(map(id, together)))


def test_empty_groups_are_omitted() -> None:
    groups = optim.adam(nn.Linear(2, 2), lr=1.0).param_groups
    assert [group["name"] for group in groups] == ["head"]


def one_weight(value: float) -> nn.Module:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, value)
    return model


def trace(optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Return the values of the only weight w for the loss w³ / 3, whose gradient is w²."""
    weight = optimizer.param_groups[0]["params"][0]
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        (weight**3 / 3).sum().backward()
        optimizer.step()
        values.append(weight.item())
    return values


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_and_adamw_follow_the_papers(decoupled: bool) -> None:
    lr, (b1, b2), eps, decay = 0.1, (0.8, 0.95), 1e-6, 0.05
    w, m, v, expected = 2.0, 0.0, 0.0, []
    for t in range(1, 8):
        g = w**2 + (0 if decoupled else decay * w)
        w -= lr * decay * w if decoupled else 0
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w -= lr * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
        expected.append(w)
    build = optim.adamw if decoupled else optim.adam
    optimizer = build(one_weight(2.0), lr=lr, betas=[b1, b2], eps=eps, weight_decay=decay)
    assert trace(optimizer, 7) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_its_formula(nesterov: bool) -> None:
    lr, momentum, decay = 0.05, 0.9, 0.01
    w, velocity, expected = 2.0, 0.0, []
    for _ in range(7):
        g = w**2 + decay * w
        velocity = momentum * velocity + g
        w -= lr * (g + momentum * velocity if nesterov else velocity)
        expected.append(w)
    optimizer = optim.sgd(one_weight(2.0), lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    assert trace(optimizer, 7) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("build", "wrong"),
    [
        (optim.adam, {"lr": 0.0, "betas": [0.9], "eps": 0.0, "weight_decay": -1.0}),
        (optim.adamw, {"lr": math.nan, "betas": [0.9, 1.0], "head_lr_factor": 0.0}),
        (optim.sgd, {"lr": -1.0, "momentum": 1.0, "weight_decay": math.inf}),
        (optim.sgd, {"lr": math.inf, "momentum": math.nan}),
    ],
)
def test_invalid_optimizer_arguments_are_reported_together(build: Callable[..., Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        build(nn.Linear(1, 1), **wrong)
    assert {re.split(r"[.=]", problem)[0] for problem in caught.value.problems} == wrong.keys()


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ArgumentError, match=r"^nesterov=true: needs momentum above 0; set momentum, or nesterov to f"):
        optim.sgd(nn.Linear(1, 1), lr=0.1, momentum=0.0, nesterov=True)


# Reference schedules, independent of the package: learning-rate factor at step s of n.


# `lr` has no default in the signatures: it is set in the YAML files only. `model`, `optimizer` and
# `total_steps` are supplied at run time.
@pytest.mark.parametrize(
    ("group", "name", "target", "owned"),
    [
        ("optimizer", "adam", optim.adam, {"lr": 5e-5}),
        ("optimizer", "adamw", optim.adamw, {"lr": 1e-4}),
        ("optimizer", "sgd", optim.sgd, {"lr": 1e-2}),
        *[("scheduler", name, target, {}) for name, target in SCHEDULES.items()],
    ],
)
def test_yaml_and_signature_agree(group: str, name: str, target: Callable[..., Any], owned: dict[str, float]) -> None:
    values = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    assert isinstance(values, dict)
    assert values.pop("_target_") == f"pspexp.optim.{name}"
    assert values.pop("_partial_") is True
    arguments = inspect.signature(target).parameters
    defaults = {key: p.default for key, p in arguments.items() if p.kind is p.KEYWORD_ONLY} | owned
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()} == defaults


class Late(nn.Module):
    """A network whose second layer is first used in the second step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)


@pytest.mark.parametrize("build", OPTIMIZERS.values())
def test_parameter_may_get_its_first_gradient_in_a_later_step(build: Callable[..., torch.optim.Optimizer]) -> None:
    model = Late()
    optimizer = build(model, lr=0.1)
    before = model.second.weight.detach().clone()
    for layers in ([model.first], [model.first, model.second]):
        optimizer.zero_grad()
        sum(layer(torch.ones(1, 2)).sum() for layer in layers).backward()  # type: ignore[union-attr]
        optimizer.step()
    assert not torch.equal(model.second.weight, before)


@pytest.mark.parametrize("build", OPTIMIZERS.values())
def test_skipped_first_step_has_no_effect(build: Callable[..., torch.optim.Optimizer]) -> None:
    models = [Late(), Late()]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [build(model, lr=0.1) for model in models]
    assert supports_found_inf(optimizers[0])  # torch has fused kernels for CPUs
    for skipped in (True, False):
        for model, optimizer in zip(models, optimizers, strict=True):
            if skipped and optimizer is optimizers[1]:
                continue
            optimizer.zero_grad()
            sum(layer(torch.ones(1, 2)).sum() for layer in (model.first, model.second)).backward()  # type: ignore[attr-defined]
            optimizer.found_inf = torch.tensor(float(skipped))  # type: ignore[attr-defined]
            optimizer.step()
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(ours, theirs)


ANY_OPTIMIZER: dict[str, Callable[..., torch.optim.Optimizer]] = {
    **OPTIMIZERS,
    "rmsprop": lambda model, lr: torch.optim.RMSprop(model.parameters(), lr=lr),
}


@pytest.mark.parametrize("saved_layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("build", ANY_OPTIMIZER.values(), ids=ANY_OPTIMIZER)
def test_state_can_be_loaded_in_another_memory_format(
    build: Callable[..., torch.optim.Optimizer], saved_layout: torch.memory_format
) -> None:
    layouts = {torch.contiguous_format: torch.channels_last, torch.channels_last: torch.contiguous_format}
    models = [nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)]
    models[1].load_state_dict(models[0].state_dict())
    for model, layout in zip(models, (saved_layout, layouts[saved_layout]), strict=True):
        model.to(memory_format=layout)
    first, second = (build(model, lr=0.1) for model in models)
    gradients = torch.randn(2, 4, 3, 3, 3)

    def step(model: nn.Conv2d, optimizer: torch.optim.Optimizer, gradient: Tensor) -> None:
        model.weight.grad = torch.empty_like(model.weight).copy_(gradient)
        optimizer.step()

    step(models[0], first, gradients[0])
    models[1].load_state_dict(models[0].state_dict())
    load_optimizer_state(second, deepcopy(first.state_dict()))  # copied, because they would share step counters
    for model, optimizer in zip(models, (first, second), strict=True):
        step(model, optimizer, gradients[1])
    torch.testing.assert_close(models[1].weight, models[0].weight)  # kernels differ in rounding


def test_state_saved_without_fused_kernels_loads_with_them() -> None:
    model = nn.Linear(2, 2)
    plain = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    plain.step()
    ours = optim.adam(model, lr=0.1)
    load_optimizer_state(ours, plain.state_dict())
    assert {group["fused"] for group in ours.param_groups} == {True}
    ours.step()
