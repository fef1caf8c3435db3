"""Evaluation of a split, shared by training and test."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from pspexp.config.build import Components
from pspexp.data.loader import Batch, eval_loader
from pspexp.data.source import Source, Split
from pspexp.engine.evaluator import Evaluation, Evaluator
from pspexp.tracking import Progress, Tracker


def build_evaluator(parts: Components) -> Evaluator:
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

    with Progress(num_images, role, unit="image", silent=not world.is_main_process) as progress:
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


def describe(config: DictConfig, parts: Components, num_images: int, folder: Path) -> str:
    """One line for people about what begins."""
    processes = f" × {parts.world.size} processes" if parts.world.size > 1 else ""
    return (
        f"{config.mode} {config.choices.model} on {config.choices.dataset} ({num_images} images), "
        f"{parts.device.describe()}{processes}, {parts.precision.resolve(parts.device)}; records in {folder}"
    )
