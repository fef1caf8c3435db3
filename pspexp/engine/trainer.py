"""The training loop: steps, validation, saving. It is given built objects and does not know the configuration."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext, suppress
from copy import deepcopy
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pspexp.data.loader import Batch
from pspexp.data.samples import refuse_unknown_ids
from pspexp.data.transforms import normalize
from pspexp.engine.checkpoint import CheckpointDir, to_cpu
from pspexp.engine.components import TrainingComponents
from pspexp.engine.distributed import no_sync
from pspexp.engine.evaluator import Evaluation
from pspexp.engine.hooks import Hook
from pspexp.engine.nonfinite import NonFiniteError, bad_loss, bad_weights
from pspexp.engine.state import StepTimer, TrainState
from pspexp.engine.trainer_config import TrainerConfig
from pspexp.engine.unused import freeze_unused
from pspexp.errors import ArgumentError, Interrupted, UserError, setting
from pspexp.losses import LossSum, can_chunk, loss_sum
from pspexp.models.nonfinite import learned_names, nonfinite_names
from pspexp.models.segmenter import can_defer_upsampling
from pspexp.models.weights import refuse_nonfinite
from pspexp.optim.optimizers import load_optimizer_state, supports_found_inf
from pspexp.optim.schedules import Schedule
from pspexp.tracking.run_folder import finite
from pspexp.tracking.tracker import Tracker
from pspexp.utils.progress import Progress
from pspexp.utils.text import count, first_names

MAX_QUEUED_STEPS = 2  # how far the host runs ahead of the device: enough to keep it busy, and to time the steps
RANK_SEED_STRIDE = 2**32  # between the random streams of two processes: configured seeds are smaller
MAX_CONSECUTIVE_OVERFLOWS = 32  # by then the scaler has halved its scale as often, from 2**16

log = logging.getLogger(__name__)


class Trainer:
    """Trains a model.

    The loss of a step is the sum of the pixel losses of all its batches and processes, divided once by the sum of
    their weights.

    Args:
        components: Model, loss, optimizer, data and so on.
        config: How long to train, and what a step consists of.
        validate: Function that evaluates a model. It calls its callback after each batch, equally often in each
            process; the callback may raise.
        tracker: Records the metrics.
        checkpoints: The folder to save to.
        hooks: Hooks by name, in the order in which they are called.
        stop_signal: Function that returns the number of the signal that requested a stop, or None; polled before
            each step and after each batch of a validation.
        seed: Seed of dropout. Each step has its own random stream in each process, so a resumed run draws what the
            uninterrupted one would.
        data: What the training state says about the data, by role; see `pspexp.engine.state.data_state`.
    """

    def __init__(
        self,
        components: TrainingComponents,
        config: TrainerConfig,
        *,
        validate: Callable[[nn.Module, Callable[[], None]], Evaluation],
        tracker: Tracker,
        checkpoints: CheckpointDir,
        hooks: Mapping[str, Hook],
        stop_signal: Callable[[], int | None],
        seed: int,
        data: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.components, self.config, self.seed = components, config, seed
        self.data = {role: dict(state) for role, state in (data or {}).items()}
        self.model, self.optimizer, self.scheduler = components.model, components.optimizer, components.scheduler
        self.world, self.device, self.loader = components.world, components.device, components.loader
        self.validate, self.tracker, self.checkpoints = validate, tracker, checkpoints
        self.hooks, self.stop_signal = hooks, stop_signal
        self.evaluated_model = self.model  # the model that is validated, and whose results decide about best.pt
        self.network = self.world.wrap_ddp(self.model)
        self.unused_parameters: list[str] | None = None  # None: not looked for yet
        self.total_steps = config.total_steps(self.loader.steps_per_epoch)
        self.last_step = min(self.total_steps, config.max_steps or self.total_steps)
        self.autocast = components.precision.autocast(self.device)
        self.scaler = components.precision.grad_scaler(self.device)
        # Saves memory; the compiler fuses the loss in its own way.
        self.chunked_loss = not config.compile and can_defer_upsampling(self.model) and can_chunk(components.loss)
        self.loss_sum: Callable[[Tensor, Tensor], LossSum] = self._loss_sum
        if config.compile:
            self.loss_sum = torch.compile(self._loss_sum, mode=None if config.compile is True else config.compile)
        self.state, self.timer = TrainState(), StepTimer()
        self.stop_reason: str | None = None
        self.save_requested = False
        self.checked_step = -1  # after which all weights were finite
        # Steps, from 1, and their values on the device: loss and weight of each batch, then the gradient norm.
        self.unread: list[tuple[int, Tensor]] = []
        self.queued: deque[Callable[[], None]] = deque()
        # Becomes and stays 1 once a loss or gradient is not finite.
        self.found_nonfinite = torch.zeros((), device=self.device.torch)

    def fit(self, checkpoint: dict[str, Any] | None = None) -> TrainState:
        """Train to the end.

        Args:
            checkpoint: Content of a ``last.pt`` to resume from; later records are removed.

        Raises:
            NonFiniteError: Names the step and its images, or the weights; nothing has been saved since.
            Interrupted: A signal requested a stop; ``last.pt`` has been saved.
        """
        self._call_hooks("on_fit_start")
        if checkpoint is not None:
            self._resume(checkpoint)
        state, world = self.state, self.world
        with (
            closing(self.loader.batches(state.step, self.last_step)) as batches,
            Progress(
                self.last_step,
                "train",
                start=state.step,
                log_every=self.config.log_every,
                silent=not world.is_main_process,
            ) as progress,
        ):
            if self._validation_is_due():  # the last validation was interrupted
                self._validate()
            while state.step < self.last_step and self.stop_reason is None:
                self._stop_if_asked()
                self._step(batches)
                self._call_hooks("on_step_end")
                self._log_if_due(progress)
                if self._validation_is_due():
                    self._validate()
                elif self.save_requested:
                    self._save_last()
        if self.stop_reason is not None:
            log.info("stopped after epoch %d, step %d: %s", self.epoch, state.step, self.stop_reason)
        self._call_hooks("on_fit_end")
        return state

    @property
    def epoch(self) -> int:
        """The epoch of the last finished step, from 1."""
        return max(math.ceil(self.state.step / self.loader.steps_per_epoch), 1)

    def stop(self, reason: str) -> None:
        """See `pspexp.engine.hooks.TrainingLoop`."""
        self.stop_reason = reason

    def request_save(self) -> None:
        """See `pspexp.engine.hooks.TrainingLoop`."""
        self.save_requested = True

    def _validation_is_due(self) -> bool:
        step = self.state.step
        scheduled = step % (self.config.validate_every * self.loader.steps_per_epoch) == 0
        ends = step == self.last_step or (self.stop_reason is not None and step > 0)
        return step != self.state.validated_step and (scheduled or ends)

    def _step(self, batches: Iterator[Batch]) -> None:
        """One optimizer step over ``accumulate`` batches; the host reads nothing from the device."""
        start = time.perf_counter()
        group = self._load(batches)
        loaded = time.perf_counter()
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        changed = self.components.freezing.update(self.state.step // self.loader.steps_per_epoch + 1)
        if self.world.size > 1 and (changed or self.unused_parameters is None):
            self._wrap_anew(group[0], changed)
        # For dropout: its random numbers depend on the step and process only, not on those drawn before.
        torch.manual_seed(self.seed + self.state.step + RANK_SEED_STRIDE * self.world.rank)
        # The total weight is not known before the last batch. Until then, a power of two of similar size replaces it:
        # dividing by it rounds nothing, and keeps fp16 gradients in range.
        provisional = 2 ** (group[0].labels.numel() * len(group)).bit_length()
        sums = []
        for number, batch in enumerate(group, 1):
            images, labels = self.device.move(batch.images), self.device.move(batch.labels)
            with nullcontext() if number == len(group) else no_sync(self.network):
                loss, weight = self.loss_sum(images, labels)
                # A non-finite loss makes the gradients NaN in all processes, so that none of them takes the step.
                usable = loss.detach().isfinite() & (self.found_nonfinite == 0)
                loss_share = loss * torch.where(usable, 1 / provisional, math.nan)
                (loss_share if self.scaler is None else self.scaler.scale(loss_share)).backward()  # type: ignore[no-untyped-call]
            sums.append(torch.stack([loss.detach(), weight]))
        total_weight = self.world.all_reduce(torch.stack(sums)[:, 1].sum())
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        factor = provisional * self.world.size / torch.where(total_weight > 0, total_weight, 1)
        norm = rescale_gradients(self.model, factor, self.config.grad_clip)
        values = torch.cat([*sums, norm[None].to(total_weight.dtype)])
        self.unread.append((self.state.step + 1, values))
        self._update(values)
        self.scheduler.step()
        self.state.step += 1
        self.queued.append(self.device.record_event())
        if len(self.queued) > MAX_QUEUED_STEPS:
            self.queued.popleft()()
        self.timer.add_step(loaded - start, time.perf_counter() - loaded, self.loader.images_per_step)

    def _wrap_anew(self, batch: Batch, changed: bool) -> None:
        """Let DDP average the gradients of what is trained now, and wait for no others.

        Args:
            batch: Images to find out on what the loss depends.
            changed: Whether other parameters are trained than when DDP began.
        """
        images, labels, loss = self.device.move(batch.images), self.device.move(batch.labels), self.components.loss
        with suppress(Exception):  # not every loss can be copied
            loss = deepcopy(loss)  # it may count its calls
        unused = freeze_unused(
            self.model, lambda part: self._loss_of(self.model, loss, images[part], labels[part]).loss, self.world
        )
        if unused and unused != self.unused_parameters and self.world.is_main_process:
            number = count(len(unused), "weight")
            log.warning("%s not trained, since the loss does not depend on them: %s", number, first_names(unused))
        self.unused_parameters = unused
        if changed or unused:
            self.network = self.world.wrap_ddp(self.model)

    def _load(self, batches: Iterator[Batch]) -> list[Batch]:
        """The batches of a step; raises UserError for unreadable images or wrong labels, one process after saving."""
        try:
            group = [next(batches) for _ in range(self.config.accumulate)]
            for batch in group:
                refuse_unknown_ids(batch, self.components.training.names, self.components.dataset.info)
            return group
        except UserError:
            if self.world.size == 1 and self.state.step:  # several processes would have to save at the same step
                self._save_last()
            raise

    def _loss_sum(self, images: Tensor, labels: Tensor) -> LossSum:
        """The loss of uint8 ``images`` and ``labels``, before division."""
        return self._loss_of(self.network, self.components.loss, images, labels)

    def _loss_of(self, network: nn.Module, loss: nn.Module, images: Tensor, labels: Tensor) -> LossSum:
        """`_loss_sum` of a network, which may be wrapped, and any loss."""
        info = self.components.dataset.info
        images, labels = normalize(images, info.mean, info.std, torch.float32), labels.long()
        with self.autocast:  # not around the loss: it takes gradients, and logits need their precision
            outputs = network(images, upsampled=False) if self.chunked_loss else network(images)
        if self.chunked_loss:
            return loss.chunked(outputs, labels, self.model.upsample)  # type: ignore[operator, no-any-return]
        return loss_sum(loss, outputs, labels)

    def _update(self, values: Tensor) -> None:
        """Change the weights unless one of ``values``, losses and gradient norm, is not finite, or has ever been.

        With fp16 an infinite gradient is no error: the scaler skips the step and lowers its scale.
        """
        finite = (values if self.scaler is None else values[:-1]).isfinite().all()
        self.found_nonfinite = torch.maximum(self.found_nonfinite, (~finite).to(self.found_nonfinite.dtype))
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return
        if supports_found_inf(self.optimizer):  # noticed later, when the losses are read
            self.optimizer.found_inf = self.found_nonfinite  # type: ignore[attr-defined]
        else:
            self._read_losses()
        self.optimizer.step()

    def _wait_for_losses(self) -> None:
        """`_read_losses`, with the wait counted as training time."""
        start = time.perf_counter()
        if self.unread:
            self._read_losses()
            self.timer.add_wait(time.perf_counter() - start)

    def _read_losses(self) -> None:
        """Wait for the device and check the losses and gradient norms of the last steps, in all processes.

        Raises:
            NonFiniteError: Names the first step with a value that is not finite; the weights are those before it.
        """
        unread, self.unread = self.unread, []
        found = self.world.all_gather_cpu(torch.stack([values for _, values in unread]))
        for (step, _), *by_process in zip(unread, *(values.tolist() for values in found), strict=True):
            losses, norm = [values[:-1:2] for values in by_process], by_process[0][-1]  # the norm is the same in all
            weight = math.fsum(value for values in by_process for value in values[1:-1:2])
            loss = sum(map(sum, losses)) / (weight or 1.0)
            overflow = self.scaler is not None and not math.isfinite(norm)
            self.state.consecutive_overflows = (self.state.consecutive_overflows + 1) * overflow
            hopeless = self.state.consecutive_overflows > MAX_CONSECUTIVE_OVERFLOWS
            if not math.isfinite(loss) or not (math.isfinite(norm) or overflow) or hopeless:
                self._refuse(step, losses, loss, norm)
            self.state.losses.append(loss)
            self.state.overflows += overflow

    def _refuse(self, step: int, losses: list[list[float]], loss: float, norm: float) -> NoReturn:
        """Raise NonFiniteError; ``losses`` by process, then by batch."""
        batches = [
            (batch, value)
            for rank, values in enumerate(losses)
            for batch, value in zip(self.loader.sample_keys(step - 1, step, rank), values, strict=True)
        ]
        bad = [batch for batch, value in batches if not math.isfinite(value)] or [batch for batch, _ in batches]
        names = [self.components.training.names[key.index] for batch in bad for key in batch]
        raise bad_loss(step, loss, norm, names, self.components.precision.resolve(self.device))

    def _refuse_nonfinite_weights(self) -> None:
        """Raise NonFiniteError in all processes if weights or statistics of one are NaN or infinite.

        Those after a step, of which the next loss would show it, and those of the moving average.
        """
        if self.checked_step == self.state.step:
            return
        self.checked_step = self.state.step
        learned = learned_names(self.model)
        networks = dict.fromkeys((self.model, self.evaluated_model))
        states = ({name: value for name, value in one.state_dict().items() if name in learned} for one in networks)
        own = [name for state in states for name in nonfinite_names(state)]
        found = list(dict.fromkeys(name for names in self.world.all_gather_object(own) for name in names))
        if found:
            raise bad_weights(self.state.step, found, self.components.precision.resolve(self.device))

    def _log_if_due(self, progress: Progress) -> None:
        state, ended = self.state, self.state.step == self.last_step or self.stop_reason is not None
        due = state.step % self.config.log_every == 0 or ended
        if due:
            self._wait_for_losses()
        loss, speed = state.losses[-1] if state.losses else None, self.timer.metrics()["train/images_per_second"]
        progress.advance(state.step, loss=loss, images_per_second=speed, epoch=self.epoch)
        if not due:
            return
        values = {
            "train/loss": math.fsum(state.losses) / len(state.losses),
            "train/lr": float(self.optimizer.param_groups[0]["lr"]),
            **self.timer.metrics(),
        }
        if self.loader.skip_errors:
            names = self.world.all_gather_object([*self.loader.skipped])
            state.skipped = sorted({*state.skipped, *(name for found in names for name in found)})
            values["train/skipped_images"] = float(len(state.skipped))
        if self.scaler is not None:
            values |= {"train/loss_scale": self.scaler.get_scale(), "train/overflow_steps": float(state.overflows)}
        self.tracker.metrics(values, step=state.step, epoch=self.epoch)
        self._call_hooks("on_log", values)
        self.timer.reset()
        if state.step % self.config.log_every == 0:  # else this was the last record, which a longer run repeats
            state.losses.clear()

    def _validate(self) -> None:
        self._wait_for_losses()
        state, epoch = self.state, self.epoch
        self.world.broadcast_buffers(self.evaluated_model)
        self._refuse_nonfinite_weights()
        if not len(self.components.validation):
            state.validated_step = state.step
            self._save("best.pt")
            self._save_last()
            return
        evaluation = self.validate(self.evaluated_model, self._stop_if_asked)
        if evaluation.nonfinite and self.world.is_main_process:
            log.warning("validation after step %d: %s", state.step, evaluation.describe_nonfinite())
        metrics = evaluation.scalars("val")
        if self.loader.skip_errors:
            metrics["train/skipped_images"] = float(len(state.skipped))
        state.last = dict(finite(metrics))
        improved = not state.best or evaluation.report.mean_iou > state.best.get("val/mean_iou", -1.0)
        if improved:
            state.best = {**state.last, "best/epoch": float(epoch)}
            state.best["best/mean_iou"] = state.best.get("val/mean_iou", 0.0)
        state.validated_step = state.step
        extra = evaluation.extra("val") | {key: state.best[key] for key in ("best/mean_iou", "best/epoch")}
        # Recorded before saving: on resume, a checkpoint without its record could not be told from a complete one.
        self.tracker.report("val", evaluation.report, step=state.step, epoch=epoch, extra=extra)
        self._call_hooks("on_validation_end", metrics)
        if improved:
            self._save("best.pt")
        self._save_last()
        log.info("epoch %d, step %d\n%s", epoch, state.step, evaluation.report.table())

    def _stop_if_asked(self) -> None:
        if number := self.world.all_reduce_max_async(self.stop_signal() or 0):
            self._save_last()
            raise Interrupted(number, f"stopped after step {self.state.step} of {self.last_step}")

    def _save_last(self) -> None:
        """Save everything needed to resume from here."""
        self._wait_for_losses()  # nothing is saved after a step that was refused
        self._refuse_nonfinite_weights()
        training = {
            "world_size": self.world.size,
            "precision": self.components.precision.resolve(self.device),
            "steps_per_epoch": self.loader.steps_per_epoch,
            "data": self.data,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "state": vars(self.state),
            "optimizer": to_cpu(self.optimizer.state_dict()),
            "scheduler": self.scheduler.state_dict(),
            "timer": vars(self.timer),
            "hooks": {name: to_cpu(hook.state_dict()) for name, hook in self.hooks.items()},
        }
        self._save("last.pt", training=training)
        if self.save_requested and self.world.is_main_process:
            self.checkpoints.keep_state(self.state.step)
        self.save_requested = False

    def _save(self, name: str, **more: Any) -> None:
        """Write a checkpoint in the main process."""
        if not self.world.is_main_process:
            return
        head = {"step": self.state.step, "epoch": self.epoch, "metrics": self.state.last}
        content: dict[str, Any] = {**head, "model": to_cpu(self.model.state_dict()), "ema": None, **more}
        self._call_hooks("on_save", content)
        self.tracker.sync()
        self.checkpoints.save(name, content)

    def _resume(self, checkpoint: dict[str, Any]) -> None:
        training, learned = checkpoint["training"], learned_names(self.model)
        for part in (checkpoint["model"], checkpoint.get("ema") or {}):
            found = {name: value for name, value in part.items() if name in learned}
            refuse_nonfinite(found, setting("checkpoint.resume"))
        self.model.load_state_dict(checkpoint["model"])
        load_optimizer_state(self.optimizer, training["optimizer"])
        self.scheduler.load_state_dict(training["scheduler"])
        if self.scaler is not None:
            self.scaler.load_state_dict(training["scaler"])
        self.state = TrainState(**training["state"])
        vars(self.timer).update(training["timer"])
        # The state may come from another folder, without its best.pt.
        if not self.world.broadcast_from_main((self.checkpoints.folder / "best.pt").is_file):
            self.state.best, self.state.validated_step = {}, 0
        self.tracker.rewind(self.state.step, keep_evaluation=self.state.validated_step == self.state.step)
        for name, hook in self.hooks.items():
            if state := training["hooks"].get(name):
                hook.load_state_dict(state)
        self._call_hooks("on_resume", checkpoint)
        log.info("resuming from step %d", self.state.step)
        self._follow_new_length()

    def _follow_new_length(self) -> None:
        """Let the learning rate follow the length of the training if it is not the saved one."""
        schedule = self.scheduler
        if not isinstance(schedule, Schedule) or schedule.total_steps == self.total_steps:
            return
        planned, before = schedule.total_steps, schedule.get_last_lr()[0]
        schedule.extend(self.total_steps)
        rule = setting("scheduler.on_extend", schedule.on_extend)
        log.info(
            "%d steps of training instead of %d (%s): the learning rate of step %d is %.4g instead of %.4g",
            self.total_steps, planned, rule, self.state.step + 1, schedule.get_last_lr()[0], before,
        )  # fmt: skip

    def _call_hooks(self, event: str, *values: Any) -> None:
        """Call an event of every hook; an error names the hook."""
        for name, hook in self.hooks.items():
            try:
                getattr(hook, event)(self, *values)
            except ArgumentError as error:
                raise UserError(*(f"{setting('hooks')}.{name}.{problem}" for problem in error.problems)) from error
            except (UserError, Interrupted, NonFiniteError):
                raise
            except Exception as error:
                raise RuntimeError(f"{setting('hooks')}.{name}: {event} failed: {error!r}") from error


def rescale_gradients(model: nn.Module, factor: Tensor, max_norm: float | None) -> Tensor:
    """Multiply all gradients by ``factor``, and clip their norm, in one pass (cf. ``clip_grad_norm_``).

    Returns:
        The norm after the multiplication, before clipping; a scalar.
    """
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))) * factor
    if max_norm is not None:
        factor = factor * (max_norm / (norm + 1e-6)).clamp(max=1)
    torch._foreach_mul_(gradients, factor)
    return norm
