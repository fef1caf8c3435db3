"""COCO's instances cover the pixels that pycocotools draws."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.preparation.annotations import convert, converted, mask, problems, write_json

SQUARE = [2, 2, 6, 2, 6, 5, 2, 5]
AREA = (slice(2, 5), slice(2, 6))  # unlike Pillow's, without the right and lower border
CATEGORIES = [{"id": 7, "name": "tree"}, {"id": 90, "name": "car"}]


def instances(path: Path, *annotations: dict[str, Any], **more: Any) -> Path:
    image = {"id": 5, "file_name": "train/a.jpg", "width": 10, "height": 8}
    defaults = {"image_id": 5, "category_id": 90}
    content = {"images": [image], "categories": CATEGORIES, "annotations": [{**defaults, **a} for a in annotations]}
    return write_json(path, {**content, **more})


def test_without_pycocotools_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    (problem,) = problems("coco", instances(tmp_path / "i.json"), tmp_path)
    assert "pip install 'pspexp[labels]'" in problem


@pytest.fixture
def coco() -> Any:
    return pytest.importorskip("pycocotools.mask")


@pytest.mark.usefixtures("coco")
def test_polygons_without_their_right_and_lower_border(tmp_path: Path) -> None:
    two = [[0, 0, 1, 0, 1, 1, 0, 1], SQUARE]
    found = converted("coco", instances(tmp_path / "i.json", {"segmentation": two}), tmp_path)
    assert found == {"train/a.png": mask(10, 8, (slice(0, 1), slice(0, 1), 1), (*AREA, 1))}
    # Categories are sorted by name, and those without shapes are classes, too.
    assert (tmp_path / "out0/classes.txt").read_text() == "background\ncar\ntree\n"


def test_both_kinds_of_rle(tmp_path: Path, coco: Any) -> None:
    pixels = np.zeros((8, 10), np.uint8, order="F")
    pixels[2:5, 2:6], pixels[6:, 9] = 1, 1
    compressed = coco.encode(pixels)["counts"].decode()
    counts = [18, 3, 5, 3, 5, 3, 5, 3, 33, 2]  # column by column
    for segmentation in ({"size": [8, 10], "counts": counts}, {"size": [8, 10], "counts": compressed}):
        source = instances(tmp_path / "i.json", {"segmentation": segmentation})
        expected = mask(10, 8, (*AREA, 1), (slice(6, 8), slice(9, 10), 1))
        assert converted("coco", source, tmp_path) == {"train/a.png": expected}


def test_every_rle_that_pycocotools_writes_is_read(tmp_path: Path, coco: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 2, (37, 53), np.uint8)
    pixels[:, 10:40] = 1  # runs of more than one character
    segmentation = coco.encode(np.asfortranarray(pixels))
    segmentation["counts"] = segmentation["counts"].decode()
    image = {"id": 5, "file_name": "a.jpg", "width": 53, "height": 37}
    source = instances(tmp_path / "i.json", {"segmentation": segmentation}, images=[image])
    assert converted("coco", source, tmp_path) == {"a.png": pixels.tolist()}


@pytest.mark.usefixtures("coco")
def test_crowds_are_ignored_and_images_without_annotations_are_background(tmp_path: Path) -> None:
    images = [{"id": 5, "file_name": "a.jpg", "width": 10, "height": 8}]
    images += [{"id": 6, "file_name": "b.jpg", "width": 4, "height": 3}]
    crowd = {"size": [8, 10], "counts": [18, 3, 59]}
    source = instances(
        tmp_path / "i.json",
        {"segmentation": [SQUARE], "category_id": 7},
        {"segmentation": crowd, "iscrowd": 1},
        images=images,
    )
    expected = mask(10, 8, (*AREA, 2), (slice(2, 5), slice(2, 3), 255))
    assert converted("coco", source, tmp_path) == {"a.png": expected, "b.png": mask(4, 3)}


@pytest.mark.usefixtures("coco")
def test_category_ids_become_indices_in_the_order_of_the_class_names(tmp_path: Path) -> None:
    source = instances(tmp_path / "i.json", {"segmentation": [SQUARE]}, {"segmentation": [SQUARE], "category_id": 7})
    found = converted("coco", source, tmp_path, class_names=["tree", "bus", "car"], overlap="class")
    assert found == {"train/a.png": mask(10, 8, (*AREA, 3))}


@pytest.mark.usefixtures("coco")
def test_all_problems_are_listed(tmp_path: Path) -> None:
    source = instances(
        tmp_path / "i.json",
        {"segmentation": [[1, 1, 2, 2]], "id": 70},
        {"segmentation": [SQUARE[:-1]]},
        {"segmentation": [[*SQUARE, float("nan"), 0]]},
        {"segmentation": []},
        {"segmentation": {"size": [10, 8], "counts": [80]}},
        {"segmentation": {"size": [8, 10], "counts": [18, 3]}},
        {"segmentation": {"size": [8, 10], "counts": ""}},
        {"segmentation": {"size": [8, 10], "counts": "0é"}},
        {"segmentation": {"size": [8, 10], "counts": "o"}},
        {"segmentation": [SQUARE], "category_id": 8},
        {"segmentation": [SQUARE], "image_id": 9},
    )
    assert problems("coco", source, tmp_path) == [
        f"{source}: annotations.0 (id 70): a polygon needs at least 3 points, not 2; correct or remove it",
        f"{source}: annotations.1: a polygon of 7 numbers: x and y must alternate; correct it",
        f"{source}: annotations.2: coordinate nan is not within ±100,000; correct or remove the shape",
        f"{source}: annotations.3: has no segmentation (a box only?); add polygons or remove it",
        f"{source}: annotations.4: its RLE has 8×10 pixels, but the image 10×8; make them equal",
        f"{source}: annotations.5: its RLE has 21 pixels, but the image 80; export it again",
        f"{source}: annotations.6: its RLE has 0 pixels, but the image 80; export it again",
        f"{source}: annotations.7: its RLE is damaged; export it again",
        f"{source}: annotations.8: its RLE is damaged; export it again",
        f"{source}: annotations.9: category_id 8 is not among the categories; add it or correct it",
        f"{source}: annotations.10: image_id 9 is not among the images; add the image or remove it",
        "nothing was written",
    ]


@pytest.mark.usefixtures("coco")
def test_wrong_files_are_refused(tmp_path: Path) -> None:
    source = instances(tmp_path / "i.json", {"segmentation": 3}, {"segmentation": "text"})
    assert "annotations.0.segmentation.polygons=3: must be a valid" in problems("coco", source, tmp_path)[0]
    assert "images: missing" in problems("coco", write_json(tmp_path / "j.json", {}), tmp_path)[0]
    assert "no object" in problems("coco", write_json(tmp_path / "j.json", []), tmp_path)[0]
    assert "no such file" in problems("coco", tmp_path, tmp_path)[0]


@pytest.mark.usefixtures("coco")
@pytest.mark.parametrize("name", ["../a.jpg", "/tmp/a.jpg", "", "a\n.jpg"])
def test_images_cannot_be_written_outside_the_folder(tmp_path: Path, name: str) -> None:
    source = instances(tmp_path / "i.json", images=[{"id": 5, "file_name": name, "width": 2, "height": 2}])
    assert "is no path within a folder" in problems("coco", source, tmp_path)[0]


@pytest.mark.usefixtures("coco")
def test_images_of_one_name_are_refused(tmp_path: Path) -> None:
    images = [{"id": k, "file_name": f"a.{k}", "width": 2, "height": 2} for k in ("jpg", "png")]
    source = instances(tmp_path / "i.json", images=images)
    assert problems("coco", source, tmp_path)[0] == f"{source}: 2 images would become a.png; rename all but one"
    assert convert("coco", instances(source, images=images[:1]), tmp_path / "out").written == 1
