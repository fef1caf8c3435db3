"""From the words on the command line to a checked configuration, collecting everything that is wrong with them.

Hydra stops at the first bad override and lets several kinds pass (``+new=key``, misspelt ``hydra.*``, strings where
numbers belong), so overrides are examined one by one here, before Hydra's own composition sees them.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pspexp.config import from_checkpoint as saved
from pspexp.config import from_run as rerun
from pspexp.config import schema
from pspexp.config.overrides import (
    first_value,
    is_group,
    key_problem,
    missing_engine,
    one_line,
    option_problems,
    parse,
    several_values,
    sweep_problems,
    sweeper_words,
)
from pspexp.errors import UserError

PATH_KEYS = (
    "dataset.root",
    "checkpoint.path",
    "checkpoint.resume",
    "model.weights",
    "model.backbone_weights",
    "output_root",
    "rerun",
)

# Their values decide those of any others.
DECIDE_OTHERS = {"checkpoint.path", "experiment", "mode", "rerun", "sweep"}
PATH_WORDS = ("auto", "timm")  # in the place of a path


def conf_dir() -> str:
    """Absolute path of the YAML folder: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return str(inside if (inside / "config.yaml").is_file() else package.parent / "conf")


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose and check a configuration, as ``python -m pspexp <overrides>`` does.

    Args:
        overrides: command-line words such as ``optimizer=sgd`` and ``optimizer.lr=0.01``.

    Returns:
        The resolved configuration.

    Raises:
        UserError: with every problem that was found.
    """
    overrides = [*overrides, *saved_choices(overrides)]
    return finish(without_hydra(compose_checked(overrides)), overrides)


def saved_choices(overrides: Sequence[str], folders: Sequence[str] = ()) -> list[str]:
    """`pspexp.config.from_checkpoint.choices`, as far as there are such options here; arguments as in `compose_checked`."""
    return saved.choices(overrides, [conf_dir(), *folders, *named_search_path(overrides)])


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


def compose_checked(overrides: Sequence[str], *, sweep: bool = False, folders: Sequence[str] = ()) -> DictConfig:
    """Hydra's composition, ``hydra`` node included, after every override has been examined.

    Args:
        overrides: the command line's words.
        sweep: several values are allowed, as they are where an overlay chooses ``hydra.mode=MULTIRUN``. Of those, typed
            or in ``hydra.sweeper.params``, the first stands in here; what varies is checked job by job.
        folders: the user's own YAML folders, beside those that ``hydra.searchpath`` names.

    Raises:
        UserError: with every override that cannot be applied, and what is wrong with every job of a sweep.
    """
    with initialize_config_dir(conf_dir(), version_base="1.3", job_name="pspexp"):
        add_search_path([*folders, *named_search_path(overrides)])
        loader = GlobalHydra.instance().config_loader()
        parsed, problems = parse(overrides, loader)
        try:
            config, words = composed(parsed, problems, loader, sweep)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(*problems, missing_engine(error) or one_line(error)) from error
        except Exception as error:
            if "yaml" not in type(error).__module__:  # PyYAML's own, from a file that is not YAML
                raise
            raise UserError(*problems, f"YAML: {one_line(error)}") from error
    sweep = sweep or config.hydra.mode == RunMode.MULTIRUN
    if problems or sweep:
        # What composed is checked as well, so that everything is shown at once; a single run's is checked in any case.
        try:
            finish(without_hydra(config), words, files=not sweep)  # a sweep's jobs may run where other files are
        except UserError as error:
            problems += common_to_all(error.problems, varied(config, parsed)) if sweep else error.problems
    if problems:
        raise UserError(*problems)
    return config


def varied(config: DictConfig, typed: Sequence[Override]) -> list[str]:
    """The keys and groups of which a sweep tries several values."""
    by_sweeper = [word.partition("=")[0].lstrip("+") for word in sweeper_words(config, typed)]
    return [*by_sweeper, *(one.key_or_group for one in typed if one.is_sweep_override())]


def common_to_all(problems: Sequence[str], varied: Sequence[str]) -> list[str]:
    """Those of a first job's problems that no other value of what varies would mend."""
    if DECIDE_OTHERS.intersection(varied):
        return []
    return [problem for problem in problems if not any(re.search(rf"\b{re.escape(key)}\b", problem) for key in varied)]


