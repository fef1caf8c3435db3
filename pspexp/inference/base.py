"""What all inference modes share: scales, the mirror image, and results strip by strip."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, TypeVar, cast

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pspexp.data.bands import AnyImage, ImageT
from pspexp.data.dataset import Sample
from pspexp.models.exported import ExportedNetwork
from pspexp.models.folding import fold_batch_norms

Normalize = Callable[[Tensor], Tensor]
Scales = Annotated[Sequence[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1)]
Pixels = Annotated[int, Field(gt=0)]
BaseSize = Pixels | Annotated[Sequence[Pixels], Field(min_length=2, max_length=2)] | None
Box = tuple[int, int, int, int]  # left, top, right, bottom

# Pixels of the strips in which the results of several scales are averaged: 2000 by 500. More takes more memory, fewer
# more time.
STRIP_PIXELS = 1_000_000
SMALLEST = torch.finfo(torch.float32).tiny

_T = TypeVar("_T")


def identity(value: _T) -> _T:
    """Return ``value`` unchanged."""
    return value


class Inference:
    """A way of applying a network to images of any size.

    The results are the network's logits if there is one view of the image. With several (scales, mirror images,
    windows), class probabilities are averaged, and the results are their logarithms, so that softmax gives the average.

    Args:
        scales: Factors by which the image is resized; results are resized back. Bilinear, without antialiasing, as in
            hszhao/semseg (``tool/test.py``).
        flip: Whether to average with the mirrored results of the mirror image.
        base_size: Length of the longer side at scale 1 in pixels; or limits of the longer and the shorter side, within
            which the image is made as large as possible (mmsegmentation's ``Resize``); None: the image's own size.
        compile: Whether to compile the network with ``torch.compile``; see `network`.
    """

    def __init__(
        self, scales: Scales = (1.0,), flip: bool = False, base_size: BaseSize = None, compile: bool = False
    ) -> None:
        self.scales, self.flip, self.compile = tuple(scales), flip, compile
        self.base_size = base_size if base_size is None or isinstance(base_size, int) else tuple(base_size)

    def network(self, model: nn.Module, images: Tensor) -> nn.Module:
        """The network that `strips` is given: ``model`` with folded batch norms, compiled if this is wanted.

        A second image size is compiled for any size, so that the number of sizes does not matter; and the folded copy
        of the next validation reuses what was compiled for this one.

        Args:
            model: In evaluation mode; an exported network is returned as it is.
            images: The first ones, see `fold_batch_norms`.
        """
        folded = fold_batch_norms(model, images)
        if not self.compile or isinstance(model, ExportedNetwork):
            return folded
        return cast(nn.Module, torch.compile(folded))

    def describe(self) -> str:
        """What is evaluated of each image, for a log line."""
        return "whole images"

    def prepare(self, image: AnyImage, label: Image.Image) -> Sample:
        """Resize and crop an image and its label, for an evaluation of what remains."""
        # Nearest: bilinear would invent class ids.
        return self.resize(image, Image.Resampling.BILINEAR), self.resize(label, Image.Resampling.NEAREST)

    def resize(self, image: ImageT, resampling: Image.Resampling) -> ImageT:
        """Resize and crop an image to what the network is applied to; by default unchanged."""
        return image

    def region(self, width: int, height: int) -> Box:
        """The part of an image of this size that `resize` keeps."""
        return 0, 0, width, height

    def view(self, model: nn.Module, images: Tensor, normalize: Normalize) -> Iterator[Tensor]:
        """Logits of one scale, as `strips`."""
        raise NotImplementedError

    def strips(self, model: nn.Module, images: Tensor, normalize: Normalize = identity) -> Iterator[Tensor]:
        """Logits ``[N, C, rows, W]``, float32, for one strip of rows after another, from top to bottom.

        Where many windows make up an image, this takes memory for a few strips at a time.

        Args:
            model: Network in evaluation mode that maps images to ``{"out": logits}``.
            images: ``[N, 3, H, W]``, normalised, or raw if ``normalize`` normalises them.
            normalize: Applied to ``images`` or parts of them.
        """
        height, width = images.shape[-2:]
        sizes = [self.scaled_size(height, width, scale) for scale in self.scales]
        if sizes == [(height, width)]:
            yield from self.view(model, images, normalize)
            return
        views = [_Rows(self.view(model, *resized(images, size, normalize))) for size in sizes]
        rows = -(-STRIP_PIXELS // width)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            found = [
                view.resized(top, bottom, size, (height, width)) for view, size in zip(views, sizes, strict=True)
            ]  # fmt: skip
            yield as_logits(torch.stack(found).mean(0) if len(found) > 1 else found[0])

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits ``[N, C, H, W]``, float32, of normalised images ``[N, 3, H, W]``; arguments as in `strips`."""
        found = list(self.strips(model, images))
        return found[0] if len(found) == 1 else torch.cat(found, 2)

    def probabilities(self, model: nn.Module, images: Tensor) -> Tensor:
        """Class probabilities ``[N, C, H, W]``, float32; arguments as in `logits`."""
        return self.logits(model, images).softmax(1)

    def scaled_size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        """Height and width of an image at one of the scales."""
        long, short = max(height, width), min(height, width)
        if isinstance(self.base_size, tuple):
            base = min(self.base_size[0], self.base_size[1] * long / short)
        else:
            base = self.base_size or long
        longer = max(1, round(scale * base))
        shorter = max(1, round(longer * short / long))
        return (longer, shorter) if height > width else (shorter, longer)


def resized(images: Tensor, size: tuple[int, int], normalize: Normalize) -> tuple[Tensor, Normalize]:
    """Images at another height and width, and what remains to be applied to them."""
    if images.shape[-2:] == size:
        return images, normalize
    return F.interpolate(normalize(images), size, mode="bilinear", align_corners=False), identity


def as_logits(probabilities: Tensor) -> Tensor:
    """The logarithms, of which softmax gives ``probabilities`` again; finite."""
    return probabilities.clamp_min(SMALLEST).log()


class _Rows:
    """The class probabilities of a view by rows, read from top to bottom.

    Args:
        strips: Logits as in `Inference.strips`.
    """

    def __init__(self, strips: Iterator[Tensor]) -> None:
        self._strips = strips
        self._top, self._kept = 0, next(strips).softmax(1)

    def between(self, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last - 1``; ``first`` must never decrease."""
        while self._top + self._kept.shape[2] < last:
            self._kept = torch.cat([self._kept, next(self._strips).softmax(1)], 2)
        self._kept, self._top = self._kept[:, :, first - self._top :], first
        return self._kept[:, :, : last - first]

    def resized(self, top: int, bottom: int, size: tuple[int, int], to: tuple[int, int]) -> Tensor:
        """Rows ``top`` to ``bottom - 1`` of the probabilities resized from ``size`` to ``to``.

        Bilinear with half-pixel centres, as ``F.interpolate``, which takes whole images only.
        """
        if size == to:
            return self.between(top, bottom)
        position = (torch.arange(top, bottom, dtype=torch.float64) + 0.5) * size[0] / to[0] - 0.5
        position.clamp_(0, size[0] - 1)
        above = position.long()
        below = (above + 1).clamp_max(size[0] - 1)
        first = int(above[0])
        source = self.between(first, int(below[-1]) + 1)
        source = F.interpolate(source, (source.shape[2], to[1]), mode="bilinear", align_corners=False)
        weight = (position - above).to(source.dtype)[:, None].to(source.device)
        above, below = ((index - first).to(source.device) for index in (above, below))
        return torch.lerp(source.index_select(2, above), source.index_select(2, below), weight)
