"""The schema of a configuration: types of plain nodes, targets bound to their signatures, rules across nodes."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from hydra.utils import get_object
from pydantic import ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from pspexp.config.modes import MODES, uses_checkpoint
from pspexp.config.signatures import (
    NAMED_NODES,
    RUNTIME_ARGS,
    SPECIAL_KEYS,
    Plain,
    known_keys,
    nested_problems,
    signature_model,
    target_problems,
    type_problems,
)
from pspexp.engine.trainer_config import TrainerConfig
from pspexp.errors import UserError

if TYPE_CHECKING:
    ModeName = str
else:
    ModeName = Literal[tuple(MODES)]

Count = Annotated[StrictInt, Field(ge=0)]
Positive = Annotated[StrictInt, Field(gt=0)]
Name = StrictStr | StrictInt | StrictFloat  # Hydra reads 3, the folder of a job, as a number
PLAIN_NODE = ConfigDict(extra="forbid")  # the fields are strict one by one: a strict dataclass takes no dict
PLAIN_NODES = ("loader", "trainer", "checkpoint", "sweep", "compare", "predict", "export", "choices")


@dataclass
class LoaderConfig:
    """How images reach the device; batch sizes are per process."""

    __pydantic_config__ = PLAIN_NODE
    batch_size: Positive
    eval_batch_size: Positive
    num_workers: Count
    cache_mib: Count
    max_eval_images: Positive | None


@dataclass
class CheckpointConfig:
    """Where weights and training states come from, and how often they are saved."""

    __pydantic_config__ = PLAIN_NODE
    resume: StrictStr | None
    allow_world_size_change: StrictBool
    path: StrictStr | None
    every_steps: Positive | None


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
class PredictConfig:
    """What ``mode=predict`` reads and writes."""

    __pydantic_config__ = PLAIN_NODE
    input: StrictStr | None
    output: StrictStr | None
    save: Annotated[list[Literal["ids", "overlay", "colour", "probabilities"]], Field(min_length=1)]
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
    checkpoint: CheckpointConfig
    sweep: SweepConfig
    compare: CompareConfig
    predict: PredictConfig
    export: ExportConfig
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
) -> None:
    """Check a composed and resolved configuration.

    Args:
        config: The configuration to check.
        files: Whether the files that it names have to exist.
        data: Whether the data set's folder has to exist, too.
        sources: For each key whose value is an interpolation, the key that the value comes from.
        explicit: Overridden keys. Missing files are reported beside other problems for these only.
        known: Problems found before.

    Raises:
        UserError: Lists every problem, without those that only follow from another.
    """
    found = dict(type_problems(Config, config, ""))
    for group, node in config.items():
        if group in NAMED_NODES and isinstance(node, dict):
            found |= dict(nested_problems(group, node))
        elif isinstance(node, dict) and group not in PLAIN_NODES:
            found |= dict(target_problems(group, node))
    missing = dict(missing_files(config)) if files else {}
    if not data and config["dataset"].get("class_names") is not None:  # else they would have been read from its folder
        missing.pop("dataset.root", None)
    found = without_followers(found, missing, sources or {})
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
    kept = {key: line for key, line in found.items() if key not in sources}
    for key, line in found.items():
        source = key
        while source in sources:
            source = sources[source]
        group = source.partition(".")[0]
        unread = line.partition(":")[0].endswith("=null") and any(one.startswith(f"{group}.") for one in missing)
        if source == key or source in kept or unread:
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
    try:
        target = get_object(node["_target_"])
    except Exception:  # reported by `target_problems`
        return True
    model = signature_model(target, RUNTIME_ARGS.get(parents[0], set()))
    return name in SPECIAL_KEYS | set(model.model_fields) or model.model_config.get("extra") == "allow"


def crop_fits_stride(config: Plain) -> Iterator[str]:
    model, size = config["model"], config["crop_size"]
    stride = model.get("output_stride", 1)
    if model.get("align_corners") and (size - 1) % stride:
        near = max(round((size - 1) / stride), 1) * stride + 1
        yield f"crop_size={size}: (crop_size - 1) must be divisible by {stride} (model.output_stride); try {near}"


def batch_is_normalisable(config: Plain) -> Iterator[str]:
    if config["mode"] == "train" and config["loader"]["batch_size"] < 2:
        yield (
            "loader.batch_size=1: training needs at least 2, since batch normalisation of the globally "
            "pooled features needs more than one value per channel; try loader.batch_size=2"
        )


def classes_agree(config: Plain) -> Iterator[str]:
    dataset, count = config["dataset"], config["dataset"].get("num_classes")
    if count is None:  # the names are read from the folder of the data set, once it exists
        return
    names = dataset.get("class_names")
    if names is not None and len(names) != count:
        yield f"dataset.num_classes={count}: but dataset.class_names has {len(names)} names; make them agree"
    if config["model"].get("num_classes", count) != count:
        yield (
            f"model.num_classes={config['model']['num_classes']}: but the data set has {count} classes; "
            "choose the data set the model was trained on, or start from its weights with model.weights"
        )
    weights = config["loss"].get("class_weights")
    if weights is not None and len(weights) != count:
        yield f"loss.class_weights: {len(weights)} values for {count} classes; give one per class"


def checkpoint_is_given(config: Plain) -> Iterator[str]:
    if uses_checkpoint(config["mode"]) and config["checkpoint"]["path"] is None:
        mode = config["mode"]
        yield f"checkpoint.path=null: mode={mode} needs a checkpoint; give a file, a run folder or runs:/<id>"


def input_is_given(config: Plain) -> Iterator[str]:
    if config["mode"] == "predict" and config["predict"]["input"] is None:
        yield "predict.input=null: mode=predict needs images; give a file, a folder, a glob, @list.txt or split:val"
    for key in ("input", "output"):
        value = config["predict"][key]
        if config["mode"] != "predict" and value is not None:
            yield f"predict.{key}={value}: has no effect on mode={config['mode']}; add mode=predict"


def model_can_be_registered(config: Plain) -> Iterator[str]:
    wanted = config["export"]
    if wanted["register"] is None:
        if wanted["alias"] is not None:
            yield f"export.alias={wanted['alias']}: names a registered model; set export.register, too"
    elif config["mode"] != "export":
        yield f"export.register={wanted['register']}: has no effect on mode={config['mode']}; add mode=export"
    elif wanted["input"] != "image" or "onnx" not in wanted["format"]:
        name = wanted["register"]
        yield f"export.register={name}: serves an ONNX file; needs export.input=image and onnx in export.format"


def comparison_is_clear(config: Plain) -> Iterator[str]:
    given = {key: value for key, value in config["compare"].items() if value not in (None, [])}
    for key, value in given.items():
        if config["mode"] != "compare":
            yield f"compare.{key}={value}: has no effect on mode={config['mode']}; add mode=compare"
        elif "runs" in given and key in ("experiment", "sweep", "filter"):
            yield f"compare.{key}={value}: selects runs from MLflow, but compare.runs names runs; remove one of them"


def graphs_hold_gradients(config: Plain) -> Iterator[str]:
    mode, accumulate = config["trainer"]["compile"], config["trainer"]["accumulate"]
    if mode in ("reduce-overhead", "max-autotune") and accumulate > 1:
        yield (
            f"trainer.compile={mode}: CUDA graphs overwrite gradients that trainer.accumulate={accumulate} adds up; "
            "try trainer.compile=true or max-autotune-no-cudagraphs"
        )


def missing_files(config: Plain) -> Iterator[tuple[str, str]]:
    """Each key that names a file or folder that does not exist, and a line about it."""
    if config.get("mode") == "compare":  # builds nothing
        return
    nodes = (config.get(group) for group in ("checkpoint", "model", "dataset"))
    checkpoint, model, dataset = (node if isinstance(node, dict) else {} for node in nodes)
    resume, backbone = checkpoint.get("resume"), model.get("backbone_weights")
    paths = {
        "checkpoint.path": checkpoint.get("path") if uses_checkpoint(config.get("mode")) else None,
        "checkpoint.resume": None if resume == "auto" else resume,
        "dataset.root": dataset.get("root") if needs_data(config) else None,
    }
    if resume is None:  # else the saved weights are used
        paths |= {
            "model.weights": model.get("weights"),
            "model.backbone_weights": None if backbone == "timm" else backbone,
        }
    for key, path in paths.items():
        if (
            not isinstance(path, str)
            or (key == "checkpoint.path" and path.startswith(("runs:/", "models:/")))
            or Path(path).exists()
        ):
            continue
        hint = "; did you mean 'timm', which downloads ImageNet weights?" if key == "model.backbone_weights" else ""
        yield key, f"{key}={path}: no such file or folder (looked for {Path(path).absolute()}){hint}"


def needs_data(config: Plain) -> bool:
    """Whether the job reads the data set."""
    mode = config.get("mode")
    if mode not in ("predict", "export"):
        return True
    images = config[mode]["input" if mode == "predict" else "images"]
    return str(images).startswith("split:") or (mode == "export" and images is None)


RULES: list[Callable[[Plain], Iterator[str]]] = [
    crop_fits_stride,
    batch_is_normalisable,
    classes_agree,
    checkpoint_is_given,
    input_is_given,
    model_can_be_registered,
    comparison_is_clear,
    graphs_hold_gradients,
]
