"""Recognises how a folder can be read."""

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from pspexp.config.overrides import readable_overrides
from pspexp.data import layout_files
from pspexp.data.layout import Layout, describe, recognise
from pspexp.data.patterns import Pattern

IDS = ("01", "02", "03", "04", "05")
RNG = np.random.default_rng(0)


def each(*templates: str, ids: Iterable[str] = IDS) -> list[str]:
    """The paths with each id in the place of ``#``."""
    return [template.replace("#", name) for template in templates for name in ids]


def write(root: Path, files: Iterable[str]) -> None:
    """Empty files: their names are all there is."""
    for path in files:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (12, 16, 3), np.uint8)).save(path)


def mask(path: Path, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 3, (12, 16), np.uint8)).convert(mode).save(path)


def read_back(root: Path, layout: Layout) -> set[tuple[str, str]]:
    """The pairs of paths that the data set finds with a layout; ids are unambiguous."""
    masks = Pattern("masks", layout.masks).files(root)
    labels = {path for paths in masks.values() for path in paths}
    pairs = set()
    for (split, name), paths in Pattern("images", layout.images).files(root).items():
        images = [path for path in paths if path not in labels]
        found = masks.get((split, name), []) or masks.get((None, name), [])
        if images and found:
            assert len(images) == len(found) == 1, (images, found)
            pairs.add((images[0].relative_to(root).as_posix(), found[0].relative_to(root).as_posix()))
    return pairs


def values(layout: Layout, root: Path | str) -> dict[str, Any]:
    """What the settings are after a shell and Hydra have read the layout's overrides."""
    words = readable_overrides(shlex.split(" ".join(layout.overrides(root))))
    read = OverridesParser.create().parse_overrides(words)
    node = OmegaConf.create({one.key_or_group: one.value() for one in read})
    return {str(key): node[str(key)] for key in node}


CITY = ("leftImg8bit/{s}/aachen/a_#_leftImg8bit.png", "leftImg8bit/{s}/bonn/b_#_leftImg8bit.png")
FINE = [
    f"gtFine/{{s}}/{city}/{city[0]}_#_gtFine_{kind}"
    for city in ("aachen", "bonn")
    for kind in ("labelIds.png", "color.png", "instanceIds.png", "polygons.json")
]


def in_splits(templates: Sequence[str], *splits: str) -> list[str]:
    """Paths with each split, whose ids differ, in the place of ``{s}``."""
    return [
        path
        for split in splits
        for path in each(*(one.replace("{s}", split) for one in templates), ids=[f"{split[:2]}{name}" for name in IDS])
    ]


