"""Hooks: additions to the training loop that do not change its code.

A hook is a node of the configuration group ``hooks``; its key is its name. Hooks are called in the order of the
configuration, in every process. The state of each is saved in ``last.pt`` and restored on resume.
"""

import logging
import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field
from torch import nn

from pspexp.engine.checkpoint import to_cpu
from pspexp.engine.components import TrainingComponents
from pspexp.engine.state import TrainState
from pspexp.errors import ArgumentError, did_you_mean, setting
from pspexp.utils.arguments import checked

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3

DATA_WAIT_WARNING = 0.1  # share of the training time spent on data loading that is worth a warning

log = logging.getLogger(__name__)


class TrainingLoop(Protocol):
    """What a hook may use of `pspexp.engine.trainer.Trainer`.

    Attributes:
        components: Model, loss, optimizer, data and so on.
        model: The model that is trained.
        evaluated_model: The model that is validated; ``model`` unless a hook replaces it.
        state: The progress of training.
    """

    components: TrainingComponents
    model: nn.Module
    evaluated_model: nn.Module
    state: TrainState

    @property
    def epoch(self) -> int:
        """The epoch of the last finished step, from 1."""
        ...

    def stop(self, reason: str) -> None:
        """End the training after the current step, which is validated and saved as the last one."""
        ...

    def request_save(self) -> None:
        """Save ``last.pt`` after the current step and its records."""
        ...


class Hook:
    """Base class: every event does nothing."""

    def on_fit_start(self, trainer: TrainingLoop) -> None:
        """Before anything else, and before a saved state is restored."""

    def on_resume(self, trainer: TrainingLoop, checkpoint: dict[str, Any]) -> None:
        """After a saved state was restored; ``checkpoint`` is the content of ``last.pt``."""

    def on_step_end(self, trainer: TrainingLoop) -> None:
        """After each optimizer step, before its log record. Reading a tensor makes the host wait for the device."""

    def on_log(self, trainer: TrainingLoop, metrics: dict[str, float]) -> None:
        """After each log record of the training, with its values."""

    def on_validation_end(self, trainer: TrainingLoop, metrics: dict[str, float]) -> None:
        """After each validation, with its values as in ``val/mean_iou``; the same in every process."""

    def on_save(self, trainer: TrainingLoop, checkpoint: dict[str, Any]) -> None:
        """Before ``best.pt`` or ``last.pt`` is written with ``checkpoint``, to which entries may be added."""

    def on_fit_end(self, trainer: TrainingLoop) -> None:
        """After the last step, validation and save; not after an error or a stop by a signal."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to continue exactly: plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class WeightAveraging(Hook):
    """Validate and keep an exponential moving average of the weights, which warms up as in timm's ``ModelEmaV3``.

    Args:
        decay: Decay of the average per step; None disables averaging.
    """

    @checked
    def __init__(self, decay: Annotated[float, Field(gt=0, lt=1)] | None) -> None:
        self.decay = decay
        self.average: ModelEmaV3 | None = None

    def on_fit_start(self, trainer: TrainingLoop) -> None:
        """Start from the current weights."""
        if self.decay is not None:
            from timm.utils.model_ema import ModelEmaV3  # slow to import

            self.average = ModelEmaV3(trainer.model, decay=self.decay, use_warmup=True)
            trainer.evaluated_model = self.average.module

    def on_resume(self, trainer: TrainingLoop, checkpoint: dict[str, Any]) -> None:
        """Continue with the saved average."""
        if self.average is not None:
            self.average.module.load_state_dict(checkpoint["ema"])

    def on_step_end(self, trainer: TrainingLoop) -> None:
        """Update the average with the new weights."""
        if self.average is not None:
            self.average.update(trainer.model, step=trainer.state.step - 1)

    def on_save(self, trainer: TrainingLoop, checkpoint: dict[str, Any]) -> None:
        """Save the average beside the weights."""
        if self.average is not None:
            checkpoint["ema"] = to_cpu(self.average.module.state_dict())


class PeriodicSave(Hook):
    """Save ``last.pt`` between validations, which save it anyway.

    Args:
        every_steps: Number of optimizer steps between saves; None disables them.
    """

    @checked
    def __init__(self, every_steps: Annotated[int, Field(gt=0)] | None) -> None:
        self.every_steps = every_steps

    def on_step_end(self, trainer: TrainingLoop) -> None:
        """Request a save if it is due."""
        if self.every_steps and trainer.state.step % self.every_steps == 0:
            trainer.request_save()


class DataWaitWarning(Hook):
    """Warn once if data loading slows the training down."""

    def __init__(self) -> None:
        self.records, self.warned = 0, False

    def on_log(self, trainer: TrainingLoop, metrics: dict[str, float]) -> None:
        """Compare the two times; not in the first record, during which the loader's workers start."""
        data_s, step_s = metrics["train/data_time"], metrics["train/step_time"]
        self.records += 1
        if self.warned or self.records == 1 or data_s < DATA_WAIT_WARNING * (data_s + step_s):
            return
        self.warned = True
        log.warning(
            "data loading takes %.0f %% of the training time: train/data_time is %.3f s, train/step_time %.3f s per "
            "step. Raise %s if cores are idle, or %s if the data fits into memory",
            100 * data_s / (data_s + step_s), data_s, step_s, setting("loader.num_workers"),
            setting("loader.cache_mib"),
        )  # fmt: skip


