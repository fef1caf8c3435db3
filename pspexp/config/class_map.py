"""The classes that a checkpoint knows against those of the data that is here, and ``dataset.class_map``."""

import logging
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pspexp.config import schema
from pspexp.config.class_names import (
    IGNORE,
    NamedClasses,
    classes_here,
    classes_in_folder,
    describe_difference,
    differences,
    names_override,
    saved_class_names,
)
from pspexp.config.overrides import has_key
from pspexp.errors import ArgumentError, UserError, did_you_mean
from pspexp.utils.text import first_names

Plain = dict[str, Any]

REST = "*"  # stands for all classes that are not mentioned
# What a map changes: the record of a test has the values after the change.
MAPPED_KEYS = (
    "dataset",
    "dataset.class_map",
    "dataset.class_names",
    "dataset.label_values",
    "dataset.ignore_values",
    "dataset.reduce_zero_label",
)

log = logging.getLogger(__name__)


def adopt_classes(config: DictConfig, saved: Mapping[str, Any], explicit: Collection[str]) -> None:
    """Give the data set the classes of the checkpoint, by ``dataset.class_map`` if it is set.

    Without a map the data must have the checkpoint's class names, in the same order. They are compared if the data is
    not the checkpoint's: if ``dataset``, ``dataset.root`` or ``dataset.class_names`` is given. A folder without class
    names is taken to have those of the checkpoint.

    An explicit ``dataset.class_names`` says what the values in the files mean. It replaces the names in the folder, and
    is compared like these: other words for the same classes could not be told from other classes. To give the
    checkpoint's own names is to say that those in the folder mean the same. Only where no labels are read may other
    names be given: they rename the classes of predictions.

    Args:
        config: The configuration, already with everything else that is taken from the checkpoint.
        saved: The data set in the configuration of the checkpoint.
        explicit: The overridden keys.

    Raises:
        UserError: The classes differ, or the map is wrong; lists all problems with it.
    """
    if not has_key(config, "dataset.class_names") or not saved.get("class_names"):
        return
    dataset, known = config.dataset, list(saved["class_names"])
    reads_labels = schema.needs_data(config)
    here = classes_here(config, saved, explicit) if reads_labels else None
    if here is not None and here.values is not None and "dataset.label_values" not in explicit:
        dataset.label_values = here.values
    if dataset.get("class_map") is not None:
        if not reads_labels:
            raise UserError(f"dataset.class_map: has no effect, since mode={config.mode} reads no labels; remove it")
        refuse_unclear_values(dataset, here, known, explicit)
        plain: Any = OmegaConf.to_container(dataset, resolve=True)
        changed = map_classes(plain, here.names if here else known, known)
        if "palette" in dataset:
            changed["palette"] = saved.get("palette")
        for key, value in changed.items():
            dataset[key] = value
    elif here is not None and here.names != known:
        raise UserError(describe_difference(here, known, config))
    elif dataset.class_names is None:
        dataset.class_names = known


def adopt_classes_again(config: DictConfig, saved: Mapping[str, Any], explicit: Collection[str]) -> None:
    """`adopt_classes` for the rerun of a test, whose record contains the values after the change.

    Args:
        config: The configuration of the rerun.
        saved: The data set in the record of the test.
        explicit: The overridden keys.

    Raises:
        UserError: As there; or the test mapped classes, and an override would change which.
    """
    if saved.get("class_map") is None:
        adopt_classes(config, saved, explicit)
        return
    fix = f"test the checkpoint instead: mode=test checkpoint.path={config.checkpoint.path}"
    changed = [key for key in sorted(explicit) if ".".join(key.split(".")[:2]) in MAPPED_KEYS]
    if changed:
        raise UserError(*(f"{key}: cannot change, since rerun={config.rerun} maps classes; {fix}" for key in changed))
    config.dataset.class_names, config.dataset.num_classes = saved["class_names"], len(saved["class_names"])
    here = classes_in_folder(config.dataset) if "dataset.root" in explicit else None
    if here is not None and here.names != list(saved["class_map"]):
        raise UserError(
            f"{here.setting}: names the classes {first_names(here.names)}, but rerun={config.rerun} maps the classes "
            f"{first_names(list(saved['class_map']))}; {fix}"
        )


def refuse_unclear_values(
    dataset: DictConfig, here: NamedClasses | None, known: Sequence[str], explicit: Collection[str]
) -> None:
    """Refuse label values of the checkpoint's classes for other classes.

    Raises:
        UserError: Says what to give.
    """
    given = {"dataset", "dataset.label_values"} & {*explicit}
    if here is None or here.values is not None or given or here.names == known or dataset.get("label_values") is None:
        return
    raise UserError(
        "dataset.label_values: belongs to the checkpoint's classes; give the values of "
        f"{first_names(here.names)}, or null if these are 0, 1, 2, …"
    )


