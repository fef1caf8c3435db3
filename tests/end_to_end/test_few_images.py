"""Training on the first images of a split, and the recipe that overfits one batch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from pspexp.data.dataset import Role, Split
from pspexp.data.shapes import ShapesDataset, ShapesSplit
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


class OneSplit(ShapesDataset):
    """A data set without keys for its splits, and without any images but those to train on."""

    def __init__(self, num_classes: int, class_names: list[str], ignore_index: int, mean: Any, std: Any) -> None:
        splits, numbers = ("train", "val", "val"), {"num_train": 6, "num_val": 1, "image_size": 48, "seed": 0}
        super().__init__(num_classes, class_names, ignore_index, *splits, mean, std, **numbers)

    def open(self, role: Role) -> Split:
        assert role == "train"
        return super().open(role)


def test_debug_takes_data_sets_of_ones_own(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "own" / "dataset").mkdir(parents=True)
    (tmp_path / "own" / "dataset" / "squares.yaml").write_text(f"""
_target_: {__name__}.OneSplit
num_classes: 5
class_names: [a, b, c, d, e]
ignore_index: 255
mean: null
std: null
""")
    network = [override for override in TINY if override.startswith("model")]
    words = ("experiment=debug", "dataset=squares", *network, "trainer.epochs=1", "tracking=none", "crop_size=49")
    assert cli("--config-dir=own", *words, "hydra.run.dir=run") == 0
    log = (tmp_path / "run" / "run.log").read_text()
    assert "on squares (4 images)" in log
    assert "validation on 4 images" in log
    assert cli("--config-dir=own", "mode=test", "checkpoint.path=run", "tracking=none", "hydra.run.dir=test") == 0
    validated, tested = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "test"))
    assert tested["last"]["test/mean_iou"] == validated["best"]["best/mean_iou"]


@pytest.mark.usefixtures("voc")
def test_debug_validates_on_the_images_it_trains_on(cli: Cli, tmp_path: Path) -> None:
    """With any data set."""
    data = ("dataset=voc_folder", "dataset.root=voc", "dataset.class_names=[a,b,c]", "crop_size=64")
    network = [override for override in TINY if override.startswith("model")]
    assert cli("experiment=debug", *data, *network, "trainer.epochs=1", "tracking=none", "hydra.run.dir=run") == 0
    log = (tmp_path / "run" / "run.log").read_text()
    assert "on voc_folder (4 images)" in log
    assert "image 4/4 (100 %)" in log
