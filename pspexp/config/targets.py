"""Targets of the configuration: classes and functions by their dotted path, and what they take."""

import inspect
from collections.abc import Iterator, Mapping
from enum import Enum
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

from pspexp.errors import as_yaml, did_you_mean
from pspexp.utils.text import one_line
from pspexp.utils.tracebacks import line_in_user_code

# Arguments by which networks, those of other packages included, load what they start from.
START_WEIGHTS = ("weights", "backbone_weights", "pretrained", "encoder_weights", "weights_backbone")
MISSING = "???"  # a value that an option requires


class TargetError(ImportError):
    """A target cannot be imported; the message says why, and what helps."""


def find_target(path: Any) -> Any:
    """The class or function with a dotted path, such as ``my_module.MyNet``.

    Raises:
        TargetError: There is none, or importing it fails.
    """
    if path == MISSING:
        raise TargetError("missing; name your class or function, e.g. my_module.MyClass")
    if not isinstance(path, str) or not all(path.split(".")):
        raise TargetError("must be the dotted path of a class or function, e.g. my_module.MyClass")
    parts = path.split(".")
    found: Any = imported(parts[0])
    for number, part in enumerate(parts[1:], 1):
        module, before = found, ".".join(parts[:number])
        found = getattr(module, part, MISSING)
        if found is MISSING and isinstance(module, ModuleType):
            found = submodule(module, before, part)
        elif found is MISSING:
            raise TargetError(f"{before} has no attribute {part}{did_you_mean(part, dir(module))}")
    if not callable(found):
        raise TargetError(f"is a {type(found).__name__}; name a class or function in it")
    return found


def imported(name: str) -> ModuleType:
    """A top-level module."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise TargetError(
                f"cannot be imported: there is no module {name} here; run from the folder that holds {name}.py, or add "
                "that folder to PYTHONPATH"
            ) from error
        raise failed_import(error) from error
    except Exception as error:  # whatever the user's code raises
        raise failed_import(error) from error


def submodule(module: ModuleType, path: str, name: str) -> ModuleType:
    """The module ``path.name``."""
    try:
        return import_module(f"{path}.{name}")
    except ModuleNotFoundError as error:
        if error.name not in (f"{path}.{name}", path):
            raise failed_import(error) from error
        file = getattr(module, "__file__", None)
        where = f"{path} ({file})" if file else path
        raise TargetError(f"cannot be imported: {where} has no {name}{did_you_mean(name, dir(module))}") from error
    except Exception as error:  # whatever the user's code raises
        raise failed_import(error) from error


def failed_import(error: Exception) -> TargetError:
    """The error for a module that exists and cannot be imported."""
    where = f" ({error.filename}:{error.lineno})" if isinstance(error, SyntaxError) else line_in_user_code(error)
    return TargetError(f"cannot be imported: {type(error).__name__}: {one_line(error)}{where}")


def try_target(path: Any) -> Any:
    """`find_target`; None if there is none."""
    try:
        return find_target(path)
    except TargetError:
        return None


def import_problem(key: str, path: Any, error: TargetError) -> str:
    """The line about a target that cannot be imported; ``key`` is that of its node."""
    return f"{key}._target_={as_yaml(path)}: {error}"


def parameters(target: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a target by name; of a class written in C, which has no signature, any keyword."""
    try:
        return dict(inspect.signature(target).parameters)
    except ValueError:
        return dict(inspect.signature(lambda **_: None).parameters)


def is_open(target: Any) -> bool:
    """Whether a target takes arguments of any name."""
    return any(one.kind is one.VAR_KEYWORD for one in parameters(target).values())


def takes(target: Any, name: str) -> bool:
    """Whether a target takes an argument of this name; false if it was not found (None).

    A class with ``**kwargs`` takes those that its base classes name; a function with ``**kwargs`` takes any.
    """
    if target is None:
        return False
    own = parameters(target)
    if name in own and own[name].kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
        return True
    if not is_open(target):
        return False
    return any(name in one for one in bases_parameters(target)) if inspect.isclass(target) else True


def bases_parameters(target: type) -> Iterator[dict[str, inspect.Parameter]]:
    """The parameters of each base class's ``__init__``, down to the first that does not pass on arguments."""
    for base in target.__mro__[1:-1]:
        if "__init__" in vars(base):
            yield (found := parameters(vars(base)["__init__"]))
            if not any(one.kind is one.VAR_KEYWORD for one in found.values()):
                return


def without_start_weights(node: Mapping[Any, Any]) -> dict[str, Literal[False] | None]:
    """Arguments with which a network starts from random weights, whatever its node and its target's defaults say.

    Args:
        node: Its node in the configuration.
    """
    given = {name: default for name, default in defaults(try_target(node.get("_target_"))) if name in START_WEIGHTS}
    given |= {name: node.get(name) for name in START_WEIGHTS if name in node}
    # An argument of the same name with a value of another kind is none of these.
    named = {name: value for name, value in given.items() if isinstance(value, str | bool | Enum)}
    return {name: False if isinstance(value, bool) else None for name, value in named.items()}


def superseded_weights(node: Mapping[Any, Any]) -> dict[str, Literal[False] | None]:
    """Those of `without_start_weights` that are not needed, since ``weights``, a whole checkpoint, is loaded here."""
    if node.get("weights") is None or loads_weights_itself(node):
        return {}
    return {name: value for name, value in without_start_weights(node).items() if name != "weights"}


def defaults(target: Any) -> Iterator[tuple[str, Any]]:
    """Each argument with a default that a target takes by name, those that its base classes take included."""
    if target is None:
        return
    bases = bases_parameters(target) if inspect.isclass(target) and is_open(target) else ()
    for taken in reversed([parameters(target), *bases]):
        yield from ((name, one.default) for name, one in taken.items() if one.default is not one.empty)


def loads_weights_itself(node: Mapping[Any, Any]) -> bool:
    """Whether a network of another package takes an argument ``weights``, which need not be a file then."""
    target = try_target(node.get("_target_"))
    return takes(target, "weights") and not str(getattr(target, "__module__", "")).startswith("pspexp.")


def name_of(target: Any) -> str:
    """The name of a target."""
    return str(getattr(target, "__name__", type(target).__name__))
