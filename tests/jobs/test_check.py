"""``mode=check``: everything that is wrong with machine, configuration and data, in one pass."""

import csv
import io
import os
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from pspexp.data.inspection import cache, facts
from pspexp.jobs.check import machine, terminal
from pspexp.models import pretrained, weights
from tests.conftest import PSPNET18, TINY, Cli
from tests.small_network import Backbone

NETWORK = tuple(word for word in TINY if not word.startswith("dataset"))
DATA = (*NETWORK, "dataset=voc_folder", "dataset.root=data")
CHECK = ("mode=check", *DATA, "hydra.run.dir=out")
SIZE = (64, 48)
Labels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "cache_folder", lambda part: tmp_path / "cache")


def image(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Random blocks: no two seeds look alike."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def label(size: tuple[int, int] = SIZE, classes: tuple[int, ...] = (0, 1, 2)) -> Labels:
    """Vertical stripes of equal width, one per class."""
    width, height = size
    row = np.array(classes, np.uint8)[np.arange(width) * len(classes) // width]
    return np.repeat(row[None], height, axis=0)


class Folder:
    """A data set in the VOC layout that grows sample by sample."""

    def __init__(self, root: Path, classes: tuple[str, ...] = ("background", "red", "green")) -> None:
        self.root, self.number = root, 0
        self.splits: dict[str, list[str]] = {"train": [], "val": []}
        for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (root / name).mkdir(parents=True)
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes))

    def add(self, name: str, split: str = "train", suffix: str = "png") -> tuple[Path, Path]:
        """Write a valid sample; returns its files, for the test to damage."""
        self.number += 1
        files = self.root / "JPEGImages" / f"{name}.{suffix}", self.root / "SegmentationClass" / f"{name}.png"
        image(self.number).save(files[0], **({"quality": 95} if suffix == "jpg" else {}))
        Image.fromarray(label()).save(files[1])
        self.list(name, split)
        return files

    def list(self, name: str, split: str) -> None:
        self.splits[split].append(name)
        for one, names in self.splits.items():
            text = "".join(f"{name}\n" for name in names)
            (self.root / "ImageSets" / "Segmentation" / f"{one}.txt").write_text(text)


@pytest.fixture
def sound(tmp_path: Path) -> Folder:
    """Eight sound samples."""
    folder = Folder(tmp_path / "data")
    for index in range(8):
        folder.add(f"ok{index}", "train" if index < 6 else "val")
    return folder


