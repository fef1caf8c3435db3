"""A small evaluation and its data set; waiting for the threads of loggers."""

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pspexp.data.dataset import DatasetInfo
from pspexp.metrics import ConfusionMatrix, Report
from pspexp.tracking import senders

TIMEOUT_S = 120.0


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


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Waits for what a sender's thread does."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, "timed out"
            time.sleep(0.01)

    return wait
