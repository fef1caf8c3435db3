"""What a configuration takes over: of a mode that uses a checkpoint, from there; of a rerun or resume, from the run."""

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from pspexp.config.class_map import adopt_classes
from pspexp.config.modes import uses_checkpoint
from pspexp.config.overrides import ADDED_GROUPS, OPTIONAL_GROUPS, has_key
from pspexp.config.resume import find_state
from pspexp.config.targets import without_start_weights
from pspexp.config.trust import refuse_untrusted
from pspexp.errors import UserError
from pspexp.utils.text import one_line

Plain = dict[str, Any]

log = logging.getLogger(__name__)

# What is taken from the checkpoint unless it is overridden explicitly. The loss, too: test/loss depends on it.
FROM_CHECKPOINT = (
    "model",
    "dataset",
    "dataset.mean",  # of the images that the network was trained on, whichever data set is chosen
    "dataset.std",
    "loss",
    "inference",
    "precision",
    "crop_size",
    "channels_last",
    "loader.eval_batch_size",
    "loader.validate_on_train",
    "loader.max_train_images",  # counts with the key above
    "metrics",  # by mode=test: it reproduces the validation
)
# Parts of these that remain as they are now: whether they make sense depends on the machine.
OF_THIS_MACHINE = ("inference.compile",)
# The saved configuration is resolved; these keys follow an explicit override of the key that they may interpolate.
FOLLOWS = {
    "inference.crop_size": "crop_size",
    "inference.window": "crop_size",
    "loss.ignore_index": "dataset.ignore_index",
    "metrics.boundary_iou.ignore_index": "dataset.ignore_index",
    "dataset.test_split": "dataset.val_split",
}


def choices(overrides: Sequence[str], folders: Sequence[str]) -> list[str]:
    """The options that the run to repeat or resume, or the checkpoint to use, was made with, as overrides.

    With these in the composition, their keys can be overridden. Explicitly chosen groups are skipped. Problems with
    what was saved are reported when the configuration is taken from it.

    Args:
        overrides: Overrides of the command line.
        folders: Folders that are searched for the options; options that do not exist are skipped.
    """
    given = text_values(overrides)
    where = given.get("output_root") or "outputs", given.get("tracking.tracking_uri")
    places = [Path(folder.removeprefix("file://")) for folder in folders]
    try:
        if given.get("rerun"):
            chosen = read_config(home(str(given["rerun"])), *where)["choices"]
            groups: Collection[str] = default_groups(places)
        elif resumes_run(given.get("mode", "train"), given.get("checkpoint.resume")):
            chosen = read_resumed(home(str(given["checkpoint.resume"])), *where)["choices"]
            groups = default_groups(places)
        elif uses_checkpoint(given.get("mode")) and given.get("checkpoint.path"):
            chosen, groups = checkpoint_choices(home(str(given["checkpoint.path"])), *where), FROM_CHECKPOINT
        else:
            return []
    except UserError:
        return []

    def exists(group: str, option: str | None) -> bool:
        return any((place / group / f"{option}.yaml").is_file() for place in places)

    wanted = {group: option for group, option in chosen.items() if group in groups and group not in given}
    return [f"{group}={option}" for group, option in wanted.items() if exists(group, option)]


def text_values(overrides: Sequence[str]) -> dict[str, str | None]:
    """The value of each overridden key or group, as Hydra reads it; None if it is not a single string."""
    parser, found = OverridesParser.create(), {}
    for text in overrides:
        with suppress(HydraException):  # reported by `pspexp.config.overrides.parse`
            one = parser.parse_override(text)
            value = None if one.is_delete() else one.value()
            found[one.key_or_group] = value if isinstance(value, str) else None
    return found


def default_groups(places: Sequence[Path]) -> set[str]:
    """The groups in the defaults list, without `OPTIONAL_GROUPS` and `ADDED_GROUPS`."""
    files = [file for place in places if (file := place / "config.yaml").is_file()]
    defaults = [entry for file in files for entry in OmegaConf.select(OmegaConf.load(file), "defaults") or []]
    groups = {str(group) for entry in defaults if OmegaConf.is_dict(entry) for group in entry}
    return groups - {*OPTIONAL_GROUPS, *ADDED_GROUPS}


def home(path: str) -> str:
    """``path`` with a leading ``~`` expanded."""
    return str(Path(path).expanduser()) if path.startswith("~") else path


