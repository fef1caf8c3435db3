"""Finds out by trying how a network behaves: what it returns, and for images of which sizes."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pspexp.utils.text import one_line
from pspexp.utils.tracebacks import line_in_user_code

# Heights and widths to begin with: multiples of 32, of 64, of 14 (vision transformers), and of 224. Height and width
# differ, so that swapped ones are noticed.
SIZES = ((96, 160), (128, 192), (112, 168), (224, 448))
DIVISORS = (1, 2, 4, 8, 16, 32, 64)  # of the sides that a network takes
DIVISORS_OF_14 = (1, 2, 4, 7, 8, 14, 16, 28, 56)
SMALLEST_SIDE = 64  # about; smaller feature maps may be empty
EXPECTED = "the logits as a tensor, as 'out' or 'logits' of a dictionary or object, or first in a tuple"


class TrialError(ValueError):
    """A network raised an exception, or returned something that cannot be used."""


class Behaviour(NamedTuple):
    """What a network does with images of any size.

    Attributes:
        num_classes: Channels of its logits.
        scale: Input pixels per step of its logits.
        divisor: Sides that are multiples of this are mapped onto the logits without remainder.
        takes_all: Whether it takes images with other sides, too.
        only_side: The only side of (square) images that it takes, or None.
    """

    num_classes: int
    scale: int
    divisor: int
    takes_all: bool
    only_side: int | None = None


def find_logits(output: Any) -> Tensor:
    """The logits in what a network returns: a tensor, ``out`` or ``logits`` of a dictionary or object, or the first.

    Raises:
        TrialError: There are none.
    """
    if isinstance(output, Tensor):
        return output
    for name in ("out", "logits"):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(output, list | tuple) and output:
        return find_logits(output[0])
    keys = f" with the keys {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    raise TrialError(f"returned {type(output).__name__}{keys}; return {EXPECTED}")


def find_auxiliary(output: Any) -> Tensor | None:
    """The auxiliary logits ``aux`` in a dictionary, as torchvision's networks return them."""
    found = output.get("aux") if isinstance(output, Mapping) else None
    return found if isinstance(found, Tensor) else None


def try_out(network: nn.Module, num_classes: int | None, in_channels: int, crop_size: int | None) -> Behaviour:
    """Apply a network to images of several sizes; it is left as it was.

    Args:
        network: The network, on any device, torch's "meta" device included.
        num_classes: Number of channels that its logits must have; None: any.
        in_channels: Bands of the images.
        crop_size: Side of square images that it will be given, if that is known. They are tried if others fail.

    Raises:
        TrialError: The network cannot be used; says why.
    """
    trial = _Trial(network, num_classes, in_channels)
    with preserved(network):
        network.eval()
        behaviour, size = trial.first(crop_size)
        if behaviour.only_side is None:
            behaviour = trial.with_sizes(behaviour, size)
    with preserved(network):  # once more: the first call may have created parameters
        network.train()
        trial.logits(size, 2)
    return behaviour


