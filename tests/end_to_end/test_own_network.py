"""A user-defined network, used from the command line."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import pspexp
from pspexp.config.build import build
from tests.conftest import TINY, Cli
from tests.end_to_end.conftest import TIMEOUT_S, Start

# The layer names are those by which files of timm, semseg and mmsegmentation are recognised.
NETWORK = """
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes: int, width: int = 4) -> None:
        super().__init__()
        self.layer0 = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.layer1 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 1)
        self.decode_head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images):
        return self.decode_head(self.conv3(self.layer1(self.layer0(images))).relu())


class OneSize(Net):
    def forward(self, images):
        assert images.shape[-2:] == (33, 33)
        return super().forward(images.repeat_interleave(2, -1).repeat_interleave(2, -2))


class Keyed(Net):
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)

    def forward(self, images):
        return {"pred": super().forward(images)}
"""
TRAINING = tuple(one for one in TINY if not one.startswith(("model", "inference")))
OWN = (*TRAINING, "model=custom", "model._target_=own_networks.Net", "trainer.max_steps=1")


@pytest.fixture(autouse=True)
def _module(tmp_path: Path) -> None:
    """The file with the networks, in the working directory."""
    (tmp_path / "own_networks.py").write_text(NETWORK)


def summary(run: Path) -> dict[str, float]:
    values: dict[str, float] = json.loads((run / "summary.json").read_text())["last"]
    return values


@pytest.mark.parametrize("inference", ["whole", "slide"])
def test_own_network_trains_and_is_tested(cli: Cli, tmp_path: Path, inference: str) -> None:
    assert cli(*OWN, "+model.width=6", f"inference={inference}", "hydra.run.dir=run") == 0
    assert cli("mode=test", "checkpoint.path=run", "tracking=none", "hydra.run.dir=test") == 0
    trained, tested = summary(tmp_path / "run"), summary(tmp_path / "test")
    assert tested["test/mean_iou"] == trained["val/mean_iou"]
    assert tested["test/loss"] == trained["val/loss"]


def test_own_option_in_a_yaml_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    option = "_target_: own_networks.Net\nnum_classes: ${dataset.num_classes}\n"
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(option)
    own = ("--config-dir=conf", "model=mine", "inference=whole")
    assert cli(*own, *TRAINING, "trainer.max_steps=1", "hydra.run.dir=run") == 0
    assert cli("--config-dir=conf", "mode=test", "checkpoint.path=run", "tracking=none", "hydra.run.dir=test") == 0


def test_training_starts_from_the_weights_of_another_class_set(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*OWN, "hydra.run.dir=run") == 0
    start = ("model=custom", "model._target_=own_networks.Net", "model.weights=run/checkpoints/best.pt")
    model = build(pspexp.compose([*start, "dataset=voc2012"]).model)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)["model"]
    assert torch.equal(model.state_dict()["network.layer0.weight"], saved["network.layer0.weight"])
    assert "run/checkpoints/best.pt, in the layout of pspexp: 9 of the network's 11 tensors" in model.initial_weights
    assert model.state_dict()["network.decode_head.weight"].shape[0] == 21
    assert (
        "network.decode_head.weight is initialised randomly: the file has 5 classes, not 21" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model._target_=own_networks.Keyed"],
            "model=custom: Keyed returned dict with the keys pred; return the logits as a tensor",
        ),
        (
            ["model.num_classes=7", "dataset.num_classes=5"],
            "model.num_classes=7: but the data set has 5 classes",
        ),
        (
            ["model._target_=absent_networks.Net"],
            "model._target_=absent_networks.Net: cannot be imported: there is no module absent_networks here; run from "
            "the folder that holds absent_networks.py, or add that folder to PYTHONPATH",
        ),
        (["+model.widht=6"], "model.widht: unknown key; did you mean 'width'?"),
        (
            ["model._target_=own_networks.OneSize", "inference=whole"],
            "OneSize takes images of 33×33 pixels only, not whole images; use inference=slide with inference.window=33",
        ),
    ],
)
def test_what_cannot_be_used_is_said_before_training(
    cli: Cli, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str, tmp_path: Path
) -> None:
    given = [one for one in OWN if one.partition("=")[0] not in {text.partition("=")[0] for text in overrides}]
    assert cli(*given, "hydra.run.dir=run", *overrides) == 2
    output = capsys.readouterr()
    assert message in output.out + output.err
    assert "Traceback" not in output.out + output.err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_network_is_exported(cli: Cli, tmp_path: Path) -> None:
    assert cli(*OWN, "inference=whole", "hydra.run.dir=run") == 0
    pytest.importorskip("onnx")
    export = ("mode=export", "checkpoint.path=run", "export.format=[onnx]", "export.num_images=1")
    assert cli(*export, "export.output=exported") == 0
    report = json.loads((tmp_path / "exported" / "report.json").read_text())
    assert report["model.onnx"]["kept"]
    exported = "checkpoint.path=exported/model.onnx"
    assert cli("mode=test", exported, "tracking=none", "hydra.run.dir=test") == 0
    assert summary(tmp_path / "test")["test/mean_iou"] == pytest.approx(
        summary(tmp_path / "run")["val/mean_iou"], abs=1e-3
    )


@pytest.mark.slow
def test_module_is_found_by_every_process_of_the_installed_command(start: Start, tmp_path: Path) -> None:
    scripts, elsewhere = tmp_path / "bin", tmp_path / "elsewhere"
    scripts.mkdir()
    elsewhere.mkdir()
    script = scripts / "pspexp"
    script.write_text("from pspexp.cli import main\n\nif __name__ == '__main__':\n    main()\n")
    command = (sys.executable, str(script))  # as an installed command: Python looks beside it, not in this folder
    processes = ("launcher=ddp", "launcher.nproc_per_node=2", "loader.num_workers=1")
    training = start(*OWN, *processes, "inference=whole", "hydra.run.dir=run", command=command)
    output, errors = training.communicate(timeout=TIMEOUT_S)
    assert training.returncode == 0, output + errors
    shutil.move(tmp_path / "own_networks.py", elsewhere)
    test = start("mode=test", "checkpoint.path=run", "tracking=none", "hydra.run.dir=test", command=command)
    output, errors = test.communicate(timeout=TIMEOUT_S)
    assert test.returncode == 2
    assert "own_networks.Net: cannot be imported: there is no module own_networks here; run from" in output + errors
    assert "Traceback" not in output + errors
