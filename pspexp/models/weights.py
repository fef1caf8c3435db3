"""Weights from files: this project's checkpoints and the layouts of other code bases."""

import codecs
import logging
from collections.abc import Iterable, Mapping
from functools import cache
from os import PathLike
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pspexp.errors import UserError
from pspexp.models.backbone import imagenet_weights
from pspexp.models.layouts import our_names
from pspexp.models.segmenter import Segmenter

FORMAT = "pspexp/1"  # the value of "format" in this project's checkpoints

Source = str | PathLike[str] | Mapping[str, Any]

log = logging.getLogger(__name__)


def load_weights(
    model: nn.Module, source: Source, *, backbone_only: bool = False, other_classes: bool = False
) -> dict[str, str]:
    """Load a checkpoint into ``model``; every weight must find its place.

    Three things may be missing: counters of batch norms (``num_batches_tracked``), the auxiliary head as a
    whole (in the file or in the model), and, in files of a bare backbone, everything else. The log says what
    stays as it was.

    Args:
        source: path of a checkpoint, its contents, or a bare state dict, in our layout or one of
            `pspexp.models.layouts.LAYOUTS`, with or without ``module.`` in front of all keys.
        backbone_only: take the backbone and leave the rest of the model alone.
        other_classes: leave a classifier alone, with a warning, if the file's has another number of classes.

    Returns:
        Key in the checkpoint -> key in ``model``, of everything loaded.

    Raises:
        UserError: naming all keys that are missing, unexpected or of another shape. The model is unchanged
            then.
    """
    where = "state dict" if isinstance(source, Mapping) else str(source)
    state = find_state_dict(source if isinstance(source, Mapping) else load_checkpoint_file(source), where)
    layout, names = our_names(state)
    ours: dict[str, Tensor] = model.state_dict()

    if backbone_only or layout.backbone_only:
        left_alone = {key for key in {*ours, *names.values()} if not key.startswith("backbone.")}
        if not backbone_only:
            log.warning("%s holds a backbone only: the rest of the model keeps its weights", where)
    else:
        left_alone = _lone_auxiliary_head(model, ours, names.values(), where)
    if other_classes:
        left_alone |= _classifiers_of_other_size(model, ours, names, state, where)
    ours = {key: value for key, value in ours.items() if key not in left_alone}
    names = {theirs: key for theirs, key in names.items() if key not in left_alone}

    if problems := _misfits(ours, names, state, where):
        raise UserError(*problems, f"{where}: read as the layout of {layout.name}; nothing was loaded")
    model.load_state_dict({key: state[theirs] for theirs, key in names.items()}, strict=False)
    return names


def start_from(model: Segmenter, backbone: str, backbone_weights: str | None, weights: str | None) -> None:
    """Fill a fresh model as its configuration asks.

    Args:
        backbone: timm's name of its backbone.
        backbone_weights: None, ``"timm"`` (ImageNet) or the path of a checkpoint whose backbone is taken.
        weights: None, or the path of a whole checkpoint, which makes ``backbone_weights`` needless.
    """
    if weights is not None:
        load_weights(model, weights, other_classes=True)
    elif backbone_weights is not None:
        source: Source = imagenet_weights(backbone) if backbone_weights == "timm" else backbone_weights
        load_weights(model, source, backbone_only=True)


