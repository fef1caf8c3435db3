"""Checks of values against types, and of nodes with ``_target_`` against the signatures of their targets."""

import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from enum import Enum
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic_core import PydanticCustomError

from pspexp.config.targets import (
    TargetError,
    find_target,
    import_problem,
    is_open,
    name_of,
    parameters,
    takes,
    try_target,
)
from pspexp.errors import as_yaml, did_you_mean
from pspexp.utils.arguments import existing_part, requirement

Plain = dict[str, Any]
NAMED_NODES = ("hooks", "metrics")  # groups of named nodes, each with a _target_ or null
SPECIAL_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}
# Arguments supplied at run time, to the partial that the node builds; they never appear in YAML. A target gets those
# that it names: an optimizer the model, or its parameters as torch's own do.
RUNTIME_ARGS = {"optimizer": {"model", "params"}, "scheduler": {"optimizer", "total_steps"}}
# Handled by `pspexp.config.network` where the target does not take them.
OWN_ARGS = {"model": {"weights"}}
LAX = (tuple, set, frozenset)  # given as lists
CUSTOM_GROUPS = ("model", "augment", "loss", "optimizer", "scheduler")  # with an option for the user's own target


def type_problems(annotation: Any, value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Each key at which ``value`` does not fit ``annotation`` (a type, dataclass or model), and a line about it."""
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        seen = set()
        for problem in error.errors():
            # A union reports a problem for each of its members, below the key itself: keep one line per key.
            place = existing_part(value, problem["loc"])
            name = ".".join(str(part) for part in [*([key] if key else []), *place])
            if name not in seen:
                seen.add(name)
                yield name, describe(name, place, problem, annotation)


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
        target = find_target(node["_target_"])
    except TargetError as error:
        yield f"{key}._target_", import_problem(key, node["_target_"], error)
        return
    if key in RUNTIME_ARGS and node.get("_partial_") is not True:
        name, value = f"{key}._partial_", as_yaml(node.get("_partial_"))
        yield name, f"{name}={value}: must be true, since the other arguments are supplied at run time"
    unpassed = SPECIAL_KEYS | {name for name in OWN_ARGS.get(key, ()) if not takes(target, name)}
    arguments = {name: value for name, value in node.items() if name not in unpassed}
    built = {name for name, value in arguments.items() if holds_nodes(value)}
    # Of a partial within another node, anything may be supplied at run time.
    later = RUNTIME_ARGS.get(key, [*parameters(target)] if node.get("_partial_") else [])
    given = [name for name in later if name not in arguments or key in RUNTIME_ARGS]
    model = signature_model(target, given, built, len(node.get("_args_") or ()))
    for name, line in type_problems(model, arguments, key):
        yield name, line + advice(line, key, name, str(node["_target_"]))
    for name in built:
        yield from nested_problems(f"{key}.{name}", arguments[name])


def advice(line: str, key: str, name: str, target: str) -> str:
    """How to go on with a key that a target of the user's own does not take, or an empty string."""
    if not line.endswith(": unknown key") or target.startswith("pspexp."):
        return ""
    option = f", or choose {key}=custom, without the keys of another option" if key in CUSTOM_GROUPS else ""
    return f"; {target} takes no argument of this name: remove it with ~{name}{option}"


def removal(line: str, key: str, config: Plain, explicit: Collection[str]) -> str:
    """How to remove a key that an experiment sets for an option that was replaced, or an empty string."""
    experiment, group = (config.get("choices") or {}).get("experiment"), key.partition(".")[0]
    if experiment is None or group not in explicit or key in explicit or not line.startswith(f"{key}: unknown key"):
        return ""
    return "" if f"~{key}" in line else f"; if experiment={experiment} sets it for another option, add ~{key}"


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


def signature_model(
    target: Callable[..., Any], supplied: Iterable[str], built: Collection[str] = (), positional: int = 0
) -> Any:
    """A pydantic model of the parameters of ``target``, so that arguments can be checked before anything is built.

    Args:
        target: A class or function.
        supplied: Parameters that are supplied at run time.
        built: Parameters whose values are still to be built, which may be anything.
        positional: Number of arguments given by position (``_args_``).
    """
    hints = type_hints(target)
    fields: dict[str, Any] = {}
    supplied = {*supplied, *list(parameters(target))[:positional]}
    for name, parameter in parameters(target).items():
        if name in supplied or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (Any if name in built else in_yaml(hints.get(name, Any)), default)
    extra: Literal["forbid", "allow"] = "allow" if is_open(target) else "forbid"
    config = ConfigDict(extra=extra, strict=True, arbitrary_types_allowed=True, protected_namespaces=())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Field name .* shadows an attribute", UserWarning)  # harmless here
        return create_model(name_of(target), __config__=config, **fields)


def type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The types of a target's parameters; none if they cannot be read, as those imported for type checking only."""
    with suppress(Exception):
        return get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    return {}


def in_yaml(annotation: Any) -> Any:
    """A type for values from YAML: lists for tuples and sets, text for paths, names or values for enumerations."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is None and inspect.isclass(annotation) and issubclass(annotation, Enum):
        return Annotated[annotation, BeforeValidator(partial(member, annotation))]
    if annotation is Path:
        return Annotated[annotation, BeforeValidator(path)]
    if origin is Annotated:
        annotated: Any = Annotated
        arguments = (in_yaml(inner[0]), *annotation.__metadata__)
        return annotated[arguments]
    if origin in (Union, UnionType):
        return Union[tuple(NoneType if one is None else in_yaml(one) for one in inner)]  # noqa: UP007
    if inner and origin not in (Literal, Callable, type):
        with suppress(TypeError):  # of a class of the user's own
            annotation = origin[tuple(one if one is Ellipsis else in_yaml(one) for one in inner)]
    lax = annotation in LAX or origin in LAX
    return Annotated[annotation, Field(strict=False)] if lax else annotation


def path(value: Any) -> Path:
    """A path given as text."""
    if not isinstance(value, str | Path):
        raise PydanticCustomError("path", "must be the path of a file or folder")
    return Path(value)


def member(kind: type[Enum], value: Any) -> Enum:
    """The member of an enumeration with this name or value."""
    if isinstance(value, str) and value in kind.__members__:
        return kind[value]
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(kind.__members__)
        raise PydanticCustomError("enum", "must be one of {names}", {"names": names}) from None


def with_promised_types(node: DictConfig) -> DictConfig:
    """A copy of a node in which targets get the paths and members of enumerations that their signatures promise."""
    copy = node.copy()
    OmegaConf.set_struct(copy, False)
    convert(copy)
    return copy


def convert(node: Any) -> None:
    """`with_promised_types` in place, of a node or a list."""
    is_node = OmegaConf.is_dict(node)
    for _, value in node.items_ex(resolve=False) if is_node else enumerate(node._iter_ex(resolve=False)):
        if isinstance(value, DictConfig | ListConfig) and not value._is_none() and not value._is_interpolation():
            convert(value)
    target = try_target(node.get("_target_")) if is_node else None
    for name, hint in type_hints(target).items() if target is not None else ():
        if name in node and is_converted(hint):
            value = OmegaConf.to_container(node)[name]  # type: ignore[call-overload,index]
            with suppress(ValidationError):  # the target itself refuses it
                node[name] = TypeAdapter(in_yaml(hint)).validate_python(value)


def is_converted(annotation: Any) -> bool:
    """Whether values of a type, or parts of them, are paths or members of enumerations."""
    if get_origin(annotation) is None and inspect.isclass(annotation):
        return annotation is Path or issubclass(annotation, Enum)
    return any(is_converted(one) for one in get_args(annotation))
