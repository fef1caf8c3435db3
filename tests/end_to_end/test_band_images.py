"""Images of four bands: train, test, predict, use from Python and export, with a few lines of settings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pspexp
from pspexp.data.bands import Bands
from tests.conftest import TINY, Cli, run_commands

tifffile = pytest.importorskip("tifffile", reason="needs the extra 'tiff'")

MEAN, STD = "dataset.mean=[0.5,0.5,0.5,0.5]", "dataset.std=[0.25,0.25,0.25,0.25]"
DATA = ("dataset=folder", "dataset.root=data", "dataset.images=images/{id}.tif")
BANDS = (*DATA, MEAN, STD, "model.in_channels=4")
TRAIN = (*(word for word in TINY if not word.startswith("dataset")), "device=cpu", "precision=fp32")
LEARN = ("trainer.epochs=20", "trainer.validate_every=20", "optimizer.lr=0.02", "scheduler=constant")


def write_data(root: Path) -> None:
    """Ten images whose class is visible in the fourth band only: the others are noise."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index in range(10):
        rng = np.random.default_rng(index)
        image = rng.integers(0, 65536, (40, 48, 4), np.uint16)
        label = np.zeros((40, 48), np.uint8)
        label[:, 8 + 2 * index :] = 1
        image[..., 3] = np.where(label, 50_000, 10_000)
        tifffile.imwrite(root / "images" / f"{index}.tif", image, photometric="minisblack", planarconfig="contig")
        Image.fromarray(label).save(root / "masks" / f"{index}.png")
    (root / "classes.txt").write_text("left\nright\n")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run; tests only read the run."""
    home = tmp_path_factory.mktemp("bands")
    write_data(home / "data")
    run_commands(home, (*TRAIN, *BANDS, *LEARN, "loader.cache_mib=1", "hydra.run.dir=run"))
    return home


@pytest.fixture
def words(home: Path, tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "data").symlink_to(home / "data")
    return (f"checkpoint.path={home / 'run'}", "tracking=none", "device=cpu", "hydra.run.dir=out")


def test_network_learns_from_the_fourth_band(home: Path, words: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
    best = json.loads((home / "run" / "summary.json").read_text())["best"]["val/mean_iou"]
    assert best > 0.9
    assert cli("mode=test", *words) == 0
    tested = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert tested["last"]["test/mean_iou"] == best


def test_prediction(home: Path, words: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
    assert cli("mode=predict", *words, "predict.input=data/images") == 0
    right = [np.asarray(Image.open(tmp_path / "out" / "ids" / f"{index}.png")) == 1 for index in range(10)]
    labels = [np.asarray(Image.open(home / "data" / "masks" / f"{index}.png")) == 1 for index in range(10)]
    assert np.mean(np.array(right) == np.array(labels)) > 0.95
    assert len(list((tmp_path / "out" / "overlay").iterdir())) == 10


def test_trained_network_from_python(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = pspexp.load(home / "run", ["device=cpu"])
    file = home / "data" / "images" / "0.tif"
    pixels = np.round(tifffile.imread(file) / 257).astype(np.uint8)
    expected = network(file)
    for image in (pixels, Bands.from_array(pixels), Image.fromarray(pixels)):  # Pillow takes four bands for RGBA
        assert np.array_equal(network(image), expected)
    assert network.overlay(pixels).width >= 48
    with pytest.raises(pspexp.errors.UserError, match=r"uint8 \[40, 48, 3\]; must be uint8 \[H, W, 4\]"):
        network(pixels[..., :3])
    with pytest.raises(pspexp.errors.UserError, match=r"image: 3 bands, but dataset\.mean has 4 values"):
        network(Bands.from_array(pixels[..., :3]))


def test_check(words: tuple[str, ...], cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No file has a thumbnail to compare: Pillow cannot read one of them."""
    assert cli("mode=check", *TRAIN, *BANDS, *words[1:]) == 0, capsys.readouterr()
    assert "data:image/jpeg;base64" in next(tmp_path.rglob("*.html")).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "tensor"])
def test_export(home: Path, words: tuple[str, ...], cli: Cli, tmp_path: Path, kind: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    assert cli("mode=export", *words, "export.format=[onnx]", f"export.input={kind}") == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    pixels = np.round(tifffile.imread(home / "data" / "images" / "0.tif") / 257).astype(np.uint8)
    scaled = ((pixels / 255 - 0.5) / 0.25).transpose(2, 0, 1).astype(np.float32)
    found: Any = session.run(None, {session.get_inputs()[0].name: (pixels if kind == "image" else scaled)[None]})[0]
    ids = found[0] if kind == "image" else found[0].argmax(0)
    assert np.mean(ids == pspexp.load(home / "run", ["device=cpu"])(pixels)) > 0.999


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (("model.in_channels=3",), "model.in_channels=3: but dataset.mean has 4 values; make them agree"),
        (
            ("dataset.mean=[0.5]", "dataset.std=[0.5]", "model.in_channels=1"),
            "has 4 bands, but dataset.mean 1 value; give dataset.mean and dataset.std one value per band",
        ),
        (("dataset.std=[0.5]",), "std=[0.5]: each needs one value per band"),
    ],
)
def test_other_numbers_of_bands(
    home: Path, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: tuple[str, ...], problem: str
) -> None:
    (tmp_path / "data").symlink_to(home / "data")
    assert cli(*TRAIN, *BANDS, *changes, "hydra.run.dir=out") == 2
    assert problem in capsys.readouterr().err


def test_bands_of_rgb_images_are_named_when_they_are_read(
    home: Path, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path / "data")
    for file in (tmp_path / "data" / "images").iterdir():
        file.unlink()
        Image.new("RGB", (48, 40)).save(file.with_suffix(".png"))
    assert cli(*TRAIN, *BANDS, "dataset.images=images/{id}.png", "hydra.run.dir=out") == 2
    assert "3 bands, but dataset.mean has 4 values" in capsys.readouterr().err


def test_weights_of_a_network_for_other_images_are_refused(
    home: Path, words: tuple[str, ...], cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("mode=test", *words, "dataset.mean=[0.5]", "dataset.std=[0.5]", "model.in_channels=1") == 2
    assert "weight of another shape" in capsys.readouterr().err


def test_network_for_any_number_of_bands_without_a_data_set() -> None:
    with torch.device("meta"):
        network = pspexp.pspnet18(num_classes=3, in_channels=4).eval()
        assert network(torch.zeros(1, 4, 33, 33))["out"].shape == (1, 3, 33, 33)
