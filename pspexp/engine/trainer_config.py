"""The settings of the training loop: the node ``trainer`` of the configuration."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StrictFloat, StrictInt

PositiveInt = Annotated[StrictInt, Field(gt=0)]


@dataclass(frozen=True)
class TrainerConfig:
    """How long to train, and what a step consists of.

    Attributes:
        epochs: Length of the training; the horizon of the learning-rate schedule.
        steps: The same in optimizer steps; takes precedence over ``epochs``.
        max_steps: Number of steps after which training stops early.
        validate_every: Number of epochs between validations. The end of the training is always validated.
        log_every: Number of steps between log records.
        grad_clip: Maximum gradient norm.
        accumulate: Number of batches per step and process.
        ema: Decay of the moving average of the weights; read by `pspexp.engine.hooks.WeightAveraging`.
        compile: Whether to compile network and loss of a training step with ``torch.compile``, or its mode. For
            validation, see `pspexp.inference.base.Inference`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    epochs: PositiveInt
    steps: PositiveInt | None = None
    max_steps: PositiveInt | None = None
    validate_every: PositiveInt = 1
    log_every: PositiveInt = 5
    grad_clip: Annotated[StrictFloat, Field(gt=0)] | None = None
    accumulate: PositiveInt = 1
    ema: Annotated[StrictFloat, Field(gt=0, lt=1)] | None = None
    compile: Literal[False, True, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = False

    def total_steps(self, steps_per_epoch: int) -> int:
        """Length of the training in optimizer steps."""
        return self.steps or self.epochs * steps_per_epoch
