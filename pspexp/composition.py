"""From the words on the command line to a checked configuration, collecting everything that is wrong with them.

Hydra stops at the first bad override and lets several kinds pass (``+new=key``, misspelt ``hydra.*``, strings where
numbers belong), so overrides are examined one by one here, before Hydra's own composition sees them.
"""

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

from pspexp import schema
from pspexp.errors import UserError
from pspexp.overrides import (
    first_value,
    has_key,
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

# What mode=test takes from the checkpoint unless it is overridden explicitly. The loss, too: val/loss depends on it.
FROM_CHECKPOINT = (
    "model",
    "dataset",
    "loss",
    "inference",
    "precision",
    "crop_size",
    "channels_last",
    "loader.eval_batch_size",
)
# The saved configuration is resolved; these follow an explicit override of what they stand for.
FOLLOWS = {
    "inference.crop_size": "crop_size",
    "inference.stride": "model.output_stride",
    "inference.align_corners": "model.align_corners",
    "loss.ignore_index": "dataset.ignore_index",
}
PATH_KEYS = (
    "dataset.root",
    "checkpoint.path",
    "checkpoint.resume",
    "model.weights",
    "model.backbone_weights",
    "output_root",
)


def conf_dir() -> str:
    """Absolute path of the YAML folder: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
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
            or in ``hydra.sweeper.params``, the first stands in here; the others are checked job by job.
        folders: the user's own YAML folders, beside those that ``hydra.searchpath`` names.

    Raises:
        UserError: with every override that cannot be applied.
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
    if problems:
        # What composed is checked as well, so that everything is shown at once.
        try:
            finish(without_hydra(config), words)
        except UserError as error:
            problems += [] if sweep else error.problems
        raise UserError(*problems)
    return config


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
    for one in [one for one in overrides if one not in chosen]:
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


def finish(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Complete, resolve and check what Hydra composed.

    Args:
        config: the job's part, with ``choices``.
        overrides: the words it was composed from; ``mode=test`` lets them win over the checkpoint.

    Raises:
        UserError: with every problem that was found.
    """
    OmegaConf.set_struct(config, False)
    expand_home(config)
    # Types are checked last, when everything is in place: until then values may be anything.
    if OmegaConf.select(config, "mode") == "test" and isinstance(OmegaConf.select(config, "checkpoint.path"), str):
        take_from_checkpoint(config, overrides)  # nothing else can be judged if this fails
    try:
        name_classes(config)
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    schema.check(OmegaConf.to_container(config))  # type: ignore[arg-type]
    if config.dataset.get("root") is not None:  # a checkpoint may be tested from another folder
        config.dataset.root = str(Path(config.dataset.root).absolute())
    OmegaConf.set_struct(config, True)
    return config


def expand_home(config: DictConfig) -> None:
    """Let ``~`` in paths mean the home folder, which a shell leaves alone after ``=``."""
    for key in PATH_KEYS:
        path = OmegaConf.select(config, key)
        if isinstance(path, str) and path.startswith("~"):
            OmegaConf.update(config, key, str(Path(path).expanduser()))


def saved_choices(overrides: Sequence[str]) -> list[str]:
    """For ``mode=test`` the options that the checkpoint was made with, as words, so that their keys can be overridden.

    Explicitly chosen groups are left out, and so is everything that is wrong with the checkpoint: `finish` tells.
    """
    words = {key.lstrip("+"): value.strip("'\"") for key, _, value in (word.partition("=") for word in overrides)}
    if words.get("mode") != "test" or "checkpoint.path" not in words:
        return []
    from pspexp import checkpoint  # as in `take_from_checkpoint`
    from pspexp.tracking import runs

    where = words.get("output_root", "outputs"), words.get("tracking.tracking_uri")
    try:
        file = runs.find_checkpoint(str(Path(words["checkpoint.path"]).expanduser()), "best.pt", *where)
        content = checkpoint.read(file, foreign=True)
    except UserError:
        return []
    chosen = content["config"]["choices"] if checkpoint.is_ours(content) else {}
    return [
        f"{group}={option}"
        for group, option in chosen.items()
        if group in FROM_CHECKPOINT and group not in words and (Path(conf_dir()) / group / f"{option}.yaml").is_file()
    ]


def take_from_checkpoint(config: DictConfig, overrides: Sequence[str]) -> None:
    """Replace what belongs to the checkpoint of ``mode=test``, keeping explicit overrides."""
    from pspexp import checkpoint  # torch takes seconds to import, and --help needs none of it
    from pspexp.tracking import runs

    uri = config.tracking.get("tracking_uri")
    config.checkpoint.path = str(runs.find_checkpoint(config.checkpoint.path, "best.pt", config.output_root, uri))
    content = checkpoint.read(Path(config.checkpoint.path), foreign=True)
    if not checkpoint.is_ours(content):
        return  # the command line says what they are
    saved = OmegaConf.create(content["config"])
    same = {f"{group}={option}" for group, option in saved.choices.items()}  # the checkpoint's own options
    explicit = {text.lstrip("+~").partition("=")[0] for text in overrides if text not in same}
    for key in FROM_CHECKPOINT:
        if key in explicit or not has_key(saved, key):
            continue
        below = {name: OmegaConf.select(config, name) for name in explicit if name.startswith(f"{key}.")}
        OmegaConf.update(config, key, OmegaConf.select(saved, key), merge=False)
        for name, value in below.items():
            OmegaConf.update(config, name, value, merge=False)
        if config.choices is not None and key in config.choices:
            config.choices[key] = saved.choices[key]
    for key in ("model.weights", "model.backbone_weights"):
        if has_key(config, key):  # what it once started from may be gone
            OmegaConf.update(config, key, None)
    for follower, leader in FOLLOWS.items():
        if has_key(config, follower) and has_key(config, leader) and follower not in explicit:
            OmegaConf.update(config, follower, OmegaConf.select(config, leader))


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