def explicit_keys(overrides: Sequence[str], saved_choices: Mapping[str, Any]) -> set[str]:
    """The overridden keys, without those that come from `choices`."""
    same = {f"{group}={option}" for group, option in saved_choices.items()}
    return {text.lstrip("+~").partition("=")[0] for text in overrides if text not in same}


def checkpoint_choices(path: str, output_root: str, tracking_uri: str | None) -> Plain:
    """The options that a checkpoint was made with; none for another project's checkpoint."""
    from pspexp.engine import checkpoint  # imports torch, which takes seconds
    from pspexp.models.checkpoint_file import is_own_format
    from pspexp.tracking import runs

    file = runs.find_checkpoint(path, "best.pt", output_root, tracking_uri)
    content = checkpoint.read(file, foreign=True)
    found: Plain = checkpoint.saved_config(content, file)["choices"] if is_own_format(content) else {}
    return found


def take_from_checkpoint(config: DictConfig, overrides: Sequence[str]) -> None:
    """Replace what belongs to the checkpoint, keeping explicit overrides.

    Raises:
        UserError: There is no such checkpoint, or what is overridden does not go with it.
    """
    from pspexp.engine import checkpoint  # as above
    from pspexp.models.checkpoint_file import is_own_format
    from pspexp.models.exported import is_exported
    from pspexp.tracking import runs

    uri = config.tracking.get("tracking_uri")
    given = config.checkpoint.path
    config.checkpoint.path = str(runs.find_checkpoint(given, "best.pt", config.output_root, uri))
    content = checkpoint.read(Path(config.checkpoint.path), foreign=True)
    if not is_own_format(content):
        take_classes(config, content, explicit_keys(overrides, {}))  # the command line describes the model
        return
    explicit = explicit_keys(overrides, checkpoint.saved_config(content, config.checkpoint.path)["choices"])
    if is_exported(config.checkpoint.path):
        content["config"]["model"] = exported_node(config.checkpoint.path, content)
    used = {key: content["config"].get(key) for key in FROM_CHECKPOINT if is_used(key, config.mode)}
    own = runs.is_own(given, config.output_root, uri)
    refuse_untrusted(used, f"checkpoint.path={given}", own=own, explicit=explicit, today=config)
    saved = OmegaConf.create(content["config"])
    take_keys(config, saved, explicit)
    model = OmegaConf.select(config, "model")
    for name, value in without_start_weights(model).items() if OmegaConf.is_dict(model) else ():
        if name in model:  # the files that it started from may no longer exist
            model[name] = value
    follow_sources(config, saved, explicit)
    adopt_classes(config, saved.dataset, explicit)
    if is_exported(config.checkpoint.path):
        use_exported(config, content, explicit)


def take_keys(config: DictConfig, saved: DictConfig, explicit: Collection[str]) -> None:
    """Take `FROM_CHECKPOINT` from a saved configuration, except for explicit overrides."""
    kept = {*explicit, *(name for name in OF_THIS_MACHINE if has_key(saved, name) and has_key(config, name))}
    for key in FROM_CHECKPOINT:
        if key in explicit or not (has_key(saved, key) and has_key(config, key)):
            continue
        if not is_used(key, config.mode):
            continue
        below = {name: OmegaConf.select(config, name) for name in kept if name.startswith(f"{key}.")}
        OmegaConf.update(config, key, OmegaConf.select(saved, key), merge=False)
        for name, value in below.items():
            OmegaConf.update(config, name, value, merge=False)
        if config.choices is not None and key in config.choices:
            config.choices[key] = saved.choices[key]


def is_used(key: str, mode: str) -> bool:
    """Whether a mode needs a key: custom metrics may not be importable where a network is applied."""
    return key != "metrics" or mode == "test"


def follow_sources(config: DictConfig, saved: DictConfig, explicit: Collection[str]) -> None:
    """Let each key of `FOLLOWS` follow an override of its source, if both were equal in the saved configuration."""
    for key, source in FOLLOWS.items():
        overridden = key in explicit or key.partition(".")[0] in explicit  # an option has its own interpolations
        if overridden or not all(has_key(one, name) for one in (config, saved) for name in (key, source)):
            continue
        if OmegaConf.select(saved, key) == OmegaConf.select(saved, source):
            OmegaConf.update(config, key, OmegaConf.select(config, source))