def findings(folder: Path) -> list[dict[str, str]]:
    with (folder / "check" / "report.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def save(path: Path, labels: Labels, palette: list[int] | None = None) -> None:
    picture = Image.fromarray(labels)
    if palette:
        picture.putpalette(palette)
    picture.save(path)


def plant(folder: Folder) -> dict[str, str]:
    """Spoil one new sample per fault; returns the kind of finding expected for each file."""
    root, black = folder.root, [0, 0, 0]
    expected: dict[str, str] = {}

    def sample(name: str, kind: str, *, mask: bool = False, split: str = "train", suffix: str = "png") -> Path:
        files = folder.add(name, split, suffix)
        expected[str(files[mask].relative_to(root))] = kind
        return files[mask]

    sample("empty_image", "empty").write_bytes(b"")
    sample("empty_mask", "empty", mask=True).write_bytes(b"")
    truncate(sample("cut_jpg", "unreadable", suffix="jpg"))
    truncate(sample("cut_png", "unreadable"))
    truncate(sample("cut_mask", "unreadable", mask=True))
    sample("text", "unreadable", suffix="jpg").write_text("not an image")
    save(sample("size", "size", mask=True), label((60, 48)))
    save(sample("turned", "size", mask=True), label((48, 64)))
    photo = sample("exif", "orientation", suffix="jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    image(77).save(photo, exif=exif)
    save(sample("seven", "undeclared values", mask=True), label(classes=(0, 1, 7)))
    save(sample("nine", "undeclared values", mask=True, split="val"), label(classes=(0, 2, 9)))
    save(sample("void", "nothing labelled", mask=True), label(classes=(255,)))
    save(sample("mostly", "mostly void", mask=True), label(classes=(0, 255, 255, 255)))
    path = sample("float", "image mode", suffix="tif")
    Image.fromarray(np.ones((48, 64), np.float32)).save(path)
    frames = [image(200 + index) for index in range(3)]
    frames[0].save(sample("film", "frames", suffix="gif"), save_all=True, append_images=frames[1:])
    shutil.copy(root / "JPEGImages" / "ok0.png", folder.add("twice")[0])
    expected["JPEGImages/ok0.png"] = "duplicate"
    shutil.copy(root / "JPEGImages" / "ok1.png", folder.add("leak", "val")[0])
    expected["JPEGImages/ok1.png"] = "duplicate"
    with Image.open(root / "JPEGImages" / "ok2.png") as original:
        original.save(sample("alike", "near-duplicate", split="val", suffix="jpg"), quality=92)
    folder.list("ok3", "val")
    expected["JPEGImages/ok3.png"] = "in two splits"
    folder.list("nowhere", "train")
    expected["ImageSets/Segmentation/train.txt"] = "missing files"
    folder.add("unlabelled", "val")[1].unlink()
    expected["ImageSets/Segmentation/val.txt"] = "missing files"
    save(root / "SegmentationClass" / "stray.png", label())
    expected["SegmentationClass/stray.png"] = "missing files"
    save(folder.add("usual")[1], label(), [*black, 250, 0, 0, 0, 250, 0])
    save(folder.add("usual2")[1], label(), [*black, 250, 0, 0, 0, 250, 0])
    save(sample("colours", "palettes", mask=True), label(), [*black, 0, 0, 250, 0, 250, 0])
    save(sample("sorted", "palette", mask=True), label(), [*black, 0, 128, 0, 128, 0, 0])
    (root / "SegmentationClassGray").mkdir()
    folder.add("stale")
    save(root / "SegmentationClassGray" / "stale.png", label(classes=(0, 2, 1)))
    os.utime(root / "SegmentationClassGray" / "stale.png", (1, 1))
    expected["SegmentationClassGray/stale.png"] = "stale copy"
    image(300, (8, 8)).save(small := sample("tiny", "small images"))
    save(root / "SegmentationClass" / "tiny.png", label((8, 8)))
    image(301, (400, 300)).save(sample("big", "unusual size"))
    save(root / "SegmentationClass" / "big.png", label((400, 300)))
    image(302, (800, 600)).save(sample("bomb", "too large"))
    save(root / "SegmentationClass" / "bomb.png", label((800, 600)))
    assert small.is_file()
    return expected


def test_thirty_faults_are_named_in_one_pass(
    sound: Folder, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plant(sound)
    (sound.root / "classes.txt").write_text("background\nred\ngreen\nblue\n")  # no pixel in either split
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    assert cli(*CHECK, "dataset.max_image_pixels=200000", "device=cuda", "loader.num_workers=2") == 2
    rows = findings(tmp_path / "out")
    named = {(row["file"], row["kind"]) for row in rows}
    assert [pair for pair in expected.items() if pair not in named] == []
    kinds = {(row["kind"], row["split"]) for row in rows}
    assert {("missing class", "train"), ("missing class", "val"), ("configuration", ""), ("shared memory", "")} <= kinds
    assert len(expected) + 4 >= 30
    assert all(row["message"] and row["fix"] and row["level"] in ("error", "warning") for row in rows)
    output = capsys.readouterr()
    assert "device=cuda: not available" in output.err
    for name in ("cut_jpg", "alike", "stray.png", "--shm-size"):
        assert name in output.out
    assert rows[0]["level"] == "error"


def test_sound_folder_has_no_findings(
    sound: Folder, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*CHECK) == 0
    assert findings(tmp_path / "out") == []
    output = capsys.readouterr().out
    assert "No findings" in output
    assert "loss.class_weights=auto" in output
    assert "here 0.977, 1, 1" in " ".join(output.split())
    assert "crop_size=" in output
    assert "loader.batch_size=" not in output  # it has the value
    assert str(Path("out", "check", "report.html")) in output
    assert "main_weight" not in output


def test_configuration_is_printed_on_request(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("mode=check", *TINY, "check.config=true") == 0
    output = capsys.readouterr().out
    assert "main_weight" in output
    assert "examples:" not in output  # the node is no part of a run


def test_environment_is_printed_even_if_the_configuration_is_wrong(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("mode=check", *TINY, "crop_sise=3", "optimizer.lr=-1") == 2
    output = capsys.readouterr()
    assert "process-group backends" in output.out
    assert "crop_sise" in output.err
    assert "optimizer.lr=-1" in output.err


def test_second_run_decodes_nothing(sound: Folder, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli(*CHECK, "check.examples=0") == 0

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(facts.Image, "open", fail)
    monkeypatch.setattr("pspexp.jobs.check.check.first_batch", lambda *_: "")
    assert cli(*CHECK, "check.examples=0", "hydra.run.dir=again") == 0
    assert findings(tmp_path / "again") == []


class Page(HTMLParser):
    """Collects the addresses and tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def test_page_is_self_contained_and_escapes_names(sound: Folder, cli: Cli, tmp_path: Path) -> None:
    name = "<blink>&'\""
    sound.add(name)[0].write_bytes(b"")
    (sound.root / "classes.txt").write_text("background\n<u>red\ngreen\n")
    assert cli(*CHECK, "dataset.on_error=skip") == 0
    text = (tmp_path / "out" / "check" / "report.html").read_text()
    page = Page(text)
    assert page.tags.isdisjoint({"blink", "u", "link", "iframe"})
    assert page.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "&lt;blink&gt;" in text
    assert "&lt;u&gt;red" in text


def test_findings_are_readable_at_80_columns(sound: Folder, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(sound)
    narrow = Console(width=80, record=True, highlight=False, file=io.StringIO())
    monkeypatch.setattr(terminal, "console", lambda: narrow)
    assert cli(*CHECK, "dataset.max_image_pixels=200000") == 2
    text = narrow.export_text()
    table = text[text.index("what, and how to fix it") : text.index("train pixels")]
    assert max(map(len, table.splitlines())) <= 80
    assert "SegmentationClass/cut_mask.png" in table
    assert not any(re.search(r"\S…\s*$", line) for line in table.splitlines())  # nothing is cut off


def test_generated_data_needs_no_files(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("mode=check", *TINY, "hydra.run.dir=out") == 0
    text = (tmp_path / "out" / "check" / "report.html").read_text()
    assert "striped disc" in text
    assert text.count("data:image/jpeg") == 2 * (5 + 2)  # examples and a batch, image and labels
    assert "striped disc" in capsys.readouterr().out


def test_data_is_inspected_although_the_network_cannot_be_built(
    sound: Folder, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(sound.add("seven")[1], label(classes=(0, 1, 7)))
    assert cli(*CHECK, "scheduler.warmup_steps=9999") == 2
    rows = findings(tmp_path / "out")
    assert {"configuration", "undeclared values"} <= {row["kind"] for row in rows}
    error = capsys.readouterr().err
    assert "scheduler.warmup_steps" in error


def test_metrics_and_true_stride_are_checked_as_by_training(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*PSPNET18, "model.backbone=pvt_v2_b0", "model.align_corners=true", "crop_size=41")
    assert cli("mode=check", *words, "+metrics.own={_target_: builtins.dict}", "hydra.run.dir=out") == 2
    error = capsys.readouterr().err
    assert "crop_size=41: (crop_size - 1) must be divisible by 32" in error
    assert "metrics.own: dict has no method reset" in error


def test_full_disk_is_foreseen(sound: Folder, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    assert cli(*CHECK) == 2  # training would be refused
    (row,) = findings(tmp_path / "out")
    assert (row["kind"], row["level"]) == ("disk space", "error")


@pytest.fixture
def spoil(sound: Folder) -> Callable[[Callable[[Path], None]], None]:
    """Change every label file."""

    def change(how: Callable[[Path], None]) -> None:
        for path in sorted((sound.root / "SegmentationClass").iterdir()):
            how(path)

    return change


def test_masks_in_black_and_white_name_the_setting(
    spoil: Callable[[Callable[[Path], None]], None], sound: Folder, cli: Cli, tmp_path: Path
) -> None:
    (sound.root / "classes.txt").write_text("background\nobject\n")
    spoil(lambda path: save(path, label(classes=(0, 255))))
    assert cli(*CHECK) == 2
    (row,) = [row for row in findings(tmp_path / "out") if row["kind"] == "label values"]
    assert row["fix"] == "add dataset.label_values=[0,255]"
    assert cli(*CHECK, "dataset.label_values=[0,255]", "hydra.run.dir=fixed") == 0
    assert findings(tmp_path / "fixed") == []


@pytest.fixture
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.usefixtures("empty_hub_cache")
def test_imagenet_weights_that_cannot_be_downloaded_are_a_warning(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
    assert cli("mode=check", *TINY, "model.backbone_weights=timm", "hydra.run.dir=out") == 0
    (row,) = [row for row in findings(tmp_path / "out") if row["kind"] == "weights"]
    assert row["level"] == "warning"
    assert row["message"].startswith(
        "model.backbone_weights=timm: the ImageNet weights of resnet18 are not in the cache"
    )
    assert row["message"].endswith("(no route to host)")
    for way in ("HF_ENDPOINT=https://<mirror>", "model.backbone_weights=<file>", "model.backbone_weights=null"):
        assert way in row["fix"]
    text = "Initial weights: ImageNet weights of resnet18, which are not in the cache and cannot be downloaded"
    assert text in capsys.readouterr().out


@pytest.mark.usefixtures("empty_hub_cache")
def test_download_of_imagenet_weights_is_announced(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = pretrained.HubFile("timm/resnet18.a1_in1k", "model.safetensors", 46 * 2**20, None)
    monkeypatch.setattr(pretrained, "find_on_hub", lambda name: file)
    assert cli("mode=check", *TINY, "model.backbone_weights=timm", "hydra.run.dir=out") == 0
    assert "weights" not in [row["kind"] for row in findings(tmp_path / "out")]
    text = "which the first training downloads (46.0 MiB) from timm/resnet18.a1_in1k"
    assert text in capsys.readouterr().out
    assert text in (tmp_path / "out" / "check" / "report.html").read_text()


@pytest.mark.parametrize("backbone_weights", ["null", "file", "timm"])
def test_initial_weights_are_described(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], backbone_weights: str
) -> None:
    state = {f"backbone.{key}": value for key, value in Backbone(8, 3).state_dict().items()}
    torch.save(state, tmp_path / "file")
    monkeypatch.setattr(pretrained, "is_cached", lambda name: True)
    monkeypatch.setattr(weights, "imagenet_weights", lambda name, in_channels: state)
    assert cli("mode=check", *TINY, f"model.backbone_weights={backbone_weights}", "hydra.run.dir=out") == 0
    matches = "in the layout of pspexp: 24 of the backbone's 24 tensors"
    text = {
        "null": "random",
        "file": f"{tmp_path}/file, {matches}",
        "timm": f"ImageNet weights of resnet18, {matches}",
    }[backbone_weights]
    assert f"Initial weights: {text}\n" in capsys.readouterr().out
    assert "weights" not in [row["kind"] for row in findings(tmp_path / "out")]


def test_file_of_another_network_is_an_error(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({f"blocks.{i}.weight": torch.zeros(1) for i in range(30)}, tmp_path / "file")
    assert cli("mode=check", *TINY, "model.backbone_weights=file", "hydra.run.dir=out") == 2
    assert "holds another network (keys begin with blocks.), not PSPNet with resnet18" in capsys.readouterr().err
    assert findings(tmp_path / "out")[0]["kind"] == "configuration"


def test_missing_package_with_weights_is_an_error(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("mode=check", *TINY, "model.backbone_weights=pip") == 2
    assert "model.backbone_weights=pip: no package has weights of resnet18" in capsys.readouterr().err
