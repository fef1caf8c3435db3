"""Checks of single overrides: invalid syntax, unknown keys and options, and suggestions for them."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from pspexp.errors import as_yaml, did_you_mean
from pspexp.utils.text import one_line, quoted
from pspexp.utils.trees import flatten

OPTIONAL_GROUPS = ("experiment",)
ADDED_GROUPS = ("sweep",)  # not in config.yaml's defaults, as Hydra would then refuse their +
OPEN_NODES = ("hooks", "metrics", "tracking.loggers")  # take nodes of any name
HOW_TO_QUOTE = """special characters need quotes for Hydra inside those for the shell: 'key="some value"'"""
# Other names by which users may look for an option.
SYNONYMS = {"gpu": "cuda", "nvidia": "cuda", "metal": "mps", "ascend": "npu", "ce": "cross_entropy", "amp": "auto"}
# Hydra's plugins for sweeps: the package and the extra that provide each.
ENGINES = {
    "hydra/sweeper/optuna": ("hydra-optuna-sweeper", "optuna"),
    "hydra/launcher/joblib": ("hydra-joblib-launcher", "joblib"),
    "hydra/launcher/submitit_local": ("hydra-submitit-launcher", "slurm"),
    "hydra/launcher/submitit_slurm": ("hydra-submitit-launcher", "slurm"),
    "hydra/launcher/ray": ("hydra-ray-launcher", "ray"),
}


def parse(overrides: Sequence[str], loader: ConfigLoader) -> tuple[list[Override], list[str]]:
    """The overrides that can be read, and a line for each that cannot."""
    parsed, problems = [], []
    parser = OverridesParser.create(config_loader=loader)
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            hint = f"; {HOW_TO_QUOTE}" if "=" in text else f"; write {text}=<value>"
            problems.append(f"{text}: cannot be read as key=value{hint} ({one_line(error)})")
            continue
        override.config_loader = loader  # for globs
        parsed.append(override)
    return parsed, problems


def readable_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra can read them.

    It needs quotes around values with placeholders, such as ``images/{id}.jpg``, and none around the keys of a
    dictionary, such as ``{'*': ignore}``.
    """
    parser = OverridesParser.create()

    def is_readable(text: str) -> bool:
        with suppress(HydraException):
            parser.parse_override(text)
            return True
        return False

    found = []
    for text in overrides:
        key, _, value = text.partition("=")
        forms = [text]
        if "{" in value:
            forms += [re.sub(r"""([{,]\s*)(['"])([^'"{}]*)\2(?=\s*:)""", r"\1\3", text)]
            forms += [f"{key}={quoted(value)}"] if re.search(r"\{\w+\}", value) else []
        found.append(text if len(forms) == 1 else next(filter(is_readable, forms), text))
    return found


def several_values(overrides: Sequence[Override]) -> list[str]:
    """A line for each override with several values, where there is no sweep."""
    return [
        f"{one.input_line}: several values need a sweep; add -m, or quote a list: '{one.key_or_group}=[…]'"
        for one in overrides
        if one.is_sweep_override()
    ]


def sweeper_overrides(config: DictConfig, explicit: Sequence[Override]) -> list[str]:
    """What ``hydra.sweeper.params`` varies, as overrides, without explicitly overridden keys, which take precedence."""
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    keys = [one.get_key_element() for one in explicit]
    return [f"{key}={value}" for key, value in params.items() if key not in keys]


def sweep_problems(config: DictConfig, explicit: Sequence[Override], params: Sequence[Override]) -> list[str]:
    """A line for each override, explicit or from ``hydra.sweeper.params``, that a sweep cannot use."""
    varied = {one.key_or_group: one.get_key_element() for one in params}
    # The sweeper would use both: the second would set the key to the same value in every job.
    twice = [
        f"{one.input_line}: this sweep varies the key; write {varied[one.key_or_group]}=<value>"
        for one in explicit
        if one.key_or_group in varied
    ]
    chosen = [one for one in explicit if one.key_or_group == "hydra/sweeper"]  # perhaps one that is not installed
    basic = not chosen and config.hydra.runtime.choices["hydra/sweeper"] == "basic"
    return twice + [
        f"{one.input_line}: an interval needs a search; add +sweep=optuna, or give values"
        for one in [*explicit, *params]
        if basic and one.is_interval_sweep()
    ]


@lru_cache(maxsize=64)
def group_options(loader: ConfigLoader, group: str) -> list[str]:
    """The options of a config group; none if there is no such group."""
    # The loader itself would copy the whole repository for every query.
    return list(loader.repository.get_group_options(group))  # type: ignore[attr-defined]


def is_group(override: Override, loader: ConfigLoader) -> bool:
    """Whether the override chooses an option of a config group."""
    return bool(group_options(loader, override.key_or_group))


def option_problems(override: Override, loader: ConfigLoader) -> list[str]:
    """Why the group has no such option: one line per value."""
    group, options = override.key_or_group, group_options(loader, override.key_or_group)
    if override.is_delete():
        return []
    values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    if not values:
        return [f"{override.input_line}: matches no option; {group} is one of {', '.join(options)}"]
    names = [name for one in values for name in (one if isinstance(one, list) else [one])]
    wrong = [
        not_installed(f"{group}/{name}")
        or f"{group}={as_yaml(name)}: no such option; {group} is one of {', '.join(options)}"
        f"{did_you_mean(SYNONYMS.get(str(name), str(name)), options)}"
        for name in names
        if str(name) not in options and not (name is None and group in OPTIONAL_GROUPS)
    ]
    if group in ADDED_GROUPS and not (override.is_add() or override.is_force_add()):
        wrong = wrong or [f"{override.input_line}: write +{override.input_line}"]
    return wrong


