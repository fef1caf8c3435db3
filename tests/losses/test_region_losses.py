"""Losses of regions compared with their definitions, class by class, and the Lovász extension with that of a set."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from pspexp.errors import ArgumentError
from pspexp.losses import Dice, Lovasz, RegionLoss, Tversky
from tests.losses.examples import CLASSES, REGION_LOSSES, batch, mean

Floats = npt.NDArray[np.float64]


def labelled_pixels(logits: Tensor, target: Tensor) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Probabilities ``[P, C]`` and labels ``[P]`` of the pixels that count."""
    x = logits.double().numpy().transpose(0, 2, 3, 1).reshape(-1, logits.shape[1])
    y = target.numpy().ravel()
    x, y = x[y != 255], y[y != 255]
    return np.exp(x) / np.exp(x).sum(1, keepdims=True), y


def dice(p: Floats, g: Floats, smooth: float) -> float:
    return float(1 - (2 * (p * g).sum() + smooth) / (p.sum() + g.sum() + smooth))


def tversky(p: Floats, g: Floats, alpha: float, beta: float, smooth: float) -> float:
    hits, false_positives, misses = (p * g).sum(), (p * (1 - g)).sum(), ((1 - p) * g).sum()
    return float(1 - (hits + smooth) / (hits + alpha * false_positives + beta * misses + smooth))


def lovasz(p: Floats, g: Floats) -> float:
    """The extension of the set function of Berman et al. (2018), eq. 4 and definition 1."""

    def jaccard_loss(wrong: set[int]) -> float:
        union = {*np.flatnonzero(g)} | wrong
        return len(wrong) / len(union)

    errors = np.where(g == 1, 1 - p, p)
    total, wrong = 0.0, set[int]()
    for pixel in np.argsort(-errors).tolist():
        before = jaccard_loss(wrong)
        wrong = wrong | {pixel}
        total += errors[pixel] * (jaccard_loss(wrong) - before)
    return float(total)


def formula(loss: RegionLoss, logits: Tensor, target: Tensor) -> float:
    if isinstance(loss, Lovasz) and loss.per_image:
        flat = Lovasz(CLASSES)
        counts = [int((image != 255).sum()) for image in target]
        means = [formula(flat, logits[n : n + 1], target[n : n + 1]) for n in range(len(target))]
        return sum(map(math.prod, zip(counts, means, strict=True))) / max(sum(counts), 1)
    p, y = labelled_pixels(logits, target)
    present = np.unique(y)
    weights = np.ones(CLASSES) if loss.class_weights is None else loss.class_weights.double().numpy()
    total = 0.0
    for c in present:
        arguments = p[:, c], (y == c).astype(float)
        if isinstance(loss, Dice):
            total += weights[c] * dice(*arguments, 2 * loss.smooth)
        elif isinstance(loss, Tversky):
            total += weights[c] * tversky(*arguments, loss.alpha, loss.beta, loss.smooth)
        else:
            total += weights[c] * lovasz(*arguments)
    return float(total / weights[present].sum()) if len(present) else 0.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("loss", REGION_LOSSES.values(), ids=REGION_LOSSES)
def test_loss_matches_its_formula(loss: RegionLoss, seed: int) -> None:
    logits, target = batch(seed, ignored=[0.0, 0.1, 0.3, 0.7, 0.96][seed])
    assert mean(loss, logits, target).item() == pytest.approx(formula(loss, logits, target), rel=1e-12)


@pytest.mark.parametrize("loss", REGION_LOSSES.values(), ids=REGION_LOSSES)
def test_classes_that_are_absent_are_no_part_of_the_mean(loss: RegionLoss) -> None:
    logits, target = batch(0)
    target[(target != 255) & (target > 1)] = 0
    assert mean(loss, logits, target).item() == pytest.approx(formula(loss, logits, target), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_lovasz_of_a_hard_prediction_is_one_minus_mean_iou(seed: int) -> None:
    logits, target = batch(seed)
    prediction = logits.argmax(1)
    logits = 1e4 * torch.nn.functional.one_hot(prediction, CLASSES).movedim(-1, 1).double()
    valid, ious = target != 255, []
    for c in target[valid].unique():
        there, predicted = target[valid] == c, prediction[valid] == c
        ious.append(((there & predicted).sum() / (there | predicted).sum()).item())
    assert mean(Lovasz(CLASSES), logits, target).item() == pytest.approx(1 - np.mean(ious), rel=1e-6)


def test_lovasz_is_accurate_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 600, 600, generator=generator)
    target = (torch.rand(1, 600, 600, generator=generator) < 0.3).long()
    logits[:, 1] += 3 * target - 1
    found, expected = (
        torch.autograd.functional.vjp(lambda x: mean(Lovasz(2), x, target), x) for x in (logits, logits.double())
    )
    assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert (found[1] - expected[1]).norm() < 1e-3 * expected[1].norm()


def test_tversky_includes_dice() -> None:
    logits, target = batch(1)
    expected = mean(Dice(CLASSES, smooth=1.0), logits, target)
    torch.testing.assert_close(mean(Tversky(CLASSES, alpha=0.5, beta=0.5, smooth=0.5), logits, target), expected)


@pytest.mark.parametrize("loss", [Dice(CLASSES), Lovasz(CLASSES), Lovasz(CLASSES, per_image=True)], ids=repr)
def test_batch_counts_as_often_as_it_has_labelled_pixels(loss: RegionLoss) -> None:
    logits, target = batch(0)
    total, weight = loss({"out": logits}, target)
    assert weight == (target != 255).sum()
    assert total.item() == pytest.approx(weight.item() * formula(loss, logits, target), rel=1e-12)


def test_lovasz_per_image_does_not_depend_on_the_batch() -> None:
    loss = Lovasz(CLASSES, per_image=True)
    logits, target = batch(0)
    whole = loss({"out": logits}, target)
    parts = [loss({"out": logits[n : n + 1]}, target[n : n + 1]) for n in range(2)]
    torch.testing.assert_close(whole, type(whole)(*map(sum, zip(*parts, strict=True))))


def test_perfect_prediction_has_no_loss() -> None:
    _, target = batch(0)
    labels = target.where(target != 255, 0)
    logits = 1e4 * torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1).float()
    for loss in REGION_LOSSES.values():
        assert mean(loss, logits, target).item() == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Dice(2, smooth=-1.0), "smooth=-1.0: must be greater than or equal to 0"),
        (lambda: Tversky(2, alpha=math.nan), "alpha=nan: must be"),
        (lambda: Tversky(2, class_weights=[1.0]), "class_weights: 1 values for num_classes=2"),
    ],
)
def test_invalid_argument_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        build()
    assert [problem.startswith(message) for problem in caught.value.problems] == [True]


def test_loss_without_a_formula_says_so() -> None:
    class Unfinished(RegionLoss):
        pass

    with pytest.raises(NotImplementedError, match="Unfinished"):
        mean(Unfinished(CLASSES, 255, None, 0.6, 0.4), *batch(0))
