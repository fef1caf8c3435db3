"""Label conversion: lossless in both directions, all or nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspexp.data.labels import VOC_COLOURS
from pspexp.data.preparation.convert import convert_folder
from pspexp.errors import UserError
from tests.conftest import default_signals

TOOL = Path(__file__).parents[3] / "tools/convert_voc_label.py"


def save(path: Path, label: np.ndarray, kind: str = "palette") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(VOC_COLOURS[label] if kind == "rgb" else label)
    if kind == "palette":
        image.putpalette(VOC_COLOURS.tobytes())
    image.save(path)


def random_label(seed: int) -> np.ndarray:
    values = np.array([*range(21), 255], np.uint8)
    return values[np.random.default_rng(seed).integers(0, 22, (9, 12))]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """A folder with labels of different formats."""
    for seed, kind in enumerate(["palette", "rgb", "grey", "palette", "rgb"]):
        save(tmp_path / f"in/{seed}.png", random_label(seed), kind)
    (tmp_path / "in/._0.png").write_text("resource fork")
    (tmp_path / "in/notes.txt").write_text("no label")
    return tmp_path / "in"


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_kind_of_label_becomes_an_index_image(labels: Path, tmp_path: Path, num_workers: int) -> None:
    done = convert_folder(labels, tmp_path / "new/out", num_workers=num_workers)
    assert (done.written, done.kept) == (5, 0)
    for seed in range(5):
        with Image.open(tmp_path / f"new/out/{seed}.png") as image:
            assert image.mode == "L"
            assert np.asarray(image).tolist() == random_label(seed).tolist()
        assert done.pixels[str(seed)].tolist() == np.bincount(random_label(seed).ravel(), minlength=256).tolist()
    assert len(content(tmp_path / "new/out")) == 5
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_round_trip_is_lossless(labels: Path, tmp_path: Path) -> None:
    convert_folder(labels, tmp_path / "grey", num_workers=1)
    convert_folder(tmp_path / "grey", tmp_path / "colour", to_colour=True, num_workers=1)
    with Image.open(tmp_path / "colour/0.png") as back, Image.open(labels / "0.png") as original:
        assert back.mode == original.mode == "P"
        assert back.getpalette() == original.getpalette()
        assert back.tobytes() == original.tobytes()
    with Image.open(tmp_path / "colour/1.png") as back, Image.open(labels / "1.png") as original:
        assert back.convert("RGB").tobytes() == original.tobytes()


def test_sorted_palette_is_converted_by_colour(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette(VOC_COLOURS[[255, 15, 0]].tobytes())
    image.save(tmp_path / "in/a.png")
    convert_folder(tmp_path / "in", tmp_path / "out")
    assert np.asarray(Image.open(tmp_path / "out/a.png")).tolist() == [[255, 15, 0]]


def test_all_problems_are_listed_and_nothing_is_written(labels: Path, tmp_path: Path) -> None:
    odd = VOC_COLOURS[random_label(0)].copy()
    odd[0, :3] = 1, 2, 3
    odd[1, 0] = VOC_COLOURS[21]
    Image.fromarray(odd).save(labels / "odd.png")
    Image.fromarray(odd[:1]).save(labels / "odd2.png")
    save(labels / "grey.png", np.full((2, 2), 77, np.uint8), "grey")
    (labels / "cut.png").write_bytes((labels / "0.png").read_bytes()[:-40])
    before = content(labels)
    for out in (tmp_path / "out", tmp_path / "there"):
        with pytest.raises(UserError) as caught:
            convert_folder(labels, out, num_workers=2)
        text = str(caught.value)
        assert "colour (1, 2, 3) is not a class: 6 pixels in 2 files: odd.png, odd2.png" in text
        assert f"colour {tuple(VOC_COLOURS[21].tolist())} is not a class: 1 pixel in 1 file: odd.png" in text
        assert "grey value 77 is not a class: 4 pixels in 1 file: grey.png" in text
        assert "cut.png" in text
        (tmp_path / "there").mkdir(exist_ok=True)
    assert content(labels) == before
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "there").iterdir()) == []


def test_photograph_among_the_labels_does_not_flood_the_report(labels: Path, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(labels / "photo.png")
    with pytest.raises(UserError) as caught:
        convert_folder(labels, tmp_path / "out", num_workers=1)
    assert len(caught.value.problems) == 22
    assert "more such values" in caught.value.problems[-2]


def test_second_run_keeps_existing_files(labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert_folder(labels, out, num_workers=1)
    (out / "2.png").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    done = convert_folder(labels, out, num_workers=1)
    assert (done.written, done.kept) == (1, 4)
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in out.iterdir()}.items()


def test_different_labels_are_replaced_only_with_overwrite(labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save(out / "1.png", np.zeros((9, 12), np.uint8), "grey")
    (out / "2.png").write_bytes(b"half a pict")
    (out / "mine.txt").write_text("kept")
    before = content(out)
    with pytest.raises(UserError, match=r"contains other labels for 2 files: 1\.png, 2\.png.*--overwrite"):
        convert_folder(labels, out, num_workers=1)
    assert content(out) == before
    convert_folder(labels, out, num_workers=1, overwrite=True)
    assert np.asarray(Image.open(out / "1.png")).tolist() == random_label(1).tolist()
    assert (out / "mine.txt").read_text() == "kept"


def test_leftovers_of_a_killed_conversion_are_removed(labels: Path, tmp_path: Path) -> None:
    for place in (tmp_path / ".out.123.partial", tmp_path / "out/.out.124.partial"):
        convert_folder(labels, tmp_path / "out", num_workers=1)
        place.mkdir()
        (place / "0.png").write_text("half")
    (tmp_path / "out/0.png").unlink()
    convert_folder(labels, tmp_path / "out", num_workers=1)
    assert len(content(tmp_path / "out")) == 5


def test_invalid_folders_are_refused(labels: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no such folder"):
        convert_folder(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(UserError, match="contains no PNG files"):
        convert_folder(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match="is a file"):
        convert_folder(labels, tmp_path / "file")
    with pytest.raises(UserError, match="both input and output"):
        convert_folder(labels, labels / ".." / "in")
    assert not (tmp_path / "out").exists()


def test_number_of_classes_can_be_set(tmp_path: Path) -> None:
    save(tmp_path / "in/a.png", np.array([[0, 30, 255]], np.uint8))
    with pytest.raises(UserError, match="is not a class"):
        convert_folder(tmp_path / "in", tmp_path / "out", num_workers=1)
    convert_folder(tmp_path / "in", tmp_path / "out", num_workers=1, num_classes=31)
    assert np.asarray(Image.open(tmp_path / "out/a.png")).tolist() == [[0, 30, 255]]


def run_tool(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(TOOL.parents[1])}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_command_line(labels: Path, tmp_path: Path) -> None:
    done = run_tool("--input_dir", labels, "--output_dir", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 labels written" in done.stdout
    done = run_tool("--input_dir", tmp_path / "out", "--output_dir", tmp_path / "back", "--to-color")
    assert done.returncode == 0
    wrong = run_tool("--input_dir", tmp_path, "--output_dir", tmp_path / "other")
    assert wrong.returncode == 2
    assert "no PNG files" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_leaves_no_files(tmp_path: Path, number: int, code: int) -> None:
    label = np.random.default_rng(0).integers(0, 21, (400, 400), np.uint8)
    save(tmp_path / "in/0.png", label)
    for index in range(1, 3000):
        os.link(tmp_path / "in/0.png", tmp_path / f"in/{index}.png")
    command = [sys.executable, str(TOOL), "--input_dir", "in", "--output_dir", "out", "--workers", "2"]
    env = {**os.environ, "PYTHONPATH": str(TOOL.parents[1])}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, preexec_fn=default_signals)
    while not list(tmp_path.glob(".out.*.partial/*.png")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".bmp", ".GIF", ".gif", ".Png"])
@pytest.mark.parametrize("kind", ["palette", "rgb", "grey"])
def test_labels_in_lossless_formats_are_converted(tmp_path: Path, suffix: str, kind: str) -> None:
    if (suffix.lower(), kind) == (".gif", "rgb"):
        pytest.skip("a GIF has a palette")
    save(tmp_path / f"in/a{suffix}", random_label(1), kind)
    save(tmp_path / "in/b.png", random_label(2))
    assert convert_folder(tmp_path / "in", tmp_path / "out", num_workers=1).written == 2
    with Image.open(tmp_path / "out/a.png") as image:
        assert np.asarray(image).tolist() == random_label(1).tolist()


def test_labels_that_cannot_be_converted_are_named(labels: Path, tmp_path: Path) -> None:
    for name in ("x.jpg", "y.JPEG", "0.jpg", "z.webp"):  # 0.jpg is a copy of the label 0.png, for viewing
        Image.new("L", (3, 2)).save(labels / name)
    save(labels / "1.tif", random_label(1), "rgb")
    with pytest.raises(UserError) as caught:
        convert_folder(labels, tmp_path / "out", num_workers=1)
    repeated, others = caught.value.problems
    assert repeated.startswith(f"{labels}: 2 files: 1.png, 1.tif would all become <name>.png")
    assert others.startswith(f"{labels}: 3 files: x.jpg, y.JPEG, z.webp cannot be converted")
    assert not (tmp_path / "out").exists()
