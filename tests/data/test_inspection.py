"""Facts about files, their cache, advice about label values, and the look at the labels before training."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspexp.data.dataset import DatasetInfo
from pspexp.data.file_split import FileSplit
from pspexp.data.inspection import cache, collect, file_rules, quick
from pspexp.data.inspection.advice import suggest
from pspexp.data.inspection.cache import FactsCache
from pspexp.data.inspection.facts import ImageFacts, read_mask_facts
from pspexp.data.inspection.inspected import Inspection, decode_facts
from pspexp.data.label_decoder import LabelDecoder
from pspexp.data.label_values import Value, parse_label_values
from pspexp.data.labels import VOC_COLOURS
from pspexp.data.splits import SampleFiles
from pspexp.errors import UserError

BLACK, RED, GREEN, WHITE = (0, 0, 0), (255, 0, 0), (0, 255, 0), (255, 255, 255)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "cache_folder", lambda part: tmp_path / "cache")


def decoder(
    num_classes: int, label_values: list[Any] | None = None, ignore_values: tuple[Any, ...] = (255,), tolerance: int = 0
) -> LabelDecoder:
    classes, ignored = parse_label_values(label_values, ignore_values, num_classes)
    return LabelDecoder(classes, ignored, tolerance=tolerance, voc_colours=label_values is None)


def info(num_classes: int) -> DatasetInfo:
    names = ["background", *(f"class{index}" for index in range(1, num_classes))]
    return DatasetInfo(names, 255, [0.5] * 3, [0.2] * 3, VOC_COLOURS[:num_classes])


@pytest.mark.parametrize(
    ("values", "classes", "words"),
    [
        ({0: 90, 255: 10}, 2, "dataset.label_values=[0,255]"),
        ({0: 90, 255: 10}, 3, "dataset.class_names=[background,object] dataset.label_values=[0,255]"),
        ({0: 90, 128: 5, 255: 5}, 3, "dataset.label_values=[0,128,255]"),
        ({1: 90, 2: 10, 255: 4}, 2, "dataset.label_values=[1,2]"),
        ({0: 50, 1: 40, 2: 10}, 2, "dataset.reduce_zero_label=true"),
        ({10: 50, 20: 40, 255: 1}, 2, "dataset.label_values=[10,20]"),
        ({0: 50, 1: 40, 7: 1}, 2, "dataset.ignore_values=[255,7]"),
        ({RED: 10, BLACK: 90}, 2, "\"dataset.label_values=['#000000','#ff0000']\""),
        (
            {RED: 20, BLACK: 90, WHITE: 1},
            2,
            "\"dataset.label_values=['#000000','#ff0000']\" \"dataset.ignore_values=[255,'#ffffff']\"",
        ),
        ({0: 90, 3: 2, 250: 5, 255: 50}, 2, "dataset.label_values=[0,255] dataset.label_tolerance=5"),
        (
            {BLACK: 90, (2, 1, 0): 3, RED: 40, (250, 4, 3): 2, GREEN: 20, (1, 251, 0): 1},
            3,
            "\"dataset.label_values=['#000000','#ff0000','#00ff00']\" dataset.label_tolerance=5",
        ),
        (
            {BLACK: 90, (2, 1, 0): 3, (128, 0, 0): 40, (120, 4, 3): 2},
            2,
            "\"dataset.label_values=['#000000','#800000']\" dataset.label_tolerance=8",
        ),
    ],
)
def test_advice_gives_every_value_a_meaning(values: Mapping[Value, int], classes: int, words: str) -> None:
    assert suggest(values, info(classes).class_names, decoder(classes))[0] == words


def test_advice_about_a_missing_tolerance() -> None:
    values: Mapping[Value, int] = {0: 90, 4: 3, 251: 2, 255: 50}
    assert suggest(values, ["a", "b"], decoder(2, [0, 255])) == ["dataset.label_tolerance=4"]


def test_no_advice_about_labels_that_are_understood() -> None:
    assert suggest({0: 5, 1: 5, 255: 2}, ["a", "b"], decoder(2)) == []
    assert suggest({0: 5, 3: 5, 255: 2}, ["a", "b"], decoder(2, [0, 255], tolerance=5)) == []


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16", "RGB", "RGBA"])
def test_counts_from_the_histogram_are_those_of_the_pixels(mode: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 2, (20, 30), np.uint8)
    path, reader = tmp_path / "mask.png", decoder(2)
    if mode == "I;16":
        Image.fromarray(pixels.astype(np.uint16)).save(path)
    elif mode in ("RGB", "RGBA"):
        Image.fromarray(VOC_COLOURS[pixels]).convert(mode).save(path)
    else:
        picture = Image.fromarray(pixels * np.uint8(255 if mode == "1" else 1))
        if mode == "P":
            picture.putpalette(VOC_COLOURS.tobytes())
        (picture.convert("1") if mode == "1" else picture).save(path)
    facts = decode_facts(path, read_mask_facts(path, 10**6), reader)
    with Image.open(path) as image:
        decoded = reader.decode(image)
    assert facts.values == decoded.count()
    assert facts.ids == {index: int((decoded.ids == index).sum()) for index in (0, 1)}


class Data:
    """Image and label files, 10×10, of which tests change some."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def split(self, name: str, labels: list[list[int]], num_classes: int = 3, **options: Any) -> FileSplit:
        samples = []
        for index, values in enumerate(labels):
            row = np.array(values, np.uint8)[np.arange(10) * len(values) // 10]
            files = self.root / f"{name}{index}.png", self.root / f"{name}{index}_mask.png"
            Image.new("RGB", (10, 10), (index, 50, 50)).save(files[0])
            Image.fromarray(np.repeat(row[None], 10, axis=0)).save(files[1])
            samples.append(SampleFiles(f"{name}{index}", *files))
        return FileSplit(samples, decoder(num_classes, **options))


@pytest.fixture
def data(tmp_path: Path) -> Data:
    (tmp_path / "data").mkdir()
    return Data(tmp_path / "data")


GOOD = [[0, 1, 2], [0, 1, 2]]


def problems(splits: dict[str, FileSplit], num_classes: int = 3, **options: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        quick.look(splits, info(num_classes), **options)
    return list(caught.value.problems)


def test_sound_splits_pass_in_silence(data: Data, caplog: pytest.LogCaptureFixture) -> None:
    quick.look({"train": data.split("a", GOOD), "val": data.split("b", GOOD)}, info(3))
    assert caplog.records == []


def test_every_error_is_reported_at_once(data: Data) -> None:
    train = data.split("a", [*GOOD, [0, 1, 7], [0, 1], [1, 2]])
    val = FileSplit([train.samples[0], *data.split("b", GOOD).samples], train.decoder)
    Image.new("RGB", (11, 10)).save(train.samples[3].image)
    train.samples[4].image.write_bytes(b"GIF")
    lines = "\n".join(problems({"train": train, "val": val}))
    for text in (
        f"{train.samples[2].mask}: label value 7 (30 pixels)",
        f"{train.samples[3].mask}: 10×10 pixels, but its image a3.png has 11×10",
        f"{train.samples[4].image}: cannot be read",
        "a0 is in both train and val",
    ):
        assert text in lines


def test_masks_in_black_and_white(data: Data) -> None:
    (line,) = [
        line
        for line in problems(
            {"train": data.split("a", [[0, 255], [0, 0, 255]], 2), "val": data.split("b", GOOD[:0])}, 2
        )
        if "255" in line
    ]
    assert "class1 cannot be learned" in line
    assert line.endswith("add dataset.label_values=[0,255]")


@pytest.mark.parametrize("role", ["train", "val"])
def test_split_without_a_label(data: Data, role: str) -> None:
    splits = {"train": data.split("a", GOOD), "val": data.split("b", GOOD)}
    splits[role] = data.split("c", [[255], [255]])
    (line,) = problems(splits)
    assert f"no mask of the split {role} has a labelled pixel" in line


def test_single_class(data: Data) -> None:
    (line,) = problems({"train": data.split("a", [[1], [1, 255]]), "val": data.split("b", GOOD)})
    assert "class1 is the only class in the training split" in line


def test_missing_class_is_a_warning(data: Data, caplog: pytest.LogCaptureFixture) -> None:
    quick.look({"train": data.split("a", [[0, 1]]), "val": data.split("b", GOOD)}, info(3))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "no pixel of the class class2 in the split train" in caplog.text


def test_skipped_samples_are_warnings_with_a_count(data: Data, caplog: pytest.LogCaptureFixture) -> None:
    train = data.split("a", GOOD * 6)
    for sample in train.samples[:9]:
        sample.mask.write_bytes(b"")
    quick.look({"train": train}, info(3), on_error="skip")
    assert "a0_mask.png: is empty (0 bytes) (skipped)" in caplog.text
    assert "and 4 more" in caplog.text


def test_same_split_twice_is_a_warning(data: Data, caplog: pytest.LogCaptureFixture) -> None:
    split = data.split("a", GOOD)
    quick.look({"train": split, "val": split}, info(3))
    assert "the same split" in caplog.text


def test_of_large_splits_only_some_labels_are_read(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def note(path: Path, max_pixels: int) -> Any:
        read.append(path)
        return read_mask_facts(path, max_pixels)

    monkeypatch.setattr(collect, "read_mask_facts", note)
    monkeypatch.setattr(collect, "CHUNK", 2)
    split = data.split("a", [[0, 1, 2]] * 20)
    collect.inspect_quickly({"train": split}, 3, FactsCache(data.root), limit=10)
    assert len(read) == 2  # every class was seen
    collect.inspect_quickly({"train": data.split("b", [[0, 1]] * 20)}, 3, FactsCache(data.root), limit=10)
    assert len(read) == 2 + 10


def test_cache_saves_reading(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"train": data.split("a", GOOD)}
    quick.look(splits, info(3))
    monkeypatch.setattr("pspexp.data.inspection.facts.Image.open", lambda _: pytest.fail("read again"))
    quick.look(splits, info(3))
    other = {"train": FileSplit(splits["train"].samples, decoder(3, [2, 1, 0]))}
    quick.look(other, info(3))  # the facts do not depend on what the values mean


def test_changed_files_are_read_again(data: Data) -> None:
    splits = {"train": data.split("a", GOOD)}
    quick.look(splits, info(3))
    Image.fromarray(np.full((10, 10), 9, np.uint8)).save(splits["train"].samples[1].mask)
    assert "label value 9 (100 pixels)" in problems(splits)[0]


@pytest.mark.parametrize("content", [b"", b"not gzip", b"\x1f\x8b\x08\x00damaged"])
def test_damaged_cache_is_ignored(data: Data, content: bytes) -> None:
    splits = {"train": data.split("a", GOOD)}
    quick.look(splits, info(3))
    file = FactsCache(data.root).file
    assert file is not None
    file.write_bytes(content)
    quick.look(splits, info(3))
    assert FactsCache(data.root).get(ImageFacts, splits["train"].samples[0].image,
                                     collect.stat_of(splits["train"].samples[0].image))  # fmt: skip


def test_cache_that_cannot_be_written_is_no_error(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(cache, "cache_folder", lambda part: tmp_path / "file" / "below")
    quick.look({"train": data.split("a", GOOD)}, info(3))


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PSPEXP_CACHE", str(tmp_path / "mine"))
    assert cache.cache_folder("inspection") == tmp_path / "mine" / "inspection"
    monkeypatch.delenv("PSPEXP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder("inspection") == tmp_path / "pspexp" / "inspection"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache.cache_folder("inspection") == Path.home() / ".cache" / "pspexp" / "inspection"


def test_near_duplicates_are_found_within_and_between_splits(data: Data) -> None:
    rng = np.random.default_rng(0)
    drawn = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((128, 128)) for _ in range(3)]
    train, val = data.split("a", [[0, 1, 2]] * 3), data.split("b", GOOD)
    for sample, image in zip(
        train.samples, [drawn[0], drawn[1], drawn[0].resize((64, 64), Image.Resampling.BOX)], strict=True
    ):
        image.save(sample.image)
    for sample, image in zip(val.samples, [drawn[2], drawn[1].resize((32, 32), Image.Resampling.BOX)], strict=True):
        image.save(sample.image)
    splits = collect.inspect_all({"train": train, "val": val}, FactsCache(data.root), lambda _: None)
    found = [*file_rules.near_duplicates(Inspection(splits, info(3), data.root))]
    assert [(one.file, one.split) for one in found] == [
        (val.samples[1].image, "val"),
        (train.samples[2].image, "train"),
    ]
    assert "looks like a1.png, which is in train" in found[0].message
