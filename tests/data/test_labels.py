"""Palette, grey and colour label images are read alike."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspexp.data.images import read_image
from pspexp.data.labels import VOC_CLASSES, VOC_COLOURS, colours_to_index, read_label
from pspexp.errors import UserError

LABEL = np.array([[0, 1, 2, 15], [20, 255, 7, 0]], np.uint8)


def save_palette(path: Path, label: np.ndarray, colours: np.ndarray = VOC_COLOURS) -> Path:
    image = Image.fromarray(label)
    image.putpalette(colours.tobytes())
    image.save(path)
    return path


@pytest.mark.parametrize(
    ("index", "colour"),
    [(0, (0, 0, 0)), (1, (128, 0, 0)), (11, (192, 128, 0)), (15, (192, 128, 128)), (255, (224, 224, 192))],
)
def test_colours_match_the_voc_devkit(index: int, colour: tuple[int, int, int]) -> None:
    assert tuple(VOC_COLOURS[index]) == colour


def test_voc_has_21_class_names() -> None:
    assert len(set(VOC_CLASSES)) == 21
    assert VOC_CLASSES[0] == "background"
    assert VOC_CLASSES[20] == "tvmonitor"


def test_only_voc_colours_have_an_index() -> None:
    assert colours_to_index(VOC_COLOURS).tolist() == list(range(256))
    others = np.array([[1, 0, 0], [128, 0, 1], [255, 255, 255], [0, 0, 32]], np.uint8)
    assert colours_to_index(others).tolist() == [-1] * 4


def test_all_kinds_of_label_images_give_the_same_labels(tmp_path: Path) -> None:
    save_palette(tmp_path / "palette.png", LABEL)
    Image.fromarray(LABEL).save(tmp_path / "grey.png")
    Image.fromarray(VOC_COLOURS[LABEL]).save(tmp_path / "rgb.png")
    Image.fromarray(VOC_COLOURS[LABEL]).convert("RGBA").save(tmp_path / "rgba.png")
    for path in sorted(tmp_path.iterdir()):
        label = read_label(path)
        assert label.dtype == np.uint8
        assert label.tolist() == LABEL.tolist(), path.name


def test_short_palette_is_read_by_index(tmp_path: Path) -> None:
    label = np.array([[0, 1], [2, 1]], np.uint8)
    path = save_palette(tmp_path / "short.png", label, VOC_COLOURS[:3])
    assert read_label(path).tolist() == label.tolist()


def test_palette_with_other_colours_is_read_by_index(tmp_path: Path) -> None:
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    label = np.array([[0, 1], [2, 1]], np.uint8)
    assert read_label(save_palette(tmp_path / "own.png", label, colours)).tolist() == label.tolist()


def test_sorted_voc_palette_is_refused(tmp_path: Path) -> None:
    path = save_palette(tmp_path / "sorted.png", np.array([[0, 1]], np.uint8), VOC_COLOURS[[15, 0]])
    with pytest.raises(UserError, match=r"sorted\.png.*index 0 has the colour of VOC's class 15.*convert_voc_label"):
        read_label(path)


def test_unknown_colours_are_named(tmp_path: Path) -> None:
    rgb = VOC_COLOURS[LABEL].copy()
    rgb[0, :2] = 1, 2, 3
    Image.fromarray(rgb).save(tmp_path / "odd.png")
    with pytest.raises(UserError, match=r"odd\.png: 1 colour.*\(1, 2, 3\) \(2 pixels\)"):
        read_label(tmp_path / "odd.png")


@pytest.mark.parametrize("mode", ["1", "I;16", "LA"])
def test_ambiguous_label_images_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "odd.png")
    with pytest.raises(UserError, match=r"odd\.png: a label must be"):
        read_label(tmp_path / "odd.png")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8)).save(good)
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:-200])
    (tmp_path / "text.png").write_text("no image")
    for name in ("cut.png", "text.png", "absent.png"):
        with pytest.raises(UserError, match=name):
            read_label(tmp_path / name)
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)
