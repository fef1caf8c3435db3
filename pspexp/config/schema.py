"""What a valid configuration is: typed plain nodes, targets bound to their signatures, checks across nodes."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from hydra.utils import get_object
from pydantic import (
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    create_model,
)

from pspexp.errors import UserError, did_you_mean

Plain = dict[str, Any]
Count = Annotated[StrictInt, Field(ge=0)]
Positive = Annotated[StrictInt, Field(gt=0)]
Name = StrictStr | StrictInt | StrictFloat  # Hydra reads 3, a job's folder, as a number
PLAIN_NODE = ConfigDict(extra="forbid")  # the fields are strict one by one: a strict dataclass takes no dict
TARGET = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
PLAIN_NODES = ("loader", "trainer", "checkpoint", "sweep", "compare", "choices")
SPECIAL_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_"}
# What run.py hands over when it calls a built partial; it never stands in YAML.
RUNTIME_ARGS = {"optimizer": {"model"}, "scheduler": {"optimizer", "total_steps"}}


@dataclass
class Loader:
    """How images reach the device; batch sizes are per process."""

    __pydantic_config__ = PLAIN_NODE
    batch_size: Positive
    eval_batch_size: Positive
    num_workers: Count
    cache_mib: Count
    max_eval_images: Positive | None


@dataclass
class Trainer:
    """The loop's numbers, passed to :class:`pspexp.engine.trainer.Trainer` as they are."""

    __pydantic_config__ = PLAIN_NODE
    epochs: Positive
    max_steps: Positive | None
    validate_every: Positive
    log_every: Positive
    grad_clip: Annotated[StrictFloat, Field(gt=0)] | None
    accumulate: Positive
    ema: Annotated[StrictFloat, Field(gt=0, lt=1)] | None
    compile: Literal[False, True, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


@dataclass
class Checkpoint:
    """Where weights and training states come from and how often they are saved."""

    __pydantic_config__ = PLAIN_NODE
    resume: StrictStr | None
    allow_world_size_change: StrictBool
    path: StrictStr | None
    every_steps: Positive | None


@dataclass
class Sweep:
    """How the jobs of a sweep get on with each other."""

    __pydantic_config__ = PLAIN_NODE
    fail_fast: StrictBool
    retry_failed: StrictBool
    jobs_per_device: Positive
    cores_per_job: Positive | None


@dataclass
class Compare:
    """Which runs ``mode=compare`` shows side by side."""

    __pydantic_config__ = PLAIN_NODE
    runs: Name | list[Name]
    experiment: Name | None
    sweep: Name | None
    filter: StrictStr | None
    baseline: Name | None


@dataclass
class Config:
    """The root; the groups' nodes are checked against the signature of their ``_target_``."""

    __pydantic_config__ = PLAIN_NODE
    mode: Literal["train", "test", "check", "compare"]
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)]
    crop_size: Positive
    channels_last: StrictBool | None
    sync_batch_norm: StrictBool
    run_name: StrictStr | None
    rerun: StrictStr | None
    output_root: StrictStr
    loader: Loader
    trainer: Trainer
    checkpoint: Checkpoint
    sweep: Sweep
    compare: Compare
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
    tracking: Plain


def check(config: Plain, *, files: bool = True) -> None:
    """Check a composed and resolved configuration.

    Args:
        config: to check.
        files: those that it names have to exist.

    Raises:
        UserError: with every problem that was found.
    """
    problems = [*type_problems(Config, config, "")]
    for group, node in config.items():
        if isinstance(node, dict) and group not in PLAIN_NODES:
            problems += target_problems(group, node)
    for rule in RULES if files else [one for one in RULES if one is not files_exist]:
        try:
            problems += rule(config)
        except Exception:
            if not problems:  # else a wrong key or type, named above, is why the rule cannot tell
                raise
    if problems:
        raise UserError(*problems)


def type_problems(annotation: Any, value: Any, key: str) -> Iterator[str]:
    """One line for each place where ``value`` does not fit ``annotation`` (a type, dataclass or pydantic model)."""
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        seen = set()
        for problem in error.errors():
            # A union reports each of its members below the key's own place: keep one line a key.
            place = existing_part(value, problem["loc"])
            name = ".".join(str(part) for part in [*([key] if key else []), *place])
            if name not in seen:
                seen.add(name)
                yield describe(name, place, problem, annotation)


def existing_part(value: Any, place: tuple[int | str, ...]) -> list[int | str]:
    """The part of a pydantic location that is a path into ``value``; then a missing key, but no union members."""
    found: list[int | str] = []
    for part in place:
        if isinstance(value, Mapping):
            found.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            found.append(part)
            value = value[part]
        else:
            break
    return found


def describe(name: str, place: list[int | str], problem: Any, annotation: Any) -> str:
    """A pydantic problem in the words of the command line."""
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{name}: unknown key{did_you_mean(str(place[-1]), known_keys(annotation, place[:-1]))}"
    if problem["type"] == "missing":
        return f"{name}: missing; give it a value"
    return f"{name}={problem['input']}: {problem['msg'][0].lower() + problem['msg'][1:]}"


def known_keys(annotation: Any, place: list[int | str]) -> list[str]:
    """The keys that ``annotation`` allows at ``place``."""
    for part in place:
        annotation = get_type_hints(annotation).get(str(part), dict)
    return list(get_type_hints(annotation)) if isinstance(annotation, type) else []


