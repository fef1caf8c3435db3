"""Checkpoints of a run: atomic writing and verified reading."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pspexp.errors import JobFailed, UserError, setting
from pspexp.models.checkpoint_file import FORMAT, is_own_format, load_checkpoint_file
from pspexp.models.exported import is_exported, read_description
from pspexp.utils.files import atomic_write, describe_disk_error, disk_error, link_atomic
from pspexp.utils.text import shorten


class CheckpointDir:
    """``checkpoints/`` of a run: ``last.pt`` to resume from, ``best.pt`` to evaluate.

    Args:
        folder: The folder; created by the first save.
        config: The resolved configuration as plain values; part of each file.
        keep: How many earlier states to keep, see `keep_state`.
    """

    def __init__(self, folder: Path, config: dict[str, Any], keep: int = 0) -> None:
        self.folder, self.config, self._keep = folder, config, keep

    def save(self, name: str, content: dict[str, Any]) -> None:
        """Write ``name`` (``best.pt`` or ``last.pt``) completely, or leave the old file.

        Raises:
            JobFailed: The disk is full or fails.
        """
        file = self.folder / name
        try:
            with atomic_write(file) as stream:
                torch.save({"format": FORMAT, "config": self.config, **content}, stream)
        except (OSError, RuntimeError) as error:
            if (cause := disk_error(error)) is None:
                raise
            text = describe_disk_error(cause, file, num_bytes(content))
            raise JobFailed(f"{text}; {what_is_kept(self.folder)}") from error

    def keep_state(self, step: int) -> None:
        """Keep ``last.pt`` also as ``step_<step>.pt``, and of such files those with the highest steps."""
        if not self._keep:
            return
        last, kept = self.folder / "last.pt", self.folder / f"step_{step:08d}.pt"
        if not link_atomic(last, kept):
            with atomic_write(kept) as stream, last.open("rb") as source:
                shutil.copyfileobj(source, stream)
        for old in sorted(self.folder.glob("step_*.pt"))[: -self._keep]:
            old.unlink()


def what_is_kept(folder: Path) -> str:
    """What a run that ends because of its disk leaves in its folder of checkpoints, and how to continue."""
    last = folder / "last.pt"
    if not last.is_file():
        return "nothing has been saved yet"
    try:
        step = torch.load(last, map_location="cpu", weights_only=True, mmap=True)["step"]
    except Exception:  # the disk fails
        step = "?"
    resume = setting("checkpoint.resume", "auto")
    return f"{last} of step {step} is kept; free some space, then continue with {resume}"


def num_bytes(value: Any) -> int:
    """The bytes of all tensors in nested plain values."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(num_bytes, value.values()))
    return sum(map(num_bytes, value)) if isinstance(value, list | tuple) else 0


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
        parts = ("config", "input", "class_names", "step", "epoch")
        description = read_description(path, *parts)
        return {"format": FORMAT, **{key: description[key] for key in parts}}
    content = load_checkpoint_file(path)
    if not is_own_format(content) and not foreign:
        kind = shorten(repr(content.get("format")), 100)
        raise UserError(
            f"{path}: not a checkpoint of this project (format {kind}, expected {FORMAT!r}); "
            f"to start from foreign weights, use {setting('model.weights')}=<file>"
        )
    if training and "training" not in content:
        last = path.with_name("last.pt")
        where = last if last != path and last.is_file() else "the run's last.pt"
        raise UserError(f"{path}: holds weights only; resume from {where}")
    return content


def saved_config(content: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """The configuration in the content of one of this project's checkpoints; UserError if there is none."""
    config: dict[str, Any] = content.get("config", {})
    if not all(isinstance(config.get(key), dict) for key in ("choices", "dataset", "model")):
        raise UserError(f"{path}: is damaged (it has no configuration); copy or download it again")
    return config
