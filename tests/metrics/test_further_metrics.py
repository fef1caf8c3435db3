"""What metrics of one's own may compute."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassCohenKappa

from pspexp.errors import UserError
from pspexp.metrics import BoundaryIoU
from pspexp.metrics.base import metric_problems, results_of


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


class Own:
    """A metric that adds up only what it sees itself."""

    def reset(self) -> None:
        pass

    def update(self, prediction: Tensor, target: Tensor) -> None:
        pass

    def compute(self) -> float:
        return 0.0


def test_metrics_of_several_processes_must_be_synchronised() -> None:
    kappa = MulticlassCohenKappa(num_classes=3)
    metrics = {"own": Own(), "kappa": kappa, "both": MetricCollection([kappa]), "boundary": BoundaryIoU(3)}
    assert [*metric_problems(metrics, num_processes=1)] == []
    assert [*metric_problems(metrics, num_processes=2)] == [
        "own: Own would see only the images of one of the 2 processes; derive it from pspexp.metrics.Metric, or use a "
        "metric of torchmetrics"
    ]
