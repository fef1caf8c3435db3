"""The jobs, top to bottom: build, train or test, record."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from pspexp import checkpoint
from pspexp.assembly import Parts, build, build_parts, build_training
from pspexp.data.loader import TrainLoader, eval_loader
from pspexp.data.source import Source, Split
from pspexp.device import Device
from pspexp.errors import Interrupted, UserError
from pspexp.evaluate import Evaluation, Evaluator
from pspexp.models.weights import load_weights
from pspexp.tracking import LocalTracker, Progress, Status, Tracker, runs
from pspexp.tracking.secrets import without_secrets, words_without_secrets
from pspexp.trainer import Trainer

log = logging.getLogger(__name__)

StopSignal = Callable[[], int | None]


def train(config: DictConfig, folder: Path, overrides: list[str], stop_signal: StopSignal) -> float | None:
    """``mode=train``: train, validate, save; returns the best mean IoU."""
    state = saved_state(config, folder)
    parts = build_training(config, start_weights=state is None)
    evaluator = build_evaluator(parts)
    log.info("%s", describe(config, parts, len(parts.training), folder))
    log.info("%s", left_out(parts.data, len(parts.training)))
    tracker = start_tracker(config, folder, overrides, parts.device, resume=state is not None)

    def validate(weights: nn.Module, on_images: Callable[[int], None]) -> Evaluation:
        found = evaluate(weights, parts.validation, "val", evaluator, config, parts.source, tracker, on_images)
        parts.cache.report()
        return found

    trainer = Trainer(
        model=parts.model,
        loss=parts.loss,
        optimizer=parts.optimizer,
        scheduler=parts.scheduler,
        data=parts.data,
        names=parts.training.names,
        validate=validate,
        device=parts.device,
        precision=parts.precision,
        mean=parts.source.mean,
        std=parts.source.std,
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


def test(config: DictConfig, folder: Path, overrides: list[str], stop_signal: StopSignal) -> float | None:
    """``mode=test``: evaluate a checkpoint on the test split; returns the mean IoU."""
    saved = checkpoint.read(Path(config.checkpoint.path), foreign=True)
    ours = checkpoint.is_ours(saved)
    parts = build_parts(config)
    split = parts.source.open("test")
    load_weights(parts.model, saved)
    evaluator = build_evaluator(parts)
    log.info("%s", describe(config, parts, len(split), folder))
    tracker = start_tracker(config, folder, overrides, parts.device, resume=False)
    found: dict[str, float] = {}

    def stop_if_asked(_: int) -> None:
        if (number := stop_signal()) is not None:
            raise Interrupted(number, "stopped during the test")

    with recorded(tracker, lambda: {"last": found}):
        evaluation = evaluate(parts.model, split, "test", evaluator, config, parts.source, tracker, stop_if_asked)
        found |= evaluation.scalars("test")
        tracker.report(
            "test",
            evaluation.report,
            step=saved["step"] if ours else 1,
            epoch=saved["epoch"] if ours else 1,
            extra={"test/loss": evaluation.loss},
        )
        log.info("%s\n%s", config.checkpoint.path, evaluation.report.table())
    return evaluation.report.mean_iou


def saved_state(config: DictConfig, folder: Path) -> dict[str, Any] | None:
    """The training state to go on from, or None for a fresh start.

    Raises:
        UserError: ``checkpoint.resume`` names no training state, or one of a run that was configured differently.
    """
    wanted, own = config.checkpoint.resume, own_state(folder)
    if wanted is None or (wanted == "auto" and not own.is_file()):
        return None
    path = own if wanted == "auto" else runs.find_checkpoint(wanted, "last.pt")
    if own.is_file() and path.resolve() != own.resolve():
        raise UserError(f"hydra.run.dir={folder}: holds another run than checkpoint.resume={wanted}; leave it out")
    saved = checkpoint.read(path, training=True)
    if conflicts := checkpoint.resume_conflicts(saved["config"], public(config)):
        raise UserError(*conflicts)
    return saved


def own_state(folder: Path) -> Path:
    """The training state that a run folder holds, if it does."""
    return folder / "checkpoints" / "last.pt"


def build_evaluator(parts: Parts) -> Evaluator:
    """The evaluator that validation and test share."""
    return Evaluator(
        inference=parts.inference,
        loss=parts.loss,
        device=parts.device,
        precision=parts.precision,
        class_names=parts.source.class_names,
        ignore_index=parts.source.ignore_index,
        mean=parts.source.mean,
        std=parts.source.std,
    )


def evaluate(
    model: nn.Module,
    split: Split,
    role: str,
    evaluator: Evaluator,
    config: DictConfig,
    source: Source,
    tracker: Tracker,
    on_images: Callable[[int], None],
) -> Evaluation:
    """Evaluate ``model`` on ``split`` with a progress bar, and draw samples."""
    limit = config.loader.max_eval_images
    groups = eval_loader(
        split,
        evaluator.inference.prepare,
        batch_size=config.loader.eval_batch_size,
        num_workers=config.loader.num_workers,
        max_images=limit,
        pin_memory=evaluator.device.pin_memory,
    )
    num_images = min(limit or len(split), len(split))
    with Progress(num_images, role, unit="image") as progress:

        def advance(count: int) -> None:
            progress.add(count)
            on_images(count)

        evaluation = evaluator(model, groups, num_images=num_images, on_images=advance)
    pictures = [
        (split.names[picture.position], picture.image, picture.truth, picture.prediction)
        for picture in evaluation.pictures
    ]
    tracker.samples(
        role,
        pictures,
        palette=source.palette,
        class_names=source.class_names,
        ignore_index=source.ignore_index,
    )
    return evaluation


def start_tracker(config: DictConfig, folder: Path, overrides: list[str], device: Device, *, resume: bool) -> Tracker:
    """A tracker that has begun: the run folder first, then the views the configuration asks for.

    Raises:
        UserError: the folder holds another run's states.
    """
    if not resume and own_state(folder).is_file():
        raise UserError(
            f"hydra.run.dir={folder}: holds a run that would be overwritten; "
            "go on with checkpoint.resume=auto, or choose another folder"
        )
    tracker = Tracker(LocalTracker(folder), build(config.tracking))
    shown = public(config)
    tracker.start(
        name=config.run_name or folder.name,
        config=shown,
        config_text=OmegaConf.to_yaml(OmegaConf.create(shown)),
        overrides=words_without_secrets(overrides),
        tags={
            "mode": config.mode,
            "model": config.choices.model,
            "dataset": config.choices.dataset,
            "device": device.type,
        },
        resume=resume,
    )
    return tracker


@contextmanager
def recorded(tracker: Tracker, results: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Close the run's records with the status that its end deserves."""
    status: Status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        tracker.finish(status, **results())


def results(trainer: Trainer) -> dict[str, Any]:
    """What ``summary.json`` tells about a training."""
    at, watch = trainer.position, trainer.watch
    speed = watch.total_images / watch.total_s if watch.total_s else None
    return {"best": at.best, "last": at.last, "images_per_second": speed}


def public(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values without secrets, for files, checkpoints and MLflow."""
    shown: dict[str, Any] = without_secrets(OmegaConf.to_container(config, resolve=True))
    return shown


def describe(config: DictConfig, parts: Parts, num_images: int, folder: Path) -> str:
    """One line for people about what begins."""
    return (
        f"{config.mode} {config.choices.model} on {config.choices.dataset} ({num_images} images), "
        f"{parts.device.describe()}, {parts.precision.resolve(parts.device)}; records in {folder}"
    )


def left_out(data: TrainLoader, num_images: int) -> str:
    """One line for people about the images that do not fill the last step of an epoch."""
    rest = num_images % data.images_per_step
    note = f"; {rest} of {num_images} images, others each time, are left out" if rest else ""
    return f"{data.steps_per_epoch} steps an epoch{note}"


JOBS = {"train": train, "test": test}
