"""Completes, resolves and checks what Hydra composed."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pspexp.config import from_checkpoint, from_run, schema
from pspexp.config.class_names import classes_in_folder
from pspexp.config.custom import leave_out_untaken
from pspexp.config.interpolations import interpolation_problems
from pspexp.config.modes import uses_checkpoint
from pspexp.config.statistics import fill_statistics
from pspexp.config.targets import loads_weights_itself
from pspexp.errors import UserError
from pspexp.utils.text import one_line
from pspexp.utils.trees import flatten

PATH_KEYS = (
    "dataset.root",
    "checkpoint.path",
    "checkpoint.resume",
    "model.weights",
    "model.backbone_weights",
    "model.pretrained",
    "output_root",
    "predict.output",
    "export.output",
    "rerun",
)
NO_PATHS = ("auto", *schema.WEIGHTS_BY_NAME)  # values of these keys that are not paths


def resolve(
    config: DictConfig,
    overrides: Sequence[str],
    *,
    files: bool = True,
    data: bool = True,
    problems: Sequence[str] = (),
) -> DictConfig:
    """Complete, resolve and check what Hydra composed.

    Args:
        config: The job's part of the configuration, with ``choices``.
        overrides: The overrides it was composed from; they take precedence over a checkpoint or earlier run.
        files: Whether the files that it names must exist.
        data: Whether the data set's folder must exist, too.
        problems: Problems found earlier; raised together with the others.

    Raises:
        UserError: Lists every problem.
    """
    OmegaConf.set_struct(config, False)
    explicit = {text.lstrip("+~").partition("=")[0] for text in overrides}
    # Types are checked last, when the configuration is complete; until then values may be anything.
    try:
        expand_home(config)
        take_over(config, overrides)
        leave_out_untaken(config, explicit)
        unread = name_classes(config)
        find_start_weights(config)
        fill_statistics(config)
        sources = interpolation_sources(config)
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise UserError(*problems, *(interpolation_problems(config).values() or [one_line(error)])) from error
    except UserError as error:
        raise UserError(*problems, *error.problems) from error
    plain: Any = OmegaConf.to_container(config)
    if unread:
        problems = [*problems, *unread, *data_problems(plain["dataset"])]
    schema.check(
        plain, files=files, data=data, sources=sources, explicit=explicit, known=problems, names_unread=bool(unread)
    )
    make_absolute(config)
    OmegaConf.set_struct(config, True)
    return config


def take_over(config: DictConfig, overrides: Sequence[str]) -> None:
    """Take what belongs to an earlier run or a checkpoint from there.

    Raises:
        UserError: It cannot be read; nothing else can be checked then.
    """
    mode, checkpoint = (OmegaConf.select(config, key) for key in ("mode", "checkpoint.path"))
    if isinstance(OmegaConf.select(config, "rerun"), str):
        from_run.take_from_run(config, overrides)
    elif from_checkpoint.resumes_run(mode, OmegaConf.select(config, "checkpoint.resume")):
        from_run.take_from_resumed(config, overrides)
    elif uses_checkpoint(mode) and isinstance(checkpoint, str):
        from_checkpoint.take_from_checkpoint(config, overrides)


def interpolation_sources(config: DictConfig) -> dict[str, str]:
    """For each key that is an interpolation of another key, that key."""
    values: Any = flatten(OmegaConf.to_container(config, resolve=False))  # type: ignore[arg-type]
    found = {key: re.fullmatch(r"\$\{(\w[\w.]*)\}", value) for key, value in values.items() if isinstance(value, str)}
    return {key: match[1] for key, match in found.items() if match}


def find_start_weights(config: DictConfig) -> None:
    """Replace the runs that a training starts from by their best checkpoints.

    Raises:
        UserError: A run has none.
    """
    model = OmegaConf.select(config, "model")
    if OmegaConf.select(config, "checkpoint.resume") not in (None, "auto"):  # it starts from a saved state
        return
    if OmegaConf.is_dict(model) and loads_weights_itself(model):
        return
    keys = ["model.weights", "model.backbone_weights"]  # the first supersedes the second
    for key in keys[: 1 if OmegaConf.select(config, keys[0]) is not None else 2]:
        path = OmegaConf.select(config, key)
        if not isinstance(path, str) or path in NO_PATHS or not (path.startswith("runs:/") or Path(path).is_dir()):
            continue
        from pspexp.tracking import runs

        where = OmegaConf.select(config, "output_root"), OmegaConf.select(config, "tracking.tracking_uri")
        try:
            OmegaConf.update(config, key, str(runs.find_checkpoint(path, "best.pt", *where)))
        except UserError as error:
            raise UserError(*(f"{key}={problem}" for problem in error.problems)) from error


def expand_home(config: DictConfig) -> None:
    """Expand ``~`` in paths, which the shell does not do after ``=``."""
    for key in PATH_KEYS:
        path = OmegaConf.select(config, key)
        if isinstance(path, str) and path.startswith("~"):
            OmegaConf.update(config, key, str(Path(path).expanduser()))


def make_absolute(config: DictConfig) -> None:
    """Make paths absolute, since a run may be tested, resumed or repeated from another folder."""
    for key in set(PATH_KEYS) - {"output_root"}:  # belongs to the current folder
        path = OmegaConf.select(config, key)
        # On a hub, or of the package that the network is from.
        may_be_name = key == "model.pretrained" or (key == "model.weights" and loads_weights_itself(config.model))
        is_name = may_be_name and not Path(str(path)).exists()
        if (
            isinstance(path, str)
            and path not in NO_PATHS
            and not is_name
            and not path.startswith(("runs:/", "models:/"))
        ):
            OmegaConf.update(config, key, str(Path(path).absolute()))


def name_classes(config: DictConfig) -> tuple[str, ...]:
    """Fill in what is null of class names, their number and their label values: from the data set's folder.

    The label values in the folder belong to the class names there.

    Returns:
        Why there are no class names; empty if there are, or if the folder does not exist.
    """
    dataset = OmegaConf.select(config, "dataset")
    if not OmegaConf.is_dict(dataset):
        return ()
    names, found = dataset.get("class_names", ()), None
    if names is None:
        try:
            found = classes_in_folder(dataset)
        except UserError as error:
            return error.problems
    elif dataset.get("label_values", ()) is None:
        with suppress(UserError):  # the folder need not name classes
            found = classes_in_folder(dataset)
    if found is not None and names in (None, found.names):
        dataset.class_names = found.names
        if found.values is not None and dataset.get("label_values", ()) is None:
            dataset.label_values = found.values
    if dataset.get("num_classes", 0) is None and OmegaConf.is_list(dataset.get("class_names")):
        dataset.num_classes = len(dataset.class_names)
    return ()


def data_problems(node: dict[str, Any]) -> list[str]:
    """What else is wrong with the files of a data set without class names."""
    from pspexp.config.build import build  # imports torch, which takes seconds

    found: dict[str, None] = {}
    without = {key: value for key, value in node.items() if key not in ("label_values", "palette")}
    try:
        dataset = build({**without, "class_names": ["a", "b"], "num_classes": 2})
    except Exception:  # reported by the schema, or once there are class names
        return []
    for role in ("train", "val"):
        try:
            dataset.open(role)
        except UserError as error:
            found |= dict.fromkeys(error.problems)
    return [*found]