def probable_option(override: Override, loader: ConfigLoader) -> str | None:
    """The override with the existing option that was probably meant instead, or None."""
    if override.is_sweep_override() or override.key_or_group.startswith("hydra/"):
        return None
    name, options = str(override.value()), group_options(loader, override.key_or_group)
    close = get_close_matches(SYNONYMS.get(name, name), options, n=1)
    return f"{'+' * (override.key_or_group in ADDED_GROUPS)}{override.key_or_group}={close[0]}" if close else None


def not_installed(option: str) -> str | None:
    """What to install for an option that a plugin of Hydra provides, or None."""
    if option not in ENGINES:
        return None
    package, extra = ENGINES[option]
    group, _, name = option.rpartition("/")
    return f"{group}={name}: {package} is not installed; pip install 'pspexp[{extra}]'"


def missing_engine(error: Exception) -> str | None:
    """What to install if a YAML file chooses an option that a plugin of Hydra provides, or None."""
    return not_installed(str(getattr(error, "missing_cfg_file", None)))


def key_problem(override: Override, config: DictConfig) -> str | None:
    """Why the override's key cannot be set, or None. ``+key`` may add a target's argument, but no key at the root."""
    key = override.key_or_group
    if isinstance(override.value(), Glob):
        return f"{override.input_line}: a glob can only select options of a group; give values"
    if override.is_add() or override.is_force_add():
        known = key.partition(".")[0] in config and (key in config or "." in key)
        known = known and (not key.startswith("hydra.") or OmegaConf.select(config, key.rpartition(".")[0]) is not None)
    else:
        known = has_key(config, key)
    if known:
        return None
    if key.startswith("hydra.sweeper.params."):  # whose keys contain dots
        swept = key.removeprefix("hydra.sweeper.params.")
        return f"{key}: cannot be set like this; write {swept}=<values>, which replaces the values of the sweep"
    for node in [one for one in OPEN_NODES if key.startswith(f"{one}.")]:
        name = key.removeprefix(f"{node}.").partition(".")[0]
        if not get_close_matches(name, [str(one) for one in OmegaConf.select(config, node) or ()]):
            return f"{key}: unknown key; to add it, write +{override.input_line}"
    return f"{key}: unknown key{suggestion(key, config)}"


def suggestion(key: str, config: DictConfig) -> str:
    """``"; did you mean 'optimizer.lr'?"`` for a key that is not in ``config``, or an empty string."""
    found = suggested_keys(key, config)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def suggested_keys(key: str, config: DictConfig) -> list[str]:
    """The keys that were probably meant by one that is not in ``config``.

    Keys with the same last part take precedence over similar spellings, so that ``lr`` finds ``optimizer.lr``.
    """
    keys = [one for one in flat_keys(config) if key.startswith("hydra") or not one.startswith("hydra.")]
    names = {one: one.rpartition(".")[2] for one in keys}
    name = key.rpartition(".")[2]
    raw: Any = OmegaConf.to_container(config, resolve=False)
    follow = {one for one, value in flatten(raw).items() if isinstance(value, str) and "${" in value}
    same = [one for one in keys if names[one] == name and one not in follow and not name.startswith("_")]
    similar = get_close_matches(key, keys, n=1)
    if same or similar or "." in key:
        return same[:3] or similar
    close = get_close_matches(name, names.values(), n=1)
    return [one for one in keys if close == [names[one]] and one not in follow][:3]


def has_key(config: DictConfig, key: str) -> bool:
    """Whether a dotted key, or an index into a list, exists."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if OmegaConf.is_list(node):
        return name.isdigit() and int(name) < len(node)
    return OmegaConf.is_dict(node) and name in [*node]  # DictConfig itself does not contain what is ???


def flat_keys(config: DictConfig) -> Iterator[str]:
    """Every dotted key."""
    for key, value in config.items_ex(resolve=False):
        yield str(key)
        if OmegaConf.is_dict(value) and not value._is_none() and not value._is_interpolation():
            yield from (f"{key!s}.{below}" for below in flat_keys(value))


def first_value(override: Override) -> str:
    """The override for a single run; of several values, the first."""
    if not override.is_sweep_override():
        return str(override.input_line)
    value = override.value()
    first = value.start if isinstance(value, IntervalSweep) else next(override.sweep_string_iterator())
    return f"{override.get_key_element()}={first}"  # the key with its + or ++


def read(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides that Hydra has accepted."""
    parsed: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
    return parsed


def value_text(override: Override) -> str:
    """The value of an override as it was written."""
    return str(override.input_line).partition("=")[2]


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted key; the whole key if that is ambiguous, or one of Hydra's own names."""
    last = {key: key.rpartition(".")[2] for key in keys}
    counts = Counter(last.values())
    return {key: name if counts[name] == 1 and not name.startswith("_") else key for key, name in last.items()}
