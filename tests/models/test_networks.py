"""Output shapes, dilation, arguments and options of the networks."""

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from pspexp.errors import UserError
from pspexp.models.backbone import RESNETS, build_backbone
from pspexp.models.pspnet import PSPNet, pspnet
from pspexp.models.segmenter import Segmenter
from pspexp.models.torchvision_models import deeplabv3_resnet50, fcn_resnet50

CONF = Path(__file__).parents[2] / "conf" / "model"


def small(**changes: Any) -> PSPNet:
    widths = {"pyramid_channels": 4, "head_channels": 8, "aux_channels": 4} | changes
    return pspnet(num_classes=5, backbone="resnet18", **widths)


def torchvision_model(name: str) -> Segmenter:
    make = {"fcn": fcn_resnet50, "deeplabv3": deeplabv3_resnet50}[name]
    return make(num_classes=5, output_stride=16)


def deeplabv3(**options: Any) -> Segmenter:
    return deeplabv3_resnet50(num_classes=5, **options)


MODELS = {
    "pspnet": small,
    "pspnet, contracted": lambda: small(align_corners=False, contract_dilation=True, output_stride=16),
    "fcn": lambda: torchvision_model("fcn"),
    "deeplabv3": lambda: torchvision_model("deeplabv3"),
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_have_the_image_size(name: str) -> None:
    model = MODELS[name]()
    images = torch.randn(2, 3, 29, 34)
    training = model(images)
    assert {key: value.shape for key, value in training.items()} == {
        "out": (2, 5, 29, 34),
        "aux": (2, 5, 29, 34),
    }
    with torch.inference_mode():
        evaluation = model.eval()(images[:1])
    assert {key: value.shape for key, value in evaluation.items()} == {"out": (1, 5, 29, 34)}
    sum(value.mean() for value in training.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_any_image_size_from_one_pixel() -> None:
    model = small().eval()
    for size in ((1, 1), (1, 40), (8, 8), (33, 47)):
        assert model(torch.zeros(1, 3, *size))["out"].shape[2:] == size


def test_no_auxiliary_head() -> None:
    assert set(small(aux_channels=0)(torch.randn(2, 3, 33, 33))) == {"out"}
    with torch.device("meta"):
        model = fcn_resnet50(num_classes=2, auxiliary_head=False)
        assert set(model(torch.randn(2, 3, 32, 32))) == {"out"}


def test_logits_are_float32_under_autocast() -> None:
    model = small()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(torch.randn(2, 3, 33, 33))
    assert {value.dtype for value in outputs.values()} == {torch.float32}


@pytest.mark.parametrize("name", ["pspnet", "fcn"])
def test_training_compiles_to_one_graph(name: str) -> None:
    model = MODELS[name]()
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    images = torch.randn(2, 3, 33, 33)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = compiled(images), model(images)
    for key in theirs:
        assert ours[key].dtype == torch.float32
        torch.testing.assert_close(ours[key], theirs[key], rtol=0.1, atol=0.05)


def test_same_seed_gives_the_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(small().state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("make", [small, lambda: torchvision_model("fcn")])
def test_pretrained_parameters_start_with_backbone(make: Any) -> None:
    with torch.device("meta"):
        names = [name for name, _ in make().named_parameters()]
    groups = {name.split(".")[0] for name in names}
    assert "backbone" in groups
    assert groups <= {"backbone", "pyramid", "classifier", "auxiliary", "aux_classifier"}


@pytest.mark.parametrize("bands", [1, 4, 13])
@pytest.mark.parametrize("make", [small, lambda **options: fcn_resnet50(num_classes=5, **options), deeplabv3])
def test_any_number_of_bands(make: Any, bands: int) -> None:
    with torch.device("meta"):
        model = make(in_channels=bands).eval()
        assert model(torch.zeros(1, bands, 33, 33))["out"].shape == (1, 5, 33, 33)


# --- backbone ----------------------------------------------------------------------------------------------------


def dilations(net: nn.Module, stage: str) -> list[int]:
    convolutions = [m for m in net.get_submodule(stage).modules() if isinstance(m, nn.Conv2d)]
    return [m.dilation[0] for m in convolutions if m.kernel_size == (3, 3)]


@pytest.mark.parametrize(
    ("name", "output_stride", "contracted", "third", "fourth"),
    [
        ("resnet50s", 8, False, [2] * 6, [4] * 3),
        ("resnet50c", 8, True, [1] + [2] * 5, [2] + [4] * 2),
        ("resnet50s", 16, False, [1] * 6, [2] * 3),
        ("resnet50s", 32, False, [1] * 6, [1] * 3),
        ("resnet18", 8, False, [2] * 4, [4] * 4),
        ("resnet18", 8, True, [1, 2, 2, 2], [2, 4, 4, 4]),
        ("resnet18", 16, True, [1] * 4, [1, 2, 2, 2]),
    ],
)
def test_dilation(name: str, output_stride: int, contracted: bool, third: list[int], fourth: list[int]) -> None:
    with torch.device("meta"):  # shapes only: fast
        net, channels, strides = build_backbone(name, output_stride, contracted)
        maps = net(torch.zeros(1, 3, 64, 64))
    assert dilations(net, "layer3") == third
    assert dilations(net, "layer4") == fourth
    assert tuple(m.shape[1] for m in maps) == channels
    assert strides == (min(16, output_stride), output_stride)
    assert maps[1].shape[2:] == (64 // output_stride, 64 // output_stride)


def test_stems() -> None:
    def widths(name: str) -> list[int]:
        with torch.device("meta"):
            net, *_ = build_backbone(name, 32, True)
        stem = net.get_submodule("conv1")
        return [m.out_channels for m in stem.modules() if isinstance(m, nn.Conv2d)]

    assert widths("resnet18") == [64]
    assert widths("resnet50c") == [32, 32, 64]
    assert widths("resnet50s") == [64, 64, 128]


# --- arguments ---------------------------------------------------------------------------------------------------


def test_invalid_arguments_are_reported_together() -> None:
    invalid = {
        "num_classes": 0,
        "backbone": "resnet50v1s",
        "output_stride": 4,
        "bins": [],
        "head_channels": 0,
        "aux_channels": -1,
        "dropout": 1.0,
        "head": "concatenated",
    }
    with pytest.raises(UserError) as error:
        pspnet(**invalid)  # type: ignore[arg-type]
    for key in invalid:
        assert sum(line.startswith(f"{key}=") for line in error.value.problems) == 1, key
    assert "backbone=resnet50v1s: is no network of timm; did you mean 'resnet50s'?" in str(error.value)


def test_invalid_arguments_of_torchvision_models() -> None:
    with pytest.raises(UserError, match=r"num_classes=0.*\noutput_stride=4"):
        fcn_resnet50(num_classes=0, output_stride=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RESNETS)
def test_every_resnet_can_be_built(name: str) -> None:
    with torch.device("meta"):
        model = pspnet(num_classes=2, backbone=name)
    assert model.classifier.out_channels == 2


PACKAGES = {"segformer": "transformers", "smp": "segmentation_models_pytorch"}  # that options need


@pytest.mark.parametrize("file", sorted({*CONF.glob("*.yaml")} - {CONF / "custom.yaml"}), ids=lambda file: file.stem)
def test_every_option_sets_all_arguments_of_its_target(file: Path) -> None:
    config = OmegaConf.create({"dataset": {"num_classes": 7}, "model": OmegaConf.load(file)})
    if file.stem in PACKAGES:
        pytest.importorskip(PACKAGES[file.stem])
    options = OmegaConf.to_container(config.model, resolve=True)
    assert isinstance(options, dict)
    module, _, name = options.pop("_target_").rpartition(".")
    target = getattr(import_module(module), name)
    parameters = inspect.signature(target).parameters.values()
    assert [one.name for one in parameters if one.kind is not one.VAR_KEYWORD] == list(options)
    if "backbone_weights" in options:
        options["backbone_weights"] = None  # of no option's file or package
    with torch.device("meta"):
        assert target(**options).num_classes == 7