def take_classes(config: DictConfig, content: Plain, explicit: Collection[str]) -> None:
    """Take the number of classes from another project's checkpoint; names come from the data set or a list.

    Raises:
        UserError: There are other numbers of names, or classes are to be mapped to names.
    """
    from pspexp.models.weights import count_classes

    if OmegaConf.select(config, "dataset.class_map") is not None:
        raise UserError(
            f"dataset.class_map: {config.checkpoint.path} names no classes to map to; give dataset.class_names and "
            "dataset.label_values in the order of its classes"
        )
    number, names = count_classes(content, config.checkpoint.path), OmegaConf.select(config, "dataset.class_names")
    if number is None or names is None or not has_key(config, "dataset.num_classes"):
        return
    if len(names) == number:
        config.dataset.num_classes = number
        return
    file, mode = config.checkpoint.path, config.mode
    if mode == "test" or {"dataset", "dataset.class_names"} & {*explicit}:
        raise UserError(
            f"dataset.class_names: {len(names)} names, but {file} has {number} classes; choose the data set that it "
            f"was trained on with dataset=<option>, or give dataset.class_names=[…] with {number} names"
        )
    log.warning("%s has %d classes without names; give dataset.class_names=[…] or dataset=<option>", file, number)
    config.dataset.class_names = [f"class {index}" for index in range(number)]
    config.dataset.num_classes = number


def exported_node(file: str, content: Plain) -> Plain:
    """The node of an exported file's network."""
    target = "pspexp.models.exported.ExportedNetwork"
    return {"_target_": target, "file": file, "num_classes": len(content["class_names"])}


def use_exported(config: DictConfig, content: Plain, explicit: Collection[str]) -> None:
    """Put the exported file of ``checkpoint.path`` in the place of the network it was made from.

    Raises:
        UserError: The file contains its own inference mode, and another one is wanted.
    """
    file = config.checkpoint.path
    if changed := sorted(key for key in explicit if key.partition(".")[0] == "model"):
        raise UserError(
            *(
                f"{key}: cannot be changed, since checkpoint.path={file} is an exported file; remove it, or give the "
                "checkpoint that it was exported from"
                for key in changed
            )
        )
    config.model = exported_node(file, content)
    if content["input"] == "image":
        if changed := sorted(key for key in explicit if key.partition(".")[0] == "inference"):
            raise UserError(
                *(
                    f"{key}: cannot be changed, since checkpoint.path={file} contains its own inference mode; "
                    "export with export.input=tensor to choose it later"
                    for key in changed
                )
            )
        config.inference = {"_target_": "pspexp.inference.Whole"}


def read_config(run: str, output_root: str, tracking_uri: str | None, key: str = "rerun") -> Plain:
    """The configuration that a run folder, or ``runs:/<MLflow run id>``, records.

    Args:
        run: The run.
        output_root: See `pspexp.tracking.mlflow_client.resolve_uri`.
        tracking_uri: See there.
        key: The setting that names the run.

    Raises:
        UserError: No configuration can be read there.
    """
    from pspexp.tracking import runs

    file = runs.find_file(run, "config.yaml", output_root, tracking_uri)
    try:
        found = OmegaConf.to_container(OmegaConf.load(file))
    except Exception as error:  # the system's, PyYAML's or OmegaConf's
        raise UserError(f"{key}={run}: {file} cannot be read ({one_line(error)})") from error
    if not isinstance(found, dict) or not isinstance(found.get("choices"), dict) or "mode" not in found:
        raise UserError(f"{key}={run}: {file} is not the record of a run; give a run folder or runs:/<MLflow run id>")
    return {str(key): value for key, value in found.items()}


def resumes_run(mode: object, resume: object) -> bool:
    """Whether a training, or its check, continues a certain run, whose configuration it then takes."""
    return mode in ("train", "check") and isinstance(resume, str) and resume not in ("", "auto")


def read_resumed(resume: str, output_root: str, tracking_uri: str | None) -> Plain:
    """The configuration of the run that ``checkpoint.resume`` names.

    The record in its folder is that of the last command, which may have changed what a resume can; an earlier state, or
    one elsewhere, has that of its own command.

    Raises:
        UserError: There is no training state, or it has no configuration.
    """
    from pspexp.engine import checkpoint  # imports torch, which takes seconds
    from pspexp.tracking import runs

    file = find_state(resume, output_root, tracking_uri)
    if file.name == "last.pt" and (folder := runs.run_folder(file)):
        return read_config(str(folder), output_root, tracking_uri, "checkpoint.resume")
    return checkpoint.saved_config(checkpoint.read(file), file)
