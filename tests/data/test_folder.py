"""Folders in any layout: patterns, splits, gaps."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspexp.data.folder import FolderDataset
from pspexp.data.patterns import Pattern
from pspexp.data.splits import by_hash
from pspexp.errors import UserError

MASK = np.array([[0, 1, 1], [0, 0, 1]], np.uint8)


def make(root: Path, images: list[str], masks: list[str]) -> Path:
    for files, pixels in ((images, np.zeros((2, 3, 3), np.uint8)), (masks, MASK)):
        for name in files:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


def dataset(root: Path, **changes: Any) -> FolderDataset:
    arguments: dict[str, Any] = {
        "root": str(root),
        "images": "images/{id}.jpg",
        "masks": "masks/{id}.png",
        "num_classes": None,
        "class_names": ["background", "crack"],
        "ignore_index": 255,
        "train_split": "train",
        "val_split": "val",
        "test_split": "val",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
    }
    return FolderDataset(**{**arguments, **changes})


def every_name(data: FolderDataset) -> list[str]:
    return sorted([*data.open("train").names, *data.open("val").names])


@pytest.mark.parametrize(
    ("images", "masks", "files", "ids"),
    [
        ("images/{id}.jpg", "masks/{id}.png", ["images/a.jpg", "images/b.jpg", "masks/a.png", "masks/b.png"],
         ["a", "b"]),
        ("scans/{id}_rgb.tif", "labels/{id}-seg.gif",
         ["scans/a_rgb.tif", "scans/b c_rgb.TIF", "labels/a-seg.gif", "labels/b c-seg.gif"], ["a", "b c"]),
        ("{id}.png", "{id}_mask.png", ["a.png", "b.png", "a_mask.png", "b_mask.png"], ["a", "b"]),
        ("img_{id}.jpg", "seg_{id}.png", ["img_1.jpg", "img_2.jpg", "seg_1.png", "seg_2.png"], ["1", "2"]),
        ("images/{id}.*", "masks/{id}.*",
         ["images/a.JPG", "images/b.jpeg", "images/c.webp", "images/d.bmp", "masks/a.png", "masks/b.gif",
          "masks/c.tiff", "masks/d.bmp"], ["a", "b", "c", "d"]),
        ("img/{id}_leftImg8bit.png", "gt/{id}_gtFine_labelIds.png",
         ["img/ulm/x_leftImg8bit.png", "img/bonn/x_leftImg8bit.png", "gt/ulm/x_gtFine_labelIds.png",
          "gt/bonn/x_gtFine_labelIds.png", "gt/bonn/x_gtFine_color.png"], ["bonn/x", "ulm/x"]),
        ("{id}/{id}.jpg", "{id}/mask.png", ["a/a.jpg", "b/b.jpg", "a/mask.png", "b/mask.png"], ["a", "b"]),
        ("日本/{id}.jpg", "面 #1%&/{id}.png",
         ["日本/ä ö.jpg", "日本/x'{y}.jpg", "面 #1%&/ä ö.png", "面 #1%&/x'{y}.png"],
         ["x'{y}", "ä ö"]),
    ],
)  # fmt: skip
def test_patterns_find_images_and_masks(
    tmp_path: Path, images: str, masks: str, files: list[str], ids: list[str]
) -> None:
    probe = make(tmp_path / "probe", [], files)
    labels = {str(file.relative_to(probe)) for found in Pattern("masks", masks).files(probe).values() for file in found}
    root = make(tmp_path / "data", [name for name in files if name not in labels], sorted(labels))
    data = dataset(root, images=images, masks=masks)
    assert every_name(data) == ids
    image, label = data.open("train")[0]
    assert (image.size, np.asarray(label).tolist()) == ((3, 2), MASK.tolist())


def tree(root: Path, *ids: str, masks: bool = True) -> Path:
    return make(root, [f"images/{name}.jpg" for name in ids], [f"masks/{name}.png" for name in ids if masks])


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    root = tree(tmp_path, "a", "b")
    (root / "images/._a.jpg").write_bytes(b"resource fork")
    (root / "images/.cache").mkdir()
    (root / "images/.cache/c.jpg").write_bytes(b"")
    assert every_name(dataset(root)) == ["a", "b"]


def test_symbolic_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    real = tree(tmp_path / "real", "a", "b")
    root = tmp_path / "data"
    root.mkdir()
    (root / "images").symlink_to(real / "images")
    (root / "masks").symlink_to(real / "masks")
    (real / "images" / "again").symlink_to(real / "images")
    assert every_name(dataset(root)) == ["a", "b"]


def test_split_folders(tmp_path: Path) -> None:
    names = [f"{split}/{name}" for split in ("train", "val") for name in ("x", "y")]
    root = tree(tmp_path, *names)
    data = dataset(root, images="images/{split}/{id}.jpg", masks="masks/{split}/{id}.png")
    assert (data.open("train").names, data.open("val").names) == (["x", "y"], ["x", "y"])
    assert data.open("train").samples[0].mask == root / "masks/train/x.png"
    with pytest.raises(UserError, match=r"dataset\.val_split=vla: no images.*there are train, val; did you mean 'val'"):
        dataset(root, images="images/{split}/{id}.jpg", masks="masks/{split}/{id}.png", val_split="vla").open("val")


Lines = Callable[[Path], str]


@pytest.mark.parametrize(
    "text",
    [
        "a\nb c\n",
        "\ufeffa\r\nb c  \r\n\r\n",
        "a.jpg\nb c.jpg\n",
        "images/a.jpg\nimages/b c.jpg\n",
        "images/a.jpg masks/a.png\nimages/b c.jpg masks/b c.png\n",
        "/images/a.jpg\t/masks/a.png\n./images/b c.jpg,./masks/b c.png\n",
        "images\\a.jpg\nimages\\b c.jpg\n",
        "a 1 1 1\nb c 2 -1 12\n",
    ],
    ids=["ids", "bom-crlf", "suffixes", "paths", "pairs", "separators", "backslashes", "numbers"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_split_files(tmp_path: Path, text: str, encoding: str) -> None:
    root = tree(tmp_path, "a", "b c", "d")
    (root / "lists").mkdir()
    (root / "lists/train.txt").write_bytes(text.encode(encoding))
    split = dataset(root, splits="lists/{split}.txt").open("train")
    assert [sample.image.name for sample in split.samples] == ["a.jpg", "b c.jpg"]
    assert [sample.mask.name for sample in split.samples] == ["a.png", "b c.png"]
    assert [name.removeprefix("images/") for name in split.names] == ["a", "b c"]


def test_names_with_signs_in_split_files(tmp_path: Path) -> None:
    names = ["#1", "50%", "a&b", "x'y", "städte/köln 1", "k.v2"]
    root = tree(tmp_path, *names)
    (root / "train.txt").write_text("\n".join(names), encoding="utf-8")
    assert dataset(root, splits="{split}.txt").open("train").names == names


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"train\.txt is empty"),
        ("a\na\n", r"lists a more than once"),
        ("a\na.jpg\n", r"lists a more than once"),
        ("a\nnowhere\n", r"train\.txt: 1 image missing: nowhere"),
    ],
)
def test_wrong_split_files_are_explained(tmp_path: Path, text: str, match: str) -> None:
    root = tree(tmp_path, "a", "b")
    (root / "train.txt").write_text(text)
    with pytest.raises(UserError, match=match):
        dataset(root, splits="{split}.txt").open("train")


def test_a_missing_split_file_names_the_others(tmp_path: Path) -> None:
    root = tree(tmp_path, "a")
    (root / "training.txt").write_text("a")
    with pytest.raises(UserError, match=r"dataset\.train_split=train: cannot read .*contains training; did you mean"):
        dataset(root, splits="{split}.txt").open("train")


def test_a_share_for_validation_is_stable(tmp_path: Path) -> None:
    names = [f"{number:03d}" for number in range(60)]
    data = dataset(tree(tmp_path / "some", *names), val_fraction=0.25)
    train, val = set(data.open("train").names), set(data.open("val").names)
    assert sorted(train | val) == names
    assert not train & val
    assert 5 < len(val) < 25
    more = dataset(tree(tmp_path / "more", *names, *(f"new{number}" for number in range(40))), val_fraction=0.25)
    assert val <= set(more.open("val").names)
    assert train <= set(more.open("train").names)
    assert data.open("test").names == data.open("val").names


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_no_side_of_the_share_is_empty(fraction: float, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    split = by_hash(["a", "b", "c"], fraction)
    assert sorted(map(len, split.values())) == [1, 2]
    assert "is moved there" in caplog.text


def test_validation_can_be_left_out(tmp_path: Path) -> None:
    data = dataset(tree(tmp_path, "a", "b"), val_fraction=0.0)
    assert (len(data.open("train")), len(data.open("val"))) == (2, 0)


def test_gaps_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tree(tmp_path, *"abcdefg")
    for name in "abcdef":
        (root / f"masks/{name}.png").unlink()
    with pytest.raises(UserError, match=r"6 images of 7 without a mask \(masks/\{id\}\.png\): a, b, c, d, e, …"):
        dataset(root).open("train")
    tree(root, "h")
    assert every_name(dataset(root, on_error="skip")) == ["g", "h"]
    assert "6 images of 8 without a mask" in caplog.text


def test_two_files_for_one_id(tmp_path: Path) -> None:
    root = make(tree(tmp_path, "a", "b"), ["images/a.png", "images/b.JPG"], ["masks/b.gif"])
    with pytest.raises(UserError) as caught:
        dataset(root, images="images/{id}.*", masks="masks/{id}.*").open("train")
    assert "images: several files for one id: a has a.jpg, a.png, and 1 more id" in caught.value.problems[0]
    assert "masks: several files for one id: b has b.gif, b.png" in caught.value.problems[1]


def test_wrong_patterns_are_listed_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images=images/\*\.jpg: contains no \{id\}"):
        dataset(tmp_path, images="images/*.jpg")
    with pytest.raises(UserError, match=r"masks=../\{id\}\.png: must be a path below"):
        dataset(tmp_path, masks="../{id}.png")
    with pytest.raises(UserError, match=r"images=\{name\}/\{id\}\.png: unknown placeholder \{name\}"):
        dataset(tmp_path, images="{name}/{id}.png")


def test_one_based_labels(tmp_path: Path) -> None:
    root = make(tmp_path, ["images/a.jpg"], [])
    (root / "masks").mkdir()
    Image.fromarray(np.array([[0, 1, 2], [2, 1, 255]], np.uint8)).save(root / "masks/a.png")
    data = dataset(root, reduce_zero_label=True, val_fraction=0.0)
    assert np.asarray(data.open("train")[0][1]).tolist() == [[255, 0, 1], [1, 0, 255]]
    assert data.info.label_values == [1, 2]


def test_undeclared_values_name_file_and_pixels(tmp_path: Path) -> None:
    root = make(tmp_path, ["images/a.jpg"], [])
    (root / "masks").mkdir()
    Image.fromarray(np.array([[0, 3, 3], [0, 0, 9]], np.uint8)).save(root / "masks/a.png")
    with pytest.raises(UserError, match=r"a\.png: label value 3 \(2 pixels\), 9 \(1 pixel\), but .* 0–1 and 255"):
        dataset(root, val_fraction=0.0).open("train")[0]


def test_colours_of_the_classes_come_from_the_label_values(tmp_path: Path) -> None:
    red = dataset(tmp_path, label_values=["#000000", [200, 0, 0]])
    assert red.info.palette.tolist() == [[0, 0, 0], [200, 0, 0]]
    own = dataset(tmp_path, palette=["#010203", "#ffffff"])
    assert own.info.palette.tolist() == [[1, 2, 3], [255, 255, 255]]


def test_splits_are_picklable(tmp_path: Path) -> None:
    split = pickle.loads(pickle.dumps(dataset(tree(tmp_path, "a", "b")).open("train")))
    assert split[0][1].size == (3, 2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_read_only_folders_are_read(tmp_path: Path) -> None:
    root = tree(tmp_path, "a", "b")
    root.chmod(0o555)
    try:
        assert every_name(dataset(root)) == ["a", "b"]
    finally:
        root.chmod(0o755)


def photo(path: Path, orientation: int) -> np.ndarray:
    """Save a photograph stored turned, with the EXIF tag that turns it back; returns it as people see it."""
    seen = np.zeros((16, 24, 3), np.uint8)
    seen[:8, :, 0] = 200
    seen[:, :12, 1] = 100
    stored = {3: seen[::-1, ::-1], 6: np.rot90(seen), 8: np.rot90(seen, -1)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    return seen


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_photographs_are_read_as_people_see_them(tmp_path: Path, orientation: int) -> None:
    seen = photo(tmp_path / "images/a.png", orientation)
    (tmp_path / "masks").mkdir()
    Image.fromarray((seen[..., 0] > 0).astype(np.uint8)).save(tmp_path / "masks/a.png")
    image, label = dataset(tmp_path, images="images/{id}.png", val_fraction=0.0).open("train")[0]
    assert np.array_equal(np.asarray(image), seen)
    assert np.array_equal(np.asarray(label), seen[..., 0] > 0)


def test_a_photograph_is_taken_as_stored_if_only_that_fits_the_mask(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = photo(tmp_path / "images/a.png", 6)
    (tmp_path / "masks").mkdir()
    stored = np.rot90(seen)
    Image.fromarray((stored[..., 0] > 0).astype(np.uint8)).save(tmp_path / "masks/a.png")
    image, _ = dataset(tmp_path, images="images/{id}.png", val_fraction=0.0).open("train")[0]
    assert np.array_equal(np.asarray(image), stored)
    assert "EXIF orientation is ignored" in caplog.text


def test_numbers_at_the_end_of_names_are_no_columns(tmp_path: Path) -> None:
    root = tree(tmp_path, "img", "img 1", "img 2")
    (root / "train.txt").write_text("img 1\nimg 2\nimg 3\n")
    with pytest.raises(UserError, match=r"1 image missing: img 3"):
        dataset(root, splits="{split}.txt").open("train")


def test_a_name_in_several_folders_needs_its_path(tmp_path: Path) -> None:
    root = tree(tmp_path, "a/00", "b/00", "b/01")
    (root / "train.txt").write_text("00.jpg\n01.jpg\n")
    with pytest.raises(UserError, match=r"1 image missing: 00\.jpg \(00\.jpg is in several folders\)"):
        dataset(root, splits="{split}.txt").open("train")


def test_absolute_paths_and_bare_names_of_pairs(tmp_path: Path) -> None:
    root = tree(tmp_path, "a", "b", "c")
    (root / "train.txt").write_text(f"{root}/images/a.jpg {root}/masks/a.png\nb.jpg b.png\n{root}/images/c.jpg\n")
    assert dataset(root, splits="{split}.txt").open("train").names == ["a", "b", "c"]


def test_composed_and_decomposed_letters_are_the_same(tmp_path: Path) -> None:
    root = make(tmp_path, ["images/e\u0301.jpg", "images/b.jpg"], ["masks/\u00e9.png", "masks/b.png"])
    (root / "train.txt").write_text("e\u0301\n", encoding="utf-8")
    assert len(dataset(root, splits="{split}.txt").open("train")) == 1
    assert len(every_name(dataset(root))) == 2


def test_a_list_in_utf_16_without_its_mark_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path, "a")
    (root / "train.txt").write_bytes("a\n".encode("utf-16-le"))
    with pytest.raises(UserError, match="not UTF-8 text"):
        dataset(root, splits="{split}.txt").open("train")


def test_a_repeated_line_is_skipped_once(tmp_path: Path) -> None:
    root = tree(tmp_path, "a", "b")
    (root / "train.txt").write_text("a\nb\na\n")
    assert dataset(root, splits="{split}.txt", on_error="skip").open("train").names == ["a", "b"]


def test_images_and_masks_are_different_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"masks=images/\{id\}\.jpg: is the pattern of the images"):
        dataset(tmp_path, masks="images/{id}.jpg")


@pytest.mark.parametrize(
    ("label_values", "expected"),
    [
        ([0, ["#ff0000", 1]], [0, 1]),
        ([["#000000", 0], ["#ff0000", 1]], [(0, 0, 0), (255, 0, 0)]),
        ([0, "#ff0000"], None),
    ],
)
def test_one_kind_of_values_is_written_back(tmp_path: Path, label_values: Any, expected: Any) -> None:
    assert dataset(tmp_path, label_values=label_values).info.label_values == expected


def test_names_and_colours_come_from_cvats_labelmap(tmp_path: Path) -> None:
    root = make(tmp_path, ["images/a.jpg"], [])
    (root / "masks").mkdir()
    Image.fromarray(np.array([[[0, 0, 0], [250, 50, 83]]], np.uint8).repeat(2, 0).repeat(2, 1)[:, :3]).save(
        root / "masks/a.png"
    )
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncrack:250,50,83::\n")
    data = dataset(root, class_names=None, val_fraction=0.0)
    assert data.info.class_names == ["background", "crack"]
    assert data.info.palette.tolist() == [[0, 0, 0], [250, 50, 83]]
    assert {*np.unique(np.asarray(data.open("train")[0][1])).tolist()} == {0, 1}
    (root / "labelmap.txt").write_text("background:0,0,0::\ncrack:300,0,0::\n")
    with pytest.raises(UserError, match=r"labelmap\.txt: 'crack:300,0,0::' is not name:r,g,b"):
        dataset(root, class_names=None)


def test_split_folders_of_masks_need_splits_of_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"masks=masks/\{split\}/\{id\}\.png: contains \{split\}, but neither images="):
        dataset(tmp_path, masks="masks/{split}/{id}.png")


@pytest.mark.parametrize("name", ["__ignore__", "_background_"])
def test_placeholders_of_labelme(tmp_path: Path, name: str) -> None:
    root = tree(tmp_path, "a")
    (root / "classes.txt").write_text(f"{name}\ncrack\n")
    if name == "__ignore__":
        with pytest.raises(UserError, match="begins with labelme's __ignore__, which is no class"):
            dataset(root, class_names=None)
    else:
        assert dataset(root, class_names=None).info.class_names == ["_background_", "crack"]
