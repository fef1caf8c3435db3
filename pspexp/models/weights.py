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

from pspexp.errors import UserError, setting
from pspexp.models.backbone import imagenet_weights
from pspexp.models.file_kinds import describe_unreadable
from pspexp.models.layouts import OWN_LAYOUT, our_names
from pspexp.models.segmenter import Segmenter
from pspexp.utils.text import count

FORMAT = "pspexp/1"  # the value of "format" in this project's checkpoints
# Keys under which other projects save a state dict; the first one is that of the reference.
WRAPPERS = ("model_state", "state_dict", "model_state_dict", "model", "net", "network", "module", "weights")

Source = str | PathLike[str] | Mapping[str, Any]

log = logging.getLogger(__name__)


def load_weights(
    model: nn.Module,
    source: Source,
    *,
    name: str | None = None,
    backbone_only: bool = False,
    other_classes: bool = False,
    allow_backbone: bool = True,
) -> dict[str, str]:
    """Load a checkpoint into ``model``; every weight of one must have a counterpart in the other.

    Three things may be missing: counters of batch norms (``num_batches_tracked``), the whole auxiliary head (in the
    file or in the model), and, in files that hold a backbone only, everything else. What keeps its weights is logged.

    Args:
        source: Path of a checkpoint, its contents, or a bare state dict. The keys of this project's checkpoints are
            taken as they are; others may follow one of `pspexp.models.layouts.FOREIGN_LAYOUTS`.
        name: Name of the source in messages; None: its path.
        backbone_only: Whether to load the backbone only and leave the rest of the model unchanged.
        other_classes: Whether to leave a classifier unchanged, with a warning, if the file's has another number of
            classes.
        allow_backbone: Whether to accept, with a warning, a file that holds a backbone only.

    Returns:
        Key in the checkpoint -> key in ``model``, of everything loaded.

    Raises:
        UserError: Names all keys that are missing, unexpected or of another shape; the model is unchanged.
    """
    where = name or ("state dict" if isinstance(source, Mapping) else str(source))
    content = source if isinstance(source, Mapping) else load_checkpoint_file(source)
    state = find_state_dict(content, where)
    ours: dict[str, Tensor] = model.state_dict()
    layout, names = (OWN_LAYOUT, {key: key for key in state}) if "format" in content else our_names(state, ours)

    if backbone_only or layout.backbone_only:
        unchanged = {key for key in {*ours, *names.values()} if not key.startswith("backbone.")}
        if not backbone_only:
            _warn_of_backbone(where, allow_backbone)
    else:
        unchanged = _unmatched_auxiliary_head(model, ours, names.values(), where)
    if other_classes:
        unchanged |= _classifiers_of_other_size(model, ours, names, state, where)
    ours = {key: value for key, value in ours.items() if key not in unchanged}
    names = {theirs: key for theirs, key in names.items() if key not in unchanged}

    if problems := _mismatches(ours, names, state, where):
        raise UserError(*problems, f"{where}: read in the layout of {layout.name}; nothing was loaded")
    model.load_state_dict({key: state[theirs] for theirs, key in names.items()}, strict=False)
    return names


def start_from(
    model: Segmenter, backbone: str, backbone_weights: str | None, weights: str | None, in_channels: int = 3
) -> None:
    """Load the weights that a new model is configured to start from.

    Args:
        backbone: timm's name of its backbone.
        backbone_weights: None, ``"timm"`` (ImageNet) or the path of a checkpoint to load the backbone from.
        weights: None, or the path of a whole checkpoint, which supersedes ``backbone_weights``.
        in_channels: Number of bands of the images, to which ImageNet weights are adapted.
    """
    if weights is not None:
        load_weights(model, weights, other_classes=True)
    elif backbone_weights is not None:
        source: Source = imagenet_weights(backbone, in_channels) if backbone_weights == "timm" else backbone_weights
        load_weights(model, source, backbone_only=True)


