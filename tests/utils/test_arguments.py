"""Validation of arguments against the signature."""

from collections.abc import Sequence
from typing import Annotated, Literal

import pytest
from pydantic import Field
from torch import nn

from pspexp.errors import ArgumentError
from pspexp.utils.arguments import checked


class Example:
    @checked
    def __init__(
        self,
        model: nn.Module,
        rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0,
        *,
        kind: Literal["a", "b"] = "a",
        pair: Annotated[Sequence[int], Field(min_length=2, max_length=2)] = (1, 2),
        port: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        self.model, self.rate = model, rate
        if rate > 10 and port is None:
            raise ArgumentError("port=null: needed for rates above 10")


@pytest.mark.parametrize(
    ("invalid", "problems"),
    [
        ({"rate": -1, "kind": "c"}, ["rate=-1: must be greater than 0", "kind=c: must be 'a' or 'b'"]),
        ({"rate": float("nan")}, ["rate=nan: must be a finite number"]),
        ({"rate": float("inf")}, ["rate=inf: must be a finite number"]),
        ({"rate": "1"}, ["rate=1: must be a valid number"]),
        ({"pair": [1]}, ["pair=[1]: must have at least 2 items, not 1"]),
        ({"pair": [1, None]}, ["pair.1=null: must be a valid integer"]),
        ({"port": 0}, ["port=0: must be greater than or equal to 1"]),
        ({"prot": 1}, ["prot: unknown key"]),
        ({"rate": 11}, ["port=null: needed for rates above 10"]),
    ],
)
def test_every_invalid_argument_is_named(invalid: dict[str, object], problems: list[str]) -> None:
    with pytest.raises(ArgumentError) as caught:
        Example(nn.Identity(), **invalid)  # type: ignore[arg-type]
    assert list(caught.value.problems) == problems


def test_missing_argument_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"^model: missing; give it a value$"):
        Example()  # type: ignore[call-arg]


def test_objects_are_not_copied_and_integers_are_valid_floats() -> None:
    model = nn.Identity()
    example = Example(model, 2)
    assert example.model is model
    assert example.rate == 2
