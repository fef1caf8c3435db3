"""Palette, grey and colour label images are read alike."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspexp.data.file_split import read_label
from pspexp.data.images import read_image
from pspexp.data.label_decoder import LabelDecoder
from pspexp.data.labels import VOC_CLASSES, VOC_COLOURS, colours_to_index
from pspexp.errors import UserError

ANY = LabelDecoder([[value] for value in range(255)], [255], voc_colours=True)
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
    Image.fromarray(LABEL).convert("LA").save(tmp_path / "grey_alpha.png")
    Image.fromarray(LABEL).convert("RGB").save(tmp_path / "equal_channels.png")
    Image.fromarray(LABEL.astype(np.uint16)).save(tmp_path / "16_bit.png")
    Image.fromarray(VOC_COLOURS[LABEL]).save(tmp_path / "rgb.png")
    Image.fromarray(VOC_COLOURS[LABEL]).convert("RGBA").save(tmp_path / "rgba.png")
    for path in sorted(tmp_path.iterdir()):
        decoded = read_label(path, ANY)
        assert not decoded.has_undeclared, path.name
        assert decoded.ids.dtype == np.uint8
        assert decoded.ids.tolist() == LABEL.tolist(), path.name


def test_short_palette_is_read_by_index(tmp_path: Path) -> None:
    label = np.array([[0, 1], [2, 1]], np.uint8)
    path = save_palette(tmp_path / "short.png", label, VOC_COLOURS[:3])
    assert read_label(path, ANY).ids.tolist() == label.tolist()


def test_palette_with_other_colours_is_read_by_index(tmp_path: Path) -> None:
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    label = np.array([[0, 1], [2, 1]], np.uint8)
    assert read_label(save_palette(tmp_path / "own.png", label, colours), ANY).ids.tolist() == label.tolist()


def test_sorted_voc_palette_is_refused(tmp_path: Path) -> None:
    path = save_palette(tmp_path / "sorted.png", np.array([[0, 1]], np.uint8), VOC_COLOURS[[15, 0]])
    with pytest.raises(UserError, match=r"sorted\.png.*index 0 has the colour of VOC's class 15.*convert_voc_label"):
        read_label(path, ANY)


def test_unknown_colours_are_counted(tmp_path: Path) -> None:
    rgb = VOC_COLOURS[LABEL].copy()
    rgb[0, :2] = 1, 2, 3
    Image.fromarray(rgb).save(tmp_path / "odd.png")
    assert read_label(tmp_path / "odd.png", ANY).count(undeclared=True) == {(1, 2, 3): 2}


def test_damaged_files_are_named(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8)).save(good)
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:-200])
    (tmp_path / "text.png").write_text("no image")
    for name in ("cut.png", "text.png", "absent.png"):
        with pytest.raises(UserError, match=name):
            read_label(tmp_path / name, ANY)
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)
