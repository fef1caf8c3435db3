"""The network applied to overlapping windows."""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pspexp.errors import ArgumentError
from pspexp.inference.base import BaseSize, Inference, Normalize, Pixels, Scales, as_logits, identity
from pspexp.utils.arguments import checked

# Standard deviation in windows (nnU-Net's value): the middle of an edge has 3e-4 of the centre's weight.
GAUSSIAN_SIGMA = 1 / 8


class Slide(Inference):
    """Windows at a fixed stride, averaged where they overlap; the last of each row and column is moved inside.

    An image smaller than a window is padded with the mean colour, half of it (rounded down) left and above. With
    ``flip``, each window is averaged with its mirror image. This is hszhao/semseg's ``tool/test.py``.

    Args:
        window: Side of the windows in pixels.
        stride: Distance between windows in pixels; None: two thirds of the window, rounded up, as in semseg.
        overlap: Instead of ``stride``: the overlap of neighbouring windows as a fraction of the window.
        window_weights: ``uniform``, or ``gaussian``, where pixels near a window's centre count more.
        average: What is averaged over windows and their mirror images: ``probabilities`` or ``logits``. Over scales,
            it is always probabilities.
        window_batch: Number of windows per forward pass.
        scales: See `Inference`.
        flip: See `Inference`.
        base_size: See `Inference`.
        compile: See `Inference`.
    """

    @checked
    def __init__(
        self,
        window: Pixels,
        stride: Pixels | None = None,
        overlap: Annotated[float, Field(ge=0, lt=1)] | None = None,
        window_weights: Literal["uniform", "gaussian"] = "uniform",
        average: Literal["probabilities", "logits"] = "probabilities",
        window_batch: Pixels = 4,
        scales: Scales = (1.0,),
        flip: bool = False,
        base_size: BaseSize = None,
        compile: bool = False,
    ) -> None:
        super().__init__(scales, flip, base_size, compile)
        if stride is not None and overlap is not None:
            raise ArgumentError(f"stride={stride}, overlap={overlap}: give one of them, set the other to null")
        if stride is not None and stride > window:
            raise ArgumentError(f"stride={stride}: must be at most window={window}; a larger stride would skip pixels")
        self.window = window
        self.stride = stride or math.ceil(window * (2 / 3 if overlap is None else 1 - overlap))
        self.window_weights, self.average, self.window_batch = window_weights, average, window_batch

    def view(self, model: nn.Module, images: Tensor, normalize: Normalize) -> Iterator[Tensor]:
        """See `Inference.view`."""
        height, width = images.shape[-2:]
        pad_y, pad_x = max(self.window - height, 0), max(self.window - width, 0)
        top, left = pad_y // 2, pad_x // 2
        if pad_x or pad_y:
            images, normalize = F.pad(normalize(images), (left, pad_x - left, top, pad_y - top)), identity
        for strip in self._strips(model, images, normalize):
            yield strip[..., left : left + width] if not pad_y else strip[..., top : top + height, left : left + width]

    def _strips(self, model: nn.Module, images: Tensor, normalize: Normalize) -> Iterator[Tensor]:
        """Logits of images that are at least as large as a window."""
        height, width = images.shape[-2:]
        tops = positions(height, self.window, self.stride)
        weights = self._weights(images.device)
        across = torch.zeros(width, device=images.device)  # sum of the weights in each column
        for left in positions(width, self.window, self.stride):
            across[left : left + self.window] += weights
        sums, down = torch.zeros(0), torch.zeros(0)  # what the windows above have contributed to the next rows
        for top, end in zip(tops, [*tops[1:], height], strict=True):
            rows = normalize(images[:, :, top : top + self.window])
            scores = self._row_of_windows(model, rows, weights) * weights[:, None]
            below = weights.clone()
            if top:
                scores[:, :, : len(down)] += sums
                below[: len(down)] += down
            final = end - top
            mean = scores[:, :, :final] / (below[:final, None] * across)
            yield as_logits(mean) if self.average == "probabilities" else mean
            sums, down = scores[:, :, final:], below[final:]

    def _row_of_windows(self, model: nn.Module, images: Tensor, weights: Tensor) -> Tensor:
        """The sum ``[N, C, window, W]`` of a row of windows, weighted across; ``images`` is ``[N, 3, window, W]``."""
        lefts = positions(images.shape[-1], self.window, self.stride)
        num_images = images.shape[0]
        per_batch = max(1, self.window_batch // num_images)
        total: Tensor | None = None
        for start in range(0, len(lefts), per_batch):
            batch = lefts[start : start + per_batch]
            windows = torch.cat([images[..., left : left + self.window] for left in batch])
            scores = self._scores(model, windows)
            if total is None:
                total = scores.new_zeros(num_images, *scores.shape[1:3], images.shape[-1])
            for left, part in zip(batch, torch.split(scores, num_images), strict=True):
                total[..., left : left + self.window] += part * weights
        assert total is not None
        return total

    def _scores(self, model: nn.Module, windows: Tensor) -> Tensor:
        """Probabilities or logits, whichever are averaged, of normalised windows ``[M, 3, window, window]``."""
        scores = self._unflipped(model, windows)
        if self.flip:
            scores = (scores + self._unflipped(model, windows.flip(-1)).flip(-1)) / 2
        return scores

    def _unflipped(self, model: nn.Module, windows: Tensor) -> Tensor:
        logits: Tensor = model(windows)["out"]
        return logits.softmax(1) if self.average == "probabilities" else logits

    def _weights(self, device: torch.device) -> Tensor:
        """The weight ``[window]`` of a window's rows, and of its columns."""
        if self.window_weights == "uniform":
            return torch.ones(self.window, device=device)
        distance = torch.arange(self.window, device=device) - (self.window - 1) / 2
        return torch.exp(-0.5 * (distance / (GAUSSIAN_SIGMA * self.window)) ** 2)


def positions(length: int, window: int, stride: int) -> Sequence[int]:
    """The first pixels of the windows along a side that is at least as long as a window."""
    count = math.ceil((length - window) / stride) + 1
    return [min(index * stride, length - window) for index in range(count)]
