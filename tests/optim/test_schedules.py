"""Learning-rate schedules, step by step."""

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from pspexp import optim
from pspexp.errors import ArgumentError

SCHEDULES = {"cosine": optim.cosine, "poly": optim.poly, "step": optim.step, "constant": optim.constant}


def cosine(s: int, n: int) -> float:
    return 0.01 + 0.99 * math.cos(math.pi * s / n / 2) ** 2 if s < n else 0.01


def poly(s: int, n: int) -> float:
    return math.exp(0.9 * math.log((n - s) / n)) if s < n else 0.0


def step(s: int, n: int) -> float:
    borders = [math.ceil(k * n / 5) for k in (1, 2, 3, 4)]
    return math.prod(0.1 for border in borders if s >= border)


def constant(s: int, n: int) -> float:
    return 1.0


class Net(nn.Module):
    """A backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)


def make_optimizer(lr: float = 0.3) -> torch.optim.Optimizer:
    return optim.sgd(Net(), lr=lr, head_lr_factor=10.0)


def rates(optimizer: torch.optim.Optimizer, schedule: LambdaLR, steps: int) -> list[list[float]]:
    """Return the learning rates [backbone, head] for each of the next steps."""
    values = []
    for _ in range(steps):
        values.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return values


@pytest.mark.parametrize("expected", [cosine, poly, step, constant])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (2, 1), (7, 0), (50, 0), (50, 13), (103, 3), (10, 9)])
def test_schedule_step_by_step(expected: Callable[[int, int], float], total: int, warmup: int) -> None:
    optimizer = make_optimizer()
    schedule = SCHEDULES[expected.__name__](optimizer, total, warmup_steps=warmup)
    seen = rates(optimizer, schedule, total + 5)  # beyond the end
    for s, (backbone, head) in enumerate(seen):
        factor = (s + 1) / (warmup + 1) if s < warmup else expected(s - warmup, total - warmup)
        assert backbone == pytest.approx(0.3 * factor, rel=1e-9, abs=1e-15)
        assert head == pytest.approx(3.0 * factor, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("build", SCHEDULES.values())
def test_warmup_starts_above_zero_and_reaches_the_full_rate(build: Callable[..., LambdaLR]) -> None:
    optimizer = make_optimizer(lr=1.0)
    first = [backbone for backbone, _ in rates(optimizer, build(optimizer, 100, warmup_steps=4), 5)]
    assert first == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("parts", range(1, 40))
def test_step_boundaries_are_exact(parts: int) -> None:
    optimizer = make_optimizer(lr=1.0)
    seen = rates(optimizer, optim.step(optimizer, 2 * parts, factor=0.5, parts=parts), 2 * parts)
    assert [backbone for backbone, _ in seen] == [0.5 ** (s // 2) for s in range(2 * parts)]


def test_arguments_change_the_schedule() -> None:
    def end(build: Callable[..., LambdaLR], at: int, **arguments: float) -> float:
        optimizer = make_optimizer(lr=1.0)
        return rates(optimizer, build(optimizer, 10, **arguments), at + 1)[at][0]

    assert end(optim.cosine, 5, final_factor=0.2) == pytest.approx(0.6)
    assert end(optim.cosine, 10, final_factor=0.0) == pytest.approx(0.0)
    assert end(optim.poly, 5, power=2.0) == pytest.approx(0.25)


@pytest.mark.parametrize("build", SCHEDULES.values())
@pytest.mark.parametrize("stop", [0, 3, 5, 19, 20, 23])
def test_resuming_from_a_state_dict_is_bit_exact(build: Callable[..., LambdaLR], stop: int) -> None:
    optimizer = make_optimizer()
    expected = rates(optimizer, build(optimizer, 20, warmup_steps=5), 26)

    optimizer = make_optimizer()
    schedule = build(optimizer, 20, warmup_steps=5)
    before = rates(optimizer, schedule, stop)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": schedule.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)  # numbers and tensors only

    optimizer = make_optimizer()
    schedule = build(optimizer, 20, warmup_steps=5)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["scheduler"])
    assert before + rates(optimizer, schedule, 26 - stop) == expected


@pytest.mark.parametrize(
    ("build", "wrong"),
    [
        (optim.cosine, {"warmup_steps": -1, "final_factor": 1.5}),
        (optim.poly, {"warmup_steps": -1, "power": 0.0}),
        (optim.poly, {"power": math.inf}),
        (optim.step, {"warmup_steps": -2, "factor": 0.0, "parts": 0}),
    ],
)
def test_invalid_schedule_arguments_are_reported_together(
    build: Callable[..., LambdaLR], wrong: dict[str, Any]
) -> None:
    with pytest.raises(ArgumentError) as caught:
        build(make_optimizer(), 10, **wrong)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        f"{key}={value}" for key, value in wrong.items()
    ]


@pytest.mark.parametrize("build", SCHEDULES.values())
def test_warmup_must_be_shorter_than_the_training(build: Callable[..., LambdaLR]) -> None:
    with pytest.raises(ArgumentError, match=r"^warmup_steps=10: must be from 0 to 9, fewer than the 10 steps of"):
        build(make_optimizer(), 10, warmup_steps=10)
