"""Networks of timm as backbones: feature maps of any image size, true strides, training, checkpointing."""

import copy
import logging
from math import ceil
from typing import Any

import pytest
import timm.layers
import torch
from torch import Tensor, nn

import pspexp
from pspexp.errors import ArgumentError, UserError
from pspexp.models.backbone import build_backbone
from pspexp.models.pspnet import PSPNet, pspnet
from tests.conftest import PSPNET18

# A family's smallest network, and the stride of its last feature map if 8 is wanted.
FAMILIES = {
    "resnest14d": 8,
    "convnext_atto": 8,
    "mobilenetv3_small_050": 8,
    "tf_efficientnet_lite0": 8,
    "regnetx_002": 8,
    "mobilevit_xxs": 8,
    "densenet121": 32,
    "edgenext_xx_small": 32,
    "pvt_v2_b0": 32,
    "hrnet_w18_small": 32,
    "swin_tiny_patch4_window7_224": 32,
    "vit_tiny_patch16_224": 16,
}
needs_new_timm = pytest.mark.skipif(
    not hasattr(timm.layers, "use_reentrant_ckpt"), reason="this timm checkpoints by torch's old variant"
)
SIZES = ((64, 64), (65, 97), (5, 3))


def small(backbone: str, **options: Any) -> PSPNet:
    widths: dict[str, Any] = {"pyramid_channels": 4, "head_channels": 8, "aux_channels": 4, "align_corners": False}
    return pspnet(num_classes=5, backbone=backbone, **(widths | options))


@pytest.mark.parametrize(("name", "stride"), FAMILIES.items())
def test_family(name: str, stride: int, caplog: pytest.LogCaptureFixture) -> None:
    """One build per family: building takes most of the time."""
    model = small(name, in_channels=4)
    assert model.output_stride == stride
    own = f"backbone {name} cannot be dilated; its own output stride of {stride} is used"
    assert [record.getMessage() for record in caplog.records] == ([] if stride == 8 else [own])

    with torch.no_grad():
        for height, width in SIZES:
            third, fourth = model.eval().backbone(torch.randn(1, 4, height, width))
            assert fourth.shape[2:] == (ceil(height / stride), ceil(width / stride)), (height, width)
            assert third.shape[2] >= fourth.shape[2]

    outputs = model.train()(torch.randn(2, 4, 65, 97))
    assert {key: value.shape for key, value in outputs.items()} == {"out": (2, 5, 65, 97), "aux": (2, 5, 65, 97)}
    sum(value.square().mean() for value in outputs.values()).backward()
    # DDP waits for the gradient of every parameter that is trained.
    assert not [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]


