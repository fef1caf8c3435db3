"""Any network with the interface of this project's own."""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pspexp.errors import UserError, setting
from pspexp.models.interpolation import upsample
from pspexp.models.segmenter import Segmenter
from pspexp.models.trial import Behaviour, TrialError, find_auxiliary, find_logits, try_out

BACKBONES = ("backbone", "encoder")  # names of the submodule that other projects load pretrained weights into


class AdaptedNetwork(Segmenter):
    """A network of any kind as a `Segmenter`; made by `adapt`.

    Images whose sides the network does not take are padded with the mean colour at the right and bottom, and their
    logits cropped.

    Attributes:
        network: The network; the names of all parameters begin with ``network.``.
        takes_all: Whether it takes images of any size. Of other sizes than multiples of ``output_stride``, the logits
            are stretched by less than one step.
        backbone_prefix: That of the network's ``backbone`` or ``encoder``, or of what ``base_model_prefix`` names
            (transformers). Of a network without, it matches no parameter: all are treated as the head.

    Args:
        network: The network.
        behaviour: What `pspexp.models.trial.try_out` has found out about it.
    """

    auxiliary_layer: ClassVar[str] = "network.aux_classifier"  # torchvision's name

    def __init__(self, network: nn.Module, behaviour: Behaviour) -> None:
        super().__init__(behaviour.num_classes, behaviour.divisor, align_corners=False)
        self.network = network
        self.takes_all, self.only_side = behaviour.takes_all, behaviour.only_side
        self._scale = behaviour.scale
        self.backbone_prefix = f"network.{backbone_name(network)}."
        self.class_layers = tuple(
            name
            for name in layers_with_channels(self, behaviour.num_classes)
            if not name.startswith(self.backbone_prefix)
        )

    def low_resolution(self, images: Tensor) -> dict[str, Tensor]:
        """The network's own logits; of padded images if it does not take their size."""
        height, width = images.shape[-2:]
        below, right = (padded - side for padded, side in zip(self.padded(height, width), (height, width), strict=True))
        output = self.network(images if self.takes_all else F.pad(images, (0, right, 0, below)))
        outputs = {"out": find_logits(output)}
        if self.training and (auxiliary := find_auxiliary(output)) is not None:
            outputs["aux"] = auxiliary
        return outputs

    def upsample(self, logits: Tensor, like: Tensor) -> Tensor:
        """See `Segmenter.upsample`; logits of padded images are cropped."""
        height, width = like.shape[-2:]
        size = self.padded(height, width)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # Of auxiliary outputs, the scale is unknown. While tracing, sizes must not be compared.
        if self._scale != 1 or (self.training and logits.shape[-2:] != size):
            logits = upsample(logits.contiguous(), size, self.align_corners)
        return logits if self.takes_all else cropped(logits, height, width)

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which images of this size are padded.

        Raises:
            UserError: The network takes images of one size only, which these exceed.
        """
        if self.takes_all:
            return height, width
        stride = self.output_stride
        if self.only_side is not None and max(height, width) > self.only_side:
            raise self.wrong_size(f"of {height}×{width}")
        return height + -height % stride, width + -width % stride

    def wrong_size(self, given: str) -> UserError:
        """The error for images larger than the only ones that the network takes; ``given`` says which."""
        side = self.only_side
        return UserError(
            f"{type(self.network).__name__} takes images of {side}×{side} pixels only, not {given}; "
            f"use {setting('inference', 'slide')} with {setting('inference.window', side)}"
        )


def adapt(
    network: nn.Module, num_classes: int | None = None, in_channels: int = 3, *, crop_size: int | None = None
) -> Segmenter:
    """A network as a `Segmenter`; one that is a Segmenter itself is returned as it is.

    The network must map float images ``[N, B, H, W]`` to logits: a tensor, ``out`` (and, while training, ``aux``) or
    ``logits`` of a dictionary or object, or the first entry of a tuple or list. They have one channel per class and the
    size of the image, or that divided by a whole number. It is applied to a few small random images to find out more.

    Args:
        network: The network.
        num_classes: Number of classes; None: that of the network.
        in_channels: Number of bands of the images.
        crop_size: Side of the square images that it will be trained on, if known.

    Raises:
        TrialError: A ValueError that says in one line why the network cannot be used.
    """
    if isinstance(network, Segmenter):
        return network
    try:
        return AdaptedNetwork(network, try_out(network, num_classes, in_channels, crop_size))
    except TrialError as error:
        raise TrialError(f"{type(network).__name__} {error}") from error


def backbone_name(network: nn.Module) -> str:
    """The name of the submodule with pretrained weights; the first of `BACKBONES` if there is none."""
    names = (getattr(network, "base_model_prefix", None), *BACKBONES)
    return next((name for name in names if name and isinstance(getattr(network, name, None), nn.Module)), BACKBONES[0])


def layers_with_channels(network: nn.Module, number: int) -> Iterator[str]:
    """The names of layers whose output has this number of channels."""
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim > 1:
            transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
            if (weight.shape[1] * module.groups if transposed else weight.shape[0]) == number:
                yield name


def cropped(values: Tensor, height: int, width: int) -> Tensor:
    """The first rows and columns. For a slice, torch.export would note whether anything is cut off as a condition."""
    if not torch.compiler.is_compiling():
        return values[..., :height, :width]
    rows, columns = (torch.arange(side, device=values.device) for side in (height, width))
    return values.index_select(-2, rows).index_select(-1, columns)
