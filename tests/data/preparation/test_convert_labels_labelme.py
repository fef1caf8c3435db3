"""Labelme's shapes cover the pixels that labelme itself draws."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.preparation.annotations import converted, labelme, mask, problems, write_json

Areas = tuple[slice, slice, int]


@pytest.mark.parametrize(
    ("kind", "points", "area"),
    [  # Pillow includes the border
        ("polygon", [[2, 2], [6, 2], [6, 5], [2, 5]], (slice(2, 6), slice(2, 7))),
        (None, [[2, 2], [6, 2], [6, 5], [2, 5]], (slice(2, 6), slice(2, 7))),
        ("oriented_rectangle", [[2, 2], [6, 2], [6, 5], [2, 5]], (slice(2, 6), slice(2, 7))),
        ("rectangle", [[2, 2], [6, 5]], (slice(2, 6), slice(2, 7))),
        ("rectangle", [[6, 5], [2, 2]], (slice(2, 6), slice(2, 7))),
        ("line", [[0, 10], [29, 10]], (slice(6, 16), slice(0, 30))),  # 10 pixels wide
        ("linestrip", [[-20, 10], [10, 10], [50, 10]], (slice(6, 16), slice(0, 30))),
    ],
)
def test_shapes_of_straight_lines(tmp_path: Path, kind: str, points: Any, area: tuple[slice, slice]) -> None:
    labelme(tmp_path / "in/a.json", ("car", kind, points), width=30, height=24)
    assert converted("labelme", tmp_path / "in", tmp_path) == {"a.png": mask(30, 24, (*area, 1))}


def test_circle_and_point(tmp_path: Path) -> None:
    labelme(tmp_path / "in/circle.json", ("car", "circle", [[3, 3], [3, 5]]), width=8, height=7)
    labelme(tmp_path / "in/point.json", ("car", "point", [[6, 6]]), width=13, height=13)
    found = converted("labelme", tmp_path / "in", tmp_path)
    assert found["circle.png"] == [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
    point = np.array(found["point.png"])  # radius 5
    assert point[6].tolist() == point[:, 6].tolist() == [0, *[1] * 11, 0]
    assert np.array_equal(point, point.T)
    assert not point[1:3, 1:3].any()


def test_names_are_relative_to_the_folder(tmp_path: Path) -> None:
    for name in ("a", "b.c", "deep/er/a"):
        labelme(tmp_path / f"in/{name}.json", width=2, height=1)
    (tmp_path / "in/._a.json").write_text("resource fork")
    (tmp_path / "in/.trash").mkdir()
    (tmp_path / "in/.trash/a.json").write_text("hidden")
    assert list(converted("labelme", tmp_path / "in", tmp_path)) == ["a.png", "b.c.png", "deep/er/a.png"]


def encoded(pixels: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def masked(path: Path, points: Any, pixels: np.ndarray) -> None:
    shape = {"label": "car", "shape_type": "mask", "points": points, "mask": encoded(pixels)}
    write_json(path, {"shapes": [shape], "imageWidth": 6, "imageHeight": 4})


def test_masks_lie_between_their_points_and_are_clipped(tmp_path: Path) -> None:
    pixels = np.array([[1, 0, 1], [1, 1, 0]], np.uint8)
    masked(tmp_path / "in/inside.json", [[2, 1], [4, 2]], pixels)
    masked(tmp_path / "in/bool.json", [[2, 1], [4, 2]], pixels.astype(bool))
    masked(tmp_path / "in/clipped.json", [[-1, 3], [1, 4]], pixels)
    masked(tmp_path / "in/fraction.json", [[1.6, 0.8], [4.7, 2.3]], pixels)
    inside = [[0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 1, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]]
    assert converted("labelme", tmp_path / "in", tmp_path) == {
        "inside.png": inside,
        "bool.png": inside,
        "fraction.png": inside,
        "clipped.png": [*[[0] * 6] * 3, [0, 1, 0, 0, 0, 0]],
    }


def test_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    masked(tmp_path / "in/size.json", [[2, 1], [5, 2]], np.ones((2, 3), np.uint8))
    masked(tmp_path / "in/points.json", [[2, 1]], np.ones((2, 3), np.uint8))
    shape = {"label": "car", "shape_type": "mask", "points": [[0, 0], [1, 1]], "mask": "no base64"}
    write_json(tmp_path / "in/text.json", {"shapes": [shape], "imageWidth": 6, "imageHeight": 4})
    found = problems("labelme", tmp_path / "in", tmp_path)
    assert "a mask needs 2 points, not 1" in found[0]
    assert "its mask has 3×2 pixels, but its points span 4×2" in found[1]
    assert "its mask is not a PNG in base64" in found[2]


def test_a_missing_size_is_read_from_the_image(tmp_path: Path) -> None:
    (tmp_path / "in/images").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90°, as labelme shows it
    Image.new("RGB", (3, 5)).save(tmp_path / "in/images/a.jpg", exif=exif)
    labelme(tmp_path / "in/a.json", imageWidth=None, imageHeight=None, imagePath="images\\a.jpg")
    assert converted("labelme", tmp_path / "in", tmp_path) == {"a.png": mask(5, 3)}
    labelme(tmp_path / "in/b.json", imageWidth=None, imagePath="images/b.jpg")
    labelme(tmp_path / "in/c.json", imageWidth=None, imagePath=None)
    found = problems("labelme", tmp_path / "in", tmp_path)
    assert "b.json: imageWidth or imageHeight is missing, and" in found[0]
    assert "images/b.jpg: its size cannot be read" in found[0]
    assert "there is no imagePath; add them" in found[1]