def composed(
    typed: Sequence[Override], problems: list[str], loader: ConfigLoader, sweep: bool
) -> tuple[DictConfig, list[str]]:
    """What overrides compose to, and the words of those without a problem; ``problems`` gains the others' lines."""
    good = good_words(typed, [], problems, loader)
    config = hydra_compose("config", good, return_hydra_config=True)
    if not sweep and config.hydra.mode != RunMode.MULTIRUN:
        problems += several_values(typed)
        return config, good
    params, wrong = parse(sweeper_words(config, typed), loader)
    problems += [*wrong, *sweep_problems(config, typed, params)]
    good += good_words(params, good, problems, loader)
    return hydra_compose("config", good, return_hydra_config=True), good


def good_words(
    overrides: Sequence[Override], before: Sequence[str], problems: list[str], loader: ConfigLoader
) -> list[str]:
    """The words, with first values, of those overrides that apply after ``before``; ``problems`` gains the others'."""
    chosen = [one for one in overrides if is_group(one, loader)]
    wrong = [option_problems(one, loader) for one in chosen]
    problems += [problem for found in wrong for problem in found]
    good = [first_value(one) for one, found in zip(chosen, wrong, strict=True) if not found]
    base = hydra_compose("config", [*before, *good], return_hydra_config=True)
    # Of an engine that is not installed the keys are unknown, but not wrong.
    absent = [one.key_or_group for one, found in zip(chosen, wrong, strict=True) if found]
    unknown = tuple(f"{group.replace('/', '.')}." for group in absent if group.startswith("hydra/"))
    for one in [one for one in overrides if one not in chosen and not one.key_or_group.startswith(unknown)]:
        problem = key_problem(one, base)
        problems += [problem] if problem else []
        good += [] if problem else [first_value(one)]
    return good


def named_search_path(overrides: Sequence[str]) -> list[str]:
    """The folders in ``hydra.searchpath=[…]``; options in them must be known before the other words are examined."""
    words = [word for word in overrides if word.startswith("hydra.searchpath=")]
    try:
        parsed = OverridesParser.create().parse_overrides(words)
    except HydraException:  # said by `parse`
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


def finish(config: DictConfig, overrides: Sequence[str], *, files: bool = True) -> DictConfig:
    """Complete, resolve and check what Hydra composed.

    Args:
        config: the job's part, with ``choices``.
        overrides: the words it was composed from; they win over what a checkpoint or an earlier run says.
        files: those that it names have to exist.

    Raises:
        UserError: with every problem that was found.
    """
    OmegaConf.set_struct(config, False)
    expand_home(config)
    # Types are checked last, when everything is in place: until then values may be anything.
    if isinstance(OmegaConf.select(config, "rerun"), str):
        rerun.take_from_run(config, overrides)  # nothing else can be judged if this fails
    elif OmegaConf.select(config, "mode") == "test" and isinstance(OmegaConf.select(config, "checkpoint.path"), str):
        saved.take_from_checkpoint(config, overrides)  # as above
    try:
        name_classes(config)
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    schema.check(OmegaConf.to_container(config), files=files)  # type: ignore[arg-type]
    make_absolute(config)
    OmegaConf.set_struct(config, True)
    return config


def expand_home(config: DictConfig) -> None:
    """Let ``~`` in paths mean the home folder, which a shell leaves alone after ``=``."""
    for key in PATH_KEYS:
        path = OmegaConf.select(config, key)
        if isinstance(path, str) and path.startswith("~"):
            OmegaConf.update(config, key, str(Path(path).expanduser()))


def make_absolute(config: DictConfig) -> None:
    """Let paths mean the same from another folder, where a run may be tested, resumed or done again."""
    for key in set(PATH_KEYS) - {"output_root"}:  # this is where the work is now
        path = OmegaConf.select(config, key)
        if isinstance(path, str) and path not in PATH_WORDS and not path.startswith("runs:/"):
            OmegaConf.update(config, key, str(Path(path).absolute()))


def name_classes(config: DictConfig) -> None:
    """Fill in the class names and their number where a dataset leaves them to its folder or to each other."""
    from pspexp.data.voc import read_class_names  # as above

    dataset = OmegaConf.select(config, "dataset")
    if not OmegaConf.is_dict(dataset):
        return
    root = dataset.get("root")
    if dataset.get("class_names", ()) is None and isinstance(root, str) and Path(root).is_dir():
        dataset.class_names = read_class_names(root)
    if dataset.get("num_classes", 0) is None and OmegaConf.is_list(dataset.get("class_names")):
        dataset.num_classes = len(dataset.class_names)
