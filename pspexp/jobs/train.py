"""``mode=train``: train, validate, save."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from pspexp.config.build import build_training
from pspexp.config.resume import data_conflicts, resume_conflicts
from pspexp.engine import checkpoint
from pspexp.engine.components import TrainingComponents
from pspexp.engine.device import Device
from pspexp.engine.distributed import World
from pspexp.engine.evaluator import Evaluation
from pspexp.engine.state import data_state
from pspexp.engine.trainer import Trainer
from pspexp.engine.trainer_config import TrainerConfig
from pspexp.errors import UserError
from pspexp.jobs.evaluate import describe, evaluate, look_at_labels
from pspexp.jobs.export.export import register_trained, require_onnx
from pspexp.jobs.records import Request, public, recorded, start_tracker, training_state_file
from pspexp.launchers.base import StopSignal
from pspexp.optim.optimizers import supports_found_inf
from pspexp.tracking import runs
from pspexp.utils.text import count

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
    look_at_labels({"train": components.training, "val": components.validation}, components, config)
    log.info("%s", describe(config, components, len(components.training), job.folder))
    log.info("%s", describe_epoch(components))
    log.info("%s", describe_validation(components))
    splits = {"train": components.training, "val": components.validation}
    data = {role: data_state(split) for role, split in splits.items()} if world.is_main_process else {}
    refuse_other_data(data, saved, world)
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
        data=data,
    )
    if saved is not None:
        warn_if_complete(saved["training"]["state"]["step"], trainer, job.folder)
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


def refuse_other_data(data: dict[str, dict[str, Any]], saved: dict[str, Any] | None, world: World) -> None:
    """Refuse to resume on other training images; warn of other validation images and of changed files.

    Args:
        data: `data_state` of the splits; used in the main process only.
        saved: The checkpoint to resume from, if there is one.
        world: The processes.

    Raises:
        UserError: The training images are not those of the saved run, or in another order.
    """
    refused: list[str] = []
    if saved is not None and world.is_main_process:
        refused, warnings = data_conflicts(saved["training"], data)
        for warning in warnings:
            log.warning("%s", warning)
    world.raise_collectively(refused)


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
    saved = checkpoint.read(path, training=True)
    if own.is_file() and path.resolve() != own.resolve():
        raise UserError(f"hydra.run.dir={folder}: is not the run of checkpoint.resume={resume}; omit hydra.run.dir")
    if conflicts := resume_conflicts(saved, public(config), world.size):
        raise UserError(*conflicts)
    return saved


def warn_if_complete(step: int, trainer: Trainer, folder: Path) -> None:
    """Warn that a run to resume has nothing left to train."""
    if step < trainer.last_step:
        return
    key = "trainer.max_steps" if trainer.last_step < trainer.total_steps else "trainer.epochs"
    constant = "" if key == "trainer.max_steps" else " (with scheduler=constant)"
    log.warning(
        "%s: this run is already complete (step %d of %d), and nothing is left to train; to continue, increase "
        "%s%s, or start a new run from its weights with model.weights=%s",
        folder, step, trainer.last_step, key, constant, folder,
    )  # fmt: skip


def summary(trainer: Trainer) -> dict[str, Any]:
    """What ``summary.json`` says about a training."""
    state, timer = trainer.state, trainer.timer
    speed = timer.total_images / timer.total_s if timer.total_s else None
    return {"best": state.best, "last": state.last, "images_per_second": speed}


def describe_validation(components: TrainingComponents) -> str:
    """One log line about what is validated on."""
    if not len(components.validation):
        return "no validation images: best.pt holds the latest weights, and there is no metric for early stopping"
    return f"validation on {count(len(components.validation), 'image')}: {components.inference.describe()}"


def describe_epoch(components: TrainingComponents) -> str:
    """One log line about the steps of an epoch, and the images that do not fill the last one."""
    loader, num_images = components.loader, len(components.training)
    rest = num_images % loader.images_per_step
    note = f"; the last {rest} of {num_images} images (a different {rest} each epoch) are dropped" if rest else ""
    return f"{loader.steps_per_epoch} steps per epoch{note}"
