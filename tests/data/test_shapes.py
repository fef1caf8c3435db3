"""Generated data: reproducible on all machines, with all classes."""

import hashlib
from typing import Any

import numpy as np
import pytest

from pspexp.data.shapes import SHAPES_CLASSES, ShapesDataset
from pspexp.errors import UserError


def make_source(**changes: Any) -> ShapesDataset:
    arguments: dict[str, Any] = {
        "num_classes": 5,
        "class_names": SHAPES_CLASSES,
        "ignore_index": 255,
        "train_split": "train",
        "val_split": "val",
        "test_split": "val",
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "num_train": 12,
        "num_val": 5,
        "image_size": 64,
        "seed": 0,
    }
    return ShapesDataset(**{**arguments, **changes})


def test_images_are_the_same_on_every_platform() -> None:
    image, label = make_source().open("train")[3]
    digest = hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()
    assert digest == "b9176d0f537b9557a0d7cd3eac7e350f027796000ba1e4910b61a6e5a7d4106c"


def test_images_depend_on_seed_split_and_index() -> None:
    source = make_source()
    images = [source.open("train")[0], source.open("train")[1], source.open("val")[0]]
    images.append(make_source(seed=1).open("train")[0])
    assert len({image.tobytes() for image, _ in images}) == 4
    assert source.open("train")[0][0].tobytes() == images[0][0].tobytes()


def test_all_classes_and_boundaries_occur() -> None:
    source = make_source(num_train=60)
    labels = [np.asarray(label) for _, label in map(source.open("train").__getitem__, range(60))]
    counts = np.bincount(np.concatenate(labels, None), minlength=256)[[0, 1, 2, 3, 4, 255]]
    assert counts.sum() == 60 * 64 * 64
    assert (counts > 0).all()
    assert 0.5 < counts[0] / counts.sum() < 0.8
    assert counts[5] / counts.sum() < 0.1


def test_boundaries_separate_the_classes() -> None:
    for _, label in (make_source().open("train")[index] for index in range(12)):
        ids = np.asarray(label).astype(int)
        below, above = ids[1:], ids[:-1]
        assert ((below == above) | (below == 255) | (above == 255)).all()


def test_split_lengths_and_roles() -> None:
    source = make_source(test_split="train")
    assert [len(source.open(role)) for role in ("train", "val", "test")] == [12, 5, 12]
    assert source.open("val").names[1] == "val_00001"
    with pytest.raises(IndexError):
        source.open("val")[5]


def test_invalid_settings_are_reported_together() -> None:
    with pytest.raises(UserError) as caught:
        make_source(val_split="vall", image_size=8, num_train=0, seed=-1)
    text = str(caught.value)
    for part in ("val_split=vall: must be 'train' or 'val'", "image_size=8", "num_train=0", "seed=-1"):
        assert part in text


def test_fingerprint_identifies_the_images() -> None:
    first = make_source().open("train").fingerprint()
    assert make_source(val_split="train").open("val").fingerprint() == first
    others = [make_source(**change).open("train") for change in ({"seed": 9}, {"image_size": 60}, {"num_train": 11})]
    assert len({first, make_source().open("val").fingerprint(), *(split.fingerprint() for split in others)}) == 5
