"""Saved runs: atomic writing and verified reading."""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from pspexp.errors import UserError
from pspexp.models.weights import FORMAT, load_checkpoint_file


class CheckpointFolder:
    """``checkpoints/`` of a run: ``last.pt`` to go on from, ``best.pt`` to evaluate.

    Args:
        folder: is created with the first save.
        config: the resolved configuration as plain values; goes into each file.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config

    def save_last(self, weights: dict[str, Any], training: dict[str, Any]) -> None:
        """Save weights with everything needed to go on training exactly."""
        write_atomically({**self._head(), **weights, "training": training}, self.folder / "last.pt")

    def save_best(self, weights: dict[str, Any]) -> None:
        """Save weights to evaluate or to start from."""
        write_atomically({**self._head(), **weights}, self.folder / "best.pt")

    def _head(self) -> dict[str, Any]:
        return {"format": FORMAT, "config": self.config}


def write_atomically(content: dict[str, Any], path: Path) -> None:
    """``torch.save`` so that ``path`` holds the old or the new content whole, whenever the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")  # always the same name: what a kill leaves is replaced next time
    try:
        with unfinished.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def is_ours(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's content is of this project and format."""
    return content.get("format") == FORMAT


def on_cpu(value: Any) -> Any:
    """``value`` with every tensor in it on the CPU, so that a checkpoint can be read where its device is missing."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_cpu(item) for item in value)
    return value


def read(path: Path, *, training: bool = False, foreign: bool = False) -> dict[str, Any]:
    """Read a checkpoint, on the CPU.

    Args:
        path: the file.
        training: require what is needed to go on training.
        foreign: other projects' checkpoints will do.

    Raises:
        UserError: not a checkpoint of this project and format, or without a training state.
    """
    content = load_checkpoint_file(path)
    if not is_ours(content) and not foreign:
        raise UserError(
            f"{path}: not a checkpoint of this project (format {content.get('format')!r}, expected {FORMAT!r}); "
            "start from foreign weights with model.weights=<file>"
        )
    if training and "training" not in content:
        raise UserError(f"{path}: holds weights only; resume from the run's last.pt")
    return content


# What a saved training state only fits when it is unchanged, and what in these nodes does not matter to it.
FIXED_BY_STATE = (
    "model",
    "dataset",
    "augment",
    "loss",
    "optimizer",
    "scheduler",
    "precision",
    "seed",
    "crop_size",
)
FIXED_KEYS = (
    "loader.batch_size",
    "loader.max_eval_images",
    "trainer.accumulate",
    "trainer.ema",
    "trainer.grad_clip",
    "trainer.epochs",
    "sync_batch_norm",
)
SHARED_OUT = ("loader.batch_size", "trainer.accumulate")  # with more processes each takes less
FREE_KEYS = ("dataset.root", "model.weights", "model.backbone_weights")
# Where and how fast a run computes and how often it tells: no part of what it computes.
MACHINE_KEYS = ("device.index", "dataset.root", "loader.num_workers", "loader.cache_mib", "trainer.log_every")


def resume_conflicts(saved: dict[str, Any], config: dict[str, Any], world_size: int) -> list[str]:
    """One line for each difference that keeps a run from going on exactly: key, saved value, value now.

    Args:
        saved: the content of a ``last.pt``.
        config: as plain values.
        world_size: number of processes now.
    """
    then, now = flatten(saved["config"]), flatten(config)
    saved_size = saved.get("training", {}).get("world_size", 1)
    may_change = config["checkpoint"]["allow_world_size_change"]

    def fixed(key: str) -> bool:
        if key in SHARED_OUT and may_change and saved_size != world_size:
            return False
        return key not in FREE_KEYS and (key in FIXED_KEYS or key.partition(".")[0] in FIXED_BY_STATE)

    conflicts = [
        f"{key}={now.get(key)}: the saved run has {then.get(key)}; resume with that, or start anew from its weights "
        "with model.weights=<checkpoint>"
        for key in sorted(then.keys() | now.keys())
        if fixed(key) and then.get(key) != now.get(key)
    ]
    return [*conflicts, *world_size_conflicts(then, now, saved_size, world_size, may_change)]


def world_size_conflicts(
    then: dict[str, Any], now: dict[str, Any], saved_size: int, size: int, may_change: bool
) -> Iterator[str]:
    """What keeps a run from going on with another number of processes, if that is asked for."""
    if saved_size == size:
        return
    if not may_change:
        yield (
            f"launcher: {processes(size)} now, the saved run has {processes(saved_size)}, so sums would be taken in "
            "another order and each process would draw other random numbers; resume with as many, or set "
            "checkpoint.allow_world_size_change=true"
        )
        return
    before, after = (math.prod(flat[key] for key in SHARED_OUT) for flat in (then, now))
    if before * saved_size != after * size:
        yield (
            f"loader.batch_size × trainer.accumulate × processes = {after} × {size}: the saved run takes "
            f"{before} × {saved_size} images a step; choose a batch size or accumulation that makes as many"
        )


def processes(count: int) -> str:
    """``1 process``, ``2 processes``."""
    return f"{count} process{'' if count == 1 else 'es'}"


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` to ``{"a.b": 1}``; lists stay one value."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat
