"""The jobs, top to bottom: build, train or test, record."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from pspexp import checkpoint
from pspexp.assembly import Parts, TrainingParts, build_parts, build_training, meet
from pspexp.data.loader import Batch, TrainLoader, eval_loader
from pspexp.data.source import Source, Split
from pspexp.device import Device
from pspexp.distributed import Place, World
from pspexp.errors import Interrupted, UserError
from pspexp.evaluate import Evaluation, Evaluator
from pspexp.models.weights import load_weights
from pspexp.optim import skips_on_request
from pspexp.records import Request, own_state, public, recorded, start_tracker
from pspexp.tracking import Progress, Tracker, runs
from pspexp.trainer import Trainer

log = logging.getLogger(__name__)

StopSignal = Callable[[], int | None]


class Job(Request):
    """A request that processes can carry out; it can be sent to them."""

    def __call__(self, place: Place, stop_signal: StopSignal) -> float | None:
        """Do it, as the process at ``place``; returns what a sweeper compares.

        Raises:
            UserError: the input is wrong.
            Interrupted: ``stop_signal`` asked to stop.
        """
        device, world = meet(self.config, place)
        same_configuration(self.config, device, world)
        folder = world.from_leader(lambda: self.folder)
        job = replace(self, folder=folder, again=self.again or place.restarts > 0)
        # Who launched it may be gone, and another have come, while this one still saves.
        with runs.claimed(folder, runs.WRITING, wait=True) if world.leads else nullcontext():
            try:
                result: float | None = JOBS[job.config.mode](job, device, world, stop_signal)
            except Interrupted:  # all were, at one step; nobody may end before the first process has saved
                world.leave()
                raise
            world.leave()
        return result


def train(job: Job, device: Device, world: World, stop_signal: StopSignal) -> float | None:
    """``mode=train``: train, validate, save; returns the best mean IoU."""
    config, folder = job.config, job.folder
    state = world.from_leader(lambda: saved_state(job, world))
    parts = build_training(config, device, world, start_weights=state is None)
    same_arithmetic(parts, state)
    evaluator = build_evaluator(parts)
    log.info("%s", describe(config, parts, len(parts.training), folder))
    log.info("%s", left_out(parts.data, len(parts.training)))
    splits = {"train": parts.training, "val": parts.validation}
    tracker = start_tracker(job, parts, splits, resume=state is not None)

    def validate(weights: nn.Module, between: Callable[[], None]) -> Evaluation:
        found = evaluate(weights, parts.validation, "val", evaluator, config, parts.source, tracker, between)
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
        world=world,
        device=device,
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


def test(job: Job, device: Device, world: World, stop_signal: StopSignal) -> float | None:
    """``mode=test``: evaluate a checkpoint on the test split; returns the mean IoU."""
    config = job.config
    saved = world.from_leader(lambda: checkpoint.read(Path(config.checkpoint.path), foreign=True))
    ours = checkpoint.is_ours(saved)
    parts = build_parts(config, device, world)
    split = parts.source.open("test")
    load_weights(parts.model, saved)
    evaluator = build_evaluator(parts)
    log.info("%s", describe(config, parts, len(split), job.folder))
    tracker = start_tracker(job, parts, {"test": split}, resume=False)
    found: dict[str, float] = {}

    def stop_if_asked() -> None:
        if number := world.largest_soon(stop_signal() or 0):
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


def same_configuration(config: DictConfig, device: Device, world: World) -> None:
    """Refuse to begin with processes that were started with different words, or on different kinds of device.

    Raises:
        UserError: names the keys in which another process differs from the first.
    """
    flats = world.gather({**checkpoint.flatten(public(config)), "device": device.type, "torch": torch.__version__})
    world.raise_problems(
        [
            f"{key}={flat.get(key)}: process {rank} has this, process 0 has {flats[0].get(key)}; give all the same"
            for rank, flat in enumerate(flats)
            for key in sorted(flats[0].keys() | flat.keys())
            if flat.get(key) != flats[0].get(key) and not key.startswith("launcher.")
        ]
    )


def same_arithmetic(parts: TrainingParts, state: dict[str, Any] | None) -> None:
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


def saved_state(job: Job, world: World) -> dict[str, Any] | None:
    """The training state to go on from, or None for a fresh start.

    Raises:
        UserError: ``checkpoint.resume`` names no training state, or one of a run that was configured differently.
    """
    config, folder, own = job.config, job.folder, own_state(job.folder)
    # After a restart from what this job has saved, if it has.
    wanted = "auto" if job.again and own.is_file() else config.checkpoint.resume
    if wanted is None or (wanted == "auto" and not own.is_file()):
        return None
    path = own if wanted == "auto" else runs.find_checkpoint(wanted, "last.pt")
    if own.is_file() and path.resolve() != own.resolve():
        raise UserError(f"hydra.run.dir={folder}: holds another run than checkpoint.resume={wanted}; leave it out")
    saved = checkpoint.read(path, training=True)
    if conflicts := checkpoint.resume_conflicts(saved, public(config), world.size):
        raise UserError(*conflicts)
    return saved


def build_evaluator(parts: Parts) -> Evaluator:
    """The evaluator that validation and test share."""
    return Evaluator(
        inference=parts.inference,
        loss=parts.loss,
        device=parts.device,
        precision=parts.precision,
        world=parts.world,
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
    between: Callable[[], None],
) -> Evaluation:
    """Evaluate ``model`` on ``split`` with a progress bar, and draw samples.

    Args:
        between: called after each loaded group of images, as often in each process.
    """
    limit, world = config.loader.max_eval_images, evaluator.world
    groups = eval_loader(
        split,
        evaluator.inference.prepare,
        batch_size=config.loader.eval_batch_size,
        num_workers=config.loader.num_workers,
        max_images=limit,
        pin_memory=evaluator.device.pin_memory,
        rank=world.rank,
        world_size=world.size,
    )
    num_images = min(limit or len(split), len(split))
    rounds = math.ceil(math.ceil(num_images / world.size) / config.loader.eval_batch_size)

    def rounded() -> Iterator[list[Batch]]:
        for group in groups:
            yield group
            between()
        for _ in range(rounds - len(groups)):  # another process has an image more
            between()

    with Progress(num_images, role, unit="image", silent=not world.leads) as progress:
        # The others are as far, give or take one image.
        evaluation = evaluator(
            model, rounded(), num_images=num_images, on_images=lambda count: progress.add(count * world.size)
        )
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


def results(trainer: Trainer) -> dict[str, Any]:
    """What ``summary.json`` tells about a training."""
    at, watch = trainer.position, trainer.watch
    speed = watch.total_images / watch.total_s if watch.total_s else None
    return {"best": at.best, "last": at.last, "images_per_second": speed}


def describe(config: DictConfig, parts: Parts, num_images: int, folder: Path) -> str:
    """One line for people about what begins."""
    processes = f" × {parts.world.size} processes" if parts.world.size > 1 else ""
    return (
        f"{config.mode} {config.choices.model} on {config.choices.dataset} ({num_images} images), "
        f"{parts.device.describe()}{processes}, {parts.precision.resolve(parts.device)}; records in {folder}"
    )


def left_out(data: TrainLoader, num_images: int) -> str:
    """One line for people about the images that do not fill the last step of an epoch."""
    rest = num_images % data.images_per_step
    note = f"; {rest} of {num_images} images, others each time, are left out" if rest else ""
    return f"{data.steps_per_epoch} steps an epoch{note}"


JOBS = {"train": train, "test": test}
