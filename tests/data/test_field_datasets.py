"""The field's data sets: each YAML file reads the layout as downloaded, and follows the protocol."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

import pspexp
from pspexp.data.labels import VOC_CLASSES, VOC_COLOURS
from tests.data import field_trees as trees


class Field(NamedTuple):
    make: Callable[[Path], Path]
    train: list[str]
    val: list[str]
    classes: int
    label: list[int]  # first ids of each label
    named: dict[int, str]  # some of the class names


def voc2012_aug(root: Path) -> Path:
    trees.voc2012(root)
    (root / "ImageSets/Segmentation/trainaug.txt").write_text("2007_000032\n2008_000002\n")
    for name in [*trees.VOC_TRAIN, *trees.VOC_VAL, "2008_000002"]:
        trees.label(root / f"SegmentationClassAug/{name}.png", [0, 15, 255], palette=True)
    return root


FIELDS = {
    "cityscapes": Field(
        trees.cityscapes, trees.CITY_TRAIN, trees.CITY_VAL, 19, [0, 1, 18, 255, 255, 255],
        {0: "road", 6: "traffic light", 12: "rider", 13: "car", 18: "bicycle"},
    ),
    "ade20k": Field(
        trees.ade20k, trees.ADE_TRAIN, trees.ADE_VAL, 150, [255, 0, 149, 89],
        {0: "wall", 12: "person", 89: "television", 130: "screen", 149: "flag"},
    ),
    "voc2012_aug": Field(
        voc2012_aug, ["2007_000032", "2008_000002"], trees.VOC_VAL, 21, [0, 15, 255],
        dict(enumerate(VOC_CLASSES)),
    ),
    "cocostuff164k": Field(
        trees.cocostuff164k, trees.STUFF_TRAIN, trees.STUFF_VAL, 171, [0, 10, 11, 170, 255, 255],
        {0: "person", 10: "fire hydrant", 11: "stop sign", 79: "toothbrush", 80: "banner", 170: "wood"},
    ),
    "cocostuff10k": Field(
        lambda root: trees.cocostuff10k(root, masks=True), trees.STUFF10K["train"], trees.STUFF10K["test"], 171,
        [255, 0, 10, 11, 170],
        {0: "person", 10: "fire hydrant", 11: "stop sign", 79: "toothbrush", 80: "banner", 170: "wood"},
    ),
}  # fmt: skip


def built(name: str, root: Path) -> Any:
    return pspexp.build(pspexp.compose([f"dataset={name}", f"dataset.root={root}"]).dataset)


@pytest.mark.parametrize("name", FIELDS)
def test_official_layout_is_read(tmp_path: Path, name: str) -> None:
    field = FIELDS[name]
    dataset = built(name, field.make(tmp_path))
    assert dataset.open("train").names == field.train
    assert dataset.open("val").names == dataset.open("test").names == field.val
    for split in ("train", "val"):
        image, label = dataset.open(split)[0]
        assert (image.size, label.size) == (trees.SIZE, trees.SIZE)
        assert np.asarray(label).ravel()[: len(field.label)].tolist() == field.label


@pytest.mark.parametrize("name", FIELDS)
def test_classes_are_complete_and_have_colours(tmp_path: Path, name: str) -> None:
    config = pspexp.compose([f"dataset={name}", f"dataset.root={tmp_path}"])
    info = pspexp.build(config.dataset).info
    assert config.model.num_classes == info.num_classes == len({*info.class_names}) == FIELDS[name].classes
    assert {index: info.class_names[index] for index in FIELDS[name].named} == FIELDS[name].named
    assert info.palette.shape == (info.num_classes, 3)
    assert all(class_name == class_name.strip() for class_name in info.class_names)


@pytest.mark.parametrize(
    ("name", "ignored", "refused"),
    [
        ("cityscapes", [0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255], 34),
        ("ade20k", [0], 151),
        ("voc2012_aug", [255], 21),
        ("cocostuff164k", [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90, 255], 182),
        ("cocostuff10k", [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91], 183),
    ],
)
def test_values_of_no_class_are_ignored_and_others_are_refused(
    tmp_path: Path, name: str, ignored: list[int], refused: int
) -> None:
    decoder = built(name, tmp_path).decoder
    values = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    decoded = decoder.decode(values)
    known = ~decoded.undeclared[0]
    assert np.flatnonzero(known & (decoded.ids[0] == 255)).tolist() == ignored
    classes = [int(index) for index in decoded.ids[0][known & (decoded.ids[0] != 255)]]
    assert classes == list(range(FIELDS[name].classes))  # in the order of their values
    assert not known[refused]


def test_colours_are_the_official_ones(tmp_path: Path) -> None:
    cityscapes = built("cityscapes", tmp_path).info
    assert cityscapes.palette[[0, 10, 18]].tolist() == [[128, 64, 128], [70, 130, 180], [119, 11, 32]]
    assert built("ade20k", tmp_path).info.palette[[0, 149]].tolist() == [[120, 120, 120], [92, 0, 255]]
    assert built("voc2012_aug", tmp_path).info.palette.tolist() == VOC_COLOURS[:21].tolist()
