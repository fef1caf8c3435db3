"""From overrides to a checked configuration, collecting every problem with them.

Hydra stops at the first invalid override and accepts several kinds (``+new=key``, misspelt ``hydra.*``, text where a
number belongs), so each override is checked here before Hydra composes them.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pspexp.config import from_checkpoint
from pspexp.config.interpolations import interpolation_problems
from pspexp.config.options import conf_dir
from pspexp.config.overrides import (
    ADDED_GROUPS,
    OPTIONAL_GROUPS,
    first_value,
    has_key,
    is_group,
    key_problem,
    missing_engine,
    option_problems,
    parse,
    probable_option,
    readable_overrides,
    several_values,
    suggested_keys,
    sweep_problems,
    sweeper_overrides,
)
from pspexp.config.resolve import resolve
from pspexp.errors import UserError
from pspexp.utils.text import one_line

# Keys on whose values any other key may depend.
DECIDE_OTHERS = {"checkpoint.path", "experiment", "mode", "rerun", "sweep"}


def compose(overrides: Sequence[str] = (), *, config_dir: str | None = None) -> DictConfig:
    """Compose and check a configuration, as ``python -m pspexp <overrides>`` does.

    The data set's folder need not exist, since a part of the configuration, such as the model, may be built without.

    Args:
        overrides: Overrides such as ``optimizer=sgd`` and ``optimizer.lr=0.01``. With ``rerun=<run folder>``, the
            configuration is that of an earlier run; with ``mode=test checkpoint.path=<run folder>``, that of the
            network trained in it.
        config_dir: A folder with options of your own, as with ``--config-dir``.

    Returns:
        The resolved configuration.

    Raises:
        UserError: Lists every problem that was found.
    """
    folders = [] if config_dir is None else [config_dir]
    overrides = [*overrides, *saved_choices(overrides, folders)]
    return resolve(without_hydra(compose_checked(overrides, folders=folders)), overrides, data=False)


def saved_choices(overrides: Sequence[str], folders: Sequence[str] = ()) -> list[str]:
    """`pspexp.config.from_checkpoint.choices` of options that exist here; arguments as in `compose_checked`."""
    return from_checkpoint.choices(overrides, [conf_dir(), *folders, *named_search_path(overrides)])


def without_hydra(config: DictConfig) -> DictConfig:
    """The job's part of a full configuration, with the chosen option of each group noted in ``choices``."""
    choices = OmegaConf.to_container(config.hydra.runtime.choices)
    job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return with_choices(job, choices)


def with_choices(config: DictConfig, choices: Any) -> DictConfig:
    """``config`` with the job's group choices in it."""
    OmegaConf.set_struct(config, False)
    config.choices = {group: option for group, option in choices.items() if not group.startswith("hydra/")}
    return config


def compose_checked(
    overrides: Sequence[str],
    *,
    sweep: bool = False,
    folders: Sequence[str] = (),
    name: str = "config",
    on_composed: Callable[[DictConfig, bool], None] = lambda config, is_valid: None,
) -> DictConfig:
    """Check each override; returns Hydra's composition of them, node ``hydra`` included.

    Args:
        overrides: The overrides of the command line.
        sweep: Whether to allow several values, as a configuration with ``hydra.mode=MULTIRUN`` does. The first of them,
            overridden or in ``hydra.sweeper.params``, is used here; what varies is checked job by job.
        folders: The user's own YAML folders, besides those in ``hydra.searchpath``.
        name: Name of the primary configuration.
        on_composed: Called with the composition, before anything that imports torch, and whether it is free of problems
            so far.

    Raises:
        UserError: Lists every override that cannot be applied, and what is wrong with every job of a sweep.
    """
    overrides = readable_overrides(overrides)
    with initialize_config_dir(conf_dir(), version_base="1.3", job_name="pspexp"):
        add_search_path([*folders, *named_search_path(overrides)])
        loader = GlobalHydra.instance().config_loader()
        parsed, problems = parse(overrides, loader)
        try:
            config, used = composed(parsed, problems, loader, sweep, name)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(*problems, missing_engine(error) or one_line(error)) from error
    if wrong_package := misplaced(config):
        raise UserError(*problems, wrong_package)
    # The job's own are found when its part is resolved.
    problems += [line for key, line in interpolation_problems(config).items() if key.startswith("hydra.")]
    on_composed(config, not problems)
    if sweep or config.hydra.mode == RunMode.MULTIRUN:
        try:
            resolve(without_hydra(config), used, files=False)  # the jobs may run on another machine
        except UserError as error:
            problems += common_to_all(error.problems, varied(config, parsed))
    elif problems:
        # Without problems so far, the caller does this; here it serves to list everything at once.
        resolve(without_hydra(config), used, problems=problems)
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return config


def unknown_flags(flags: Sequence[str], command: Sequence[str]) -> list[str]:
    """A line for each flag that does not exist, such as ``--lr`` in ``--lr 0.1``, with the setting probably meant."""
    with initialize_config_dir(conf_dir(), version_base="1.3", job_name="pspexp"):
        config = hydra_compose("config", return_hydra_config=True)
    lines = []
    for flag in flags:
        key, _, value = flag.lstrip("-").replace("-", "_").partition("=")
        after = [*command[command.index(flag) + 1 :], ""][0] if flag in command else ""
        value = value or (after if after and "=" not in after and not after.startswith("-") else "<value>")
        keys = [key] if has_key(config, key) else suggested_keys(key, config)[:1]
        hint = f"write {keys[0]}={value}" if keys else "see --help"
        lines.append(f"{flag}: no such option; settings are written key=value, without dashes; {hint}")
    return lines


