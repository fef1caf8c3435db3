"""Class weights that a training counts, and where the numbers go."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import pspexp
from pspexp.config import training_data
from pspexp.data.shapes import ShapesSplit
from pspexp.engine.device import Device
from pspexp.engine.distributed import ProcessInfo, World
from pspexp.errors import UserError
from pspexp.jobs import class_weights
from pspexp.losses.class_weights import weights_from_counts
from tests.conftest import TINY, Cli, run_commands

SUM = ("loss=sum", "loss.terms=[{name:cross_entropy,class_weights:inverse},{name:dice,class_weights:null}]")
AUTO = (*TINY, *SUM, "loss.class_weights=auto", "hydra.run.dir=run")


def expected(method: str) -> list[float]:
    split = ShapesSplit("train", 5, 48, 0, 255)
    labels = [np.asarray(split[index][1]) for index in range(5)]
    return weights_from_counts(np.array([[(label == index).sum() for index in range(5)] for label in labels]), method)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was stopped halfway."""
    folder = tmp_path_factory.mktemp("home")
    run_commands(folder, (*AUTO, "trainer.max_steps=2"))
    return folder


@pytest.fixture
def _nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_weights, "pixel_counts", lambda *_: pytest.fail("counted again"))


def weights_in(loss: Any) -> list[list[float] | None]:
    return [loss["class_weights"], *(term["class_weights"] for term in loss["terms"])]


def test_numbers_are_logged_recorded_and_saved(home: Path) -> None:
    numbers = [expected("auto"), expected("inverse"), None]
    recorded = OmegaConf.load(home / "run" / "config.yaml")
    assert weights_in(recorded.loss) == numbers
    methods = {key: method for key, method in recorded.choices.items() if key.startswith("loss.")}
    assert methods == {"loss.class_weights": "auto", "loss.terms.0.class_weights": "inverse"}
    for name in ("last.pt", "best.pt"):
        saved = torch.load(home / "run" / "checkpoints" / name, weights_only=True)
        assert weights_in(saved["config"]["loss"]) == numbers
    log = (home / "run" / "run.log").read_text()
    assert f"loss.class_weights=auto: background: {numbers[0][0]:g}, striped disc: {numbers[0][1]:g}" in log  # type: ignore[index]
    assert "loss.terms.0.class_weights=inverse: background: " in log
    assert "loss.class_weights: classes without training pixels have weight 1: striped triangle" in log


@pytest.mark.usefixtures("_nothing_is_counted")
def test_test_resume_and_rerun_use_the_saved_numbers(home: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.chdir(home)
    before = OmegaConf.load(home / "run" / "config.yaml").loss
    assert cli(*TINY, "mode=test", "checkpoint.path=run", "hydra.run.dir=test") == 0
    assert cli(*AUTO, "checkpoint.resume=auto") == 0
    steps = [json.loads(line)["step"] for line in (home / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 4
    assert cli("rerun=run", "hydra.run.dir=again", "trainer.max_steps=1") == 0
    for folder in ("run", "again"):
        assert OmegaConf.load(home / folder / "config.yaml").loss == before


def test_other_numbers_are_refused_on_resume(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    assert cli(*AUTO, "loss.class_weights=[1,1,1,1,2]", "checkpoint.resume=run") == 2
    assert "loss.class_weights=[1, 1, 1, 1, 2]: the saved run has [" in capsys.readouterr().err


@pytest.mark.parametrize("words", [(*AUTO, "loss.class_weights=inverse"), ("loss.class_weights=inverse",)])
def test_another_method_is_refused_on_resume(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(home)
    assert cli(*words, "checkpoint.resume=run") == 2
    assert capsys.readouterr().err.startswith("loss.class_weights=inverse: the saved run has auto; resume with that")


def test_rerun_on_other_images_counts_again(home: Path) -> None:
    def loss(*overrides: str) -> Any:
        return pspexp.compose([f"rerun={home / 'run'}", *overrides]).loss

    methods, numbers = ["auto", "inverse", None], weights_in(loss())
    assert numbers == [expected("auto"), expected("inverse"), None]
    assert weights_in(loss("dataset.num_train=4")) == weights_in(loss("loader.max_train_images=3")) == methods
    assert weights_in(loss("dataset.num_train=4", "loss.class_weights=null")) == [None, "inverse", None]
    assert weights_in(loss("loss.class_weights=median_frequency")) == ["median_frequency", *numbers[1:]]


def test_rerun_records_only_the_methods_it_still_uses(home: Path) -> None:
    config = pspexp.compose([f"rerun={home / 'run'}", "loss.class_weights=null"])
    assert [key for key in config.choices if key.startswith("loss.")] == ["loss.terms.0.class_weights"]


def test_only_the_main_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        """Another process, which receives what the main process has counted."""

        def broadcast_from_main(self, make: Any) -> dict[str, list[float]]:
            return {"loss.class_weights": [1.0, 2.0]}

    monkeypatch.setattr(class_weights, "pixel_counts", lambda *_: pytest.fail("counted in the other process"))
    config = OmegaConf.create({"loss": {"class_weights": "auto", "gamma": 2.0}, "choices": {"loss": "focal"}})
    class_weights.resolve_class_weights(config, Other())  # type: ignore[arg-type]
    assert config.loss == {"class_weights": [1.0, 2.0], "gamma": 2.0}
    assert config.choices == {"loss": "focal", "loss.class_weights": "auto"}


def test_nothing_is_counted_for_a_training_that_cannot_start(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (class_weights, training_data):
        monkeypatch.setattr(module, "pixel_counts", lambda *_: pytest.fail("counted in vain"))
    wanted = (*AUTO, "loader.sampling=class_balanced")
    Path("broken.pt").write_bytes(b"nothing")
    assert cli(*wanted, "model.weights=broken.pt") == 2
    assert "broken.pt" in capsys.readouterr().err


class Missing:
    """A data set whose training split cannot be opened."""

    def open(self, role: str) -> None:
        raise UserError("no folder")


@pytest.mark.parametrize("mode", ["train", "test"])
def test_only_a_test_reports_training_images_that_cannot_be_opened(mode: str) -> None:
    target = f"{__name__}.Missing"
    nodes = {"dataset": {"_target_": target}, "loss": {"class_weights": "auto"}, "choices": {}}
    config = OmegaConf.create({"mode": mode, **nodes})
    if mode == "train":  # building the components will report it, with everything else
        class_weights.resolve_class_weights(config, World(ProcessInfo(), Device("cpu")))
        assert config.loss.class_weights == "auto"
        return
    with pytest.raises(UserError) as caught:
        class_weights.resolve_class_weights(config, World(ProcessInfo(), Device("cpu")))
    assert caught.value.problems == (
        "loss.class_weights=auto: is counted in the training images, which cannot be opened (no folder); "
        "give numbers, or null",
    )
