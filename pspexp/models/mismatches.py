"""What messages say about weights that do not fit a network."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from pspexp.errors import setting
from pspexp.models.layouts import OWN_LAYOUT, Layout
from pspexp.utils.text import count, first_names

LISTED = 20  # all keys are listed if so many differ
SHOWN = 5  # else the first ones
# Libraries by what the keys of their networks begin with, and our option for these networks.
LIBRARIES = (
    ("segformer.", "transformers", "segformer"),
    ("segmentation_head.", "segmentation_models.pytorch", "smp"),
)


def mismatches(
    ours: Mapping[str, Tensor],
    names: Mapping[str, str],
    state: Mapping[str, Tensor],
    content: Mapping[str, Any],
    where: str,
) -> list[str]:
    """One line for each kind of difference between a file and the part of a model that it is loaded into.

    Args:
        ours: The weights of the model that are to be loaded.
        names: Key in the file -> key in the model.
        state: The weights in the file.
        content: The content of the file.
        where: Name of the file.
    """
    given = set(names.values())
    missing = [key for key in ours if key not in given and not key.endswith(".num_batches_tracked")]
    unexpected = [theirs for theirs, key in names.items() if key not in ours]
    shapes = [
        f"{theirs} is {list(state[theirs].shape)}, {key} in the model {list(ours[key].shape)}"
        for theirs, key in names.items()
        if key in ours and state[theirs].shape != ours[key].shape
    ]
    kinds = (("of the model missing", missing), ("not in the model", unexpected), ("of another shape", shapes))
    limit = LISTED if sum(len(keys) for _, keys in kinds) <= LISTED else SHOWN
    lines = [
        f"{where}: {count(len(keys), 'weight')} {kind}: {first_names(keys, limit)}" for kind, keys in kinds if keys
    ]
    return [*lines, *made_with(content, where)] if missing or unexpected else lines


def other_network(
    model: nn.Module, names: Mapping[str, str], layout: Layout, content: Mapping[str, Any], where: str
) -> str | None:
    """A line about a file that holds another network than ``model``; None if most of its weights have a counterpart.

    Of a few weights (at most `LISTED`) without one, `mismatches` tells more.

    Args:
        model: The model.
        names: Key in the file -> key in the model.
        layout: The layout that the file was read in.
        content: The content of the file.
        where: Name of the file.
    """
    ours = model.state_dict()
    without = [theirs for theirs, key in names.items() if key not in ours]
    if len(without) <= LISTED or 2 * len(without) <= len(names):
        return None
    begins = first_names(list(dict.fromkeys(f"{key.partition('.')[0]}." for key in names)))
    library, option = next(
        ((library, option) for start, library, option in LIBRARIES if any(key.startswith(start) for key in names)),
        (None if layout is OWN_LAYOUT else layout.name, None),
    )
    of_library = f" (of {library}; keys begin with {begins})" if library else f" (keys begin with {begins})"
    fix = f"; use {setting('model', option)}" if option else "; choose the network that it was saved from"
    return (
        f"{where}: holds another network{'' if 'format' in content else of_library}, not {describe(model)}: "
        f"{len(without)} of its {count(len(names), 'weight')} have no counterpart; the first five: "
        f"{first_names(without, SHOWN)}{'' if 'format' in content else fix}"
    )


def describe(model: nn.Module) -> str:
    """A model's class and, if it is known, its backbone: ``PSPNet with resnet50s``."""
    network = getattr(model, "network", model)  # an adapted one
    backbone = getattr(model, "backbone_name", "")
    return type(network).__name__ + (f" with {backbone}" if backbone else "")


def made_with(content: Mapping[str, Any], where: str) -> Iterator[str]:
    """A line that names the network of one of this project's checkpoints, and how to choose it."""
    config = content.get("config") or {}
    node, option = config.get("model") or {}, (config.get("choices") or {}).get("model")
    if option is None:
        return
    keys = [key for key in ("_target_", "backbone", "arch", "encoder", "variant") if isinstance(node.get(key), str)]
    if str(node.get("_target_")).startswith("pspexp."):  # as in the option
        keys.remove("_target_")
    chosen = " ".join([setting("model", option), *(setting(f"model.{key}", node[key]) for key in keys)])
    yield f"{where}: its network was made with {chosen}; choose the same one to load it"
