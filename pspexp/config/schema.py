"""The schema of a configuration: types of plain nodes, targets bound to their signatures, files that must exist."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from pspexp.config.modes import COMMAND_NODES, MODES, uses_checkpoint
from pspexp.config.rules import RULES
from pspexp.config.signatures import (
    NAMED_NODES,
    OWN_ARGS,
    RUNTIME_ARGS,
    SPECIAL_KEYS,
    Plain,
    known_keys,
    nested_problems,
    removal,
    signature_model,
    target_problems,
    type_problems,
)
from pspexp.config.targets import loads_weights_itself, try_target
from pspexp.engine.finetune_config import FinetuneConfig
from pspexp.engine.trainer_config import TrainerConfig
from pspexp.errors import UserError

if TYPE_CHECKING:
    ModeName = str
else:
    ModeName = Literal[tuple(MODES)]

Count = Annotated[StrictInt, Field(ge=0)]
Positive = Annotated[StrictInt, Field(gt=0)]
Name = StrictStr | StrictInt | StrictFloat  # Hydra reads 3, the folder of a job, as a number
WEIGHTS_BY_NAME = ("timm", "pip")  # values of model.backbone_weights that are not paths
PLAIN_NODE = ConfigDict(extra="forbid")  # the fields are strict one by one: a strict dataclass takes no dict
PLAIN_NODES = ("loader", "trainer", "finetune", "checkpoint", *COMMAND_NODES, "choices")


@dataclass
class LoaderConfig:
    """How images reach the device; batch sizes are per process."""

    __pydantic_config__ = PLAIN_NODE
    batch_size: Positive
    eval_batch_size: Positive
    num_workers: Count
    cache_mib: Count
    max_train_images: Positive | None
    max_eval_images: Positive | None
    validate_on_train: StrictBool
    sampling: Literal["uniform", "class_balanced"]
    repeat_threshold: Annotated[StrictFloat | StrictInt, Field(gt=0, le=1)]


@dataclass
class CheckpointConfig:
    """Where weights and training states come from, and how often they are saved."""

    __pydantic_config__ = PLAIN_NODE
    resume: StrictStr | None
    allow_world_size_change: StrictBool
    path: StrictStr | None
    every_steps: Positive | None
    keep: Count
    keep_last: StrictBool


@dataclass
class SweepConfig:
    """How the jobs of a sweep share a machine, and what happens when one fails."""

    __pydantic_config__ = PLAIN_NODE
    fail_fast: StrictBool
    retry_failed: StrictBool
    jobs_per_device: Positive
    cores_per_job: Positive | None


@dataclass
class CompareConfig:
    """Which runs ``mode=compare`` shows side by side."""

    __pydantic_config__ = PLAIN_NODE
    runs: Name | list[Name]
    experiment: Name | None
    sweep: Name | None
    filter: StrictStr | None
    baseline: Name | None


@dataclass
class SyncConfig:
    """The runs whose records ``mode=sync`` sends."""

    __pydantic_config__ = PLAIN_NODE
    runs: Name | list[Name]


@dataclass
class CleanConfig:
    """The runs that ``mode=clean`` removes."""

    __pydantic_config__ = PLAIN_NODE
    runs: Name | list[Name]
    status: Annotated[list[Literal["FINISHED", "FAILED", "KILLED"]], Field(min_length=1)]
    older_than_days: Annotated[StrictFloat | StrictInt, Field(ge=0)]
    ask: StrictBool


@dataclass
class PredictConfig:
    """What ``mode=predict`` reads and writes."""

    __pydantic_config__ = PLAIN_NODE
    input: StrictStr | None
    output: StrictStr | None
    save: Annotated[list[Literal["ids", "labels", "overlay", "colour", "probabilities"]], Field(min_length=1)]
    gallery: StrictBool
    overwrite: StrictBool


@dataclass
class ExportConfig:
    """What ``mode=export`` writes, and what it is checked on."""

    __pydantic_config__ = PLAIN_NODE
    format: Annotated[list[Literal["pt2", "onnx", "int8"]], Field(min_length=1)]
    input: Literal["image", "tensor"]
    output: StrictStr | None
    images: StrictStr | None
    num_images: Positive | None
    num_calibration_images: Positive
    register: StrictStr | None
    alias: StrictStr | None


@dataclass
class CheckConfig:
    """What ``mode=check`` shows."""

    __pydantic_config__ = PLAIN_NODE
    config: StrictBool
    examples: Count


@dataclass
class InitConfig:
    """Where ``mode=init`` writes."""

    __pydantic_config__ = PLAIN_NODE
    output: StrictStr | None


@dataclass
class Config:
    """The root node; the nodes of the groups are checked against the signatures of their targets."""

    __pydantic_config__ = PLAIN_NODE
    mode: ModeName
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)]
    crop_size: Positive
    channels_last: StrictBool | None
    sync_batch_norm: StrictBool
    run_name: StrictStr | None
    rerun: StrictStr | None
    output_root: StrictStr
    loader: LoaderConfig
    trainer: TrainerConfig
    finetune: FinetuneConfig
    checkpoint: CheckpointConfig
    sweep: SweepConfig
    compare: CompareConfig
    sync: SyncConfig
    clean: CleanConfig
    predict: PredictConfig
    export: ExportConfig
    check: CheckConfig
    init: InitConfig
    choices: dict[str, str | None] | None
    model: Plain
    dataset: Plain
    augment: Plain
    loss: Plain
    optimizer: Plain
    scheduler: Plain
    device: Plain
    precision: Plain
    launcher: Plain
    inference: Plain
    metrics: dict[str, Plain | None]
    hooks: dict[str, Plain | None]
    tracking: Plain


Problems = dict[str, str]  # key in the configuration: the line about it


def check(
    config: Plain,
    *,
    files: bool = True,
    data: bool = True,
    sources: Mapping[str, str] | None = None,
    explicit: Iterable[str] = (),
    known: Iterable[str] = (),
    names_unread: bool = False,
) -> None:
    """Check a composed and resolved configuration.

    Args:
        config: The configuration to check.
        files: Whether the files that it names have to exist.
        data: Whether the data set's folder has to exist, too.
        sources: For each key whose value is an interpolation, the key that the value comes from.
        explicit: Overridden keys. Missing files are reported beside other problems for these only.
        known: Problems found before.
        names_unread: Whether one of these is that there are no class names, from which others follow.

    Raises:
        UserError: Lists every problem, without those that only follow from another.
    """
    found = dict(type_problems(Config, config, ""))
    for group, node in config.items():
        if group in NAMED_NODES and isinstance(node, dict):
            found |= dict(nested_problems(group, node))
        elif isinstance(node, dict) and group not in PLAIN_NODES:
            found |= dict(target_problems(group, node))
    found = {key: line + removal(line, key, config, {*explicit}) for key, line in found.items()}
    missing = dict(missing_files(config)) if files else {}
    if not data and config["dataset"].get("class_names") is not None:  # else they would have been read from its folder
        missing.pop("dataset.root", None)
    found = without_followers(found, missing | dict.fromkeys(["dataset.class_names"] * names_unread, ""), sources or {})
    for rule in RULES:
        with suppress(*[Exception] if found else []):  # the rule may fail because of a problem found above
            for line in rule(config):
                key = re.split("[=:]", line)[0]
                found.setdefault(key, line)
    lines = [*known, *found.values()]
    if lines:
        missing = {key: line for key, line in missing.items() if key in explicit}
    if lines := list(dict.fromkeys([*lines, *missing.values()])):
        raise UserError(*lines)


def without_followers(found: Problems, missing: Problems, sources: Mapping[str, str]) -> Problems:
    """``found`` without problems that follow from another: those of values interpolated from a key with a problem.

    If that key has no problem of its own, one of the problems is kept and names the key.
    """
    # Of a key that is unknown, the value does not matter.
    kept = {key: line for key, line in found.items() if key not in sources or line.startswith(f"{key}: unknown key")}
    for key, line in found.items():
        source = key
        while source in sources:
            source = sources[source]
        group = source.partition(".")[0]
        unread = line.partition(":")[0].endswith("=null") and any(one.startswith(f"{group}.") for one in missing)
        if source == key or source in kept or key in kept or unread:
            continue
        value, _, rest = line.partition("=")[2].partition(":")
        kept[source] = f"{source}={value}: {key}{rest}"
    return kept


def is_known(config: Plain, key: str) -> bool:
    """Whether a dotted key is one that the schema, or the target of its node, takes; true if that is unknown."""
    *parents, name = key.split(".")
    node: Any = config
    for part in parents:
        node = node.get(part, {}) if isinstance(node, dict) else {}
    if "_target_" not in node:
        return len(parents) > 1 or bool({*parents} & {*NAMED_NODES}) or name in known_keys(Config, [*parents])
    if (target := try_target(node["_target_"])) is None:  # reported by `target_problems`
        return True
    if name in OWN_ARGS.get(parents[0], ()):
        return True
    model = signature_model(target, RUNTIME_ARGS.get(parents[0], set()))
    return name in SPECIAL_KEYS | set(model.model_fields) or model.model_config.get("extra") == "allow"


def missing_files(config: Plain) -> Iterator[tuple[str, str]]:
    """Each key that names a file or folder that does not exist, and a line about it."""
    if config.get("mode") in ("compare", "sync", "clean", "init"):  # they build nothing of it
        return
    nodes = (config.get(group) for group in ("checkpoint", "model", "dataset"))
    checkpoint, model, dataset = (node if isinstance(node, dict) else {} for node in nodes)
    resume, backbone = checkpoint.get("resume"), model.get("backbone_weights")
    paths = {
        "checkpoint.path": checkpoint.get("path") if uses_checkpoint(config.get("mode")) else None,
        "checkpoint.resume": None if resume == "auto" else resume,
        "dataset.root": dataset.get("root") if needs_data(config) else None,
    }
    if resume is None and not uses_checkpoint(config.get("mode")):  # else the saved weights are used
        unused = model.get("weights") is not None or backbone in WEIGHTS_BY_NAME
        weights = None if loads_weights_itself(model) else model.get("weights")
        paths |= {"model.weights": weights, "model.backbone_weights": None if unused else backbone}
    for key, path in paths.items():
        if path == "":
            yield key, f"{key}=: is empty; is an environment variable unset?"
            continue
        if (
            not isinstance(path, str)
            or (key in ("checkpoint.path", "checkpoint.resume") and path.startswith(("runs:/", "models:/")))
            or Path(path).exists()
        ):
            continue
        hint = "; did you mean timm or pip, for ImageNet weights?" if key == "model.backbone_weights" else ""
        yield key, f"{key}={path}: no such file or folder (looked for {Path(path).absolute()}){hint}"


def needs_data(config: Mapping[Any, Any]) -> bool:
    """Whether the job reads the data set."""
    mode = config.get("mode")
    if mode not in ("predict", "export"):
        return True
    images = config[mode]["input" if mode == "predict" else "images"]
    return str(images).startswith("split:") or (mode == "export" and images is None)
