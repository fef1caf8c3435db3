"""Backbones: networks from timm that return feature maps, dilated for dense prediction where timm can."""

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch.nn import functional as F

from pspexp.errors import ArgumentError, did_you_mean
from pspexp.models.trial import preserved
from pspexp.utils.imports import without_compiler
from pspexp.utils.text import first_line

# ResNets of published PSPNets, known without timm. A final letter names the stem. None: one 7×7 convolution; c: 3×3
# convolutions with 32, 32 and 64 channels (mmsegmentation's ResNetV1c); s: the same with 64, 64 and 128 (semseg).
RESNETS = (
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
# How timm is asked for a network that takes images of any size; many transformers are built for one size otherwise.
ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"strict_img_size": False, "always_partition": True},
    {"strict_img_size": False},
    {"dynamic_img_size": True},
    {},
)

log = logging.getLogger(__name__)


def _known(name: str) -> str:
    """Refuse, as a type of pydantic, a name that timm does not know; timm is imported for rare names only."""
    if name not in RESNETS:
        timm = without_compiler("timm")  # takes seconds
        if not timm.is_model(name):
            hint = did_you_mean(name, timm.list_models())
            raise PydanticCustomError("backbone", "is no network of timm{hint}", {"hint": hint})
        if problem := unknown_tag(name):
            raise PydanticCustomError("backbone", "{problem}", {"problem": problem})
    return name


def unknown_tag(name: str) -> str | None:
    """Why timm's network ``name`` cannot have its tag, as in ``resnet18.a1_in1k``; None if it can."""
    timm = without_compiler("timm")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:
        network, _, tag = name.partition(".")
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{network}.*")]
        return f"timm's {network} has no tag {tag}{did_you_mean(tag, tags)}; it has {', '.join(tags)}"
    return None


Backbone = Annotated[str, AfterValidator(_known)]
OutputStride = Literal[8, 16, 32]


def build_backbone(
    name: str,
    output_stride: int,
    contract_dilation: bool = False,
    in_channels: int = 3,
    levels: int = 2,
    checkpointing: bool = False,
) -> tuple[nn.Module, tuple[int, ...], tuple[int, ...]]:
    """A network that returns feature maps of several strides.

    The weights are timm's random ones. For ResNets: He (fan-out) as in semseg, but zero for the last batch norm of each
    residual branch, so that every block starts as the identity, which helps training from scratch (Goyal et al., 2017,
    arXiv 1706.02677, section 5.1). Parameters on which no feature map depends are not trained.

    Args:
        name: timm's name of the network.
        output_stride: Stride of the last feature map; stages beyond it are dilated instead of strided. A network that
            timm cannot dilate keeps its own stride, which is logged.
        contract_dilation: Whether the first block of a dilated stage keeps the dilation of the previous stage
            (mmsegmentation's ``contract_dilation``); False dilates all blocks of a stage alike (semseg). It applies to
            ResNets and their variants; other networks are dilated in timm's way.
        in_channels: Number of bands of the images.
        levels: Number of feature maps, counted from the last; of a network with fewer, all, but at least two.
        checkpointing: Whether to recompute the activations in the backward pass: less memory, more time. As everywhere
            in timm and torch, recomputing updates the running statistics of batch norms a second time.

    Returns:
        The module, which maps ``[N, in_channels, H, W]`` of any size to the list of feature maps from fine to coarse,
        their numbers of channels, and their strides. The last one has ``ceil(H / stride)`` rows.

    Raises:
        ArgumentError: timm has no such feature maps of the network, or it takes images of one size only.
    """
    net = _create(name, output_stride, in_channels, levels)
    channels, strides = tuple(net.feature_info.channels()), tuple(net.feature_info.reduction())
    if not contract_dilation and strides[-1] == output_stride < 32:
        for stage in (net.layer3, net.layer4) if hasattr(net, "layer4") else ():
            _dilate_first_block(stage)
    if getattr(net, "output_fmt", "NCHW") == "NHWC":
        net.register_forward_hook(_channels_first)
    _fit_any_size(net, name, in_channels, channels, strides[-1])
    if checkpointing:
        _enable_checkpointing(net, name)
    if strides[-1] != output_stride:
        log.warning("backbone %s cannot be dilated; its own output stride of %d is used", name, strides[-1])
    return net, channels, strides


