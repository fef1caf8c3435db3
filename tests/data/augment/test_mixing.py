"""CutMix and ClassMix paste image and label alike."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspexp.data.augment.mixing import Mixing
from pspexp.data.bands import Bands


def constant(value: int, bands: int = 3, side: int = 24) -> Any:
    """Image and label of one value."""
    pixels = np.full((side, side, bands), value, np.uint8)
    image = Image.fromarray(pixels) if bands == 3 else Bands.from_array(pixels)
    return image, Image.new("L", (side, side), value)


def stripes(*values: int, side: int = 24) -> Any:
    """Image and label of horizontal stripes."""
    rows = np.array(values, np.uint8).repeat(side // len(values))
    label = np.broadcast_to(rows[:, None], (side, side)).copy()
    return Image.fromarray(label[..., None].repeat(3, 2)), Image.fromarray(label)


@pytest.mark.parametrize("bands", [3, 5])
def test_cutmix_pastes_a_rectangle(bands: int) -> None:
    mixing, shares = Mixing("cutmix", 1.0, 255), []
    for seed in range(200):
        image, label = mixing(constant(1, bands), constant(2, bands), np.random.default_rng(seed))
        ids = np.asarray(label)
        assert (np.asarray(image) == ids[..., None]).all()
        rows, columns = np.nonzero(ids == 2)
        shares.append((ids == 2).mean())
        if len(rows):
            assert (ids[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == 2).all()
    assert 0.2 < np.mean(shares) < 0.4  # half of the image, less what is cut off at its borders
    assert min(shares) < 0.02
    assert max(shares) > 0.7


def test_classmix_pastes_half_of_the_classes() -> None:
    mixing, chosen = Mixing("classmix", 1.0, 255), []
    for seed in range(100):
        image, label = mixing(constant(9), stripes(0, 1, 2, 255, 3, 4), np.random.default_rng(seed))
        assert (np.asarray(image)[..., 0] == np.asarray(label)).all()
        pasted = sorted({*np.unique(label).tolist()} - {9})
        assert len(pasted) == 3  # of five; never the ignored pixels
        assert all((np.asarray(label) == value).sum() == 24 * 4 for value in pasted)
        chosen += pasted
    assert all(40 < chosen.count(value) < 80 for value in range(5))


def test_nothing_is_pasted_from_an_unlabelled_sample() -> None:
    sample = stripes(0, 1)
    found = Mixing("classmix", 1.0, 255)(sample, constant(255), np.random.default_rng(0))
    assert [part.tobytes() for part in found] == [part.tobytes() for part in sample]