def target_problems(group: str, node: Plain) -> Iterator[str]:
    """Check a node with ``_target_`` (and the nodes in it) against the signature of what it names."""
    if "_target_" not in node:
        yield f"{group}: no _target_; choose an option of this group, e.g. {group}=<option>, instead of a value"
        return
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        root = error.__cause__ or error  # Hydra's own message hides what failed
        yield f"{group}._target_={node['_target_']}: cannot be imported ({type(root).__name__}: {root})"
        return
    if group in RUNTIME_ARGS and node.get("_partial_") is not True:
        yield f"{group}._partial_={node.get('_partial_')}: must be true, since the rest is handed over later"
    arguments = {key: value for key, value in node.items() if key not in SPECIAL_KEYS}
    yield from type_problems(signature_model(target, RUNTIME_ARGS.get(group, set())), arguments, group)
    for key, value in arguments.items():
        if isinstance(value, dict) and "_target_" in value:
            yield from target_problems(f"{group}.{key}", value)


def is_known(config: Plain, key: str) -> bool:
    """Whether a dotted key is one that the schema, or the target of its node, takes; true where that cannot be told."""
    *parents, name = key.split(".")
    node: Any = config
    for part in parents:
        node = node.get(part, {}) if isinstance(node, dict) else {}
    if "_target_" not in node:
        return len(parents) > 1 or name in known_keys(Config, [*parents])
    try:
        target = get_object(node["_target_"])
    except Exception:  # `target_problems` tells
        return True
    return name in SPECIAL_KEYS | set(signature_model(target, RUNTIME_ARGS.get(parents[0], set())).model_fields)


def signature_model(target: Callable[..., Any], handed_over: Iterable[str]) -> Any:
    """A pydantic model with the parameters of ``target`` as fields, so that arguments can be checked unbuilt."""
    function = target.__init__ if inspect.isclass(target) else target
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "self" or name in handed_over or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints.get(name, Any), default)
    return create_model(target.__name__, __config__=TARGET, **fields)


def crop_fits_stride(config: Plain) -> Iterator[str]:
    model, size = config["model"], config["crop_size"]
    stride = model.get("output_stride", 1)
    if model.get("align_corners") and (size - 1) % stride:
        near = max(round((size - 1) / stride), 1) * stride + 1
        yield f"crop_size={size}: (crop_size - 1) must be divisible by {stride} (model.output_stride); try {near}"


def batch_is_normalisable(config: Plain) -> Iterator[str]:
    if config["mode"] == "train" and config["loader"]["batch_size"] < 2:
        yield (
            "loader.batch_size=1: training needs at least 2, since batch normalisation of the image-wide "
            "pooled features has nothing to average over one image; try loader.batch_size=2"
        )


def classes_agree(config: Plain) -> Iterator[str]:
    dataset, count = config["dataset"], config["dataset"].get("num_classes")
    names = dataset.get("class_names")
    if names is not None and len(names) != count:
        yield f"dataset.num_classes={count}: but dataset.class_names has {len(names)} names; make them agree"
    if config["model"].get("num_classes", count) != count:
        yield (
            f"model.num_classes={config['model']['num_classes']}: but the dataset has {count} classes; "
            "choose the dataset the model was trained on, or start from its weights with model.weights"
        )
    weights = config["loss"].get("class_weights")
    if weights is not None and len(weights) != count:
        yield f"loss.class_weights: {len(weights)} values for {count} classes; give one per class"


def checkpoint_is_given(config: Plain) -> Iterator[str]:
    if config["mode"] == "test" and config["checkpoint"]["path"] is None:
        yield "checkpoint.path=null: mode=test needs a checkpoint; give a file, a run folder or runs:/<id>"


def comparison_is_clear(config: Plain) -> Iterator[str]:
    given = {key: value for key, value in config["compare"].items() if value not in (None, [])}
    for key, value in given.items():
        if config["mode"] != "compare":
            yield f"compare.{key}={value}: has no effect on mode={config['mode']}; add mode=compare"
        elif "runs" in given and key in ("experiment", "sweep", "filter"):
            yield f"compare.{key}={value}: chooses runs from MLflow, but compare.runs names some; leave one of them out"


def graphs_hold_gradients(config: Plain) -> Iterator[str]:
    mode, accumulate = config["trainer"]["compile"], config["trainer"]["accumulate"]
    if mode in ("reduce-overhead", "max-autotune") and accumulate > 1:
        yield (
            f"trainer.compile={mode}: CUDA graphs overwrite gradients that trainer.accumulate={accumulate} adds up; "
            "try trainer.compile=true or max-autotune-no-cudagraphs"
        )


def files_exist(config: Plain) -> Iterator[str]:
    if config["mode"] == "compare":  # builds nothing
        return
    resume, model = config["checkpoint"]["resume"], config["model"]
    backbone = model.get("backbone_weights")
    paths = {
        "checkpoint.path": config["checkpoint"]["path"] if config["mode"] == "test" else None,
        "checkpoint.resume": None if resume == "auto" else resume,
        "dataset.root": config["dataset"].get("root"),
    }
    if resume is None:  # else the saved weights are used
        paths |= {
            "model.weights": model.get("weights"),
            "model.backbone_weights": None if backbone == "timm" else backbone,
        }
    for key, path in paths.items():
        elsewhere = key == "checkpoint.path" and str(path).startswith("runs:/")
        if path is not None and not elsewhere and not Path(path).exists():
            yield f"{key}={path}: no such file or folder (looked in {Path(path).absolute()})"


RULES: list[Callable[[Plain], Iterator[str]]] = [
    crop_fits_stride,
    batch_is_normalisable,
    classes_agree,
    checkpoint_is_given,
    comparison_is_clear,
    graphs_hold_gradients,
    files_exist,
]
