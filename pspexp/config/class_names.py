"""Class names: where they come from, how those of a data set and a checkpoint differ, and how they are typed."""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pspexp.config.overrides import has_key
from pspexp.config.targets import try_target
from pspexp.errors import UserError
from pspexp.utils.text import first_names

IGNORE = "ignore"  # what a class that is not scored is mapped to
SHOWN = 3  # differing positions in a message


@dataclass(frozen=True)
class NamedClasses:
    """Class names in the order of their ids.

    Attributes:
        names: The names.
        setting: The setting that they come from.
        values: The label values of the classes, if they come from the same place.
    """

    names: list[str]
    setting: str
    values: list[Any] | None = None


def classes_here(config: DictConfig, saved: Mapping[str, Any], explicit: Collection[str]) -> NamedClasses | None:
    """The classes of data that is not the checkpoint's; None if it is, or if it has no names.

    Args:
        config: The configuration.
        saved: The data set in the configuration of the checkpoint.
        explicit: The overridden keys.
    """
    dataset, given = config.dataset, config.dataset.class_names
    if given is not None and any(key.startswith("dataset.class_names") for key in explicit):
        return NamedClasses(list(given), "dataset.class_names")
    if given is not None and "dataset" in explicit:
        return NamedClasses(list(given), f"dataset={config.choices.dataset}")
    moved = "dataset.root" in explicit and not same_folder(dataset.get("root"), saved.get("root"))
    if moved or "dataset" in explicit:
        with suppress(UserError):  # the folder names no classes
            return classes_in_folder(dataset)
    return None


def same_folder(one: object, other: object) -> bool:
    """Whether two values of ``dataset.root`` are the same folder."""
    return isinstance(one, str) and isinstance(other, str) and Path(one).absolute() == Path(other).absolute()


def classes_in_folder(dataset: DictConfig) -> NamedClasses | None:
    """The classes that a data set's folder names; None if there is no folder, or its target reads no names.

    A data set that reads class names from its folder has a static method ``class_names_from(root)``, and one that reads
    their label values, too, ``label_values_from(root)``.

    Raises:
        UserError: The folder has no class names, or they cannot be read.
    """
    root = dataset.get("root")
    if not isinstance(root, str) or not Path(root).is_dir():
        return None
    target = try_target(dataset.get("_target_"))  # a wrong one is reported by the schema
    if (read := getattr(target, "class_names_from", None)) is None:
        return None
    values = getattr(target, "label_values_from", lambda _: None)
    return NamedClasses(list(read(root)), f"dataset.root={root}", values(root))


def saved_class_names(file: str) -> list[str] | None:
    """The class names in a checkpoint of this project; None for any other file."""
    import torch  # takes seconds

    from pspexp.models.checkpoint_file import FORMAT

    try:  # the weights themselves are not read
        content = torch.load(str(Path(file).expanduser()), map_location="cpu", weights_only=True, mmap=True)
        names = content["config"]["dataset"].get("class_names") if content["format"] == FORMAT else None
    except Exception:  # no checkpoint, or a foreign one: reported when it is loaded
        return None
    return None if names is None else list(names)


def describe_difference(here: NamedClasses, known: Sequence[str], config: DictConfig) -> str:
    """One line about class names that are not the checkpoint's, ``known``, and the overrides that solve it."""
    fixes = []
    if has_key(config, "dataset.class_map"):
        others = {name: alike(name, known) for name in here.names if name not in known}
        unclear = IGNORE in others.values()
        where = f", where ignore may be one of {first_names(known, limit=10)}" if unclear else ""
        fixes.append(f"add {map_override(others)} to map the classes by name{where}")
    if len(here.names) == len(known):
        fixes.append(f"add {names_override(known)} if the names mean the same")
    return (
        f"{here.setting}: the class names differ from those of checkpoint.path={config.checkpoint.path}: "
        f"{differences(here.names, known)}; {', or '.join(fixes) or 'choose the data set that it was trained on'}"
    )


def differences(here: Sequence[str], there: Sequence[str]) -> str:
    """The first positions at which two lists of class names differ."""
    pairs = [(index, *pair) for index, pair in enumerate(zip_longest(here, there)) if pair[0] != pair[1]]
    shown = [f"{index} is {one or 'no class'} here, {other or 'no class'} there" for index, one, other in pairs[:SHOWN]]
    return "; ".join(shown) + (f"; and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else "")


def alike(name: str, known: Sequence[str]) -> str:
    """The class whose name is spelt almost like ``name``, or ``ignore``."""
    spelt = {re.sub(r"[\W_]", "", one).casefold(): one for one in known}
    close = get_close_matches(re.sub(r"[\W_]", "", name).casefold(), spelt, n=1, cutoff=0.9)
    return spelt[close[0]] if close else IGNORE


def map_override(mapping: Mapping[str, str]) -> str:
    """``dataset.class_map=…`` as it is typed in a shell."""
    if all(is_plain(name) for pair in mapping.items() for name in pair):
        return shlex.quote(f"dataset.class_map={{{', '.join(': '.join(pair) for pair in mapping.items())}}}")
    return shlex.quote(f"dataset.class_map=[{', '.join(quoted(': '.join(pair)) for pair in mapping.items())}]")


def names_override(names: Sequence[str]) -> str:
    """``dataset.class_names=…`` as it is typed in a shell."""
    return shlex.quote(f"dataset.class_names=[{', '.join(name if is_plain(name) else quoted(name) for name in names)}]")


def is_plain(name: str) -> bool:
    """Whether Hydra reads a name without quotes as that name, also as a key."""
    word = re.fullmatch(r"[A-Za-z_][\w./-]*( [\w./-]+)*", name, re.ASCII)
    return bool(word) and name.lower() not in ("true", "false", "null", "nan", "inf")


def quoted(name: str) -> str:
    """A name in quotes for Hydra."""
    return '"{}"'.format(name.replace('"', '\\"'))
