"""``mode=train``: train, validate, save."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from pspexp.config.build import build_training
from pspexp.config.resume import (
    HOW_TO_EXTEND,
    RESOLVED_PRECISION,
    data_conflicts,
    extension,
    find_state,
    resume_conflicts,
)
from pspexp.data.inspection.quick import file_splits
from pspexp.engine import checkpoint
from pspexp.engine.components import TrainingComponents
from pspexp.engine.device import Device
from pspexp.engine.distributed import World
from pspexp.engine.evaluator import Evaluation
from pspexp.engine.state import data_state
from pspexp.engine.trainer import Trainer
from pspexp.engine.trainer_config import TrainerConfig
from pspexp.errors import Interrupted, UserError, setting
from pspexp.jobs.class_weights import resolve_class_weights
from pspexp.jobs.disk_space import require_disk_space
from pspexp.jobs.evaluate import describe, evaluate, look_at_labels
from pspexp.jobs.export.export import register_trained, require_onnx
from pspexp.jobs.job_folder import nothing_to_resume
from pspexp.jobs.next_steps import after_training, how_to_resume, is_sweep_job
from pspexp.jobs.records import Request, public, recorded, start_tracker, training_state_file
from pspexp.launchers.base import StopSignal
from pspexp.models.pip_weights import STAGES
from pspexp.models.weights import find_state_dict
from pspexp.optim.optimizers import supports_found_inf
from pspexp.utils.files import shown_path
from pspexp.utils.text import count

SAMPLING = "sampling"  # what a training state says about `TrainLoader.repeats`, beside the splits by role
FEW_IMAGES = 2000  # below, random weights are not worth their time

log = logging.getLogger(__name__)


def train(job: Request, device: Device, world: World, stop_signal: StopSignal) -> float | None:
    """Run a training; returns the best mean IoU."""
    config = job.config
    if (register := config.tracking.get("register")) is not None:
        require_onnx()
    saved = world.broadcast_from_main(lambda: saved_state(job, world))
    if saved is not None:
        note_precision(config, saved["training"].get("precision"))
    count_weights, repeats = partial(resolve_class_weights, config, world, saved), saved_repeats(saved)
    components, hooks = build_training(
        config, device, world, start_weights=saved is None, repeats=repeats, prepare_loss=count_weights
    )
    refuse_other_precision(components, saved)
    note_precision(config, components.precision.resolve(components.device))
    look_at_labels({"train": components.training, "val": components.validation}, components, config)
    what, length = describe(config, components, len(components.training)), describe_length(config, components)
    for line in (what, length, describe_validation(config, components), *components.freezing.describe()):
        log.info("%s", line)
    log.info("records in %s", shown_path(job.folder))
    if saved is None and world.is_main_process:
        warn_of_random_weights(components, config.model)
    splits = {"train": components.training, "val": components.validation}
    data = data_states(components) if world.is_main_process else {}
    refuse_other_data(data, saved, world)
    require_disk_space(components, job.folder, world, averages=bool(config.trainer.ema))
    tracker = start_tracker(tagged(job, saved), components, splits, resume=saved is not None)

    def validate(model: nn.Module, on_batch_end: Callable[[], None]) -> Evaluation:
        evaluation = evaluate(model, components.validation, "val", components, config, tracker, on_batch_end)
        components.cache.report()
        return evaluation

    trainer = Trainer(
        components,
        TrainerConfig(**config.trainer),
        validate=validate,
        tracker=tracker,
        checkpoints=checkpoint.CheckpointDir(job.folder / "checkpoints", public(config), config.checkpoint.keep),
        hooks=hooks,
        stop_signal=stop_signal,
        seed=config.seed,
        data=data,
    )
    if saved is not None:
        warn_if_complete(saved["training"]["state"]["step"], trainer, job.folder)
    with resume_explained(job), recorded(tracker, lambda: summary(trainer)):
        trainer.fit(saved)
    if world.is_main_process:
        conclude(job, trainer, register)
    return trainer.state.best.get("best/mean_iou")


def note_precision(config: DictConfig, resolved: str | None) -> None:
    """Record what ``precision=auto`` means, for this training and for all that is done with its weights later."""
    if config.precision.get("name") == "auto":
        OmegaConf.update(config, RESOLVED_PRECISION, resolved, force_add=True)


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
    if resume == "auto" and not own.is_file():
        for line in nothing_to_resume(config, folder, world.size):
            log.info("%s", line)
        return None
    if resume is None:
        return None
    where = config.output_root, config.tracking.get("tracking_uri")
    path = own if resume == "auto" else find_state(resume, *where)
    saved = checkpoint.read(path, training=True)
    find_state_dict(saved, str(path))  # refuses what is no state dict
    if own.is_file() and path.resolve() != own.resolve():
        raise UserError(f"hydra.run.dir={folder}: is not the run of checkpoint.resume={resume}; omit hydra.run.dir")
    if conflicts := resume_conflicts(saved, public(config), world.size):
        raise UserError(*conflicts)
    return saved


def saved_repeats(saved: dict[str, Any] | None) -> list[float] | None:
    """How often a training state to resume takes each image; None if it takes each once, or was not counted then."""
    data = {} if saved is None else saved["training"].get("data", {})
    found: list[float] | None = data.get(SAMPLING, {}).get("repeats")
    return found


def data_states(components: TrainingComponents) -> dict[str, dict[str, Any]]:
    """What the training state says about the data: of each split, and how often the images are taken."""
    found = {"train": data_state(components.training), "val": data_state(components.validation)}
    repeats = components.loader.repeats
    return found if repeats is None else {**found, SAMPLING: {"repeats": repeats}}


def tagged(job: Request, saved: dict[str, Any] | None) -> Request:
    """``job`` with a tag if it extends a saved training: MLflow cannot change the parameter that it has recorded."""
    return job if saved is None else replace(job, tags=job.tags | extension(saved, public(job.config)))


def warn_if_complete(step: int, trainer: Trainer, folder: Path) -> None:
    """Warn that a run to resume has nothing left to train."""
    if step < trainer.last_step:
        return
    if trainer.last_step < trainer.total_steps:
        fix = "increase trainer.max_steps, or set it to null"
    else:
        key = "trainer.epochs" if trainer.config.steps is None else "trainer.steps"
        fix = f"increase {key}, with {HOW_TO_EXTEND}"
    log.warning(
        "%s: this run is already complete (step %d of %d), and nothing is left to train; to continue, %s, or start a "
        "new run from its weights with model.weights=%s", folder, step, trainer.last_step, fix, folder,
    )  # fmt: skip


def summary(trainer: Trainer) -> dict[str, Any]:
    """What ``summary.json`` says about a training."""
    state, timer = trainer.state, trainer.timer
    speed = timer.total_images / timer.total_s if timer.total_s else None
    return {"best": state.best, "last": state.last, "images_per_second": speed}


def conclude(job: Request, trainer: Trainer, register: str | None) -> None:
    """What the main process does when a training has finished; ``register`` is ``tracking.register``."""
    if not job.config.checkpoint.keep_last:
        training_state_file(job.folder).unlink(missing_ok=True)
    if register is not None:
        register_trained(job.config, job.folder, register)
    if not is_sweep_job(job):
        for line in after_training(job, trainer.state.best, trainer.state.step, trainer.last_step, trainer.total_steps):
            log.info("%s", line)


@contextmanager
def resume_explained(job: Request) -> Iterator[None]:
    """Let the message of an interruption say how to resume."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(error.signal_number, f"{error}; {how_to_resume(job)}") from None


