"""The schema of a configuration: types of plain nodes, targets bound to their signatures, rules across nodes."""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

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

from pspexp.config.modes import MODES
from pspexp.engine.trainer_config import TrainerConfig
from pspexp.errors import UserError, as_yaml, did_you_mean
from pspexp.utils.arguments import requirement

if TYPE_CHECKING:
    ModeName = str
else:
    ModeName = Literal[tuple(MODES)]

Plain = dict[str, Any]
Count = Annotated[StrictInt, Field(ge=0)]
Positive = Annotated[StrictInt, Field(gt=0)]
Name = StrictStr | StrictInt | StrictFloat  # Hydra reads 3, the folder of a job, as a number
PLAIN_NODE = ConfigDict(extra="forbid")  # the fields are strict one by one: a strict dataclass takes no dict
PLAIN_NODES = ("loader", "trainer", "checkpoint", "sweep", "compare", "choices")
NAMED_NODES = ("hooks",)  # groups of named nodes, each with a _target_ or null
SPECIAL_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}
# Arguments supplied at run time, to the partial that the node builds; they never stand in YAML.
RUNTIME_ARGS = {"optimizer": {"model"}, "scheduler": {"optimizer", "total_steps"}}


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
class Config:
    """The root; the nodes of the groups are checked against the signatures of their targets."""

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
    sources: Mapping[str, str] | None = None,
    explicit: Iterable[str] = (),
    known: Iterable[str] = (),
) -> None:
    """Check a composed and resolved configuration.

    Args:
        config: To check.
        files: Whether the files that it names have to exist.
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
    found = without_followers(found, missing, sources or {})
    for rule in RULES:
        with suppress(*[Exception] if found else []):  # else a wrong type, named above, is why the rule fails
            for line in rule(config):
                key = re.split("[=:]", line)[0]
                found.setdefault(key, line)
    lines = [*known, *found.values()]
    if lines:
        missing = {key: line for key, line in missing.items() if key in explicit}
    if lines := list(dict.fromkeys([*lines, *missing.values()])):
        raise UserError(*lines)


def without_followers(found: Problems, missing: Problems, sources: Mapping[str, str]) -> Problems:
    """``found`` without the problems that follow from another: of a value taken from a key that has a problem itself.

    If nothing else is wrong there, one of the problems is kept and names the source of the value.
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


