"""Cross-entropy near boundaries, compared with distances that are searched for pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pspexp.losses import Boundary, CrossEntropy, can_chunk
from tests.losses.examples import BOUNDARY_LOSSES, CLASSES, WEIGHTS, batch, mean


def factor(image: Tensor, y: int, x: int, loss: Boundary) -> float:
    """How often a pixel of a label image counts."""
    ys, xs = np.nonzero(((image != 255) & (image != image[y, x])).numpy())
    distance = np.maximum(abs(ys - y), abs(xs - x)).min() if len(ys) else math.inf
    if distance > math.ceil(3 * loss.sigma):
        return 1.0
    return 1 + loss.boundary_weight * math.exp(-(distance**2) / (2 * loss.sigma**2))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", BOUNDARY_LOSSES.values(), ids=BOUNDARY_LOSSES)
def test_loss_matches_its_formula(loss: Boundary, seed: int) -> None:
    logits, target = batch(seed, ignored=0.2, size=7)
    target[0, :, :4] = 1  # far enough from other classes
    log_p = logits.log_softmax(1).numpy()
    weights = [1.0] * CLASSES if loss.class_weights is None else WEIGHTS
    total = divisor = 0.0
    for n, y, x in np.argwhere((target != 255).numpy()).tolist():
        label, smooth = int(target[n, y, x]), loss.label_smoothing
        own = -weights[label] * log_p[n, label, y, x]
        spread = -sum(weights[c] * log_p[n, c, y, x] for c in range(CLASSES)) / CLASSES
        times = factor(target[n], y, x, loss)
        total += times * ((1 - smooth) * own + smooth * spread)
        divisor += times * weights[label]
    assert mean(loss, logits, target).item() == pytest.approx(total / divisor, rel=1e-6)  # factors are float32


def test_weight_falls_off_with_the_distance() -> None:
    target = torch.zeros(1, 1, 9, dtype=torch.int64)
    target[0, 0, 4:] = 1
    weights = [1 + 2 * math.exp(-(d**2) / 2) for d in (1, 2, 3)]
    expected = [1.0, *weights[::-1], *weights, 1.0, 1.0]
    factors = Boundary(2, boundary_weight=2.0, sigma=1.0).factors(target)
    torch.testing.assert_close(factors[0, 0], torch.tensor(expected))


def test_ignored_line_between_classes_is_a_boundary_and_the_edge_of_the_padding_is_none() -> None:
    loss = Boundary(2, sigma=1.0)
    line = torch.tensor([[[0, 0, 0, 255, 1, 1, 1]]])
    assert (loss.factors(line)[0, 0] > 1).tolist() == [False, True, True, True, True, True, False]
    padded = torch.tensor([[[0, 0, 0, 255, 255, 255]]])
    assert (loss.factors(padded) == 1).all()


def test_no_additional_weight_is_cross_entropy() -> None:
    logits, target = batch(0)
    found = mean(Boundary(CLASSES, boundary_weight=0.0, label_smoothing=0.1), logits, target)
    torch.testing.assert_close(found, mean(CrossEntropy(CLASSES, label_smoothing=0.1), logits, target))


def test_chunks_of_images_give_the_same_loss() -> None:
    logits, target = batch(0)
    loss = Boundary(CLASSES)
    assert can_chunk(loss)
    chunked = loss.chunked({"out": logits}, target, lambda part, labels: part)
    torch.testing.assert_close(chunked, loss({"out": logits}, target))
