"""``mode=train``: train, validate, save."""

import logging
from collections.abc import Callable
from typing import Any

from torch import nn

from pspexp.config.build import build_training
from pspexp.config.resume import resume_conflicts
from pspexp.engine import checkpoint
from pspexp.engine.components import TrainingComponents
from pspexp.engine.device import Device
from pspexp.engine.distributed import World
from pspexp.engine.evaluator import Evaluation
from pspexp.engine.trainer import Trainer
from pspexp.engine.trainer_config import TrainerConfig
from pspexp.errors import UserError
from pspexp.jobs.evaluate import describe, evaluate
from pspexp.jobs.export.export import register_trained, require_onnx
from pspexp.jobs.records import Request, public, recorded, start_tracker, training_state_file
from pspexp.launchers.base import StopSignal
from pspexp.optim import supports_found_inf
from pspexp.tracking import runs

log = logging.getLogger(__name__)


def train(job: Request, device: Device, world: World, stop_signal: StopSignal) -> float | None:
    """Run a training; returns the best mean IoU."""
    config = job.config
    register = config.tracking.get("register")
    if register is not None:
        require_onnx()
    saved = world.broadcast_from_main(lambda: saved_state(job, world))
    components, hooks = build_training(config, device, world, start_weights=saved is None)
    refuse_other_precision(components, saved)
    log.info("%s", describe(config, components, len(components.training), job.folder))
    log.info("%s", describe_epoch(components))
    splits = {"train": components.training, "val": components.validation}
    tracker = start_tracker(job, components, splits, resume=saved is not None)

    def validate(model: nn.Module, on_batch_end: Callable[[], None]) -> Evaluation:
        evaluation = evaluate(model, components.validation, "val", components, config, tracker, on_batch_end)
        components.cache.report()
        return evaluation

    trainer = Trainer(
        components,
        TrainerConfig(**config.trainer),
        validate=validate,
        tracker=tracker,
        checkpoints=checkpoint.CheckpointDir(job.folder / "checkpoints", public(config)),
        hooks=hooks,
        stop_signal=stop_signal,
        seed=config.seed,
    )
    with recorded(tracker, lambda: summary(trainer)):
        trainer.fit(saved)
    if register is not None and world.is_main_process:
        register_trained(config, job.folder, register)
    return trainer.state.best.get("best/mean_iou")


def refuse_other_precision(components: TrainingComponents, saved: dict[str, Any] | None) -> None:
    """Refuse a precision, resolved from ``auto``, that differs between processes or from the saved run.

    Raises:
        UserError: names the precisions.
    """
    precision = components.precision
    here = precision.resolve(components.device)
    kinds = components.world.all_gather_object((here, supports_found_inf(components.optimizer)))
    before = here if saved is None else saved["training"].get("precision", here)
    problems = []
    if before != here:
        problems.append(f"precision={precision.name}: {before} in the saved run, {here} here; set precision={before}")
    if len(set(kinds)) > 1:
        found = ", ".join(sorted({name for name, _ in kinds}))
        problems.append(f"precision={precision.name}: the processes' devices differ ({found}); use devices of one kind")
    components.world.raise_collectively(problems)


def saved_state(job: Request, world: World) -> dict[str, Any] | None:
    """The content of the ``last.pt`` to resume from, or None for a fresh start.

    Raises:
        UserError: ``checkpoint.resume`` names no training state, or one of a run with a conflicting configuration.
    """
    config, folder, own = job.config, job.folder, training_state_file(job.folder)
    # After a restart: from this job's own checkpoint, if there is one.
    resume = "auto" if job.is_restart and own.is_file() else config.checkpoint.resume
    if resume is None or (resume == "auto" and not own.is_file()):
        return None
    path = own if resume == "auto" else runs.find_checkpoint(resume, "last.pt")
    if own.is_file() and path.resolve() != own.resolve():
        raise UserError(f"hydra.run.dir={folder}: is not the run of checkpoint.resume={resume}; omit hydra.run.dir")
    saved = checkpoint.read(path, training=True)
    if conflicts := resume_conflicts(saved, public(config), world.size):
        raise UserError(*conflicts)
    return saved


def summary(trainer: Trainer) -> dict[str, Any]:
    """What ``summary.json`` says about a training."""
    state, timer = trainer.state, trainer.timer
    speed = timer.total_images / timer.total_s if timer.total_s else None
    return {"best": state.best, "last": state.last, "images_per_second": speed}


def describe_epoch(components: TrainingComponents) -> str:
    """One log line about the steps of an epoch, and the images that do not fill the last one."""
    loader, num_images = components.loader, len(components.training)
    rest = num_images % loader.images_per_step
    note = f"; the last {rest} of {num_images} images (a different {rest} each epoch) are dropped" if rest else ""
    return f"{loader.steps_per_epoch} steps per epoch{note}"