def misplaced(config: DictConfig) -> str | None:
    """Explain an experiment or sweep whose keys are in a node of that name instead of at the root, or None."""
    choices = config.hydra.runtime.choices
    for group, has_keys in (("experiment", "experiment" in config), ("sweep", "hydra" in config.sweep)):
        if has_keys and choices.get(group):
            return (
                f"{group}={choices[group]}: its keys are read as {group}.<key>; begin the file "
                f"{group}/{choices[group]}.yaml with the line '# @package _global_'"
            )
    return None


def varied(config: DictConfig, overrides: Sequence[Override]) -> list[str]:
    """The keys and groups of which a sweep tries several values."""
    by_sweeper = [text.partition("=")[0].lstrip("+") for text in sweeper_overrides(config, overrides)]
    return [*by_sweeper, *(one.key_or_group for one in overrides if one.is_sweep_override())]


def common_to_all(problems: Sequence[str], varied: Sequence[str]) -> list[str]:
    """Those of the first job's problems that no other value of what varies would solve."""
    if DECIDE_OTHERS.intersection(varied):
        return []
    return [problem for problem in problems if not any(re.search(rf"\b{re.escape(key)}\b", problem) for key in varied)]


def composed(
    overrides: Sequence[Override], problems: list[str], loader: ConfigLoader, sweep: bool, name: str
) -> tuple[DictConfig, list[str]]:
    """The composition, and the valid overrides it was made from; ``problems`` gains a line for each of the others."""
    config, valid = compose_valid(overrides, [], problems, loader, name)
    if not sweep and config.hydra.mode != RunMode.MULTIRUN:
        problems += several_values(overrides)
        return config, valid
    params, wrong = parse(sweeper_overrides(config, overrides), loader)
    problems += [*wrong, *sweep_problems(config, overrides, params)]
    return compose_valid(params, valid, problems, loader, name) if params else (config, valid)


def compose_valid(
    overrides: Sequence[Override], before: Sequence[str], problems: list[str], loader: ConfigLoader, name: str
) -> tuple[DictConfig, list[str]]:
    """The composition of ``before`` and the valid ones of ``overrides``, with first values, and a list of both."""
    groups = [one for one in overrides if is_group(one, loader)]
    if not any(option_problems(one, loader) if one in groups else needs_check(one) for one in overrides):
        valid = [*before, *map(first_value, overrides)]
        with suppress(HydraException, OmegaConfBaseException):  # it stops at the first problem; below, all are found
            return by_hydra(name, valid), valid
    valid = [*before, *valid_overrides(overrides, groups, before, problems, loader, name)]
    return by_hydra(name, valid), valid


def by_hydra(name: str, overrides: Sequence[str]) -> DictConfig:
    """Hydra's composition.

    Raises:
        HydraException, OmegaConfBaseException: An override cannot be applied, or a YAML file cannot be read.
    """
    try:
        return hydra_compose(name, [*overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:  # of many classes, for a file that is not YAML or not what Hydra expects in one
        if "yaml" in type(error).__module__:
            raise ConfigCompositionException(f"YAML: {one_line(error)}") from error
        reason = one_line(error) or type(error).__name__
        raise ConfigCompositionException(
            f"Hydra cannot compose this ({reason}); check the YAML files that were chosen, and the overrides"
        ) from error


def needs_check(override: Override) -> bool:
    """Whether Hydra might accept an override of a key although it is wrong."""
    return override.is_add() or override.is_force_add() or isinstance(override.value(), Glob)


def valid_overrides(
    overrides: Sequence[Override],
    groups: Sequence[Override],
    before: Sequence[str],
    problems: list[str],
    loader: ConfigLoader,
    name: str,
) -> list[str]:
    """The overrides, with first values, that can be applied after ``before``; ``problems`` gains the others' lines.

    An option that does not exist is replaced by the one that was probably meant, so that consequences of that mistake
    are not reported as further problems.

    Args:
        overrides: All overrides.
        groups: The overrides that choose an option of a group.
        before: Overrides that are applied first.
        problems: List to which the lines about the others are added.
        loader: Hydra's loader, which knows the options.
        name: Name of the primary configuration.
    """
    valid, absent = [], []
    for one in groups:
        wrong = option_problems(one, loader)
        problems += wrong
        if text := probable_option(one, loader) if wrong else first_value(one):
            valid.append(text)
        else:
            absent.append(one.key_or_group)
    base = by_hydra(name, [*before, *valid])
    # The keys of a missing option cannot be checked; an experiment or sweep may bring any.
    unknown = tuple(f"{group.replace('/', '.')}." for group in absent)
    for one in [] if {*absent} & {*OPTIONAL_GROUPS, *ADDED_GROUPS} else overrides:
        if one in groups or one.key_or_group.startswith(unknown):
            continue
        problem = key_problem(one, base)
        problems += [problem] if problem else []
        valid += [] if problem else [first_value(one)]
    return valid


def named_search_path(overrides: Sequence[str]) -> list[str]:
    """The folders in ``hydra.searchpath=[…]``; options in them must be known before the other overrides are checked."""
    named = [text for text in overrides if text.startswith("hydra.searchpath=")]
    try:
        parsed = OverridesParser.create().parse_overrides(named)
    except HydraException:  # reported by `parse`
        return []
    values = [one.value() for one in parsed]
    return [str(folder) for value in values if isinstance(value, list) for folder in value]


def add_search_path(folders: Sequence[str]) -> None:
    """Let Hydra look for options in these folders too."""
    if not folders:
        return
    search_path = GlobalHydra.instance().config_loader().get_search_path()
    for folder in folders:
        path = folder if "://" in folder else f"file://{Path(folder).absolute()}"
        search_path.prepend("command-line", path, anchor="schema")
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2("pspexp", search_path)