def load_checkpoint_file(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a file that ``torch.save`` wrote, onto the CPU, without running any code in it.

    Raises:
        UserError: There is no such file, or it holds anything but a dict of tensors and plain values.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{path}: {'a folder, not a checkpoint file' if file.is_dir() else 'no such file'}")
    _allow_numpy_numbers()
    try:
        contents = torch.load(file, map_location="cpu", weights_only=True)
        if isinstance(contents, torch.jit.ScriptModule):  # torch 2.4 loads them in spite of weights_only
            raise TypeError("a TorchScript network")
    except Exception as error:  # a damaged file raises errors of many classes: pickle, zip, EOF, unicode, ...
        raise UserError(f"{path}: {describe_unreadable(file, error)}") from error
    if not isinstance(contents, dict):
        raise UserError(f"{path}: holds a {type(contents).__name__}, not a dict of weights")
    return contents


def count_classes(content: Mapping[str, Any], where: str) -> int | None:
    """The number of classes of a PSPNet in the content of a checkpoint; None if there is no such network in it.

    Args:
        content: The content.
        where: Name of the checkpoint in error messages.

    Raises:
        UserError: There is no state dict.
    """
    state = find_state_dict(content, where)
    _, names = our_names(state)
    sizes = [len(state[theirs]) for theirs, ours in names.items() if ours == "classifier.weight"]
    return sizes[0] if sizes else None


def find_state_dict(checkpoint: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint of any known form; in this project's, the averaged weights if there are any.

    Args:
        where: Name of the checkpoint in error messages.

    Raises:
        UserError: There is no state dict.
    """
    state: Any
    if "format" in checkpoint:
        if checkpoint["format"] != FORMAT:
            raise UserError(f"{where}: has format {checkpoint['format']}; this version reads {FORMAT}")
        state = {**checkpoint["model"], **(checkpoint.get("ema") or {})}  # an average may lack the counters
    else:
        state = _unwrap(checkpoint)
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{where}: holds no weights")
    if others := [str(key) for key, value in state.items() if not isinstance(value, Tensor)]:
        raise UserError(f"{where}: holds no state dict; these entries are not weights: {', '.join(others)}")
    return dict(state)


def _warn_of_backbone(where: str, is_allowed: bool) -> None:
    if not is_allowed:
        raise UserError(
            f"{where}: holds a backbone only, and the rest of the network would be random; give a checkpoint of the "
            f"whole network, or train one that starts with {setting('model.backbone_weights', where)}"
        )
    log.warning("%s holds a backbone only: the rest of the model keeps its weights", where)


def _unwrap(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict that a checkpoint holds under one of `WRAPPERS`, or under two, or that it is."""
    for _ in range(2):
        inner = [checkpoint[key] for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)]
        checkpoint = inner[0] if inner else checkpoint
    return checkpoint


def _unmatched_auxiliary_head(model: nn.Module, ours: Iterable[str], theirs: Iterable[str], where: str) -> set[str]:
    """Keys of the auxiliary head if only the model or only the file has one: only training needs it."""
    prefix = f"{model.auxiliary_layer}." if isinstance(model, Segmenter) else "auxiliary."
    in_model = {key for key in ours if key.startswith(prefix)}
    in_file = {key for key in theirs if key.startswith(prefix)}
    if in_model and in_file:
        return set()
    if in_model:
        log.warning("%s has no auxiliary head: %s* keep their weights", where, prefix)
    if in_file:
        log.info("%s has an auxiliary head, the model has none: not loaded", where)
    return in_model | in_file


def _classifiers_of_other_size(
    model: nn.Module, ours: Mapping[str, Tensor], names: Mapping[str, str], state: Mapping[str, Tensor], where: str
) -> set[str]:
    """Keys of the classifiers that differ from the file's in the number of classes and in nothing else."""
    found = set()
    for theirs, key in names.items():
        layer = key.rpartition(".")[0]
        if isinstance(model, Segmenter) and layer in model.class_layers and key in ours:
            own, given = ours[key].shape, state[theirs].shape
            if own[0] != given[0] and own[1:] == given[1:]:
                found.add(key)
                log.warning(
                    "%s: %s is initialised randomly: the file has %d classes, not %d", where, key, given[0], own[0]
                )
    return found


def _mismatches(
    ours: Mapping[str, Tensor], names: Mapping[str, str], state: Mapping[str, Tensor], where: str
) -> list[str]:
    """One line for each kind of difference between checkpoint and model, with all keys."""
    given = set(names.values())
    missing = [key for key in ours if key not in given and not key.endswith(".num_batches_tracked")]
    unexpected = [theirs for theirs, key in names.items() if key not in ours]
    shapes = [
        f"{theirs} is {list(state[theirs].shape)}, {key} in the model {list(ours[key].shape)}"
        for theirs, key in names.items()
        if key in ours and state[theirs].shape != ours[key].shape
    ]
    kinds = (("of the model missing", missing), ("not in the model", unexpected), ("of another shape", shapes))
    return [f"{where}: {count(len(keys), 'weight')} {kind}: {', '.join(keys)}" for kind, keys in kinds if keys]


@cache
def _allow_numpy_numbers() -> None:
    """Let ``torch.load`` read pickled NumPy numbers, since the reference saves its best score as one.

    None of the types allowed for this can run code. NumPy 1 and 2 name the constructor differently, and each must read
    the other's files.
    """

    def scalar(dtype: Any, data: bytes) -> Any:
        return np.frombuffer(data, dtype)[0]

    constructors: list[Any] = []
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        constructor = FunctionType(scalar.__code__, globals(), "scalar")
        constructor.__module__, constructor.__qualname__ = module, "scalar"
        constructors.append(constructor)
    kinds = {type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")}
    # torch 2.5 and later allow codecs.encode (text to bytes) by default
    torch.serialization.add_safe_globals([*constructors, np.dtype, *kinds, codecs.encode])
