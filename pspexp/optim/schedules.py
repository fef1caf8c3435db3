"""Learning-rate schedules.

Every schedule multiplies the learning rate of each group by a closed-form function of the step, so resuming needs no
history and any step can be checked on its own.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated

from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pspexp.errors import ArgumentError
from pspexp.utils.arguments import checked

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Steps = Annotated[int, Field(ge=0)]


@checked
def cosine(
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup_steps: Steps = 0,
    final_factor: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.01,
) -> LambdaLR:
    """Cosine decay from 1 down to ``final_factor`` (Loshchilov and Hutter, 2017, eq. 5); see ``with_warmup``."""
    return with_warmup(
        optimizer,
        total_steps,
        warmup_steps,
        lambda progress: final_factor + (1 - final_factor) * (1 + math.cos(math.pi * float(progress))) / 2,
    )


@checked
def poly(optimizer: Optimizer, total_steps: int, *, warmup_steps: Steps = 0, power: Positive = 0.9) -> LambdaLR:
    """``(1 - progress)^power``, down to 0 (Zhao et al., 2017, sec. 5.1); see ``with_warmup``."""
    return with_warmup(optimizer, total_steps, warmup_steps, lambda progress: float(1 - progress) ** power)


@checked
def step(
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup_steps: Steps = 0,
    factor: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.1,
    parts: Annotated[int, Field(ge=1)] = 5,
) -> LambdaLR:
    """``parts`` equal parts, each at ``factor`` times the learning rate of the previous one; see ``with_warmup``."""
    return with_warmup(
        optimizer, total_steps, warmup_steps, lambda progress: float(factor ** min(int(progress * parts), parts - 1))
    )


@checked
def constant(optimizer: Optimizer, total_steps: int, *, warmup_steps: Steps = 0) -> LambdaLR:
    """The full learning rate after the warm-up; see ``with_warmup``."""
    return with_warmup(optimizer, total_steps, warmup_steps, lambda progress: 1.0)


def with_warmup(
    optimizer: Optimizer, total_steps: int, warmup_steps: int, decay: Callable[[Fraction], float]
) -> LambdaLR:
    """A linear warm-up, then ``decay``; ``.step()`` must be called after each optimizer step.

    Args:
        optimizer: Optimizer with the full learning rates.
        total_steps: Number of optimizer steps in the training.
        warmup_steps: Number of warm-up steps. Step s (from 0) runs at ``(s + 1) / (warmup_steps + 1)`` of the full
            learning rate: never at 0, and the step after the warm-up is the first at the full rate.
        decay: Factor of the learning rate as a function of the progress after the warm-up: 0 at its first step, 1 at
            the end of the training and beyond.

    Raises:
        ArgumentError: The warm-up is not shorter than the training.
    """
    assert total_steps >= 1, total_steps
    if warmup_steps >= total_steps:
        raise ArgumentError(
            f"warmup_steps={warmup_steps}: must be from 0 to {total_steps - 1}, fewer than the {total_steps} steps of "
            "the training"
        )

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        # Exact: with floats some boundaries of `step` would be one step late (15 / 22 * 22 < 15).
        return decay(min(Fraction(step - warmup_steps, total_steps - warmup_steps), Fraction(1)))

    # A plain function, so that the state dict holds numbers only.
    return LambdaLR(optimizer, factor)