def _create(name: str, output_stride: int, in_channels: int, levels: int) -> Any:
    """timm's network, dilated if it can be.

    Raises:
        ArgumentError: There is none with these feature maps.
    """
    timm = without_compiler("timm")
    common: dict[str, Any] = {"features_only": True, "out_indices": tuple(range(-levels, 0)), "in_chans": in_channels}
    for options in (*({**one, "output_stride": output_stride} for one in ANY_SIZE), *ANY_SIZE):
        try:
            return timm.create_model(name, **common, **options)
        except Exception as error:  # what a network refuses, and how, differs from file to file
            reason = error
    if levels > 2 and (isinstance(reason, IndexError) or "feature index" in str(reason)):
        return _create(name, output_stride, in_channels, levels - 1)
    raise ArgumentError(
        f"backbone={name}: timm returns no feature maps of it ({first_line(reason)}); choose another network"
    )


def _dilate_first_block(stage: nn.Sequential) -> None:
    """Give the 3×3 convolutions of the first block the dilation of those in the last."""
    for conv, last in zip(_convolutions_3x3(stage[0]), _convolutions_3x3(stage[-1]), strict=False):
        conv.dilation = conv.padding = last.dilation  # 3×3: this padding keeps the size


def _convolutions_3x3(block: nn.Module) -> list[nn.Conv2d]:
    return [m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


def _fit_any_size(net: nn.Module, name: str, in_channels: int, channels: Sequence[int], stride: int) -> None:
    """Let the network take images of any size, if necessary by padding them, and freeze what it does not use.

    Images are padded on the right and bottom with zeros, the mean colour, to the next multiple of the stride.

    Raises:
        ArgumentError: It does not take images of other sizes even so.
    """
    device = next(net.parameters()).device
    sizes = ((1, 1), (stride + 1, 3 * stride - 1))

    def fits(height: int, width: int) -> list[Tensor]:
        maps: list[Tensor] = net(torch.zeros(1, in_channels, height, width, device=device))
        expected = (channels[-1], -(-height // stride), -(-width // stride))
        if maps[-1].shape[1:] != expected:
            shape = "×".join(map(str, maps[-1].shape[1:]))
            raise ValueError(f"{shape} for an image of {height}×{width}, not {'×'.join(map(str, expected))}")
        return maps

    with preserved(net), torch.enable_grad():
        net.eval()
        try:
            _freeze_unused(net, [fits(*size) for size in sizes][-1])
            return
        except Exception:  # of many classes, see above
            net.register_forward_pre_hook(partial(_pad, stride))
        try:
            _freeze_unused(net, [fits(*size) for size in sizes][-1])
        except Exception as error:
            raise ArgumentError(
                f"backbone={name}: its feature maps do not follow the size of the image ({first_line(error)}); "
                "choose a network that takes images of any size"
            ) from error


def _pad(multiple: int, _net: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """A pre-hook that pads images on the right and bottom."""
    (images,) = inputs
    height, width = images.shape[-2:]
    return (F.pad(images, (0, -width % multiple, 0, -height % multiple)),)


def _channels_first(_net: nn.Module, _inputs: Any, maps: Iterable[Tensor]) -> list[Tensor]:
    """A hook that turns feature maps ``[N, h, w, C]`` to ``[N, C, h, w]``."""
    return [features.permute(0, 3, 1, 2) for features in maps]


def _freeze_unused(net: nn.Module, maps: Sequence[Tensor]) -> None:
    """Freeze parameters on which no feature map depends: DDP would wait for their gradients."""
    used: set[nn.Parameter] = set()
    seen, pending = set(), [features.grad_fn for features in maps]
    while pending:
        node: Any = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        used |= {node.variable} if hasattr(node, "variable") else set()
        pending += [following for following, _ in node.next_functions]
    for parameter in net.parameters():
        parameter.requires_grad_(parameter in used)


def _enable_checkpointing(net: Any, name: str) -> None:
    """Checkpoint the activations of the network.

    Raises:
        ArgumentError: timm cannot.
    """
    import timm.layers

    if not hasattr(timm.layers, "use_reentrant_ckpt"):  # torch's old variant gives no gradients behind frozen layers
        raise ArgumentError("checkpointing=true: needs a newer timm; pip install --upgrade timm")
    try:
        net.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        raise ArgumentError(
            f"checkpointing=true: timm cannot checkpoint the feature maps of {name}; set it to false"
        ) from error
    for module in net.children():  # timm may checkpoint an activation alone, whose input must be kept
        if getattr(module, "inplace", False):
            module.inplace = False
