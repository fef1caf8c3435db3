"""PSPNet with a decoder."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pspexp.errors import ArgumentError
from pspexp.models.decoder import PSPNetDecoder, pspnet_decoder

SMALL = {"pyramid_channels": 4, "context_channels": 8, "lateral_channels": [8, 6, 4, 2], "aux_channels": 8}


def network(backbone: str = "tf_efficientnet_lite0", **arguments: object) -> PSPNetDecoder:
    torch.manual_seed(0)
    return pspnet_decoder(
        num_classes=5, backbone=backbone, **{**SMALL, "decoder_channels": [12, 10, 8, 6], **arguments}
    )


@pytest.mark.parametrize(
    ("backbone", "finest"),
    [("tf_efficientnet_lite0", 2), ("resnet18", 2), ("mobilenetv3_small_050", 2), ("convnext_atto", 4)],
)
def test_logits_have_the_stride_of_the_finest_level(backbone: str, finest: int) -> None:
    model = network(backbone).eval()
    images = torch.randn(1, 3, 64, 96)
    assert model.output_stride == 32
    assert model.low_resolution(images)["out"].shape == (1, 5, 64 // finest, 96 // finest)
    assert model(images)["out"].shape == (1, 5, 64, 96)
    assert model.backbone_prefix == "backbone."


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (1, 1), (100, 30)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    assert network().eval()(torch.randn(2, 3, *size))["out"].shape == (2, 5, *size)


def test_steps_follow_the_formula() -> None:
    """Each step: upsample, concatenate the reduced level, fuse; the auxiliary head reads the first step."""
    model = network().double().train()
    model.dropout.p = model.auxiliary.dropout.p = 0.0
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    levels = model.backbone(images)
    features, results = model.pyramid(levels[-1]), []
    for step, level in zip(model.steps, levels[-2::-1], strict=True):
        size = (level.shape[-2], level.shape[-1])
        features = F.interpolate(features, size, mode="bilinear")
        features = step.fuse(torch.cat([features, step.lateral(level)], 1))
        results.append(features)
    outputs = model.low_resolution(images)
    torch.testing.assert_close(outputs["out"], model.classifier(results[-1]))
    torch.testing.assert_close(outputs["aux"], model.auxiliary(results[0]))


def test_every_trained_weight_has_a_gradient() -> None:
    model = network().train()
    sum(value.square().mean() for value in model(torch.randn(2, 3, 64, 64)).values()).backward()
    assert [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None] == []


def test_coarser_decoder_and_other_bands() -> None:
    model = network(lateral_channels=[8], decoder_channels=[12], aux_channels=0, in_channels=4).train()
    outputs = model.low_resolution(torch.randn(2, 4, 64, 64))
    assert outputs.keys() == {"out"}
    assert outputs["out"].shape == (2, 5, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            {"lateral_channels": [8, 6]},
            r"^lateral_channels=\[8, 6\]: has 2 values, decoder_channels=\[12, 10, 8, 6\] has 4; give one of each for",
        ),
        ({"backbone": "convnext_tinny"}, r"^backbone=convnext_tinny: is no network of timm; did you mean 'convnext_ti"),
        (
            {"backbone": "vit_tiny_patch16_224"},
            r"^backbone=vit_tiny_patch16_224: all its feature maps have a stride of 16, which leaves nothing to "
            r"decode; use it with model=pspnet50, or choose another network$",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ArgumentError, match=problem):
        network(**arguments)


def test_half_precision_is_close_and_deterministic() -> None:
    model = network().eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        first, second = model(images)["out"], model(images)["out"]
    assert torch.equal(first, second)
    assert first.dtype == torch.float32
    exact = model(images)["out"]
    assert (first - exact).abs().max() < 0.05 * exact.abs().max()