def describe_validation(config: DictConfig, components: TrainingComponents) -> str:
    """One log line about what is validated on."""
    number, every = len(components.validation), count(config.trainer.validate_every, "epoch").removeprefix("1 ")
    if not number:
        return "no validation images: best.pt holds the latest weights, and there is no metric for early stopping"
    used = count(min(number, config.loader.max_eval_images or number), "image")
    return f"validation on {used} every {every}: {components.inference.describe()}"


def warn_of_random_weights(components: TrainingComponents, node: DictConfig) -> None:
    """Warn of a training on few images, in files, that starts from random weights although pretrained ones fit."""
    number = len(components.training)
    is_random = getattr(components.model, "initial_weights", "") == "random"
    if is_random and number < FEW_IMAGES and file_splits({"train": components.training}):
        if "pretrained" in node:
            key = "model.pretrained (a folder, or a name on the Hugging Face hub)"
        else:
            in_packages = getattr(components.model, "backbone_name", "").partition(".")[0] in STAGES
            key = f"model.backbone_weights=timm{', pip' if in_packages else ''} or a file"
        log.warning(
            "%s and random weights: expect a much lower mean IoU than from ImageNet weights; start from them with %s",
            count(number, "training image"), key,
        )  # fmt: skip


def describe_length(config: DictConfig, components: TrainingComponents) -> str:
    """One log line about how long is trained, and the images that do not fill the last step of an epoch."""
    trainer = TrainerConfig(**config.trainer)
    loader, num_images = components.loader, len(components.training)
    rest = num_images % loader.images_per_step
    note = f"; the last {rest} of {num_images} images (a different {rest} each epoch) are dropped" if rest else ""
    total = trainer.total_steps(loader.steps_per_epoch)
    epochs = count(math.ceil(total / loader.steps_per_epoch), "epoch")
    stop = trainer.max_steps if trainer.max_steps is not None and trainer.max_steps < total else None
    early = "" if stop is None else f", stopping after step {stop} ({setting('trainer.max_steps')})"
    return f"{epochs}, {count(total, 'step')}{early}: {loader.steps_per_epoch} steps per epoch{note}"
