"""The words of a command line, examined one by one: what cannot be read, what does not exist, what was meant."""

from collections.abc import Iterator, Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from pspexp.errors import did_you_mean

OPTIONAL_GROUPS = ("experiment",)


def parse(overrides: Sequence[str], loader: ConfigLoader, sweep: bool) -> tuple[list[Override], list[str]]:
    """The overrides that can be read, and a line for each that cannot."""
    parsed, problems = [], []
    parser = OverridesParser.create(config_loader=loader)
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            hint = "" if "=" in text else f"; write {text}=<value>"
            problems.append(f"{text}: cannot be read as key=value{hint} ({one_line(error)})")
            continue
        if override.is_sweep_override() and not sweep:
            problems.append(
                f"{text}: several values need a sweep; add -m, or quote a list: '{override.key_or_group}=[…]'"
            )
            continue
        parsed.append(override)
    return parsed, problems


def is_group(override: Override, loader: ConfigLoader) -> bool:
    """Whether the override chooses an option of a config group."""
    return bool(loader.get_group_options(override.key_or_group))


def option_problems(override: Override, loader: ConfigLoader) -> list[str]:
    """Why the group has no such option: one line a value."""
    group, options = override.key_or_group, loader.get_group_options(override.key_or_group)
    if override.is_delete():
        return []
    value = override.value()
    values = list(override.sweep_iterator()) if isinstance(value, Sweep) else [value]
    names = [name for one in values for name in (one if isinstance(one, list) else [one])]
    return [
        f"{group}={name}: no such option; {group} is one of {', '.join(options)}{did_you_mean(str(name), options)}"
        for name in names
        if str(name) not in options and not (name is None and group in OPTIONAL_GROUPS)
    ]


def key_problem(override: Override, config: DictConfig) -> str | None:
    """Why the override's key cannot be set, or None. ``+key`` may add what a target accepts, not a new root key."""
    key = override.key_or_group
    parent = key.rpartition(".")[0]
    if parent and OmegaConf.select(config, parent) is None:
        known = False
    elif override.is_add() or override.is_force_add():
        known = "." in key or key in config
    else:
        known = has_key(config, key)
    if known:
        return None
    return f"{key}: unknown key{did_you_mean(key, flat_keys(config))}"


def has_key(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if OmegaConf.is_list(node):
        return name.isdigit() and int(name) < len(node)
    return OmegaConf.is_dict(node) and name in node


def flat_keys(config: DictConfig) -> Iterator[str]:
    """Every dotted key."""
    for key, value in config.items_ex(resolve=False):
        yield str(key)
        if OmegaConf.is_dict(value) and not value._is_none() and not value._is_interpolation():
            yield from (f"{key!s}.{below}" for below in flat_keys(value))


def first_value(override: Override) -> str:
    """The override as a single-run word; of a sweep its first value."""
    if not override.is_sweep_override():
        return str(override.input_line)
    value: str = next(override.sweep_string_iterator())
    return f"{override.get_key_element()}={value}"  # the key with its + or ++


def one_line(error: Exception) -> str:
    """The message of a library's error, without its further lines."""
    return " ".join(part for part in (line.strip() for line in str(error).splitlines()) if part)[:500]


def read(words: Sequence[str]) -> list[Override]:
    """The overrides in ``words``, which Hydra has accepted."""
    parsed: list[Override] = OverridesParser.create().parse_overrides(list(words))
    return parsed


def as_typed(override: Override) -> str:
    """The value of an override as it was typed."""
    return str(override.input_line).partition("=")[2]