@contextmanager
def preserved(network: nn.Module) -> Iterator[None]:
    """Restore the network's modes and buffers, such as statistics, and torch's random state; without gradients."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in network.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if not is_lazy(buffer)
    ]
    with torch.random.fork_rng(devices=()), torch.no_grad():
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for module, name, buffer, saved in buffers:
                module._buffers[name] = buffer.copy_(saved)


class _Trial:
    """Applies a network to random images and checks what it returns."""

    def __init__(self, network: nn.Module, num_classes: int | None, in_channels: int) -> None:
        self._network, self._num_classes, self._in_channels = network, num_classes, in_channels
        self._generator = torch.Generator().manual_seed(0)
        parameter = next(network.parameters(), None)
        self._device = torch.device("cpu") if parameter is None else parameter.device

    def first(self, crop_size: int | None) -> tuple[Behaviour, tuple[int, int]]:
        """What the logits are like, and the first of `SIZES`, or else the crop size, that the network takes.

        Raises:
            TrialError: It takes none of them; the reason for the first.
        """
        reason: TrialError | None = None
        for height, width in (*SIZES, *([] if crop_size is None else [(crop_size, crop_size)])):
            try:
                logits = self.logits((height, width), 2)
                scale = self._scale(logits, height, width)
            except TrialError as error:
                reason = reason or error
                continue
            is_crop = height == width
            side = height if is_crop else None
            divisor = height if is_crop else math.gcd(height, width)
            return Behaviour(logits.shape[1], scale, divisor, False, side), (height, width)
        assert reason is not None
        raise reason

    def with_sizes(self, behaviour: Behaviour, size: tuple[int, int]) -> Behaviour:
        """Complete the behaviour by the sizes that the network takes."""
        scale = behaviour.scale
        odd = self._sides(SMALLEST_SIDE + 1, SMALLEST_SIDE + 3)
        takes_all = odd is not None and all(
            abs(side * scale - (SMALLEST_SIDE + more)) < scale for side, more in zip(odd, (1, 3), strict=True)
        )
        divisors = DIVISORS if size[0] % 7 else DIVISORS_OF_14
        for divisor in (one for one in divisors if one % scale == 0):
            multiple = SMALLEST_SIDE // divisor | 1  # odd, since even ones would be multiples of the next divisor
            height, width = divisor * multiple, divisor * (multiple + 2)
            if (height, width) == size or self._sides(height, width) == (height / scale, width / scale):
                return behaviour._replace(divisor=divisor, takes_all=takes_all)
        return behaviour._replace(takes_all=takes_all)

    def logits(self, size: tuple[int, int], number: int) -> Tensor:
        """The logits of ``number`` images of this size.

        Raises:
            TrialError: The network fails, or they are not logits of these images.
        """
        height, width = size
        shape = (number, self._in_channels, height, width)
        # From the CPU, so that all devices see the same.
        images = torch.randn(shape, generator=self._generator, device="cpu").to(self._device)
        what = f"{number} images of {height}×{width}{' in training mode' if self._network.training else ''}"
        try:
            output = self._network(images)
        except Exception as error:
            kind, line = type(error).__name__, one_line(error)
            raise TrialError(f"failed on {what}: {kind}: {line}{line_in_user_code(error)}") from error
        logits = find_logits(output)
        auxiliary = find_auxiliary(output) if self._network.training else None
        for found in [logits] if auxiliary is None else [logits, auxiliary]:
            self._check(found, number, height, width)
        return logits

    def _check(self, logits: Tensor, number: int, height: int, width: int) -> None:
        shape, wanted = list(logits.shape), self._num_classes
        dimensions = f"[{number}, {wanted or 'classes'}, {height}, {width}] or smaller"
        if logits.ndim != 4 or shape[0] != number:
            raise TrialError(
                f"returned a Tensor {shape} for {number} images of {height}×{width}; return logits {dimensions}"
            )
        if wanted is not None and shape[1] != wanted:
            one = "; a single channel for two classes becomes two" if (shape[1], wanted) == (1, 2) else ""
            raise TrialError(
                f"returned a Tensor of {shape[2]}×{shape[3]} with {shape[1]} channel{'s' * (shape[1] != 1)} for an "
                f"image of {height}×{width} with {wanted} classes; give it the number of classes, since logits have "
                f"one channel per class{one}"
            )
        if not logits.is_floating_point():
            raise TrialError(f"returned a Tensor of {logits.dtype}; return logits, not class ids")
        if not logits.is_meta and not logits.isfinite().all():
            raise TrialError("returned NaN or infinite values for random images; check its initial weights")

    @staticmethod
    def _scale(logits: Tensor, height: int, width: int) -> int:
        """Input pixels per step of the logits.

        Raises:
            TrialError: It differs between the two axes, or is no integer.
        """
        rows, columns = logits.shape[-2:]
        if rows and columns and height % rows == 0 and width % columns == 0 and height // rows == width // columns:
            return height // rows
        swapped = rows * height == columns * width and rows != columns
        hint = "height and width are swapped" if swapped else "return one of its size, or smaller by a whole factor"
        raise TrialError(f"returned a Tensor of {rows}×{columns} for an image of {height}×{width}; {hint}")

    def _sides(self, height: int, width: int) -> tuple[int, int] | None:
        """Height and width of the logits of an image; None if the network does not take it."""
        try:
            logits = self.logits((height, width), 1)
        except TrialError:
            return None
        return logits.shape[-2], logits.shape[-1]