class EarlyStopping(Hook):
    """Stop when a metric has not improved for several validations.

    Args:
        metric: Name of the metric, such as ``val/mean_iou``.
        mode: ``max`` if larger values are better, ``min`` if smaller ones are.
        patience: Number of validations without an improvement after which to stop; None disables stopping.
        min_delta: Change that an improvement must exceed.
    """

    @checked
    def __init__(
        self,
        metric: Annotated[str, Field(pattern="^val/.+$")] = "val/mean_iou",
        mode: Literal["max", "min"] = "max",
        patience: Annotated[int, Field(ge=1)] | None = None,
        min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0,
    ) -> None:
        self.metric, self.mode, self.patience, self.min_delta = metric, mode, patience, min_delta
        self.best: float | None = None
        self.validations_without_improvement = 0

    def on_fit_start(self, trainer: TrainingLoop) -> None:
        """Refuse the name of a class that the data set does not have."""
        names = trainer.components.dataset.info.class_names
        name = self.metric.removeprefix("val/iou/")
        if name != self.metric and name not in names:
            raise ArgumentError(f"metric={self.metric}: the data set has no such class{did_you_mean(name, names)}")

    def on_validation_end(self, trainer: TrainingLoop, metrics: dict[str, float]) -> None:
        """Compare with the best value; an undefined or non-finite one is no improvement."""
        if self.patience is None:
            return
        value = metrics.get(self.metric)
        if value is not None and math.isfinite(value) and self._improves(value):
            self.best, self.validations_without_improvement = value, 0
        else:
            self.validations_without_improvement += 1
        self._stop_if_exhausted(trainer)

    def on_resume(self, trainer: TrainingLoop, checkpoint: dict[str, Any]) -> None:
        """Stop again at once, unless ``patience`` has been raised."""
        self._stop_if_exhausted(trainer)

    def _improves(self, value: float) -> bool:
        sign = 1 if self.mode == "max" else -1
        return self.best is None or sign * (value - self.best) > self.min_delta

    def _stop_if_exhausted(self, trainer: TrainingLoop) -> None:
        if self.patience is not None and self.validations_without_improvement >= self.patience:
            best = "undefined" if self.best is None else f"{self.best:.4f}"
            trainer.stop(f"{self.metric} has not improved on {best} for {self.patience} validations")

    def state_dict(self) -> dict[str, Any]:
        """The best value, and the number of validations since."""
        return {"best": self.best, "validations_without_improvement": self.validations_without_improvement}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.best = state["best"]
        self.validations_without_improvement = state["validations_without_improvement"]
