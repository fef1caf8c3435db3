"""Checkpoints of a run: atomic writing and verified reading."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pspexp.errors import UserError, setting
from pspexp.models.checkpoint_file import load_checkpoint_file
from pspexp.models.exported import is_exported, read_description
from pspexp.models.weights import FORMAT
from pspexp.utils.files import atomic_write


class CheckpointDir:
    """``checkpoints/`` of a run: ``last.pt`` to resume from, ``best.pt`` to evaluate.

    Args:
        folder: The folder; created by the first save.
        config: The resolved configuration as plain values; part of each file.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config

    def save(self, name: str, content: dict[str, Any]) -> None:
        """Write ``name`` (``best.pt`` or ``last.pt``) completely, or leave the old file."""
        with atomic_write(self.folder / name) as file:
            torch.save({"format": FORMAT, "config": self.config, **content}, file)


def is_own_format(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's content has this project's current format."""
    return content.get("format") == FORMAT


def to_cpu(value: Any) -> Any:
    """``value`` with every tensor in it on the CPU, so that a checkpoint can be read where its device is missing."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: to_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_cpu(item) for item in value)
    return value


def read(path: Path, *, training: bool = False, foreign: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, or of an exported file what is not weights.

    Args:
        path: The file.
        training: Whether the content must include a training state, from which to resume.
        foreign: Whether to accept other projects' checkpoints.

    Raises:
        UserError: The file is not a checkpoint of this project and format, or has no training state.
    """
    if is_exported(path):
        description = read_description(path)
        return {
            "format": FORMAT,
            **{key: description[key] for key in ("config", "input", "class_names", "step", "epoch")},
        }
    content = load_checkpoint_file(path)
    if not is_own_format(content) and not foreign:
        raise UserError(
            f"{path}: not a checkpoint of this project (format {content.get('format')!r}, expected {FORMAT!r}); "
            f"to start from foreign weights, use {setting('model.weights')}=<file>"
        )
    if training and "training" not in content:
        last = path.with_name("last.pt")
        where = last if last != path and last.is_file() else "the run's last.pt"
        raise UserError(f"{path}: holds weights only; resume from {where}")
    return content
