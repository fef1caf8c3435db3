"""YOLO's segmentation files."""

from pathlib import Path

import pytest
from PIL import Image

from tests.data.preparation.annotations import convert, converted, mask, problems

SQUARE = "0.2 0.25 0.6 0.25 0.6 0.625 0.2 0.625"  # from (2, 2) to (6, 5)
AREA = (slice(2, 6), slice(2, 7))


def write(root: Path, name: str, text: str, suffix: str = ".jpg", size: tuple[int, int] = (10, 8)) -> None:
    for folder in ("labels", "images"):
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
    (root / f"labels/{name}.txt").write_text(text)
    Image.new("RGB", size).save(root / f"images/{name}{suffix}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "in", "train/a", f"1 {SQUARE}\n\n0 0 0 0.1 0 0.1 0.125 0 0.125\n")
    write(tmp_path / "in", "train/b", "", ".tiff", (3, 2))
    return tmp_path / "in"


def test_class_k_has_index_k_plus_1(root: Path, tmp_path: Path) -> None:
    options = {"images": root / "images"}
    corner = slice(0, 2), slice(0, 2)
    expected = {"train/a.png": mask(10, 8, (*AREA, 2), (*corner, 1)), "train/b.png": mask(3, 2)}
    assert converted("yolo", root / "labels", tmp_path, **options) == expected
    assert (tmp_path / "out0/classes.txt").read_text() == "background\nclass 0\nclass 1\n"
    expected = {"train/a.png": mask(10, 8, (*AREA, 1), (*corner, 0), start=255), "train/b.png": mask(3, 2, start=255)}
    assert converted("yolo", root / "labels", tmp_path, background=False, **options) == expected


@pytest.mark.parametrize("place", ["labels", ".", "labels/train"])
@pytest.mark.parametrize("names", ["[zebra, car]", "{0: zebra, 1: car}", "\n  - zebra\n  - car"])
def test_names_in_data_yaml(root: Path, tmp_path: Path, names: str, place: str) -> None:
    (root / place / "data.yaml").write_text(f"train: ../images\nnames: {names}\nnc: 2\n")
    source, images = (root / "labels/train", root / "images/train")
    done = convert("yolo", source, tmp_path / "out", images=images)
    assert done.class_names == ["background", "zebra", "car"]
    done = convert("yolo", source, tmp_path / "other", images=images, class_names=["car", "zebra"])
    assert done.pixels[1:3].tolist() == [20, 4]


def test_class_names_without_data_yaml(root: Path, tmp_path: Path) -> None:
    for given in (["zebra", "car"], ["background", "zebra", "car"]):
        done = convert("yolo", root / "labels", tmp_path / "out", images=root / "images", class_names=given)
        assert done.class_names == ["background", "zebra", "car"]
        assert done.pixels[1:3].tolist() == [4, 20]


def test_all_problems_are_listed(root: Path, tmp_path: Path) -> None:
    lines = [
        "0 0.1 0.1 0.2 0.2",
        "x 0 0 1 1 0 1",
        "0 0 0 1 1 0",
        "-1 0 0 1 1 0 1",
        "0 0 0 nan 1 0 1",
        f"9 {SQUARE}",
        "0 10 10 50 10 50 50",
    ]
    write(root, "train/a", "\n".join([*lines, "0 0 0"]))
    (root / "labels/train/c.txt").write_text(f"0 {SQUARE}")
    write(root, "d", "")
    Image.new("RGB", (2, 2)).save(root / "images/d.png")
    (root / "labels/classes.txt").write_text("zebra")  # written by some tools, no annotation
    found = problems("yolo", root / "labels", tmp_path, images=root / "images", class_names=["car"])
    path = root / "labels/train/a.txt"
    assert found == [
        f"{root / 'labels/d.txt'}: {root / 'images'} contains several images d.*; there must be one",
        f"{path}: line 1: 4 numbers are a box, no polygon; use the segmentation export",
        f"{path}: line 2: 'x 0 0 1 1 0 1' is not a class number and numbers; correct it",
        f"{path}: line 3: 5 numbers: x and y must alternate; correct it",
        f"{path}: line 4: class -1 is negative; correct it",
        f"{path}: line 5: coordinate nan is not within ±100,000; correct or remove the shape",
        f"{path}: line 7: 10 is no fraction of the image's width or height, from 0 to 1; export it normalised",
        f"{path}: line 8: a polygon needs at least 3 points, not 1; correct or remove it",
        f"{root / 'labels/train/c.txt'}: {root / 'images'} contains no image train/c.*; there must be one",
        f"class 9 has no name in --class_names: 1 shape in 1 file: {path}; add it there or correct them",
        "nothing was written",
    ]


def test_images_are_needed(root: Path, tmp_path: Path) -> None:
    assert "--images None: no such folder" in problems("yolo", root / "labels", tmp_path)[0]
    (root / "data.yaml").write_text("names: 3\n")
    found = problems("yolo", root / "labels", tmp_path, images=root / "images")
    assert "data.yaml: its names cannot be read" in found[0]
    (root / "data.yaml").write_text("names: [a\n")
    assert (
        "data.yaml: its names cannot be read" in problems("yolo", root / "labels", tmp_path, images=root / "images")[0]
    )
