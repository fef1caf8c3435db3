"""Saved runs: atomic writing and verified reading."""

import os
from collections.abc import Mapping
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
