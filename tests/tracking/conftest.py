"""A small evaluation to record."""

import pytest
import torch

from pspexp.metrics import ConfusionMatrix, Report


@pytest.fixture
def report() -> Report:
    """Three classes: 0 half right, 1 all right, 2 in neither ground truth nor prediction."""
    matrix = ConfusionMatrix(3, ignore_index=255)
    matrix.update(torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 255]]]))
    return matrix.report(["road", "sky", "a+b"])
