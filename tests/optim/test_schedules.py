"""Learning-rate schedules, step by step."""

import io
import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from pspexp import optim
from pspexp.errors import ArgumentError
from pspexp.optim.schedules import Schedule

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


def rates(optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int) -> list[list[float]]:
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
def test_warmup_starts_above_zero_and_reaches_the_full_rate(build: Callable[..., Schedule]) -> None:
    optimizer = make_optimizer(lr=1.0)
    first = [backbone for backbone, _ in rates(optimizer, build(optimizer, 100, warmup_steps=4), 5)]
    assert first == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("parts", range(1, 40))
def test_step_boundaries_are_exact(parts: int) -> None:
    optimizer = make_optimizer(lr=1.0)
    seen = rates(optimizer, optim.step(optimizer, 2 * parts, factor=0.5, parts=parts), 2 * parts)
    assert [backbone for backbone, _ in seen] == [0.5 ** (s // 2) for s in range(2 * parts)]


def test_arguments_change_the_schedule() -> None:
    def end(build: Callable[..., Schedule], at: int, **arguments: float) -> float:
        optimizer = make_optimizer(lr=1.0)
        return rates(optimizer, build(optimizer, 10, **arguments), at + 1)[at][0]

    assert end(optim.cosine, 5, final_factor=0.2) == pytest.approx(0.6)
    assert end(optim.cosine, 10, final_factor=0.0) == pytest.approx(0.0)
    assert end(optim.poly, 5, power=2.0) == pytest.approx(0.25)
    assert end(optim.poly, 5, power=2.0, final_factor=0.2) == pytest.approx(0.4)  # 0.8 · 0.25 + 0.2
    assert end(optim.poly, 10, final_factor=0.01) == 0.01  # as mmsegmentation's min_lr=1e-4 with lr=0.01


@pytest.mark.parametrize("build", SCHEDULES.values())
@pytest.mark.parametrize("stop", [0, 3, 5, 19, 20, 23])
def test_resuming_from_a_state_dict_is_bit_exact(build: Callable[..., Schedule], stop: int) -> None:
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
        (optim.poly, {"warmup_steps": -1, "power": 0.0, "final_factor": -0.1, "on_extend": "repeat"}),
        (optim.poly, {"power": math.inf}),
        (optim.step, {"warmup_steps": -2, "factor": 0.0, "parts": 0}),
    ],
)
def test_invalid_schedule_arguments_are_reported_together(
    build: Callable[..., Schedule], wrong: dict[str, Any]
) -> None:
    with pytest.raises(ArgumentError) as caught:
        build(make_optimizer(), 10, **wrong)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        f"{key}={value}" for key, value in wrong.items()
    ]


@pytest.mark.parametrize("build", SCHEDULES.values())
def test_warmup_must_be_shorter_than_the_training(build: Callable[..., Schedule]) -> None:
    with pytest.raises(ArgumentError, match=r"^warmup_steps=10: must be from 0 to 9, fewer than the 10 steps of"):
        build(make_optimizer(), 10, warmup_steps=10)


AT, LONGER, WARMUP = 13, 50, 3
EXTENDED: dict[str, Callable[[Callable[[int, int], float], int], float]] = {
    "stretch": lambda planned, s: planned(s, LONGER),
    "restart": lambda planned, s: planned(s - AT, LONGER - AT),
    "constant": lambda planned, s: planned(AT - 1, 20),
}


@pytest.mark.parametrize("formula", [cosine, poly, step, constant])
@pytest.mark.parametrize("rule", EXTENDED)
def test_extension_step_by_step(formula: Callable[[int, int], float], rule: str) -> None:
    """From 20 steps to 50, at step 13."""

    def planned(s: int, total: int) -> float:
        return (s + 1) / (WARMUP + 1) if s < WARMUP else formula(s - WARMUP, total - WARMUP)

    optimizer = make_optimizer(lr=1.0)
    schedule = SCHEDULES[formula.__name__](optimizer, 20, warmup_steps=WARMUP, on_extend=rule)
    before = [rate for rate, _ in rates(optimizer, schedule, AT)]
    schedule.extend(LONGER)
    after = rates(optimizer, schedule, LONGER - AT + 3)
    assert before == pytest.approx([planned(s, 20) for s in range(AT)])
    assert [rate for rate, _ in after] == pytest.approx([EXTENDED[rule](planned, s) for s in range(AT, LONGER + 3)])
    assert [head for _, head in after] == pytest.approx([10 * rate for rate, _ in after])


@pytest.mark.parametrize("build", SCHEDULES.values())
def test_finished_training_extended_at_a_constant_rate_keeps_that_of_its_last_step(
    build: Callable[..., Schedule],
) -> None:
    optimizer = make_optimizer()
    schedule = build(optimizer, 20, on_extend="constant")
    seen = rates(optimizer, schedule, 20)
    schedule.extend(30)
    assert rates(optimizer, schedule, 10) == [seen[-1]] * 10
    assert seen[-1][0] > 0


@pytest.mark.parametrize("rules", list(product(["stretch", "restart", "constant"], repeat=3)))
def test_several_extensions_resume_bit_exactly(rules: tuple[str, ...]) -> None:
    """Extended at 20 of 20, 30 of 40 and 30 of 60 steps; saved and loaded after each of 80 steps or never."""

    def run(*, interrupted: bool) -> list[list[float]]:
        optimizer, found = make_optimizer(), []
        schedule = optim.cosine(optimizer, 20, warmup_steps=2)
        for s in range(80):
            for at, total, rule in zip((20, 30, 30), (40, 60, 80), rules, strict=True):
                if s == at:
                    schedule.on_extend = rule  # type: ignore[assignment]
                    schedule.extend(total)
            if interrupted:
                states, total = (optimizer.state_dict(), schedule.state_dict()), schedule.total_steps
                optimizer = make_optimizer()
                schedule = optim.cosine(optimizer, total, warmup_steps=2)
                optimizer.load_state_dict(states[0])
                schedule.load_state_dict(states[1])
                assert schedule.total_steps == total
            found += rates(optimizer, schedule, 1)
        return found

    assert run(interrupted=True) == run(interrupted=False)


def test_warmup_must_be_shorter_than_a_new_cycle() -> None:
    optimizer = make_optimizer()
    schedule = optim.poly(optimizer, 20, warmup_steps=5, on_extend="restart")
    rates(optimizer, schedule, 20)
    with pytest.raises(ArgumentError, match=r"^warmup_steps=5: must be from 0 to 4, fewer than the 5 steps of the new"):
        schedule.extend(25)
