"""Validation of arguments by the ranges and choices in a signature."""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any, ParamSpec, TypeVar

from pydantic import ConfigDict, Field, ValidationError, validate_call

from pspexp.errors import ArgumentError, as_yaml

P = ParamSpec("P")
T = TypeVar("T")

PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeNumber = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Validate the arguments of ``function`` against the types, ranges and choices in its signature.

    A range is written ``Annotated[float, Field(gt=0)]``, a choice ``Literal["a", "b"]``. The configuration schema
    reads the same signature, so that a value from YAML is refused before anything is built.

    Raises:
        ArgumentError: Raised by the decorated function; lists every invalid argument.
    """
    validated = validate_call(config=ConfigDict(arbitrary_types_allowed=True, strict=True))(function)
    names = list(inspect.signature(function).parameters)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return validated(*args, **kwargs)
        except ValidationError as error:
            if error.title not in (function.__name__, function.__qualname__):
                raise  # by the function itself
            given, problems = dict(zip(names, args, strict=False)) | kwargs, dict[str, str]()
            for problem in error.errors():
                first, *rest = problem["loc"]
                path = existing_part(given, (names[first] if isinstance(first, int) else first, *rest))
                key = ".".join(map(str, path))
                problems.setdefault(key, describe(problem, key))  # of a union, one problem for each of its members
        raise ArgumentError(*problems.values())

    return call


def describe(problem: Any, key: str) -> str:
    """A pydantic problem with the value of ``key``, as ``gamma=-1: must be greater than 0``."""
    if problem["type"].startswith("missing"):
        return f"{key}: missing; give it a value"
    if problem["type"] == "unexpected_keyword_argument":
        return f"{key}: unknown key"
    return f"{key}={as_yaml(problem['input'])}: {requirement(problem)}"


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


def requirement(problem: Any) -> str:
    """What a value must be, from a pydantic problem."""
    message: str = re.sub("^(Input|Value|List|String) should", "must", problem["msg"]).replace(" after validation", "")
    message = re.sub("^must be (an instance of Sequence|a valid (list|tuple))$", "must be a list", message)
    for python, yaml in (("True", "true"), ("False", "false"), ("None", "null")):
        message = re.sub(rf"\b{python}\b", yaml, message)
    return message[0].lower() + message[1:]
