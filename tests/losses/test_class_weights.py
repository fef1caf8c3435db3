"""Class weights from numbers of pixels, compared with the formulas, and the names of their methods."""

import numpy as np
import pytest
import torch

from pspexp.errors import ArgumentError
from pspexp.losses import CrossEntropy
from pspexp.losses.class_weights import weights_from_counts
from tests.losses.examples import batch, mean

COUNTS = np.array([[60, 30, 10, 0], [50, 0, 0, 0], [20, 70, 0, 0]])
# Shares in the images with the class: 130/240, 100/190, 10/100.
MEDIAN = [(100 / 190) / (130 / 240), 1.0, (100 / 190) / (10 / 100)]
INVERSE = [1 / 130, 1 / 100, 1 / 10]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("median_frequency", MEDIAN),
        ("sqrt_median_frequency", [weight**0.5 for weight in MEDIAN]),
        ("auto", [weight**0.5 for weight in MEDIAN]),
        ("inverse", [weight / (sum(INVERSE) / 3) for weight in INVERSE]),
    ],
)
def test_weights_match_the_formula_and_are_one_for_absent_classes(method: str, expected: list[float]) -> None:
    found = weights_from_counts(COUNTS, method)
    assert found == pytest.approx([*expected, 1.0], rel=1e-5)
    assert found == [float(f"{weight:.6g}") for weight in found]


def test_no_pixels_at_all_give_equal_weights() -> None:
    assert weights_from_counts(np.zeros((2, 3), np.int64), "auto") == [1.0, 1.0, 1.0]


def test_weights_that_were_not_counted_are_not_used() -> None:
    logits, target = batch(0)
    loss = CrossEntropy(4, class_weights="auto")  # can be built: prediction does not use it
    with pytest.raises(ArgumentError, match="class_weights=auto: not counted; give one weight for each class, or null"):
        mean(loss, logits, target)


def test_misspelt_method_is_refused() -> None:
    with pytest.raises(ArgumentError) as caught:
        CrossEntropy(4, class_weights="median_frequencies")
    assert caught.value.problems == (
        "class_weights=median_frequencies: must be null, a list with one weight for each class, auto, "
        "sqrt_median_frequency, median_frequency or inverse; did you mean 'median_frequency'?",
    )


def test_numbers_are_still_checked_one_by_one() -> None:
    assert torch.equal(CrossEntropy(2, class_weights=[1, 0.5]).class_weights, torch.tensor([1.0, 0.5]))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError) as caught:
        CrossEntropy(2, class_weights=[1.0, -2.0])
    assert caught.value.problems == ("class_weights.1=-2.0: must be greater than or equal to 0",)
