"""ResNets from timm, dilated for dense prediction."""

import logging
from typing import Any

import timm
from torch import Tensor, nn

from pspexp.errors import UserError, did_you_mean

# The letter is the stem. None: 7×7; c: 3×3s of 32-32-64 (mmsegmentation's ResNetV1c); s: 64-64-128 (semseg).
BACKBONES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet50c",
    "resnet50s",
    "resnet101",
    "resnet101c",
    "resnet101s",
    "resnet152s",
)
OUTPUT_STRIDES = (8, 16, 32)

log = logging.getLogger(__name__)


def backbone_problems(name: str, output_stride: int) -> list[str]:
    """What is wrong with these two arguments, one line each."""
    problems = []
    if name not in BACKBONES:
        problems.append(f"model.backbone={name}: choose one of {', '.join(BACKBONES)}{did_you_mean(name, BACKBONES)}")
    if output_stride not in OUTPUT_STRIDES:
        problems.append(f"model.output_stride={output_stride}: must be 8, 16 or 32")
    return problems


def build_backbone(name: str, output_stride: int, contract_dilation: bool) -> tuple[nn.Module, tuple[int, int]]:
    """A ResNet that returns the feature maps of its third and fourth stage.

    Weights are timm's random ones: He (fan-out) as in semseg, but zero for the last batch norm of each
    residual branch, so that every block starts as the identity, which helps training from scratch (Goyal et
    al., 2017, arXiv 1706.02677, section 5.1).

    Args:
        name: one of `BACKBONES`.
        output_stride: 8, 16 or 32; stages beyond it are dilated instead of strided.
        contract_dilation: the first block of a dilated stage keeps the dilation of the stage before
            (mmsegmentation's ``contract_dilation``); False dilates all of a stage alike (semseg).

    Returns:
        The module, mapping ``[N, 3, H, W]`` to a list of two maps, and their two numbers of channels.
    """
    net: Any = timm.create_model(name, features_only=True, out_indices=(3, 4), output_stride=output_stride)
    if not contract_dilation:
        for stage in (net.layer3, net.layer4):
            _dilate_first_block(stage)
    third, fourth = net.feature_info.channels()
    return net, (third, fourth)


def _dilate_first_block(stage: nn.Sequential) -> None:
    """Give the 3×3 convolutions of the first block the dilation that the rest of the stage has."""
    dilation = _convolutions_3x3(stage[-1])[-1].dilation
    for conv in _convolutions_3x3(stage[0]):
        conv.dilation = conv.padding = dilation  # 3×3: this padding keeps the size


def _convolutions_3x3(block: nn.Module) -> list[nn.Conv2d]:
    return [m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


def imagenet_weights(name: str) -> dict[str, Tensor]:
    """timm's ImageNet state dict of this backbone (downloaded once, then from timm's cache).

    Raises:
        UserError: if it cannot be fetched.
    """
    log.info("fetching ImageNet weights of %s from timm", name)
    try:
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub's clients raise errors of many unrelated classes
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"model.backbone_weights=timm: no ImageNet weights of {name} could be fetched ({reason}); "
            "give the path of a file with backbone weights, or null for random ones"
        ) from error
    return state
