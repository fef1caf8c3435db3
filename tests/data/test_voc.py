"""The VOC layout: root folders, protocols, and messages about missing files."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspexp.data.class_files import read_class_names
from pspexp.data.labels import VOC_CLASSES, VOC_COLOURS
from pspexp.data.voc import VocDataset
from pspexp.errors import UserError

LABEL = np.array([[0, 1, 20, 255], [0, 15, 15, 0]], np.uint8)


def make_tree(folder: Path, train: int = 2, label: np.ndarray = LABEL) -> Path:
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    names = [f"{number:06d}" for number in range(train + 1)]
    for name in names:
        Image.new("RGB", (4, 2), (10, 20, 30)).save(folder / "JPEGImages" / f"{name}.jpg")
        palette = Image.fromarray(label)
        palette.putpalette(VOC_COLOURS.tobytes())
        palette.save(folder / "SegmentationClass" / f"{name}.png")
    (folder / "ImageSets/Segmentation/train.txt").write_text("\n".join(names[:train]) + "\n\n")
    (folder / "ImageSets/Segmentation/val.txt").write_text(names[-1])
    return folder


def make_source(root: Path, **changes: Any) -> VocDataset:
    arguments: dict[str, Any] = {
        "root": str(root),
        "num_classes": 20,
        "class_names": VOC_CLASSES[1:],
        "ignore_index": 255,
        "train_split": "train",
        "val_split": "val",
        "test_split": "val",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "subfolder": "VOC2007",
        "reduce_zero_label": True,
    }
    return VocDataset(**{**arguments, **changes})


@pytest.mark.parametrize("root", [".", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_root_may_be_any_of_three_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    make_tree(tmp_path / "VOCdevkit/VOC2007")
    assert list(make_source(tmp_path / root).open("train").names) == ["000000", "000001"]
    monkeypatch.chdir(tmp_path / root)
    assert len(make_source(Path()).open("val")) == 1


def test_reference_protocol_ignores_background_and_boundary(tmp_path: Path) -> None:
    make_tree(tmp_path / "VOC2007")
    source = make_source(tmp_path)
    image, label = source.open("train")[1]
    assert image.mode == "RGB"
    assert np.asarray(label).tolist() == [[255, 0, 19, 255], [255, 14, 14, 255]]
    assert source.info.palette.tolist() == VOC_COLOURS[1:21].tolist()


def test_background_can_be_a_class(tmp_path: Path) -> None:
    make_tree(tmp_path / "VOC2007")
    source = make_source(tmp_path, num_classes=21, class_names=VOC_CLASSES, reduce_zero_label=False)
    assert np.asarray(source.open("val")[0][1]).tolist() == LABEL.tolist()


@pytest.mark.parametrize("reduce_zero_label", [True, False])
def test_ignored_pixels_get_the_ignore_index(tmp_path: Path, reduce_zero_label: bool) -> None:
    make_tree(tmp_path / "VOC2007")
    names = VOC_CLASSES[reduce_zero_label:]
    source = make_source(
        tmp_path,
        class_names=names,
        num_classes=len(names),
        ignore_index=200,
        reduce_zero_label=reduce_zero_label,
    )
    label = np.asarray(source.open("train")[0][1])
    assert label[0, 3] == 200
    assert label[0, 0] == (200 if reduce_zero_label else 0)


def test_grey_labels_take_precedence_over_palette_labels(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "VOC2007")
    (tree / "SegmentationClassGray").mkdir()
    grey = np.full_like(LABEL, 3)
    Image.fromarray(grey).save(tree / "SegmentationClassGray/000001.png")
    split = make_source(tmp_path).open("train")
    assert np.asarray(split[0][1])[0, 1] == 0
    assert np.asarray(split[1][1]).tolist() == (grey - 1).tolist()


def test_splits_are_picklable(tmp_path: Path) -> None:
    make_tree(tmp_path / "VOC2007")
    split = pickle.loads(pickle.dumps(make_source(tmp_path).open("train")))
    assert split[0][1].size == (4, 2)


def test_roles_map_to_split_files(tmp_path: Path) -> None:
    make_tree(tmp_path / "VOC2007")
    source = make_source(tmp_path, test_split="train")
    assert [len(source.open(role)) for role in ("train", "val", "test")] == [2, 1, 2]


def test_wrong_root_names_all_searched_places(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.root=.*VOC2007.*VOCdevkit/VOC2007.*prepare_voc"):
        make_source(tmp_path).open("train")


def test_misspelt_split_gets_a_suggestion(tmp_path: Path) -> None:
    make_tree(tmp_path / "VOC2007")
    with pytest.raises(UserError, match=r"dataset\.train_split=trian.*contains train, val.*did you mean 'train'"):
        make_source(tmp_path, train_split="trian").open("train")


def test_missing_files_are_counted(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "VOC2007", train=9)
    for path in list((tree / "JPEGImages").iterdir()):
        path.unlink()
    (tree / "SegmentationClass/000003.png").unlink()
    with pytest.raises(UserError) as caught:
        make_source(tmp_path).open("train")
    images, masks = caught.value.problems
    assert "9 images missing: 000000, 000001, 000002, 000003, 000004, …" in images
    assert "1 mask missing: 000003" in masks


@pytest.mark.parametrize(("text", "match"), [("", "is empty"), ("000000\n000000\n", "000000 more than once")])
def test_empty_splits_and_repeated_names_are_refused(tmp_path: Path, text: str, match: str) -> None:
    tree = make_tree(tmp_path / "VOC2007")
    (tree / "ImageSets/Segmentation/train.txt").write_text(text)
    with pytest.raises(UserError, match=match):
        make_source(tmp_path).open("train")


def test_label_values_out_of_range_are_named(tmp_path: Path) -> None:
    make_tree(tmp_path / "VOC2007", label=np.array([[0, 30, 21, 255], [0] * 4], np.uint8))
    split = make_source(tmp_path).open("train")
    with pytest.raises(
        UserError, match=r"000000\.png: label value 21 \(1 pixel\), 30 \(1 pixel\), but this data set has 0–20 and 255"
    ):
        split[0]


def test_image_and_label_must_have_the_same_size(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "VOC2007")
    Image.new("RGB", (5, 2)).save(tree / "JPEGImages/000000.jpg")
    with pytest.raises(UserError, match=r"000000\.png: 4×2 pixels, but 000000\.jpg has 5×2"):
        make_source(tmp_path).open("train")[0]


def test_class_problems_are_reported_together() -> None:
    with pytest.raises(UserError) as caught:
        make_source(Path("nowhere"), num_classes=5, class_names=["a", "a"], ignore_index=3)
    assert len(caught.value.problems) == 3


def test_class_names_are_read_from_the_folder(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "mine", label=np.array([[0, 1, 1, 255], [0] * 4], np.uint8))
    (tree / "classes.txt").write_text("\ufeffground\nsky \n\n", encoding="utf-8")
    settings: dict[str, Any] = {"subfolder": None, "reduce_zero_label": False, "num_classes": None}
    source = make_source(tree, class_names=None, **settings)
    assert (source.info.num_classes, source.info.class_names) == (2, ["ground", "sky"])
    assert np.asarray(source.open("train")[0][1])[0].tolist() == [0, 1, 1, 255]
    assert make_source(tree, class_names=["a", "b"], **settings).info.num_classes == 2


def test_missing_class_names_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"classes\.txt cannot be read.*dataset\.class_names="):
        read_class_names(str(tmp_path))


def test_fingerprint_depends_on_names_sizes_and_order(voc: Path, tmp_path: Path) -> None:
    def fingerprint(root: Path) -> str:
        return make_source(root, subfolder=None).open("train").fingerprint()

    first = fingerprint(voc)
    copied = shutil.copytree(voc, tmp_path / "elsewhere")  # different path and times
    assert fingerprint(copied) == first
    assert make_source(voc, subfolder=None).open("val").fingerprint() != first
    split = copied / "ImageSets" / "Segmentation" / "train.txt"
    names = split.read_text().split()
    split.write_text("\n".join(reversed(names)))
    assert fingerprint(copied) != first
    split.write_text("\n".join(names))
    label = copied / "SegmentationClass" / f"{names[0]}.png"
    label.write_bytes(label.read_bytes() + b"\0")
    assert fingerprint(copied) != first
