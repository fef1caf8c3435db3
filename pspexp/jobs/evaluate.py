"""Evaluation of a whole split, as training and test do it."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig
from torch import nn

from pspexp.data.dataset import Split
from pspexp.data.inspection.quick import look
from pspexp.data.loader import Batch, eval_loader
from pspexp.engine.components import Components
from pspexp.engine.evaluator import Evaluation, Evaluator
from pspexp.errors import UserError
from pspexp.tracking.tracker import Tracker
from pspexp.utils.progress import Progress

log = logging.getLogger(__name__)


def evaluate(
    model: nn.Module,
    split: Split,
    role: str,
    components: Components,
    config: DictConfig,
    tracker: Tracker,
    on_batch_end: Callable[[], None],
) -> Evaluation:
    """Evaluate ``model`` on ``split`` with a progress bar, and draw samples.

    Args:
        model: evaluated instead of the model in ``components``, of which it may be the moving average.
        role: ``val`` or ``test``.
        on_batch_end: called after each batch of the loader, equally often in every process.
    """
    world = components.world
    names = split.names[: config.loader.max_eval_images]
    loader = eval_loader(
        split,
        components.inference.prepare,
        batch_size=config.loader.eval_batch_size,
        num_workers=config.loader.num_workers,
        max_images=config.loader.max_eval_images,
        pin_memory=components.device.pin_memory,
        skip_errors=config.dataset.get("on_error") == "skip",
        rank=world.rank,
        world_size=world.size,
    )
    rounds = math.ceil(math.ceil(len(names) / world.size) / config.loader.eval_batch_size)

    def batches() -> Iterator[Batch]:
        for batches_by_size in loader:
            yield from batches_by_size
            on_batch_end()
        for _ in range(rounds - len(loader)):  # another process has one more image
            on_batch_end()

    with Progress(len(names), role, unit="image", silent=not world.is_main_process) as progress:
        evaluation = Evaluator(components)(
            model,
            batches(),
            names,
            # The other processes have evaluated as many, give or take one.
            on_batch_end=lambda num_images: progress.add(num_images * world.size),
        )
    tracker.samples(role, evaluation.samples, components.dataset.info)
    tracker.images(role, evaluation.images, evaluation.worst, components.dataset.info)
    return evaluation


def look_at_labels(splits: Mapping[str, Split], components: Components, config: DictConfig) -> None:
    """Look at the labels of splits before anything else is done; see `look`.

    Raises:
        UserError: Names everything that makes training or testing on them pointless.
    """
    problems: tuple[str, ...] = ()
    if components.world.is_main_process:
        try:
            look(splits, components.dataset.info, config.dataset.get("on_error", "raise"))
        except UserError as error:
            problems = error.problems
    components.world.raise_collectively(problems)


def describe(config: DictConfig, components: Components, num_images: int) -> str:
    """One log line about the run that begins."""
    processes = f" × {components.world.size} processes" if components.world.size > 1 else ""
    return (
        f"{config.mode} {config.choices.model} on {config.choices.dataset} ({num_images} images), "
        f"{components.device.describe()}{processes}, {components.precision.explain(components.device)}"
    )


def warn_unlike_training(config: DictConfig, saved: Mapping[str, Any]) -> None:
    """Warn of windows that differ from the crops the network was trained on."""
    trained, window = saved.get("config", {}).get("crop_size"), config.inference.get("window")
    if trained is not None and window is not None and window != trained:
        log.warning(
            "inference.window=%d: the network was trained on crops of %d pixels and may do worse on other windows",
            window,
            trained,
        )
