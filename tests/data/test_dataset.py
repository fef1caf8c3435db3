"""Checks that data sets share."""

import pytest

from pspexp.data.dataset import check_classes
from pspexp.errors import ArgumentError


@pytest.mark.parametrize(("number", "names"), [(1, ["cat"]), (1, ["cat", "dog"]), (2, ["cat"])])
def test_one_class_is_refused_with_the_way_to_name_the_background(number: int, names: list[str]) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_classes(number, names, 255)
    (line,) = caught.value.problems
    assert line.startswith(f"num_classes={number}: a network that knows one class predicts it everywhere")
    assert line.endswith("dataset.class_names=[background,<name>]")
