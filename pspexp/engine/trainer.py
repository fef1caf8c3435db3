"""The training loop: steps, validation, saving. It gets built objects and knows nothing of configuration."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pspexp.data.loader import Batch, TrainLoader
from pspexp.data.transforms import normalize
from pspexp.engine.checkpoint import CheckpointFolder, on_cpu
from pspexp.engine.device import Device
from pspexp.engine.distributed import World, no_sync
from pspexp.engine.evaluator import Evaluation
from pspexp.engine.precision import Precision
from pspexp.errors import Interrupted
from pspexp.losses import can_chunk, divisor
from pspexp.models.segmenter import can_defer_upsampling
from pspexp.optim import load_optimizer, skips_on_request
from pspexp.tracking import Progress, Tracker
from pspexp.tracking.local import finite

QUEUED_STEPS = 2  # how far the host runs ahead of the device: enough to keep it busy, and to see who waits for whom
SEEDS_APART = 2**32  # between the random streams of two processes: configured seeds are smaller
MOST_OVERFLOWS = 32  # in a row: the scaler has halved its scale as often, from 2**16 at the start
STARVED = 0.1  # share of the time spent waiting for data that is worth a warning

log = logging.getLogger(__name__)


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient is NaN or infinite; raised before the weights are touched."""


@dataclass
class TrainState:
    """How far a training is. Everything else about the loop follows from these.

    Attributes:
        step: finished optimizer steps.
        validated_step: the step at which the weights were last validated.
        best, last: metrics of the best and of the last validation, by name.
        losses: of the steps since the last log record, as far as they have been read.
        overflows: steps that fp16 left out, since their scaled gradients were not finite.
        overflows_in_a_row: of them, those up to now without a good one in between.
    """

    step: int = 0
    validated_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    overflows: int = 0
    overflows_in_a_row: int = 0


class Stopwatch:
    """Seconds spent training and waiting for data since the last reset, in all and in the current interval."""

    def __init__(self) -> None:
        self.total_s, self.total_images = 0.0, 0
        self.reset()

    def reset(self) -> None:
        self.step_s, self.data_s, self.steps, self.images = 0.0, 0.0, 0, 0

    def add(self, data_s: float, step_s: float, images: int) -> None:
        self.data_s += data_s
        self.step_s += step_s
        self.steps += 1
        self.images += images
        self.total_s += data_s + step_s
        self.total_images += images

    def wait(self, seconds: float) -> None:
        """Time in which the device worked off its queue."""
        self.step_s += seconds
        self.total_s += seconds

    def scalars(self) -> dict[str, float]:
        """Means of the interval, in seconds and images per second."""
        return {
            "train/images_per_second": self.images / max(self.data_s + self.step_s, 1e-9),
            "train/data_time": self.data_s / max(self.steps, 1),
            "train/step_time": self.step_s / max(self.steps, 1),
        }


