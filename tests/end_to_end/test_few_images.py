"""Training on the first images of a split, and the recipe that overfits one batch."""

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from pspexp.data.shapes import ShapesSplit
from pspexp.losses.class_weights import weights_from_counts
from tests.conftest import TINY, Cli

FEW = (*TINY, "loader.max_train_images=2")


def test_training_takes_the_first_images(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(*FEW, "loss.class_weights=inverse", "trainer.max_steps=1", "hydra.run.dir=run") == 0
    log = (tmp_path / "run" / "run.log").read_text()
    assert "on shapes (2 images)" in log
    assert "1 steps per epoch" in log
    split = ShapesSplit("train", 2, 48, 0, 255)
    counts = [[(np.asarray(split[image][1]) == index).sum() for index in range(5)] for image in range(2)]
    used = OmegaConf.load(tmp_path / "run" / "config.yaml").loss.class_weights
    assert used == weights_from_counts(np.array(counts), "inverse")

    capsys.readouterr()
    assert cli(*FEW, "loader.max_train_images=4", "loss.class_weights=inverse", "checkpoint.resume=run") == 2
    assert "loader.max_train_images=4: the saved run has 2" in capsys.readouterr().err


def test_fewer_images_than_a_step_takes_are_refused(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(*FEW, "loader.batch_size=3") == 2
    assert "loader.batch_size=3 × trainer.accumulate=1 is more than the 2 training images" in capsys.readouterr().err


@pytest.mark.slow
def test_debug_overfits_one_batch(cli: Cli, tmp_path: Path) -> None:
    assert cli("experiment=debug", "tracking=none", "hydra.run.dir=run") == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["last"]["val/overall_acc"] >= 0.99


@pytest.mark.usefixtures("voc")
def test_debug_validates_on_the_images_it_trains_on(cli: Cli, tmp_path: Path) -> None:
    """With any data set."""
    data = ("dataset=voc_folder", "dataset.root=voc", "dataset.class_names=[a,b,c]", "crop_size=64")
    network = [override for override in TINY if override.startswith("model")]
    assert cli("experiment=debug", *data, *network, "trainer.epochs=1", "tracking=none", "hydra.run.dir=run") == 0
    log = (tmp_path / "run" / "run.log").read_text()
    assert "on voc_folder (4 images)" in log
    assert "image 4/4 (100 %)" in log
