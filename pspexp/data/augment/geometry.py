"""Where the crop lies in the scaled image, and the pixels there."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from pspexp.data.bands import AnyImage, on_canvas
from pspexp.data.dataset import Sample
from pspexp.errors import ArgumentError

MAX_CROPS = 10  # tries of another crop, as in mmsegmentation
BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST


class Axis(NamedTuple):
    """The position of the crop along one axis, in pixels of the scaled image."""

    length: int  # of the image before scaling
    scaled: int  # of the image after scaling
    start: int  # first pixel in the crop
    kept: int  # number of pixels in the crop
    pad: int  # pixels of padding before them

    @classmethod
    def place(cls, length: int, scale: float, crop: int, place: float) -> "Axis":
        """``place`` in [0, 1) chooses among the possible positions; an image smaller than the crop is centred."""
        scaled = max(1, round(length * scale))
        kept = min(scaled, crop)
        return cls(length, scaled, int(place * (scaled - kept + 1)), kept, (crop - kept) // 2)

    def moved(self, place: float) -> "Axis":
        """The same with another ``place``."""
        return self._replace(start=int(place * (self.scaled - self.kept + 1)))

    @property
    def source(self) -> tuple[float, float]:
        """The part of the original image that is in the crop."""
        return self.start * self.length / self.scaled, (self.start + self.kept) * self.length / self.scaled


class Window(NamedTuple):
    """The position of the crop along both axes."""

    x: Axis
    y: Axis

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the crop without its padding."""
        return self.x.kept, self.y.kept

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The part of the original image that is in the crop: left, top, right, bottom."""
        (left, right), (top, bottom) = self.x.source, self.y.source
        return left, top, right, bottom

    @property
    def is_movable(self) -> bool:
        """Whether there is another position in the scaled image."""
        return self.x.kept < self.x.scaled or self.y.kept < self.y.scaled

    def affine(self, degrees: float) -> tuple[float, ...]:
        """The map from the crop to the image, with a rotation about the image's centre, for Pillow's transform.

        Pillow maps each output position (u, v) to (a·u + b·v + c, d·u + e·v + f) in the input.
        """
        x, y = self
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        per_x, per_y = x.length / x.scaled, y.length / y.scaled
        dx, dy = x.start - x.pad - x.scaled / 2, y.start - y.pad - y.scaled / 2  # from the centre to the crop's corner
        first = (per_x * cos, per_x * sin, per_x * (cos * dx + sin * dy) + x.length / 2)
        second = (-per_y * sin, per_y * cos, per_y * (cos * dy - sin * dx) + y.length / 2)
        return (*first, *second)


class Crop:
    """A square crop of ``crop_size`` pixels a side, padded with the mean colour and the ignore index.

    Args:
        crop_size: Side of the result in pixels.
        mean: Colour of the padding, one value per band, as fractions of 255.
        ignore_index: Label of the padding.
        cat_max_ratio: Share of the labelled pixels from which on a class makes `choose` try another crop; None or 1:
            never.
    """

    def __init__(
        self, crop_size: int, mean: Sequence[float], ignore_index: int, cat_max_ratio: float | None = None
    ) -> None:
        if crop_size < 1:
            raise ArgumentError(f"crop_size={crop_size}: must be at least 1")
        self.crop_size = crop_size
        self.colour = tuple(round(255 * value) for value in mean)
        self.ignore_index = ignore_index
        self._max_ratio = 1.0 if cat_max_ratio is None else cat_max_ratio

    def window(self, size: tuple[int, int], scale: float, rng: np.random.Generator) -> Window:
        """A random position in an image of this size, scaled by ``scale``."""
        places = rng.random(2)
        return Window(
            Axis.place(size[0], scale, self.crop_size, places[0]), Axis.place(size[1], scale, self.crop_size, places[1])
        )

    def choose(
        self, window: Window, label_at: Callable[[Window], Image.Image], rng: np.random.Generator
    ) -> tuple[Window, Image.Image]:
        """``window``, or another position of the same scale if one class fills too much of it, and the label there.

        Args:
            window: The first position.
            label_at: Function that gives the label in a window.
            rng: Source of the further positions.
        """
        label = label_at(window)
        for _ in range(MAX_CROPS if self._max_ratio < 1 and window.is_movable else 0):
            if self._is_varied(label):
                break
            places = rng.random(2)
            window = Window(window.x.moved(places[0]), window.y.moved(places[1]))
            label = label_at(window)
        return window, label

    def image(self, image: AnyImage, window: Window) -> AnyImage:
        """The image in a window, without padding: scaled and cropped in one, which computes only these pixels."""
        return image.resize(window.size, BILINEAR, window.box)

    def label(self, label: Image.Image, window: Window) -> Image.Image:
        """The label in a window, without padding."""
        return label.resize(window.size, NEAREST, window.box)

    def rotated_image(self, image: AnyImage, window: Window, degrees: float) -> AnyImage:
        """The image in a window after a rotation about its centre, padded."""
        size, kind, affine = (self.crop_size, self.crop_size), Image.Transform.AFFINE, window.affine(degrees)
        return image.transform(size, kind, affine, BILINEAR, fillcolor=self.colour)

    def rotated_label(self, label: Image.Image, window: Window, degrees: float) -> Image.Image:
        """The label in a window after a rotation about its centre, padded."""
        size, kind, affine = (self.crop_size, self.crop_size), Image.Transform.AFFINE, window.affine(degrees)
        return label.transform(size, kind, affine, NEAREST, fillcolor=self.ignore_index)

    def padded(self, image: AnyImage, label: Image.Image, window: Window) -> Sample:
        """What `image` and `label` give for a window, in the size of the crop."""
        return self._on_canvas(image, label, (window.x.pad, window.y.pad))

    def centred(self, image: AnyImage, label: Image.Image) -> Sample:
        """The centre of the image, unscaled."""
        corner = ((self.crop_size - image.width) // 2, (self.crop_size - image.height) // 2)
        return self._on_canvas(image, label, corner)

    def _on_canvas(self, image: AnyImage, label: Image.Image, corner: tuple[int, int]) -> Sample:
        size = (self.crop_size, self.crop_size)
        if image.size == size:
            return image, label
        return on_canvas(image, size, self.colour, corner), on_canvas(label, size, self.ignore_index, corner)

    def _is_varied(self, label: Image.Image) -> bool:
        """Whether no class fills too much of the labelled pixels, of which there are some."""
        pixels = label.histogram()
        pixels[self.ignore_index] = 0
        return max(pixels) < self._max_ratio * sum(pixels)


def flipped(sample: Sample, flip: bool) -> Sample:
    """The sample, mirrored horizontally if ``flip``."""
    if not flip:
        return sample
    mirror = Image.Transpose.FLIP_LEFT_RIGHT
    return sample[0].transpose(mirror), sample[1].transpose(mirror)
