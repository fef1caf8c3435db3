"""The first images of a split."""

from pathlib import Path

import numpy as np
import pytest

from pspexp.data.dataset import Split
from pspexp.data.file_split import FileSplit
from pspexp.data.label_decoder import LabelDecoder
from pspexp.data.shapes import ShapesSplit
from pspexp.data.splits import SampleFiles
from pspexp.data.subset import first_images


def shapes() -> ShapesSplit:
    return ShapesSplit("train", 5, 48, 0, 255)


def files() -> FileSplit:
    samples = [SampleFiles(name, Path(f"{name}.jpg"), Path(f"{name}.png")) for name in "abcde"]
    return FileSplit(samples, LabelDecoder([[0], [1]], [255]), max_pixels=7, num_bands=4)


@pytest.mark.parametrize("split", [shapes(), files()], ids=["shapes", "files"])
def test_first_images_are_a_split_of_their_own(split: Split) -> None:
    first = first_images(split, 2)
    assert (len(first), list(first.names)) == (2, list(split.names)[:2])
    assert first.fingerprint() == first_images(split, 2).fingerprint()
    assert len({split.fingerprint(), first.fingerprint(), first_images(split, 3).fingerprint()}) == 3
    with pytest.raises(IndexError):
        first[2]


@pytest.mark.parametrize("number", [None, 5, 6])
def test_all_images_are_the_split_itself(number: int | None) -> None:
    assert first_images(split := shapes(), number) is split


def test_samples_are_those_of_the_split() -> None:
    for kept, original in zip(first_images(shapes(), 2)[1], shapes()[1], strict=True):
        np.testing.assert_array_equal(kept, original)


def test_files_remain_files() -> None:
    first = first_images(files(), 2)
    assert isinstance(first, FileSplit)
    assert (first.samples, first.max_pixels, first.num_bands) == (files().samples[:2], 7, 4)
