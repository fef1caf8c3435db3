"""The jobs, top to bottom. The only place where configuration becomes objects."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from pspexp import checkpoint
from pspexp.data.loader import TrainLoader, eval_loader
from pspexp.data.source import Source, Split
from pspexp.device import Device, Precision
from pspexp.errors import Interrupted, UserError
from pspexp.evaluate import Evaluation, Evaluator
from pspexp.models.weights import load_weights
from pspexp.schema import without_secrets
from pspexp.tracking import LocalTracker, Progress, Status, Tracker, runs
from pspexp.trainer import Trainer

log = logging.getLogger(__name__)

StopSignal = Callable[[], int | None]


def build(node: DictConfig | dict[str, Any]) -> Any:
    """The object that a node with ``_target_`` describes, made from plain Python values.

    Raises:
        UserError: the arguments are of the right type but not acceptable.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, ValueError):  # a constructor's word for an argument it cannot take
            raise UserError(f"{node['_target_']}: {cause}") from cause
        raise


def train(config: DictConfig, folder: Path, overrides: list[str], stop_signal: StopSignal) -> float | None:
    """``mode=train``: train, validate, save; returns the best mean IoU."""
    torch.manual_seed(config.seed)
    device, precision = build(config.device), build(config.precision)
    saved = saved_state(config, folder)

    source = build(config.dataset)
    training, validation = source.open("train"), source.open("val")
    data = training_data(config, training, device)

    model = fresh_model(config.model) if saved else build(config.model)
    model = place(model, config, device)
    loss = build(config.loss).to(device.torch)
    optimizer = build(config.optimizer)(model=model)
    scheduler = build(config.scheduler)(optimizer=optimizer, total_steps=config.trainer.epochs * data.steps_per_epoch)

    evaluator = build_evaluator(config, source, loss, device, precision)
    tracker = start_tracker(config, folder, overrides, device, resume=saved is not None)

    def validate(weights: nn.Module, on_images: Callable[[int], None]) -> Evaluation:
        return evaluate(weights, validation, "val", evaluator, config, source, tracker, on_images)

    trainer = Trainer(
        model=model,
        loss=loss,
        optimizer=optimizer,
        scheduler=scheduler,
        data=data,
        names=training.names,
        validate=validate,
        device=device,
        precision=precision,
        mean=source.mean,
        std=source.std,
        seed=config.seed,
        tracker=tracker,
        checkpoints=checkpoint.CheckpointFolder(folder / "checkpoints", public(config)),
        stop_signal=stop_signal,
        every_steps=config.checkpoint.every_steps,
        **config.trainer,
    )
    log.info("%s", describe(config, device, precision, len(training), folder))
    with recorded(tracker, lambda: results(trainer)):
        if saved is not None:
            trainer.resume(saved)
            log.info("going on after step %d", trainer.position.step)
        trainer.fit()
    return trainer.position.best.get("best/mean_iou")


def test(config: DictConfig, folder: Path, overrides: list[str], stop_signal: StopSignal) -> float | None:
    """``mode=test``: evaluate a checkpoint on the test split; returns the mean IoU."""
    device, precision = build(config.device), build(config.precision)
    saved = checkpoint.read(Path(config.checkpoint.path), foreign=True)
    ours = "config" in saved
    source = build(config.dataset)
    split = source.open("test")

    model = fresh_model(config.model)
    load_weights(model, saved)
    model = place(model, config, device)
    loss = build(config.loss).to(device.torch)
    evaluator = build_evaluator(config, source, loss, device, precision)

    tracker = start_tracker(config, folder, overrides, device, resume=False)
    log.info("%s", describe(config, device, precision, len(split), folder))
    found: dict[str, float] = {}

    def stop_if_asked(_: int) -> None:
        if (number := stop_signal()) is not None:
            raise Interrupted(number, "stopped during the test")

    with recorded(tracker, lambda: {"last": found}):
        evaluation = evaluate(model, split, "test", evaluator, config, source, tracker, stop_if_asked)
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


def training_data(config: DictConfig, split: Split, device: Device) -> TrainLoader:
    """The loader of augmented training images."""
    return TrainLoader(
        split,
        build(config.augment),
        batch_size=config.loader.batch_size,
        accumulate=config.trainer.accumulate,
        num_workers=config.loader.num_workers,
        seed=config.seed,
        pin_memory=device.pin_memory,
    )


def saved_state(config: DictConfig, folder: Path) -> dict[str, Any] | None:
    """The training state to go on from, or None for a fresh start.

    Raises:
        UserError: ``checkpoint.resume`` names no training state, or one of a run that was configured differently.
    """
    wanted = config.checkpoint.resume
    own = folder / "checkpoints" / "last.pt"
    if wanted is None or (wanted == "auto" and not own.is_file()):
        return None
    path = own if wanted == "auto" else runs.find_checkpoint(wanted, "last.pt", config.tracking)
    saved = checkpoint.read(path, training=True)
    if conflicts := checkpoint.resume_conflicts(saved["config"], public(config)):
        raise UserError(*conflicts)
    return saved


def fresh_model(node: DictConfig) -> nn.Module:
    """The model without the weights it once started from: others follow, and the files may be gone."""
    starts = {key: None for key in ("weights", "backbone_weights") if key in node}
    model: nn.Module = build(OmegaConf.merge(node, starts))  # type: ignore[arg-type]
    return model


def place(model: nn.Module, config: DictConfig, device: Device) -> nn.Module:
    """``model`` on its device in the memory layout that is asked for; activations follow the weights' layout."""
    layout = torch.channels_last if config.channels_last else torch.preserve_format
    return model.to(device.torch, memory_format=layout)  # type: ignore[call-overload, no-any-return]


def build_evaluator(
    config: DictConfig, source: Source, loss: nn.Module, device: Device, precision: Precision
) -> Evaluator:
    """The evaluator that validation and test share."""
    return Evaluator(
        inference=build(config.inference),
        loss=loss,
        device=device,
        precision=precision,
        class_names=source.class_names,
        ignore_index=source.ignore_index,
        mean=source.mean,
        std=source.std,
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
    if not resume and (folder / "checkpoints" / "last.pt").is_file():
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
        overrides=overrides,
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


def describe(config: DictConfig, device: Device, precision: Precision, num_images: int, folder: Path) -> str:
    """One line for people about what begins."""
    return (
        f"{config.mode} {config.choices.model} on {config.choices.dataset} ({num_images} images), "
        f"{device.describe()}, {precision.resolve(device)}; records in {folder}"
    )


JOBS = {"train": train, "test": test}