def type_problems(annotation: Any, value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Each key at which ``value`` does not fit ``annotation`` (a type, dataclass or model), and a line about it."""
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
                yield name, describe(name, place, problem, annotation)


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
    """A pydantic problem as a line about the key ``name``."""
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{name}: unknown key{did_you_mean(str(place[-1]), known_keys(annotation, place[:-1]))}"
    if problem["type"] == "missing":
        return f"{name}: missing; give it a value"
    return f"{name}={as_yaml(problem['input'])}: {requirement(problem)}"


def known_keys(annotation: Any, place: list[int | str]) -> list[str]:
    """The keys that ``annotation`` allows at ``place``."""
    for part in place:
        annotation = get_type_hints(annotation).get(str(part), dict)
    return list(get_type_hints(annotation)) if isinstance(annotation, type) else []


def target_problems(key: str, node: Plain) -> Iterator[tuple[str, str]]:
    """Check a node with ``_target_``, and the nodes in it, against the signatures of their targets.

    Yields:
        Each wrong key, and a line about it.
    """
    if "_target_" not in node:
        yield key, f"{key}: no _target_; choose an option of this group, e.g. {key}=<option>, instead of a value"
        return
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        root = error.__cause__ or error  # Hydra's own message hides what failed
        name = f"{key}._target_"
        yield name, f"{name}={node['_target_']}: cannot be imported ({type(root).__name__}: {root})"
        return
    if key in RUNTIME_ARGS and node.get("_partial_") is not True:
        name, value = f"{key}._partial_", as_yaml(node.get("_partial_"))
        yield name, f"{name}={value}: must be true, since the other arguments are supplied at run time"
    arguments = {name: value for name, value in node.items() if name not in SPECIAL_KEYS}
    built = {name for name, value in arguments.items() if holds_nodes(value)}
    yield from type_problems(signature_model(target, RUNTIME_ARGS.get(key, set()), built), arguments, key)
    for name in built:
        yield from nested_problems(f"{key}.{name}", arguments[name])


def holds_nodes(value: Any) -> bool:
    """Whether a value is a node with ``_target_``, or has some in it."""
    if isinstance(value, list):
        return any(holds_nodes(item) for item in value)
    return isinstance(value, dict) and ("_target_" in value or any(holds_nodes(item) for item in value.values()))


def nested_problems(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """`target_problems` of every node with ``_target_`` in a node or list."""
    if isinstance(value, dict) and "_target_" in value:
        yield from target_problems(key, value)
        return
    for name, item in value.items() if isinstance(value, dict) else enumerate(value):
        if key in NAMED_NODES and isinstance(item, dict) and "_target_" not in item:
            yield f"{key}.{name}", f"{key}.{name}: no _target_; name a class with +{key}.{name}._target_=<module.Class>"
        elif isinstance(item, dict | list):
            yield from nested_problems(f"{key}.{name}", item)


def is_known(config: Plain, key: str) -> bool:
    """Whether a dotted key is one that the schema, or the target of its node, takes; true where that cannot be told."""
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


def signature_model(target: Callable[..., Any], supplied: Iterable[str], built: Iterable[str] = ()) -> Any:
    """A pydantic model of the parameters of ``target``, so that arguments can be checked before anything is built.

    Args:
        target: A class or function.
        supplied: Parameters that are supplied at run time.
        built: Parameters whose values are still to be built, which may be anything.
    """
    function = target.__init__ if inspect.isclass(target) else target
    hints: dict[str, Any] = {}
    with suppress(NameError, TypeError):  # types imported for the type checker only: unchecked
        hints = get_type_hints(function, include_extras=True)
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # of a class in C: any arguments
        parameters = inspect.signature(lambda **_: None).parameters
    fields: dict[str, Any] = {}
    extra: Literal["forbid", "allow"] = "forbid"
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            extra = "allow"
        if name in supplied or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (Any if name in built else hints.get(name, Any), default)
    config = ConfigDict(extra=extra, strict=True, arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(target.__name__, __config__=config, **fields)


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
    if count is None:  # the names are read from the folder of the data set, once it is there
        return
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


def missing_files(config: Plain) -> Iterator[tuple[str, str]]:
    """Each key that names a file or folder that does not exist, and a line about it."""
    if config.get("mode") == "compare":  # builds nothing
        return
    nodes = (config.get(group) for group in ("checkpoint", "model", "dataset"))
    checkpoint, model, dataset = (node if isinstance(node, dict) else {} for node in nodes)
    resume, backbone = checkpoint.get("resume"), model.get("backbone_weights")
    paths = {
        "checkpoint.path": checkpoint.get("path") if config.get("mode") == "test" else None,
        "checkpoint.resume": None if resume == "auto" else resume,
        "dataset.root": dataset.get("root"),
    }
    if resume is None:  # else the saved weights are used
        paths |= {
            "model.weights": model.get("weights"),
            "model.backbone_weights": None if backbone == "timm" else backbone,
        }
    for key, path in paths.items():
        if not isinstance(path, str) or (key == "checkpoint.path" and path.startswith("runs:/")) or Path(path).exists():
            continue
        hint = "; did you mean 'timm', which downloads ImageNet weights?" if key == "model.backbone_weights" else ""
        yield key, f"{key}={path}: no such file or folder (looked in {Path(path).absolute()}){hint}"


RULES: list[Callable[[Plain], Iterator[str]]] = [
    crop_fits_stride,
    batch_is_normalisable,
    classes_agree,
    checkpoint_is_given,
    comparison_is_clear,
    graphs_hold_gradients,
]