TREES: dict[str, tuple[list[str], tuple[str | None, ...]]] = {
    # Two folders.
    "plain": (each("images/#.jpg", "masks/#.png"), ("images/{id}.jpg", "masks/{id}.png")),
    "one pair": (["images/a.jpg", "masks/a.png"], ("images/{id}.jpg", "masks/{id}.png")),
    "labels": (each("images/#.png", "labels/#.png"), ("images/{id}.png", "labels/{id}.png")),
    "annotations": (each("img/#.jpg", "annotations/#.png"), ("img/{id}.jpg", "annotations/{id}.png")),
    "GT": (each("photos/#.JPG", "GT/#.PNG"), ("photos/{id}.jpg", "GT/{id}.png")),
    "ground_truth": (each("input/#.tif", "ground_truth/#.tif"), ("input/{id}.tif", "ground_truth/{id}.tif")),
    "X and y": (each("X/#.png", "y/#.png"), ("X/{id}.png", "y/{id}.png")),
    "targets": (each("data/#.bmp", "targets/#.bmp"), ("data/{id}.bmp", "targets/{id}.bmp")),
    "below other folders": (
        [*each("my data/v 1/images/#.jpg", "my data/v 1/masks/#.png"), "my data/readme.md"],
        ("my data/v 1/images/{id}.jpg", "my data/v 1/masks/{id}.png"),
    ),
    "words in both": (
        each("seg_set/label_images/#.png", "seg_set/images/#.png"),
        ("seg_set/images/{id}.png", "seg_set/label_images/{id}.png"),
    ),
    "fewer masks": (
        each("images/#.jpg") + each("masks/#.png", ids=IDS[:3]), ("images/{id}.jpg", "masks/{id}.png"),
    ),
    "the first masks": (
        each("images/#.jpg", ids=map(str, range(500))) + each("masks/#.png", ids=["1", "30", "499"]),
        ("images/{id}.jpg", "masks/{id}.png"),
    ),
    "thumbnails": (
        each("images/#.jpg", "images_small/#.jpg", "masks/#.png", "overlays/#.jpg"),
        ("images/{id}.jpg", "masks/{id}.png"),
    ),
    "labels before masks of a region": (
        each("images/#.tif", "mask/#_mask.gif", "1st_manual/#_manual1.gif"),
        ("images/{id}.tif", "1st_manual/{id}_manual1.gif"),
    ),
    "trimaps": (
        [*each("images/cat_#.jpg", "annotations/trimaps/cat_#.png", "annotations/trimaps/._cat_#.png"),
         *each("annotations/xmls/cat_#.xml", "__MACOSX/images/cat_#.jpg"), "images/cat.mat", "images/Thumbs.db"],
        ("images/{id}.jpg", "annotations/trimaps/{id}.png"),
    ),
    # Names that differ.
    "prefixes and endings": (
        each("scans/#_rgb.tif", "labels/#-seg.gif"), ("scans/{id}_rgb.tif", "labels/{id}-seg.gif"),
    ),
    "prefixes": (each("images/img_#.jpg", "masks/seg_#.png"), ("images/img_{id}.jpg", "masks/seg_{id}.png")),
    "prefixes without delimiter": (each("a/image#.png", "b/label#.png"), ("a/image{id}.png", "b/label{id}.png")),
    "common words stay in the id": (each("images/x_#_a.jpg", "masks/x_#_a.png"), ("images/{id}.jpg", "masks/{id}.png")),
    "ending of nnU-Net": (
        each("imagesTr/c_#_0000.png", "labelsTr/c_#.png"), ("imagesTr/{id}_0000.png", "labelsTr/{id}.png"),
    ),
    "mixed suffixes": (
        ["images/a.jpg", "images/b.JPEG", "images/c.png", *each("masks/#.png", ids="abc")],
        ("images/{id}.*", "masks/{id}.png"),
    ),
    "mixed cases": (
        ["images/a.jpg", "images/b.JPG", *each("masks/#.PNG", ids="ab")], ("images/{id}.jpg", "masks/{id}.png"),
    ),
    "image's suffix in the mask's name": (
        each("images/#.jpg", "masks/#.jpg.png"), ("images/{id}.jpg", "masks/{id}.jpg.png"),
    ),
    # One folder.
    "JPEG and PNG": (each("#.jpg", "#.png"), ("{id}.jpg", "{id}.png")),
    "ending in one folder": (each("#.png", "#_mask.png"), ("{id}.png", "{id}_mask.png")),
    "prefix in one folder": (each("set/img_#.jpg", "set/seg_#.png"), ("set/img_{id}.jpg", "set/seg_{id}.png")),
    "few masks in one folder": (
        each("#.png", ids=map(str, range(100))) + each("#_mask.png", ids="123"), ("{id}.png", "{id}_mask.png"),
    ),
    "several masks of an image": (
        [*each("cats/cat (#).png", "cats/cat (#)_mask.png", "dogs/dog (#).png", "dogs/dog (#)_mask.png"),
         "cats/cat (01)_mask_1.png"],
        ("{id}.png", "{id}_mask.png"),
    ),
    "a folder for each sample": (each("#/image.png", "#/mask.png"), ("{id}/image.png", "{id}/mask.png")),
    # Ids with folders.
    "nested": (
        each("images/a/#.jpg", "images/b/#.jpg", "masks/a/#.png", "masks/b/#.png"),
        ("images/{id}.jpg", "masks/{id}.png"),
    ),
    "images in folders, masks in one": (
        each("images/a/a#.jpg", "images/b/b#.jpg", "masks/a#.png", "masks/b#.png"),
        ("images/*/{id}.jpg", "masks/{id}.png"),
    ),
    "pairs of folders": (
        each("site1/rgb/p#.png", "site1/gt/p#.png", "site2/rgb/q#.png", "site2/gt/q#.png"),
        ("*/rgb/{id}.png", "*/gt/{id}.png"),
    ),
    "cities": (
        in_splits([*CITY, *FINE], "train", "val") + in_splits(CITY, "test"),
        ("leftImg8bit/{split}/{id}_leftImg8bit.png", "gtFine/{split}/{id}_gtFine_labelIds.png"),
    ),
    # Splits.
    "split above": (
        in_splits(["{s}/images/#.jpg", "{s}/masks/#.png"], "train", "val"),
        ("{split}/images/{id}.jpg", "{split}/masks/{id}.png"),
    ),
    "split below": (
        in_splits(["images/{s}/#.jpg", "masks/{s}/#.png"], "trn", "dev"),
        ("images/{split}/{id}.jpg", "masks/{split}/{id}.png", None, "trn", "dev"),
    ),
    "same ids in both splits": (
        each("train/images/#.jpg", "train/masks/#.png", "test/images/#.jpg", "test/masks/#.png"),
        ("{split}/images/{id}.jpg", "{split}/masks/{id}.png", None, None, "test"),
    ),
    "test without masks": (
        in_splits(["{s}/images/#.jpg"], "train", "valid", "test") + in_splits(["{s}/masks/#.png"], "train", "valid"),
        ("{split}/images/{id}.jpg", "{split}/masks/{id}.png", None, None, "valid"),
    ),
    "only train has masks": (
        in_splits(["{s}/images/#.jpg"], "train", "test") + in_splits(["{s}/masks/#.png"], "train"),
        ("train/images/{id}.jpg", "train/masks/{id}.png"),
    ),
    "split in the files' names": (
        each("training/images/#_training.tif", "training/1st_manual/#_manual1.gif")
        + each("test/images/#_test.tif", "test/1st_manual/#_manual1.gif", ids=["11", "12"])
        + each("test/2nd_manual/#_manual2.gif", ids=["11", "12"]),
        ("{split}/images/{id}_{split}.tif", "{split}/1st_manual/{id}_manual1.gif", None, "training", "test"),
    ),
    "split in one folder": (
        in_splits(["images/{s}_#.jpg", "masks/{s}_#.png"], "train", "val"),
        ("images/{split}_{id}.jpg", "masks/{split}_{id}.png"),
    ),
    "split in the folders' names": (
        in_splits(["{s}/#.png", "{s}annot/#.png"], "train", "val", "test"),
        ("{split}/{id}.png", "{split}annot/{id}.png"),
    ),
    "split with a year": (
        in_splits(["images/{s}2017/#.jpg", "annotations/{s}2017/#.png"], "train", "val"),
        ("images/{split}2017/{id}.jpg", "annotations/{split}2017/{id}.png"),
    ),
    "challenge": (
        in_splits(["ISIC_{s}_Data/I_#.jpg", "ISIC_{s}_Data/I_#_superpixels.png"], "Training", "Validation")
        + in_splits(["ISIC_{s}_Part1_GroundTruth/I_#_segmentation.png"], "Training", "Validation"),
        (
            "ISIC_{split}_Data/{id}.jpg", "ISIC_{split}_Part1_GroundTruth/{id}_segmentation.png",
            None, "Training", "Validation",
        ),
    ),
    "masks of all splits in one folder": (
        in_splits(["images/{s}/#.jpg", "masks/#.png"], "train", "val"), ("images/{split}/{id}.jpg", "masks/{id}.png"),
    ),
    # Odd names.
    "other scripts": (each("图像/雨#.jpg", "mask 标注/雨#.png"), ("图像/{id}.jpg", "mask 标注/{id}.png")),
    "special characters": (
        each("im 50% #'1/#.jpg".replace("#'", "&'"), "masks #&'!/#.png".replace("s #", "s")),
        ("im 50% &'1/{id}.jpg", "masks&'!/{id}.png"),
    ),
    "special ids": (
        each("images/#.jpg", "masks/#.png", ids=["a b", "c{1}", "$d", "e#f'&%", "ü{id}*"]),
        ("images/{id}.jpg", "masks/{id}.png"),
    ),
    "braces in folders": (each("im{1}/#.jpg", "masks $x*/#.png"), ("im*1*/{id}.jpg", "masks *x*/{id}.png")),
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_a_folder_is_recognised_and_can_be_read_so(name: str, tmp_path: Path) -> None:
    files, (images, masks, *rest) = TREES[name]
    splits, train, val = rest or (None, None, None)
    write(tmp_path, files)
    found = recognise(tmp_path)
    assert found is not None
    assert (found.images, found.masks, found.splits) == (images, masks, splits)
    assert (found.train_split, found.val_split) == (train, val)
    pairs = read_back(tmp_path, found)
    assert len(pairs) == found.pairs > 0
    read = values(found, "data/x")
    assert (read["dataset"], read["dataset.images"], read["dataset.masks"]) == ("folder", images, masks)
    assert describe(tmp_path).endswith(f"; read it with {' '.join(found.overrides(tmp_path))}")


VOC = [*each("JPEGImages/#.jpg", "SegmentationClass/#.png", "SegmentationObject/#.png"), "JPEGImages/09.jpg"]
LISTS: dict[str, tuple[list[str], dict[str, str], tuple[str | None, ...]]] = {
    "VOC": (
        VOC,
        {
            "ImageSets/Segmentation/train.txt": "01\n02\n",
            "ImageSets/Segmentation/val.txt": "03\n04\n",
            "ImageSets/Segmentation/trainval.txt": "01\n02\n03\n04\n",
            "ImageSets/Main/train.txt": "01\n09\n",
            "ImageSets/Main/val.txt": "03\n09\n",
        },
        ("ImageSets/Segmentation/{split}.txt", None, None),
    ),
    "other names": (
        each("im/#.tif", "SegmentationClass/#_mask.tif"),
        {"lists/training_ids.lst": "01\n02", "lists/validation_ids.lst": "03"},
        ("lists/{split}_ids.lst", "training", "validation"),
    ),
    "file names and paths": (
        each("images/#.jpg", "masks/#.png"),
        {"train.txt": "01.jpg\n02.jpg\n", "test.txt": "images/03.jpg\n"},
        ("{split}.txt", None, "test"),
    ),
    "image and mask": (
        each("images/#.jpg", "masks/#.png"),
        {"train.txt": "images/01.jpg masks/01.png\n", "val.txt": "/images/03.jpg /masks/03.png\n"},
        ("{split}.txt", None, None),
    ),
    "a folder for each split": (
        each("images/#.jpg", "masks/#.png"), {"train/ids.txt": "01", "val/ids.txt": "02"},
        ("{split}/ids.txt", None, None),
    ),
    "unknown ids": (each("images/#.jpg", "masks/#.png"), {"train.txt": "a\nb", "val.txt": "c"}, (None, None, None)),
    "numbers beside ids": (
        each("images/#.jpg", "masks/#.png"), {"trainval.txt": "01 1 1 1", "test.txt": "02 1 1 1"},
        ("{split}.txt", "trainval", "test"),
    ),
    "only one file": (each("images/#.jpg", "masks/#.png"), {"train.txt": "01"}, (None, None, None)),
    "empty and binary files": (
        each("images/#.jpg", "masks/#.png"),
        {"train.txt": "", "val.txt": "01", "a_train.txt": "\0\ud8ff", "a_val.txt": "01"},
        (None, None, None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_split_files_are_found_by_their_lines(name: str, tmp_path: Path) -> None:
    files, lists, expected = LISTS[name]
    write(tmp_path, [*files, *lists])
    for path, text in lists.items():
        (tmp_path / path).write_bytes(text.encode("utf-8", "surrogatepass"))
    found = recognise(tmp_path)
    assert found is not None
    assert (found.splits, found.train_split, found.val_split) == expected
    assert len(read_back(tmp_path, found)) == found.pairs == 5
    assert values(found, ".").get("dataset.splits") == expected[0]


def test_content_decides_where_names_say_nothing(tmp_path: Path) -> None:
    for name in IDS:
        mask(tmp_path / "a" / f"{name}.png")
        photo(tmp_path / "b" / f"{name}.png")
    found = recognise(tmp_path)
    assert found is not None
    assert (found.images, found.masks) == ("b/{id}.png", "a/{id}.png")


@pytest.mark.parametrize(
    ("mode", "suffix"), [("1", "png"), ("P", "gif"), ("RGB", "png"), ("I;16", "png"), ("L", "jpg")]
)
def test_masks_of_every_kind_are_told_from_photographs(mode: str, suffix: str, tmp_path: Path) -> None:
    for name in IDS:
        photo(tmp_path / "bilder" / f"{name}.png")
        if mode == "I;16":
            (tmp_path / "flächen").mkdir(exist_ok=True)
            Image.fromarray(RNG.integers(0, 3, (12, 16)).astype(np.uint16)).save(tmp_path / "flächen" / f"{name}.png")
        else:
            mask(tmp_path / "flächen" / f"{name}.{suffix}", mode)
    found = recognise(tmp_path)
    assert found is not None
    assert (found.images, found.masks) == ("bilder/{id}.png", f"flächen/{{id}}.{suffix}")


def test_of_images_of_few_colours_the_mode_tells_the_masks(tmp_path: Path) -> None:
    for name in IDS:
        mask(tmp_path / "drawings" / f"{name}.png", "RGB")
        mask(tmp_path / "areas" / f"{name}.png", "P")
    found = recognise(tmp_path)
    assert found is not None
    assert (found.images, found.masks) == ("drawings/{id}.png", "areas/{id}.png")


def no_masks(root: Path) -> None:
    for name in IDS:
        photo(root / "left" / f"{name}.png")
        photo(root / "right" / f"{name}.png")


def copies(root: Path) -> None:
    for name in IDS:
        photo(root / f"{name}.jpg")
        photo(root / f"{name}.png")


def only_masks(root: Path) -> None:
    write(root, in_splits(FINE, "train", "val"))


def other_ids(root: Path) -> None:
    write(root, each("images/#.jpg", ids="abc") + each("masks/#.png", ids="def"))


def splits_of_images(root: Path) -> None:
    write(root, each("train/#.png", "test/#.png"))


def videos_with_the_same_ids(root: Path) -> None:
    write(root, each(*(f"video{n}/{kind}/#.png" for n in range(101) for kind in ("frames", "masks"))))


@pytest.mark.parametrize("make", [no_masks, copies, only_masks, other_ids, splits_of_images, videos_with_the_same_ids])
def test_no_layout_is_invented(make: Any, tmp_path: Path) -> None:
    make(tmp_path)
    assert recognise(tmp_path) is None
    assert "read it with" not in describe(tmp_path)


def test_of_about_as_many_pairs_names_decide_else_the_number(tmp_path: Path) -> None:
    many = [f"{index:03}" for index in range(50)]
    write(tmp_path, each("images/#.jpg", "labels_colour/#.png", ids=many) + each("labels/#.png", ids=many[:49]))
    found = recognise(tmp_path)
    assert found is not None
    assert (found.masks, found.pairs) == ("labels/{id}.png", 49)
    write(tmp_path, each("small/images/#.jpg", "small/masks/#.png"))
    again = recognise(tmp_path)
    assert again == found


def test_of_equal_candidates_the_first_is_taken(tmp_path: Path) -> None:
    write(tmp_path, each("images/b/#.jpg", "images/a/#.jpg", "masks/#.png"))
    found = recognise(tmp_path)
    assert found is not None
    assert (found.images, found.masks) == ("images/a/{id}.jpg", "masks/{id}.png")


@pytest.mark.parametrize(
    "root",
    ["data/x", "/a b/ü 图", "it's", 'say "hi"', "$HOME/`x`", "~/x",
     "${x}", "\\${x}", "back\\slash", "end\\", 'a\\"b', "50%#&!(,)=[]:"],
)  # fmt: skip
def test_words_survive_the_shell_and_hydra(root: str) -> None:
    layout = Layout("it's {id}.jpg", 'm "x"/{id}.*', "l/{split}.txt", "Train", None, 3)
    assert values(layout, root) == {
        "dataset": "folder",
        "dataset.root": root,
        "dataset.images": "it's {id}.jpg",
        "dataset.masks": 'm "x"/{id}.*',
        "dataset.splits": "l/{split}.txt",
        "dataset.train_split": "Train",
    }


def test_words_are_plain_where_they_can_be() -> None:
    assert Layout("images/{id}.jpg", "masks/{id}.png", None, None, None, 3).overrides(Path("data/x")) == [
        "dataset=folder",
        "dataset.root=data/x",
        "'dataset.images=images/{id}.jpg'",
        "'dataset.masks=masks/{id}.png'",
    ]


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (
            [*each("images/#.jpg", "masks/#.png"), "images/06.jpg"],
            "6 .jpg in images, 5 .png in masks (1 image without a mask); read it with dataset=folder ",
        ),
        (each("#.jpg", "#.png"), "5 .jpg, 5 .png; read it with "),
        (
            each("train/images/#.jpg", "val/images/#.jpg", "train/gt/#.png", "val/gt/#.png"),
            "5 .jpg in train/images, 5 .jpg in val/images, 5 .png in train/gt, 5 .png in val/gt; read it with ",
        ),
        (
            each(*(f"images/{city}/#.jpg" for city in "abcd"), *(f"masks/{city}/#.png" for city in "abcd")),
            "20 .jpg in 4 folders below images, 20 .png in 4 folders below masks; read it with ",
        ),
        (each("scans/#.tif"), "contains 5 .tif in scans and no masks that pair with them"),
        (
            [*each("scans/#.tif"), "masks/a.png", "notes.txt"],
            "contains 5 .tif in scans, 1 .png in masks, but no image and mask whose names match",
        ),
        (["a/x.npy", "a/y.npy", "readme"], "contains no images, only 2 .npy in a, 1 without suffix"),
        ([".hidden.png", "__MACOSX/a.png", "Thumbs.db"], "is empty"),
        (["a/b/.keep", "c/.keep"], "contains no files, only folders: a, c"),
        ([], "is empty"),
    ],
)
def test_what_is_there_is_described(files: list[str], text: str, tmp_path: Path) -> None:
    write(tmp_path, files)
    assert describe(tmp_path).startswith(text)
    assert "read it with" in text or describe(tmp_path) == text


def test_folders_that_cannot_be_listed(tmp_path: Path) -> None:
    write(tmp_path, ["camvid/a.png"])
    assert describe(tmp_path / "camvd") == "no such folder; did you mean 'camvid'?"
    assert describe(tmp_path / "x" / "y") == "no such folder"
    assert describe(tmp_path / "camvid" / "a.png") == "is a file, not a folder"
    assert recognise(tmp_path / "camvd") is None


def test_links_to_folders_above_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path, each("images/#.jpg", "masks/#.png"))
    (tmp_path / "images" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "masks" / "gone").symlink_to(tmp_path / "missing")
    found = recognise(tmp_path)
    assert found is not None
    assert (found.images, found.pairs) == ("images/{id}.jpg", 5)


def test_of_a_large_folder_a_part_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_files, "MAX_FILES", 400)
    monkeypatch.setattr(layout_files, "BATCH", 20)
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    many = [f"{index:04}" for index in range(600)]
    write(
        tmp_path,
        each("images/train/#.jpg", "masks/train/#.png", ids=many) + each("images/val/#.jpg", "masks/val/#.png"),
    )
    found = recognise(tmp_path)
    assert len(listed) == len({*listed}) == 7
    assert found is not None
    assert (found.images, found.masks) == ("images/{split}/{id}.jpg", "masks/{split}/{id}.png")
    assert 0 < found.pairs < 200
    assert describe(tmp_path).startswith("at least ")