class Trainer:
    """Trains a model.

    Args:
        model: on ``device``; maps images to ``{"out", "aux"}``.
        loss: of the outputs and the labels; a scalar.
        scheduler: stepped once after each optimizer step.
        data: the training images.
        names: of the training images, for messages.
        world: the processes that share each step, all at the same one.
        validate: evaluates a model; its callback is called between batches, as often in each process, and may raise.
        mean, std: normalisation of the images.
        seed: of dropout; each step has its own stream in each process, so a resumed run draws what the
            uninterrupted one would.
        stop_signal: number of the signal that asks to stop, or None. Asked after every step.
        epochs: length of the training; the learning rate's horizon is its ``total_steps``.
        max_steps: stop earlier.
        validate_every: epochs between validations. The end is always validated.
        log_every: steps between records.
        every_steps: steps between saves beside those at each validation.
        grad_clip: largest gradient norm.
        accumulate: batches per step and process; the loss is the mean over the pixels of all of them, as if they
            were one batch, where the loss is a mean over pixels (`pspexp.losses.divisor`); else the mean over batches.
        ema: decay of a moving average of the weights, which is then what is validated. It warms up as in timm.
        compile: compile network and loss with ``torch.compile``, True or its mode. Validation stays as it is: its
            images come in many sizes.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        loss: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler,
        data: TrainLoader,
        names: Sequence[str],
        validate: Callable[[nn.Module, Callable[[], None]], Evaluation],
        world: World,
        device: Device,
        precision: Precision,
        mean: list[float],
        std: list[float],
        seed: int,
        tracker: Tracker,
        checkpoints: CheckpointFolder,
        stop_signal: Callable[[], int | None],
        epochs: int,
        max_steps: int | None,
        validate_every: int,
        log_every: int,
        every_steps: int | None,
        grad_clip: float | None,
        accumulate: int,
        ema: float | None,
        compile: bool | str,
    ) -> None:
        self.model, self.loss, self.optimizer, self.scheduler = model, loss, optimizer, scheduler
        self.data, self.names, self.validate = data, names, validate
        self.world, self.network = world, world.wrap_ddp(model)
        self.device, self.mean, self.std, self.seed = device, mean, std, seed
        self.tracker, self.checkpoints, self.stop_signal = tracker, checkpoints, stop_signal
        self.validate_every, self.log_every, self.every_steps = validate_every, log_every, every_steps
        self.grad_clip, self.accumulate = grad_clip, accumulate
        self.total_steps = epochs * data.steps_per_epoch
        self.last_step = min(self.total_steps, max_steps or self.total_steps)
        self.ema = None if ema is None else ModelEmaV3(model, decay=ema, use_warmup=True)
        # Saves memory; the compiler fuses the loss in its own way.
        self.in_parts = not compile and can_defer_upsampling(model) and can_chunk(loss)
        self.precision = precision.resolve(device)
        self.autocast, self.scaler = precision.autocast(device), precision.grad_scaler(device)
        self.objective: Callable[[Tensor, Tensor], Tensor] = self._objective
        if compile:
            self.objective = torch.compile(self._objective, mode=None if compile is True else compile)
        self.position = TrainState()
        self.watch = Stopwatch()
        self.records, self.warned = 0, False  # of this process
        # Steps, from 1, and what they found, on the device: the batches' losses, then the norm of the gradient.
        self.unread: list[tuple[int, Tensor]] = []
        self.queued: deque[Callable[[], None]] = deque()
        # Becomes and stays 1 once a loss or gradient is not finite.
        self.found_nonfinite = torch.zeros((), device=device.torch)

    @property
    def evaluated_model(self) -> nn.Module:
        """The weights that validation and ``best.pt`` are about."""
        return self.model if self.ema is None else self.ema.module

    def fit(self) -> TrainState:
        """Train to the end.

        Raises:
            NonFiniteLossError: names the step and its images; nothing has been saved since.
            Interrupted: a signal asked to stop; ``last.pt`` has been saved.
        """
        at = self.position
        with (
            closing(self.data.batches(at.step, self.last_step)) as batches,
            Progress(
                self.last_step, "train", start=at.step, log_every=self.log_every, silent=not self.world.is_main_process
            ) as progress,
        ):
            if self._validation_is_due():  # it was interrupted
                self._validate()
            while at.step < self.last_step:
                self._stop_if_asked()
                self._timed_step(batches)
                at.step += 1
                due = at.step % self.log_every == 0 or at.step == self.last_step
                if due:
                    self._catch_up()
                speed = self.watch.scalars()["train/images_per_second"]
                progress.advance(
                    at.step, loss=at.losses[-1] if at.losses else None, images_per_second=speed, epoch=self._epoch()
                )
                if due:
                    self._log()
                if self._validation_is_due():
                    self._validate()
                elif self.every_steps and at.step % self.every_steps == 0:
                    self.save_last()
        return at

    def _epoch(self) -> int:
        """The epoch of the last finished step, from 1."""
        return max(math.ceil(self.position.step / self.data.steps_per_epoch), 1)

    def _timed_step(self, batches: Iterator[Batch]) -> None:
        start = time.perf_counter()
        group = [next(batches) for _ in range(self.accumulate)]
        loaded = time.perf_counter()
        self._step(group)
        self.queued.append(self.device.record_event())
        if len(self.queued) > QUEUED_STEPS:
            self.queued.popleft()()
        self.watch.add(loaded - start, time.perf_counter() - loaded, self.data.images_per_step)

    def _step(self, group: list[Batch]) -> None:
        """One optimizer step over the batches in ``group``, without waiting for the device where that can be."""
        self.model.train()
        # Addressed, not streamed: for dropout.
        torch.manual_seed(self.seed + self.position.step + SEEDS_APART * self.world.rank)
        self.optimizer.zero_grad(set_to_none=True)
        moved = [(self.device.move(batch.images), self.device.move(batch.labels)) for batch in group]
        shares = self._shares([labels for _, labels in moved])
        losses = []
        for number, (images, labels) in enumerate(moved, 1):
            with nullcontext() if number == len(moved) else no_sync(self.network):
                losses.append(self._backward(images, labels, shares[number - 1]))
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        # Infinity leaves the gradients as they are; their norm is wanted all the same.
        norm = clip_grad_norm_(self.model.parameters(), math.inf if self.grad_clip is None else self.grad_clip)
        values = torch.stack([*losses, norm.to(losses[0].dtype)])
        self.unread.append((self.position.step + 1, values))
        self._update(values)
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update(self.model, step=self.position.step)

    def _shares(self, labels: list[Tensor]) -> list[Tensor | float]:
        """What to multiply each batch's mean loss by, so that the mean of all is the mean over the step's pixels."""
        if len(labels) == self.world.size == 1:
            return [1.0]
        divisors = [divisor(self.loss, one.long()) for one in labels]
        if None in divisors:
            return [1.0] * len(labels)
        own = torch.stack(divisors)  # type: ignore[arg-type]
        total = self.world.all_reduce(own.sum()).clamp(min=torch.finfo(own.dtype).tiny)  # 0: then so is every loss
        return list(own * (len(labels) * self.world.size) / total)

    def _backward(self, images: Tensor, labels: Tensor, share: Tensor | float) -> Tensor:
        """Add a batch's gradients; returns its share of the loss.

        If that is not finite, or an earlier one was not, all gradients become NaN: in the other processes, too.
        """
        loss = self.objective(images, labels) * share
        sound = loss.detach().isfinite() & (self.found_nonfinite == 0)
        wanted = loss * torch.where(sound, 1.0, math.nan) / self.accumulate
        scaled = wanted if self.scaler is None else self.scaler.scale(wanted)
        scaled.backward()  # type: ignore[no-untyped-call]
        return loss.detach().clone()  # a CUDA graph would overwrite it

    def _update(self, values: Tensor) -> None:
        """Change the weights unless one of ``values``, losses and gradient norm, is not finite, or ever was.

        With fp16 an infinite gradient is no fault: the scaler leaves the step out and scales less from then on.
        """
        if self.scaler is not None:
            self._note_nonfinite(values[:-1])
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return
        if skips_on_request(self.optimizer):  # then it is seen when the losses are read
            self._note_nonfinite(values)
            self.optimizer.found_inf = self.found_nonfinite  # type: ignore[attr-defined]
        else:
            self._read_losses()
        self.optimizer.step()

    def _note_nonfinite(self, values: Tensor) -> None:
        self.found_nonfinite = torch.maximum(
            self.found_nonfinite, (~values.isfinite().all()).to(self.found_nonfinite.dtype)
        )

    def _objective(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of uint8 ``images`` and ``labels``."""
        images, labels = normalize(images, self.mean, self.std, torch.float32), labels.long()
        with self.autocast:  # not around the loss: it takes gradients, and scores need their precision
            outputs = self.network(images, upsampled=False) if self.in_parts else self.network(images)
        if self.in_parts:
            return self.loss.chunked(outputs, labels, self.model.upsample)  # type: ignore[operator, no-any-return]
        loss: Tensor = self.loss(outputs, labels)
        return loss

    def _catch_up(self) -> None:
        """`_read_losses`, and count the wait."""
        if self.unread:
            start = time.perf_counter()
            self._read_losses()
            self.watch.wait(time.perf_counter() - start)

    def _read_losses(self) -> None:
        """Wait for the device and look at what the last steps found, in all processes.

        Raises:
            NonFiniteLossError: names the first step at which it was not finite; the weights are those before it.
        """
        unread, self.unread = self.unread, []
        found = self.world.gather_tensor(torch.stack([values for _, values in unread]))
        for (step, _), *values in zip(unread, *(one.tolist() for one in found), strict=True):
            losses, norm = [own[:-1] for own in values], values[0][-1]  # by process, then by batch; the same in all
            every = [loss for own in losses for loss in own]
            overflow = self.scaler is not None and not math.isfinite(norm)
            self.position.overflows_in_a_row = (self.position.overflows_in_a_row + 1) * overflow
            hopeless = self.position.overflows_in_a_row > MOST_OVERFLOWS
            if not all(map(math.isfinite, every)) or not (math.isfinite(norm) or overflow) or hopeless:
                self._refuse(step, losses, norm)
            self.position.losses.append(math.fsum(every) / len(every))
            self.position.overflows += overflow

    def _refuse(self, step: int, losses: list[list[float]], norm: float) -> None:
        batches = [
            (batch, loss)
            for rank, own in enumerate(losses)
            for batch, loss in zip(self.data.plan(step - 1, step, rank), own, strict=True)
        ]
        bad = [batch for batch, loss in batches if not math.isfinite(loss)] or [batch for batch, _ in batches]
        names = ", ".join(self.names[index] for batch in bad for _, index in batch)
        raise NonFiniteLossError(
            f"step {step}: the loss is {sum(loss for _, loss in batches) / len(batches)}, its gradient has norm "
            f"{norm} (images {names}); the weights were not touched. "
            f"Lower optimizer.lr, set precision={'bf16 or fp32' if self.scaler else 'fp32'}, or look at these images"
        )

    def _log(self) -> None:
        at = self.position
        values = {
            "train/loss": math.fsum(at.losses) / len(at.losses),
            "train/lr": float(self.optimizer.param_groups[0]["lr"]),
            **self.watch.scalars(),
        }
        if self.scaler is not None:
            values |= {"train/loss_scale": self.scaler.get_scale(), "train/overflow_steps": float(at.overflows)}
        self.tracker.metrics(values, step=at.step, epoch=self._epoch())
        self.records += 1
        self._warn_of_waiting(values["train/data_time"], values["train/step_time"])
        self.watch.reset()
        if at.step % self.log_every == 0:  # else this was the last record: a longer run would log these again
            at.losses.clear()

    def _warn_of_waiting(self, data_s: float, step_s: float) -> None:
        """Say once that data is what a training waits for; not at the first record, while workers were starting."""
        if self.warned or self.records == 1 or data_s < STARVED * (data_s + step_s):
            return
        self.warned = True
        log.warning(
            "training waits for data %.0f %% of the time: train/data_time is %.3f s, train/step_time %.3f s a step. "
            "More loader.num_workers help if there are idle cores, loader.cache_mib if the data fits into memory",
            100 * data_s / (data_s + step_s), data_s, step_s,
        )  # fmt: skip

    def _validation_is_due(self) -> bool:
        at = self.position
        scheduled = at.step % (self.validate_every * self.data.steps_per_epoch) == 0
        return at.step != at.validated_step and (scheduled or at.step == self.last_step)

    def _validate(self) -> None:
        self._catch_up()
        at, epoch = self.position, self._epoch()
        self.world.broadcast_buffers(self.evaluated_model)
        evaluation = self.validate(self.evaluated_model, self._stop_if_asked)
        mean_iou = evaluation.report.mean_iou
        at.last = dict(finite(evaluation.scalars("val")))
        improved = not at.best or mean_iou > at.best.get("val/mean_iou", -1.0)
        if improved:
            at.best = {**at.last, "best/epoch": float(epoch)}
            at.best["best/mean_iou"] = at.best.get("val/mean_iou", 0.0)
        at.validated_step = at.step
        extra = {"val/loss": evaluation.loss} | {key: at.best[key] for key in ("best/mean_iou", "best/epoch")}
        # The record goes first: a save without its record could not be told from a complete one on resume.
        self.tracker.report("val", evaluation.report, step=at.step, epoch=epoch, extra=extra)
        if improved and self.world.is_main_process:
            self.checkpoints.save_best(self._weights())
        self.save_last()
        log.info("epoch %d, step %d\n%s", epoch, at.step, evaluation.report.table())

    def _stop_if_asked(self) -> None:
        if number := self.world.all_reduce_max_async(self.stop_signal() or 0):
            self.save_last()
            how = "checkpoint.resume=auto, or the sweep's command again"
            raise Interrupted(number, f"stopped after step {self.position.step}; to go on: {how}")

    def _weights(self) -> dict[str, Any]:
        at = self.position
        ema = None if self.ema is None else on_cpu(self.ema.module.state_dict())
        return {
            "step": at.step,
            "epoch": self._epoch(),
            "metrics": at.last,
            "model": on_cpu(self.model.state_dict()),
            "ema": ema,
        }

    def save_last(self) -> None:
        """Save everything needed to go on from here."""
        self._catch_up()  # nothing is saved after a step that was refused
        if not self.world.is_main_process:
            return
        training = {
            "world_size": self.world.size,
            "precision": self.precision,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "position": vars(self.position),
            "optimizer": on_cpu(self.optimizer.state_dict()),
            "scheduler": self.scheduler.state_dict(),
            "interval": vars(self.watch),
        }
        self.checkpoints.save_last(self._weights(), training)

    def resume(self, saved: dict[str, Any]) -> None:
        """Take up the state of a ``last.pt`` and cut the records that are younger."""
        training = saved["training"]
        self.model.load_state_dict(saved["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(saved["ema"])
        load_optimizer(self.optimizer, training["optimizer"])
        self.scheduler.load_state_dict(training["scheduler"])
        if self.scaler is not None:
            self.scaler.load_state_dict(training["scaler"])
        self.position = TrainState(**training["position"])
        vars(self.watch).update(training["interval"])
        at = self.position
        # The state may have come from elsewhere without its best.
        if not self.world.broadcast_from_main((self.checkpoints.folder / "best.pt").is_file):
            at.best, at.validated_step = {}, 0
        self.tracker.rewind(at.step, keep_evaluation=at.validated_step == at.step)
