"""Learning-rate schedules.

Every schedule multiplies the learning rate of each group by a closed-form function of the step, and of the steps at
which the training was extended. So resuming needs no other history, and any step can be checked on its own.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pspexp.errors import ArgumentError
from pspexp.utils.arguments import PositiveNumber, checked

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Steps = Annotated[int, Field(ge=0)]
OnExtend = Literal["restart", "stretch", "constant"] | None


class Schedule(LambdaLR):
    """A linear warm-up, then a decay; ``.step()`` must be called after each optimizer step.

    Args:
        optimizer: Optimizer with the full learning rates.
        total_steps: Number of optimizer steps in the training.
        warmup_steps: Number of warm-up steps. Step s (from 0) runs at ``(s + 1) / (warmup_steps + 1)`` of the full
            learning rate: never at 0, and the step after the warm-up is the first at the full rate.
        decay: Factor of the learning rate as a function of the progress after the warm-up: 0 at its first step, 1 at
            the end of the training and beyond.
        on_extend: What follows when the training is extended, see `extend`.

    Raises:
        ArgumentError: The warm-up is not shorter than the training.
    """

    __slots__ = ("decay", "on_extend", "warmup_steps")  # not in the state dict, which holds all other attributes

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int,
        decay: Callable[[Fraction], float],
        on_extend: OnExtend = None,
    ) -> None:
        assert total_steps >= 1, total_steps
        refuse_long_warmup(warmup_steps, total_steps, "the training")
        self.warmup_steps, self.decay, self.on_extend = warmup_steps, decay, on_extend
        self.planned_steps = total_steps
        self.extensions: list[tuple[int, int, str]] = []  # of each: its step, the new length, the rule
        super().__init__(optimizer, lambda step: self.factor(step))

    @property
    def total_steps(self) -> int:
        """Length of the training, extensions included."""
        return self.extensions[-1][1] if self.extensions else self.planned_steps

    def factor(self, step: int) -> float:
        """Factor of the full learning rates in a step, from 0."""
        start, end, held = 0, self.planned_steps, None
        for at, total, rule in self.extensions:
            if step < at:
                break
            start, end = at if rule == "restart" else start, total
            held = at - 1 if rule == "constant" and at > 0 else None
        if held is not None:
            return self.factor(held)
        done = step - start
        if done < self.warmup_steps:
            return (done + 1) / (self.warmup_steps + 1)
        # Exact: with floats some boundaries of `step` would be one step late (15 / 22 * 22 < 15).
        progress = Fraction(done - self.warmup_steps, max(end - start - self.warmup_steps, 1))
        return self.decay(min(progress, Fraction(1)))

    def extend(self, total_steps: int) -> None:
        """Change the length of the training, from the current step on.

        The learning rate follows ``on_extend``. ``stretch``: from here on it is what it would be if the training (after
        a restart, the cycle) had been planned with the new length. ``restart``: a new cycle from the full rate to the
        new end, warm-up included. ``constant``: it stays at that of the last finished step, since a decay to 0 has
        already reached it. None is ``stretch``: for a schedule that does not depend on the length.

        Raises:
            ArgumentError: The warm-up of a restart is not shorter than the steps that are left.
        """
        at, rule = self.last_epoch, self.on_extend or "stretch"
        if rule == "restart":
            refuse_long_warmup(self.warmup_steps, total_steps - at, "the new cycle")
        self.extensions = [*self.extensions, (at, total_steps, rule)]
        self._last_lr = [rate * self.factor(at) for rate in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


@checked
def cosine(
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup_steps: Steps = 0,
    final_factor: Share = 0.01,
    on_extend: OnExtend = None,
) -> Schedule:
    """Cosine decay from 1 down to ``final_factor`` (Loshchilov and Hutter, 2017, eq. 5); see `Schedule`."""
    return Schedule(
        optimizer,
        total_steps,
        warmup_steps,
        lambda progress: final_factor + (1 - final_factor) * (1 + math.cos(math.pi * float(progress))) / 2,
        on_extend,
    )


@checked
def poly(
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup_steps: Steps = 0,
    power: PositiveNumber = 0.9,
    final_factor: Share = 0.0,
    on_extend: OnExtend = None,
) -> Schedule:
    """``(1 - progress)^power`` (Zhao et al., 2017, sec. 5.1), scaled to end at ``final_factor``; see `Schedule`."""
    return Schedule(
        optimizer,
        total_steps,
        warmup_steps,
        lambda progress: (1 - final_factor) * float(1 - progress) ** power + final_factor,
        on_extend,
    )


@checked
def step(
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup_steps: Steps = 0,
    factor: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.1,
    parts: Annotated[int, Field(ge=1)] = 5,
    on_extend: OnExtend = None,
) -> Schedule:
    """``parts`` equal parts, each at ``factor`` times the learning rate of the previous one; see `Schedule`."""
    return Schedule(
        optimizer,
        total_steps,
        warmup_steps,
        lambda progress: float(factor ** min(int(progress * parts), parts - 1)),
        on_extend,
    )


@checked
def constant(
    optimizer: Optimizer, total_steps: int, *, warmup_steps: Steps = 0, on_extend: OnExtend = None
) -> Schedule:
    """The full learning rate after the warm-up; see `Schedule`."""
    return Schedule(optimizer, total_steps, warmup_steps, lambda progress: 1.0, on_extend)


def refuse_long_warmup(warmup_steps: int, steps: int, what: str) -> None:
    """Raise ArgumentError unless the warm-up is shorter than what it is a part of."""
    if warmup_steps >= steps:
        raise ArgumentError(
            f"warmup_steps={warmup_steps}: must be from 0 to {steps - 1}, fewer than the {steps} steps of {what}"
        )
