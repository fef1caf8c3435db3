"""ResNets from timm, dilated for dense prediction."""

import logging
from typing import Any, Literal, get_args

from torch import Tensor, nn

from pspexp.errors import ArgumentError
from pspexp.utils.text import first_line

# A final letter names the stem. None: one 7×7 convolution; c: 3×3 convolutions with 32, 32 and 64 channels
# (mmsegmentation's ResNetV1c); s: the same with 64, 64 and 128 channels (semseg).
Backbone = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet50c",
    "resnet50s",
    "resnet101",
    "resnet101c",
    "resnet101s",
    "resnet152s",
]
BACKBONES: tuple[Backbone, ...] = get_args(Backbone)
OutputStride = Literal[8, 16, 32]

log = logging.getLogger(__name__)


def build_backbone(
    name: Backbone, output_stride: OutputStride, contract_dilation: bool, in_channels: int = 3
) -> tuple[nn.Module, tuple[int, int]]:
    """A ResNet that returns the feature maps of its third and fourth stage.

    The weights are timm's random ones: He (fan-out) as in semseg, but zero for the last batch norm of each residual
    branch, so that every block starts as the identity, which helps training from scratch (Goyal et al., 2017,
    arXiv 1706.02677, section 5.1).

    Args:
        name: timm's name of the network.
        output_stride: Output stride; stages beyond it are dilated instead of strided.
        contract_dilation: Whether the first block of a dilated stage keeps the dilation of the previous stage
            (mmsegmentation's ``contract_dilation``); False dilates all blocks of a stage alike (semseg).
        in_channels: Number of bands of the images.

    Returns:
        The module, which maps ``[N, in_channels, H, W]`` to a list of two feature maps, and their numbers of channels.
    """
    import timm  # takes seconds, and a wrong command needs none of it

    net: Any = timm.create_model(
        name, features_only=True, out_indices=(3, 4), output_stride=output_stride, in_chans=in_channels
    )
    if not contract_dilation:
        for stage in (net.layer3, net.layer4):
            _dilate_first_block(stage)
    third, fourth = net.feature_info.channels()
    return net, (third, fourth)


def _dilate_first_block(stage: nn.Sequential) -> None:
    """Give the 3×3 convolutions of the first block the dilation of the rest of the stage."""
    dilation = _convolutions_3x3(stage[-1])[-1].dilation
    for conv in _convolutions_3x3(stage[0]):
        conv.dilation = conv.padding = dilation  # 3×3: this padding keeps the size


def _convolutions_3x3(block: nn.Module) -> list[nn.Conv2d]:
    return [m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


def imagenet_weights(name: str, in_channels: int = 3) -> dict[str, Tensor]:
    """timm's ImageNet state dict of this backbone (downloaded once, then from timm's cache).

    For other numbers of channels than three, timm repeats the first convolution's weights, scaled to keep its output's
    size, or adds them up for a single channel.

    Raises:
        ArgumentError: The state dict cannot be downloaded.
    """
    import timm

    log.info("loading ImageNet weights of %s from timm", name)
    try:
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True, in_chans=in_channels).state_dict()
    except Exception as error:  # the hub's clients raise errors of many unrelated classes
        raise ArgumentError(
            f"backbone_weights=timm: the ImageNet weights of {name} could not be downloaded "
            f"({first_line(error)}); give the path of a file with backbone weights, or null for random ones"
        ) from error
    return state