def load_checkpoint_file(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a file that ``torch.save`` wrote, onto the CPU, without running any code in it.

    Raises:
        UserError: if there is no such file, or it holds anything but a dict of tensors and plain values.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{path}: {'a folder, not a checkpoint file' if file.is_dir() else 'no such file'}")
    _allow_numpy_numbers()
    try:
        contents = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises errors of many classes: pickle, zip, EOF, unicode, ...
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{path}: not a checkpoint that can be read safely ({reason})") from error
    if not isinstance(contents, dict):
        raise UserError(f"{path}: holds a {type(contents).__name__}, not a dict of weights")
    return contents


def find_state_dict(checkpoint: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The state dict inside a checkpoint of any known form; of ours the averaged weights, if there are any.

    Args:
        where: what error messages call the checkpoint.

    Raises:
        UserError: if there is none.
    """
    state: Any = checkpoint
    if "format" in checkpoint:
        if checkpoint["format"] != FORMAT:
            raise UserError(f"{where}: has format {checkpoint['format']}; this version reads {FORMAT}")
        # an average may lack what is not averaged, as counters
        state = {**checkpoint["model"], **(checkpoint.get("ema") or {})}
    for key in ("model_state", "state_dict"):  # the reference system's, everyone else's
        if key in checkpoint:
            state = checkpoint[key]
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{where}: holds no weights")
    if strange := [str(key) for key, value in state.items() if not isinstance(value, Tensor)]:
        raise UserError(f"{where}: holds no state dict; these entries are not weights: {', '.join(strange)}")
    return dict(state)


def _lone_auxiliary_head(model: nn.Module, ours: Iterable[str], theirs: Iterable[str], where: str) -> set[str]:
    """Our keys of the auxiliary head where only one side has one: it serves training alone."""
    prefix = f"{model.auxiliary_layer}." if isinstance(model, Segmenter) else "auxiliary."
    in_model = {key for key in ours if key.startswith(prefix)}
    in_file = {key for key in theirs if key.startswith(prefix)}
    if in_model and in_file:
        return set()
    if in_model:
        log.warning("%s has no auxiliary head: %s* keep their weights", where, prefix)
    if in_file:
        log.info("%s has an auxiliary head and the model has none: left out", where)
    return in_model | in_file


def _classifiers_of_other_size(
    model: nn.Module,
    ours: Mapping[str, Tensor],
    names: Mapping[str, str],
    state: Mapping[str, Tensor],
    where: str,
) -> set[str]:
    """Our keys of the classifiers that the file has for another number of classes, and nothing else."""
    found = set()
    for theirs, key in names.items():
        layer = key.rpartition(".")[0]
        if isinstance(model, Segmenter) and layer in model.class_layers and key in ours:
            here, there = ours[key].shape, state[theirs].shape
            if here[0] != there[0] and here[1:] == there[1:]:
                found.add(key)
                log.warning("%s: %s starts fresh: the file has %d classes, not %d", where, key, there[0], here[0])
    return found


def _misfits(
    ours: Mapping[str, Tensor], names: Mapping[str, str], state: Mapping[str, Tensor], where: str
) -> list[str]:
    """One line for each way in which checkpoint and model differ, naming all keys."""
    given = set(names.values())
    missing = [key for key in ours if key not in given and not key.endswith(".num_batches_tracked")]
    unexpected = [theirs for theirs, key in names.items() if key not in ours]
    shapes = [
        f"{theirs} is {list(state[theirs].shape)}, {key} in the model {list(ours[key].shape)}"
        for theirs, key in names.items()
        if key in ours and state[theirs].shape != ours[key].shape
    ]
    problems = []
    if missing:
        problems.append(f"{where}: {len(missing)} weights of the model are missing: {', '.join(missing)}")
    if unexpected:
        problems.append(f"{where}: {len(unexpected)} weights are not in the model: {', '.join(unexpected)}")
    if shapes:
        problems.append(f"{where}: {len(shapes)} weights have another shape: {'; '.join(shapes)}")
    return problems


@cache  # once is enough
def _allow_numpy_numbers() -> None:
    """Let ``torch.load`` read pickled NumPy numbers: the reference system saves its best score as one.

    All they refer to is harmless. NumPy 1 and 2 name the constructor differently; each must read the other's
    files.
    """

    def scalar(dtype: Any, data: bytes) -> Any:
        return np.frombuffer(data, dtype)[0]

    constructors: list[Any] = []
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        constructor = FunctionType(scalar.__code__, globals(), "scalar")
        constructor.__module__, constructor.__qualname__ = module, "scalar"
        constructors.append(constructor)
    kinds = {type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")}
    # torch from 2.5 on allows codecs.encode, which makes bytes of text, by itself
    torch.serialization.add_safe_globals([*constructors, np.dtype, *kinds, codecs.encode])
