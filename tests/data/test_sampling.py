"""Order of the samples of an epoch, and class-balanced repetition."""

from collections import Counter

import numpy as np
import pytest
import torch

from pspexp.data.sampling import SampleKey, epoch_order, repeat_factors

# Class 0 is in all four images, class 1 in two, class 2 in one.
COUNTS = np.array([[9, 0, 0], [5, 3, 0], [1, 1, 7], [4, 0, 0]])


@pytest.mark.parametrize(
    ("threshold", "expected"), [(1.0, [1, 2**0.5, 2, 1]), (0.5, [1, 1, 2**0.5, 1]), (0.1, [1] * 4)]
)
def test_repeat_factors_are_those_of_lvis(threshold: float, expected: list[float]) -> None:
    np.testing.assert_allclose(repeat_factors(COUNTS, threshold), expected)


def test_images_and_classes_without_pixels_do_not_matter() -> None:
    counts = np.zeros((3, 4), np.int64)
    counts[1, 2] = 1
    np.testing.assert_allclose(repeat_factors(counts, 1.0), [1, 3**0.5, 1])


def test_uniform_order_is_a_permutation_as_ever() -> None:
    seed = int(np.random.SeedSequence([7, 3]).generate_state(1)[0])
    expected = torch.randperm(20, generator=torch.Generator().manual_seed(seed)).tolist()
    assert epoch_order(20, 7, 3) == [SampleKey(3, index) for index in expected]


def test_images_are_taken_in_proportion_to_their_factors() -> None:
    repeats = [1.0] * 80 + [2.5] * 20
    taken = Counter[int]()
    for epoch in range(100):
        order = epoch_order(100, 1, epoch, repeats)
        assert order == epoch_order(100, 1, epoch, repeats)
        assert len(order) == len(set(order)) == 100
        times = Counter(key.index for key in order)
        assert max(times.values()) <= 3
        # A repeated image has another address each time.
        assert {*order} == {SampleKey(epoch, index, repeat) for index, n in times.items() for repeat in range(n)}
        taken += times
    common, rare = (np.mean([taken[index] for index in part]) for part in (range(80), range(80, 100)))
    assert abs(rare / common - 2.5) < 0.2
    assert epoch_order(100, 1, 0, repeats) != epoch_order(100, 2, 0, repeats)
