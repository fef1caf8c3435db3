"""What metrics of one's own may compute."""

import math

import numpy as np
import pytest
import torch

from pspexp.errors import UserError
from pspexp.metrics.base import results_of


def test_numbers_vectors_and_dictionaries_have_names_of_their_own() -> None:
    computed = {
        "kappa": torch.tensor(0.5),
        "edge": (0.25, math.nan, 0.75),
        "tensor": torch.tensor([0.0, 0.5, 1.0]),
        "array": np.ones(3),
        "parts": {"first": 1, "second": torch.tensor([2.0])},
    }
    others, columns = results_of(computed, 3)
    assert others == {
        "kappa": 0.5,
        "mean_edge": 0.5,
        "mean_tensor": 0.5,
        "mean_array": 1.0,
        "parts/first": 1.0,
        "parts/second": 2.0,
    }
    assert columns == {
        "edge": pytest.approx((0.25, math.nan, 0.75), nan_ok=True),
        "tensor": (0, 0.5, 1),
        "array": (1,) * 3,
    }


def test_other_results_are_refused_together() -> None:
    computed = {"square": torch.zeros(3, 3), "words": "high", "nothing": None, "parts": {"x": [1, 2]}, "fine": 1.0}
    with pytest.raises(UserError) as caught:
        results_of(computed, 3)
    what = ["an array of shape (3, 3)", "str", "NoneType", "dict"]
    assert [problem.partition(";")[0] for problem in caught.value.problems] == [
        f"metrics.{name}: compute returned {one}" for name, one in zip(computed, what, strict=False)
    ]