@pytest.mark.parametrize(("name", "levels"), [("convnext_atto", 4), ("mobilenetv3_small_050", 5)])
def test_last_levels_from_fine_to_coarse(name: str, levels: int) -> None:
    net, channels, strides = build_backbone(name, 32, levels=levels)
    with torch.no_grad():
        maps = net(torch.zeros(1, 3, 64, 128))
    assert strides == (2, 4, 8, 16, 32)[-levels:]
    assert [tuple(one.shape[1:]) for one in maps] == [
        (number, 64 // stride, 128 // stride) for number, stride in zip(channels, strides, strict=True)
    ]


def test_variants_of_resnets_are_dilated_as_resnets() -> None:
    with torch.device("meta"):
        nets = [build_backbone("resnest26d", 8, contracted)[0] for contracted in (False, True)]
    for net, first in zip(nets, ([4], [2]), strict=True):
        convolutions = [m for m in net.get_submodule("layer4.0").modules() if isinstance(m, nn.Conv2d)]
        assert [m.dilation[0] for m in convolutions if m.kernel_size == (3, 3)] == first


def test_building_leaves_no_traces() -> None:
    torch.manual_seed(0)
    net, *_ = build_backbone("resnet18", 8)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    alone = timm.create_model("resnet18", features_only=True, out_indices=(3, 4), output_stride=8)
    assert torch.equal(state, torch.random.get_rng_state())
    ours, theirs = net.state_dict(), alone.state_dict()
    assert [*ours] == [*theirs]
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert net.training
    assert not net._forward_pre_hooks


def test_crop_must_fit_the_true_stride() -> None:
    words = [*PSPNET18, "model.backbone=pvt_v2_b0", "model.align_corners=true"]
    with pytest.raises(UserError, match=r"^crop_size=41: \(crop_size - 1\) must be divisible by 32 "):
        pspexp.build(pspexp.compose([*words, "crop_size=41"]).model)
    assert pspexp.build(pspexp.compose([*words, "crop_size=33"]).model).output_stride == 32


# --- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("convnext_tinny", {}, r"^backbone=convnext_tinny: is no network of timm; did you mean 'convnext_tiny'\?$"),
        (
            "convnext_tiny.fb_in1",
            {},
            r"^backbone=convnext_tiny\.fb_in1: timm's convnext_tiny has no tag fb_in1; did you mean 'fb_in1k'\?",
        ),
        ("levit_128s", {}, r"^backbone=levit_128s: its feature maps do not follow the size of the image \("),
        ("resmlp_12_224", {}, r"^backbone=resmlp_12_224: "),
        (
            "vit_tiny_patch16_224",
            {"checkpointing": True},
            r"^checkpointing=true: (timm cannot checkpoint|needs a newer)",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(name: str, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ArgumentError, match=problem):
        small(name, **options)


def test_unknown_tag_is_refused_when_the_configuration_is_composed() -> None:
    with pytest.raises(UserError, match=r"^model\.backbone=resnet18\.bogus: timm's resnet18 has no tag bogus; it has "):
        pspexp.compose(["dataset=shapes", "dataset.mean=null", "model=pspnet18", "model.backbone=resnet18.bogus"])


def test_network_without_feature_maps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, **_: Any) -> None:
        raise RuntimeError("features_only not implemented for Such models.")

    monkeypatch.setattr(timm, "create_model", create_model)
    expected = (
        r"^backbone=resnet18: timm returns no feature maps of it \(features_only not implemented for Such models\.\)"
    )
    with pytest.raises(ArgumentError, match=expected):
        small("resnet18")


def test_network_with_fewer_levels_gives_all() -> None:
    _, channels, strides = build_backbone("convnext_atto", 32, levels=5)
    assert (channels, strides) == ((40, 80, 160, 320), (4, 8, 16, 32))


# --- checkpointing ------------------------------------------------------------------------------------------------


def gradients(model: PSPNet, images: Tensor) -> dict[str, Tensor]:
    sum(value.square().mean() for value in model(images).values()).backward()
    return {key: value.grad for key, value in model.named_parameters() if value.grad is not None}


@needs_new_timm
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_checkpointing_recomputes_and_gives_the_same_gradients(name: str) -> None:
    torch.manual_seed(0)
    plain = small(name, dropout=0.0)
    checkpointed = small(name, dropout=0.0, checkpointing=True)
    checkpointed.load_state_dict(plain.state_dict())
    calls: dict[PSPNet, int] = {}
    for model in (plain, checkpointed):

        def count(*_: Any, model: PSPNet = model) -> None:
            calls[model] = calls.get(model, 0) + 1

        blocks = model.backbone.get_submodule("layer2" if name == "resnet18" else "blocks.1")
        blocks.register_forward_pre_hook(count)
    images = torch.randn(2, 3, 65, 65)
    expected, found = gradients(plain, images), gradients(checkpointed, images)
    assert (calls[plain], calls[checkpointed]) == (1, 2)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=key)


def test_padding_survives_copies() -> None:
    model = copy.deepcopy(small("convnext_atto", output_stride=32))
    assert model.backbone(torch.randn(1, 3, 33, 65))[-1].shape[2:] == (2, 3)


def test_networks_known_without_timm_log_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), torch.device("meta"):
        small("resnet18", output_stride=16)
    assert not caplog.records
