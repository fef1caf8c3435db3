"""A small evaluation and its data set; loggers that open a run at once."""

import numpy as np
import pytest
import torch

from pspexp.data.dataset import DatasetInfo
from pspexp.metrics import ConfusionMatrix, Report
from pspexp.tracking import senders


@pytest.fixture
def report() -> Report:
    """Three classes: 0 half correct, 1 all correct, 2 in neither ground truth nor prediction."""
    matrix = ConfusionMatrix(3, ignore_index=255)
    matrix.update(torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 255]]]))
    return matrix.report(["road", "sky", "a+b"])


@pytest.fixture
def dataset() -> DatasetInfo:
    """Two classes: red roads and a green sky."""
    palette = np.array([[200, 0, 0], [0, 200, 0]], np.uint8)
    return DatasetInfo(["road", "sky"], 255, [0.5] * 3, [0.5] * 3, palette)


@pytest.fixture(autouse=True)
def no_head_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loggers open a run at once."""
    monkeypatch.setattr(senders, "HEAD_START_S", 0.0)
