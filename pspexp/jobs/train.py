"""``mode=train``."""

import logging
from collections.abc import Callable
from typing import Any

from torch import nn

from pspexp.config.build import TrainingComponents, build_training
from pspexp.config.resume import resume_conflicts
from pspexp.data.loader import TrainLoader
from pspexp.engine import checkpoint
from pspexp.engine.device import Device
from pspexp.engine.distributed import World
from pspexp.engine.evaluator import Evaluation
from pspexp.engine.trainer import Trainer
from pspexp.errors import UserError
from pspexp.jobs.evaluate import describe, evaluate
from pspexp.jobs.records import Request, own_state, public, recorded, start_tracker
from pspexp.launchers.base import StopSignal
from pspexp.optim import skips_on_request
from pspexp.tracking import runs

log = logging.getLogger(__name__)


def train(job: Request, device: Device, world: World, stop_signal: StopSignal) -> float | None:
    """``mode=train``: train, validate, save; returns the best mean IoU."""
    config, folder = job.config, job.folder
    state = world.broadcast_from_main(lambda: saved_state(job, world))
    parts = build_training(config, device, world, start_weights=state is None)
    same_arithmetic(parts, state)
    log.info("%s", describe(config, parts, len(parts.training), folder))
    log.info("%s", left_out(parts.loader, len(parts.training)))
    splits = {"train": parts.training, "val": parts.validation}
    tracker = start_tracker(job, parts, splits, resume=state is not None)

    def validate(weights: nn.Module, between: Callable[[], None]) -> Evaluation:
        found = evaluate(weights, parts.validation, "val", parts, config, tracker, between)
        parts.cache.report()
        return found

    trainer = Trainer(
        model=parts.model,
        loss=parts.loss,
        optimizer=parts.optimizer,
        scheduler=parts.scheduler,
        data=parts.loader,
        names=parts.training.names,
        validate=validate,
        world=world,
        device=device,
        precision=parts.precision,
        mean=parts.dataset.info.mean,
        std=parts.dataset.info.std,
        seed=config.seed,
        tracker=tracker,
        checkpoints=checkpoint.CheckpointFolder(folder / "checkpoints", public(config)),
        stop_signal=stop_signal,
        every_steps=config.checkpoint.every_steps,
        **config.trainer,
    )
    with recorded(tracker, lambda: results(trainer)):
        if state is not None:
            trainer.resume(state)
            log.info("going on after step %d", trainer.position.step)
        trainer.fit()
    return trainer.position.best.get("best/mean_iou")


def same_arithmetic(parts: TrainingComponents, state: dict[str, Any] | None) -> None:
    """Refuse what ``auto`` has made of the precision where it differs between processes, or from a saved state.

    Raises:
        UserError: names the formats.
    """
    here = parts.precision.resolve(parts.device)
    kinds = parts.world.gather((here, skips_on_request(parts.optimizer)))
    saved = here if state is None else state["training"].get("precision", here)
    problems = []
    if saved != here:
        problems.append(
            f"precision={parts.precision.name}: {saved} in the saved run, {here} here; set precision={saved}"
        )
    if len(set(kinds)) > 1:
        found = ", ".join(sorted({name for name, _ in kinds}))
        problems.append(
            f"precision={parts.precision.name}: the processes' devices differ ({found}); use devices of one kind"
        )
    parts.world.raise_problems(problems)


def saved_state(job: Request, world: World) -> dict[str, Any] | None:
    """The training state to go on from, or None for a fresh start.

    Raises:
        UserError: ``checkpoint.resume`` names no training state, or one of a run that was configured differently.
    """
    config, folder, own = job.config, job.folder, own_state(job.folder)
    # After a restart from what this job has saved, if it has.
    wanted = "auto" if job.is_restart and own.is_file() else config.checkpoint.resume
    if wanted is None or (wanted == "auto" and not own.is_file()):
        return None
    path = own if wanted == "auto" else runs.find_checkpoint(wanted, "last.pt")
    if own.is_file() and path.resolve() != own.resolve():
        raise UserError(f"hydra.run.dir={folder}: holds another run than checkpoint.resume={wanted}; leave it out")
    saved = checkpoint.read(path, training=True)
    if conflicts := resume_conflicts(saved, public(config), world.size):
        raise UserError(*conflicts)
    return saved


def results(trainer: Trainer) -> dict[str, Any]:
    """What ``summary.json`` tells about a training."""
    at, watch = trainer.position, trainer.watch
    speed = watch.total_images / watch.total_s if watch.total_s else None
    return {"best": at.best, "last": at.last, "images_per_second": speed}


def left_out(data: TrainLoader, num_images: int) -> str:
    """One line for people about the images that do not fill the last step of an epoch."""
    rest = num_images % data.images_per_step
    note = f"; {rest} of {num_images} images, others each time, are left out" if rest else ""
    return f"{data.steps_per_epoch} steps an epoch{note}"
