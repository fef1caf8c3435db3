"""Checks of values against types, and of nodes with ``_target_`` against the signatures of their targets."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal, get_type_hints

from hydra.utils import get_object
from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from pspexp.errors import as_yaml, did_you_mean
from pspexp.utils.arguments import requirement

Plain = dict[str, Any]
NAMED_NODES = ("hooks",)  # groups of named nodes, each with a _target_ or null
SPECIAL_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}
# Arguments supplied at run time, to the partial that the node builds; they never appear in YAML.
RUNTIME_ARGS = {"optimizer": {"model"}, "scheduler": {"optimizer", "total_steps"}}


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


def existing_part(value: Any, place: tuple[int | str, ...]) -> list[int | str]:
    """The part of a pydantic location that is a path into ``value``, including a missing key, without union members."""
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


def signature_model(target: Callable[..., Any], supplied: Iterable[str], built: Iterable[str] = ()) -> Any:
    """A pydantic model of the parameters of ``target``, so that arguments can be checked before anything is built.

    Args:
        target: A class or function.
        supplied: Parameters that are supplied at run time.
        built: Parameters whose values are still to be built, which may be anything.
    """
    function = target.__init__ if inspect.isclass(target) else target
    hints: dict[str, Any] = {}
    with suppress(NameError, TypeError):  # types imported for type checking only: not checked here
        hints = get_type_hints(function, include_extras=True)
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # a class written in C: accept any arguments
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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Field name .* shadows an attribute", UserWarning)  # harmless here
        return create_model(target.__name__, __config__=config, **fields)