def map_classes(dataset: Plain, names: Sequence[str], known: Sequence[str]) -> Plain:
    """The keys of a data set that change when its classes become those of a checkpoint.

    Args:
        dataset: The node, with ``class_map``: class of the data -> class of the checkpoint, ``ignore`` or None. Classes
            that are not mentioned are mapped to the class of the same name, or else as ``*`` says.
        names: The classes of the data.
        known: The classes of the checkpoint.

    Raises:
        UserError: Lists every name that one side does not have, every class that is mapped to nothing, and every wrong
            label value.
    """
    from pspexp.data.label_values import as_entries, parse_label_values  # imports NumPy, which takes time

    if "label_values" not in dataset:
        raise UserError("dataset.class_map: the map would change label_values, which this data set lacks; remove it")
    mapping = complete_map(read_map(dataset["class_map"]), names, known)
    first = int(bool(dataset.get("reduce_zero_label")))
    try:
        values, ignored = parse_label_values(
            dataset["label_values"], dataset.get("ignore_values", [255]), len(names), first=first
        )
    except ArgumentError as error:
        raise UserError(*(f"dataset.{problem}" for problem in error.problems)) from error

    def values_of(target: str | None) -> list[Any]:
        return [value for name, own in zip(names, values, strict=True) if mapping[name] == target for value in own]

    changed = {
        "class_map": mapping,
        "class_names": list(known),
        "num_classes": len(known),
        "label_values": [as_entries(values_of(target)) for target in known],
        "ignore_values": as_entries([*ignored, *values_of(None)]),
        "reduce_zero_label": False,
    }
    return {key: value for key, value in changed.items() if key in dataset}


def read_map(given: Any) -> dict[str, str | None]:
    """``dataset.class_map`` as configured: a mapping, or ``name: name`` texts for names that Hydra takes for no key.

    Raises:
        UserError: It is something else.
    """
    if isinstance(given, Mapping):
        return {str(name): None if target is None else str(target) for name, target in given.items()}
    texts: list[Any] = given if isinstance(given, list) else [None]
    if not all(isinstance(text, str) and ":" in text for text in texts):
        raise UserError(f"dataset.class_map={given}: must be {{name: name, …}}, or ['name: name', …]")
    pairs = [text.rpartition(":") for text in texts]
    return {name.strip(): target.strip() for name, _, target in pairs}


def complete_map(given: Mapping[str, str | None], names: Sequence[str], known: Sequence[str]) -> dict[str, str | None]:
    """The class that each of ``names`` is mapped to, in their order; None: not scored.

    Raises:
        UserError: Lists every problem; see `map_classes`.
    """
    problems = [
        f"dataset.class_map: the data has no class {name}; it has {', '.join(names)}{did_you_mean(name, names)}"
        for name in given
        if name not in names and name != REST
    ]
    problems += [
        f"dataset.class_map: the checkpoint has no class {target}; "
        f"it has {', '.join(known)}{did_you_mean(target, known)}"
        for target in dict.fromkeys(given.values())
        if target is not None and target not in (IGNORE, *known)
    ]
    rest = {name: given[REST] for name in names if name not in known} if REST in given else {}
    found = {name: given.get(name, rest.get(name, name)) for name in names}
    if lost := [name for name in names if name not in (*known, *given, *rest)]:
        problems.append(
            f"dataset.class_map: the checkpoint has no class {', '.join(lost)}; map each of them to one of "
            f"{', '.join(known)} or to ignore, or all of them with '{REST}: {IGNORE}'"
        )
    found = {name: None if target == IGNORE and IGNORE not in known else target for name, target in found.items()}
    if not problems and not any(target is not None for target in found.values()):
        problems.append(
            "dataset.class_map: every class of the data is ignored, nothing would be scored; map one of them"
        )
    if problems:
        raise UserError(*problems)
    return found


def compare_start_weights(config: DictConfig, names: Sequence[str]) -> None:
    """Compare the class names of the data set with those of the checkpoint ``model.weights``, if there are as many.

    Args:
        config: The configuration.
        names: The class names of the data set.

    Raises:
        UserError: The checkpoint has the same classes in another order: its classifier would confuse them.
    """
    file = config.model.get("weights")
    known = saved_class_names(file) if isinstance(file, str) else None
    if known is None or len(known) != len(names) or known == list(names):
        return
    line = f"model.weights={file}: its class names differ: {differences(names, known)}"
    if sorted(known) != sorted(names):
        log.warning("%s; the classifier starts from the weights of its classes", line)
        return
    fix = " ".join(reordered(config, names, known))
    raise UserError(f"{line}; list the classes in the order of the checkpoint: {fix}")


def reordered(config: DictConfig, names: Sequence[str], known: Sequence[str]) -> Iterator[str]:
    """The overrides that list the classes of the data in the order ``known``."""
    yield names_override(known)
    plain: Any = OmegaConf.to_container(config.dataset, resolve=True)
    if "label_values" not in plain:
        return
    changed = map_classes({**plain, "class_map": {}}, names, known)
    changed["label_values"] = [own[0] if len(own) == 1 else own for own in changed["label_values"]]
    for key in ("label_values", "ignore_values", "reduce_zero_label"):
        if key in changed and changed[key] != plain[key]:
            yield shlex.quote(f"dataset.{key}={changed[key]}".replace("False", "false"))
