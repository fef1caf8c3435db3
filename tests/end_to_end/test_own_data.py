"""Data sets as people have them, used as they lie: train, test and predict with two lines each."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY, Cli

RUN = (
    *(word for word in TINY if not word.startswith("dataset")),
    "trainer.epochs=1",
    "device=cpu",
    "precision=fp32",
)
TREES: dict[str, dict[str, Any]] = {
    "scans": {  # images and masks with unlike suffixes; GIF masks of 0 and 255
        "image": "training/images/{}_training.tif",
        "mask": "training/1st_manual/{}_manual1.gif",
        "words": (
            "dataset.images=training/images/{id}_training.tif",
            "dataset.masks=training/1st_manual/{id}_manual1.gif",
            "dataset.label_values=[0,255]",
        ),
    },
    "beside": {  # masks beside images, 1-bit
        "image": "{}.jpg",
        "mask": "{}_mask.png",
        "mode": "1",
        "words": ("dataset.images={id}.jpg", "dataset.masks={id}_mask.png"),
    },
    "lossy": {  # JPEG masks of 0 and 255
        "image": "images/{}.JPG",
        "mask": "masks/{}.jpeg",
        "words": (
            "dataset.images=images/{id}.jpg",
            "dataset.masks=masks/{id}.jpeg",
            "dataset.label_values=[0,255]",
            "dataset.label_tolerance=100",
        ),
    },
    "colours": {  # RGB masks
        "image": "img/{}.webp",
        "mask": "seg/{}.bmp",
        "mode": "RGB",
        "words": (
            "dataset.images=img/{id}.webp",
            "dataset.masks=seg/{id}.bmp",
            "dataset.label_values=['#000000','#ffffff']",
        ),
    },
}


def draw(number: int) -> np.ndarray:
    """A mask of 0 and 255 with a rectangle."""
    mask = np.zeros((40, 56), np.uint8)
    mask[8 : 24 + number, 10 : 30 + 2 * number] = 255
    return mask


def make(root: Path, image: str, mask: str, mode: str = "L", count: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = draw(number)
        picture = (rng.integers(0, 60, (*pixels.shape, 3)) + (pixels[..., None] // 2)).astype(np.uint8)
        for name, content in ((image, Image.fromarray(picture)), (mask, Image.fromarray(pixels).convert(mode))):
            path = root / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            content.save(path, quality=95)
    return root


def table(run: Path, split: str) -> dict[str, int]:
    rows = csv.DictReader((run / "tables" / f"{split}_iou.csv").open())
    return {row["class"]: int(row["pixels"]) for row in rows}


@pytest.mark.parametrize("name", TREES)
def test_trains_tests_and_predicts(cli: Cli, tmp_path: Path, name: str) -> None:
    tree = dict(TREES[name])
    words = tree.pop("words")
    data = (
        "dataset=folder",
        f"dataset.root={make(tmp_path / 'data', **tree)}",
        "dataset.class_names=[background,crack]",
    )
    assert cli(*data, *words, "dataset.val_fraction=0.34", *RUN, "hydra.run.dir=run") == 0
    assert cli("mode=test", "checkpoint.path=run", "tracking=none", "hydra.run.dir=test") == 0
    validated = [number for number in range(6) if f"{number}" in validation_ids(tmp_path / "data", words)]
    expected = {
        "background": sum(int((draw(number) == 0).sum()) for number in validated),
        "crack": sum(int((draw(number) == 255).sum()) for number in validated),
    }
    if name == "lossy":
        assert "are taken for the nearest" in Path("run/run.log").read_text()
    assert table(Path("run"), "val") == table(Path("test"), "test") == expected
    assert cli("mode=predict", "checkpoint.path=run", "predict.input=split:val", "predict.save=[labels]") == 0
    written = sorted(Path("run/predictions/labels").rglob("*.png"))
    assert len(written) == len(validated)
    values = {0, 1} if name == "beside" else {0, 255} if name != "colours" else None
    for file in written:
        found = Image.open(file)
        assert found.size == (56, 40)
        assert (found.mode == "RGB") if values is None else {*np.unique(np.asarray(found)).tolist()} <= values


def validation_ids(root: Path, words: tuple[str, ...]) -> list[str]:
    from pspexp import build, compose

    common = ("dataset=folder", f"dataset.root={root}", "dataset.class_names=[background,crack]")
    dataset = build(compose([*common, *words, "dataset.val_fraction=0.34"]).dataset)
    return list(dataset.open("val").names)


def test_without_validation_the_latest_weights_are_the_best(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path / "data", "images/{}.png", "masks/{}.png")
    data = ("dataset=folder", f"dataset.root={root}", "dataset.class_names=[a,b]", "dataset.label_values=[0,255]")
    assert cli(*data, "dataset.val_fraction=0", *RUN, "hydra.run.dir=run") == 0
    assert Path("run/checkpoints/best.pt").is_file()
    assert "no validation images: best.pt holds the latest weights" in Path("run/run.log").read_text()
    assert cli("mode=predict", "checkpoint.path=run", f"predict.input={root / 'images'}") == 0
    assert cli("mode=test", "checkpoint.path=run", "tracking=none") == 2
    assert "dataset.test_split=val: contains no images" in capsys.readouterr().err
    assert cli("mode=test", "checkpoint.path=run", "dataset.test_split=train", "tracking=none") == 0


def test_the_first_lines_say_what_is_validated_on(cli: Cli, tmp_path: Path) -> None:
    root = make(tmp_path / "data", "images/{}.png", "masks/{}.png")
    data = ("dataset=folder", f"dataset.root={root}", "dataset.class_names=[a,b]", "dataset.label_values=[0,255]")
    words = [word for word in RUN if not word.startswith("inference")]
    assert cli(*data, *words, "hydra.run.dir=whole") == 0
    assert "validation on 1 image every epoch: whole images" in Path("whole/run.log").read_text()
    assert cli(*data, *words, "inference=center_crop", "hydra.run.dir=crops") == 0
    assert "centre crops of 33×33" in Path("crops/run.log").read_text()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_samples_are_skipped_if_asked(cli: Cli, tmp_path: Path, num_workers: int) -> None:
    root = make(tmp_path / "data", "images/{}.png", "masks/{}.png", count=8)
    for split, names in (("train", "012345"), ("val", "67")):
        (root / f"{split}.txt").write_text("\n".join(names))
    for name in ("images/1.png", "masks/7.png"):
        (root / name).write_bytes((root / name).read_bytes()[:-30])
    data = ("dataset=folder", f"dataset.root={root}", "dataset.class_names=[a,b]", "dataset.label_values=[0,255]",
            "dataset.splits={split}.txt", f"loader.num_workers={num_workers}")  # fmt: skip
    words = [word for word in RUN if not word.startswith("loader.num_workers")]
    assert cli(*data, *words, "hydra.run.dir=strict") == 2
    assert not Path("strict").exists()
    assert cli(*data, *words, "dataset.on_error=skip", "hydra.run.dir=run") == 0
    log = Path("run/run.log").read_text()
    assert "1.png" in log
    assert "7.png" in log
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [record["train/skipped_images"] for record in records if "train/loss" in record][-1] == 1
    assert [record["val/skipped_images"] for record in records if "val/loss" in record] == [1]
    last = json.loads(Path("run/summary.json").read_text())["last"]
    assert (last["train/skipped_images"], last["val/skipped_images"]) == (1, 1)
    assert table(Path("run"), "val")["b"] == int((draw(6) == 255).sum())


def test_an_image_that_goes_bad_stops_the_run_after_saving(cli: Cli, tmp_path: Path) -> None:
    root = make(tmp_path / "data", "images/{}.png", "masks/{}.png", count=8)
    bad = root / "images/1.png"
    bad.write_bytes(bad.read_bytes()[:-30])  # its header is fine
    data = ("dataset=folder", f"dataset.root={root}", "dataset.class_names=[a,b]", "dataset.label_values=[0,255]")
    assert cli(*data, "dataset.val_fraction=0.1", *RUN, "hydra.run.dir=run") == 2
    assert Path("run/run.log").read_text().count("1.png: not a readable image") == 1
    assert Path("run/checkpoints/last.pt").is_file()
    assert json.loads(Path("run/summary.json").read_text())["status"] == "FAILED"


def test_an_empty_root_is_no_folder(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "images/{}.png", "masks/{}.png")
    assert cli("dataset=folder", "dataset.root=", "dataset.class_names=[a,b]", *RUN) == 2
    assert "dataset.root=: is empty; is an environment variable unset?" in capsys.readouterr().err


def test_nothing_readable_is_an_error_even_if_errors_are_skipped(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path / "data", "images/{}.png", "masks/{}.png")
    for file in (root / "masks").iterdir():
        file.write_bytes(b"")
    data = ("dataset=folder", f"dataset.root={root}", "dataset.class_names=[a,b]", "dataset.on_error=skip")
    assert cli(*data, *RUN, "hydra.run.dir=run") == 2
    assert "of the split train can be read" in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_single_image_is_too_few(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "data", "images/{}.png", "masks/{}.png", count=2)
    assert (
        cli("dataset=folder", f"dataset.root={root}", "dataset.class_names=[a,b]", "dataset.label_values=[0,255]", *RUN)
        == 2
    )
    assert "1 image to train on, but batch normalisation needs at least 2" in capsys.readouterr().err


def test_folders_of_splits_may_number_their_images_alike(cli: Cli, tmp_path: Path) -> None:
    for split in ("train", "val"):
        make(tmp_path / "data", f"images/{split}/{{}}.png", f"masks/{split}/{{}}.png")
    data = (
        "dataset=folder", f"dataset.root={tmp_path / 'data'}", "dataset.images=images/{split}/{id}.png",
        "dataset.masks=masks/{split}/{id}.png", "dataset.class_names=[a,b]", "dataset.label_values=[0,255]",
    )  # fmt: skip
    assert cli(*data, *RUN, "hydra.run.dir=run") == 0
    assert sum(table(Path("run"), "val").values()) == 6 * 40 * 56


def test_the_same_image_in_two_splits_is_refused(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "data", "images/{}.png", "masks/{}.png")
    (root / "train.txt").write_text("0\n1\n2\n")
    (root / "val.txt").write_text("2\n3\n")
    data = ("dataset=folder", f"dataset.root={root}", "dataset.class_names=[a,b]", "dataset.label_values=[0,255]")
    assert cli(*data, "dataset.splits={split}.txt", *RUN, "hydra.run.dir=run") == 2
    assert "2 is in both train and val" in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.slow
def test_several_processes_skip_and_count_alike(cli: Cli, tmp_path: Path) -> None:
    root = make(tmp_path / "data", "images/{}.png", "masks/{}.png", count=12)
    bad = root / "images/1.png"
    bad.write_bytes(bad.read_bytes()[:-30])
    (root / "train.txt").write_text("\n".join(map(str, range(9))))
    (root / "val.txt").write_text("9\n10\n11")
    data = ("dataset=folder", f"dataset.root={root}", "dataset.class_names=[a,b]", "dataset.label_values=[0,255]",
            "dataset.splits={split}.txt", "dataset.on_error=skip")  # fmt: skip
    processes = ("launcher=ddp", "launcher.nproc_per_node=2", "trainer.epochs=3", "trainer.validate_every=3")
    assert cli(*data, *RUN, *processes, "hydra.run.dir=run") == 0
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [record["train/skipped_images"] for record in records if "train/loss" in record][-1] == 1


@pytest.mark.parametrize("option", ["voc_folder", "folder"])
def test_everything_wrong_with_a_folder_is_told_once(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    root = make(tmp_path / "data", "photos/{}.png", "labels/{}.png")
    assert cli(f"dataset={option}", f"dataset.root={root}", "optimizer.lr=fast", *RUN) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 + (option == "folder")
    assert "dataset.class_names is not set" in lines[0]
    assert "optimizer.lr=fast: must be a valid number" in lines[-1]
    fix = f"dataset=folder dataset.root={root} 'dataset.images=photos/{{id}}.png' 'dataset.masks=labels/{{id}}.png'"
    assert sum(fix in line for line in lines) == 1


PUBLIC: dict[str, tuple[list[str], list[str], dict[str, str], list[str]]] = {
    # image files, mask files, split files, the rest of the documented command
    "drive": (
        [f"{split}/images/{n}_{split}.tif" for split in ("training", "test") for n in ("21", "22")],
        [f"{split}/1st_manual/{n}_manual1.gif" for split in ("training", "test") for n in ("21", "22")],
        {},
        ["dataset.images={split}/images/{id}_{split}.tif", "dataset.masks={split}/1st_manual/{id}_manual1.gif",
         "dataset.train_split=training", "dataset.val_split=test", "dataset.label_values=[0,255]"],
    ),
    "kvasir": (
        [f"images/c{n}.jpg" for n in range(8)],
        [f"masks/c{n}.jpg" for n in range(8)],
        {},
        ["dataset.images=images/{id}.jpg", "dataset.masks=masks/{id}.jpg", "dataset.label_values=[0,255]",
         "dataset.label_tolerance=100"],
    ),
    "pets": (
        [f"images/Abyssinian_{n}.jpg" for n in range(4)],
        [f"annotations/trimaps/Abyssinian_{n}.png" for n in range(4)],
        {"annotations/trainval.txt": "Abyssinian_0 1 1 1\nAbyssinian_1 1 1 1\n", "annotations/test.txt":
         "Abyssinian_2 1 1 1\nAbyssinian_3 1 1 1\n", "annotations/trimaps/._Abyssinian_0.png": "resource fork"},
        ["dataset.images=images/{id}.jpg", "dataset.masks=annotations/trimaps/{id}.png",
         "dataset.splits=annotations/{split}.txt", "dataset.train_split=trainval", "dataset.val_split=test",
         "dataset.label_values=[2,1]", "dataset.ignore_values=[3]"],
    ),
    "isic": (
        [f"Input/ISIC_{n}.jpg" for n in range(6)],
        [f"GroundTruth/ISIC_{n}_segmentation.png" for n in range(6)],
        {},
        ["dataset.images=Input/{id}.jpg", "dataset.masks=GroundTruth/{id}_segmentation.png",
         "dataset.label_values=[0,255]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_public_data_sets_are_read_as_downloaded(tmp_path: Path, name: str) -> None:
    from pspexp import build, compose

    images, masks, texts, words = PUBLIC[name]
    background, thing, void = (2, 1, 3) if name == "pets" else (0, 255, None)
    truth = np.zeros((24, 32), np.uint8)
    truth[4:16, 8:24] = 1
    pixels = np.where(truth == 1, thing, background).astype(np.uint8)
    expected = truth.copy()
    if void is not None:
        pixels[0], expected[0] = void, 255
    for files, content in ((images, np.zeros((24, 32, 3), np.uint8)), (masks, pixels)):
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(tmp_path / file, quality=90)
    for file, text in texts.items():
        (tmp_path / file).write_text(text)
    data = ["dataset=folder", f"dataset.root={tmp_path}", "dataset.class_names=[background,thing]"]
    dataset = build(compose([*data, *words]).dataset)
    splits = [dataset.open(role) for role in ("train", "val")]
    assert sum(map(len, splits)) == len(images)
    assert all(map(len, splits))
    for split in splits:
        assert np.array_equal(np.asarray(split[0][1]), expected)
