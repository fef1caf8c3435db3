"""Counted pixels, compared with the arrays that were written."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspexp.data import pixel_counts as module
from pspexp.data.cache import SampleCache
from pspexp.data.file_split import FileSplit
from pspexp.data.inspection import cache, collect
from pspexp.data.inspection.quick import file_splits
from pspexp.data.label_decoder import LabelDecoder
from pspexp.data.label_values import parse_label_values
from pspexp.data.pixel_counts import pixel_counts
from pspexp.data.shapes import ShapesSplit
from pspexp.data.splits import SampleFiles
from pspexp.data.workers import worker_context
from pspexp.utils import progress


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "cache_folder", lambda part: tmp_path / "cache")


def write(folder: Path, number: int, num_classes: int = 3) -> tuple[FileSplit, np.ndarray]:
    """A split with ``number`` label files of different sizes, and its counts."""
    rng, samples, expected = np.random.default_rng(0), [], []
    for index in range(number):
        label = rng.choice([0, 10, 20, 255], (4 + index, 7)).astype(np.uint8)
        if index == 1:
            label[label == 20] = 255  # a class is absent
        paths = folder / f"{index}.jpg", folder / f"{index}.png"  # the images are never written: they are not read
        Image.fromarray(label).save(paths[1])
        samples.append(SampleFiles(str(index), *paths))
        expected.append([(label == value).sum() for value in (0, 10, 20)])
    classes, ignored = parse_label_values([0, 10, 20], (255,), num_classes)
    return FileSplit(samples, LabelDecoder(classes, ignored)), np.array(expected)


def test_labels_are_counted_by_image_and_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    split, expected = write(tmp_path, 5)
    found = pixel_counts(split, 3)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


def test_label_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, expected = write(tmp_path, 3)
    pixel_counts(split, 3)
    monkeypatch.setattr(collect, "read_mask_facts", lambda *_: pytest.fail("read again"))
    np.testing.assert_array_equal(pixel_counts(split, 3), expected)


def test_damaged_label_counts_as_unlabelled(tmp_path: Path) -> None:
    split, expected = write(tmp_path, 3)
    split.samples[1].mask.write_bytes(b"nothing")
    expected[1] = 0
    np.testing.assert_array_equal(pixel_counts(split, 3), expected)


@pytest.mark.parametrize("number", [3, 20])  # in this process, and with workers
def test_samples_without_files_are_counted(number: int) -> None:
    split = ShapesSplit("train", number, 32, seed=0, ignore_index=255)
    expected = [
        [(np.asarray(label) == index).sum() for index in range(5)] for _, label in map(split.__getitem__, range(number))
    ]
    np.testing.assert_array_equal(pixel_counts(split, 5), expected)


class Own(ShapesSplit):
    """A split of the user's own with an attribute that happens to have the name of the cache's."""

    source = "/data/x"


def test_splits_of_ones_own_may_have_any_attributes() -> None:
    split = Own("train", 3, 32, seed=0, ignore_index=255)
    expected = pixel_counts(ShapesSplit("train", 3, 32, seed=0, ignore_index=255), 5)
    cached = SampleCache(1, worker_context()).wrap(split)
    for one in (split, cached):
        np.testing.assert_array_equal(pixel_counts(one, 5), expected)
    assert file_splits({"train": split, "val": cached}) == {}


def test_long_count_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SLOW_S", 1e-9)
    split, _ = write(tmp_path, 2)
    with caplog.at_level(logging.INFO):
        pixel_counts(split, 3)
    assert "counting labelled pixels  image 2/2 (100 %)" in caplog.text
