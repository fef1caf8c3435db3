"""Images of any number of bands other than three, which Pillow has no mode for."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Pixels = npt.NDArray[np.uint8]


class Bands:
    """An image of 8-bit bands, with those methods of Pillow's images that the pipeline uses.

    Each method does to every band what Pillow does to an "L" image; for any other operation there is `map`.

    Args:
        bands: "L" images of one size.
    """

    def __init__(self, bands: Sequence[Image.Image]) -> None:
        self.bands = tuple(bands)

    @classmethod
    def from_array(cls, pixels: Pixels) -> "Bands":
        """The image with these pixels, uint8 ``[H, W, B]``."""
        return cls([Image.fromarray(band) for band in np.ascontiguousarray(pixels.transpose(2, 0, 1))])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.bands[0].size

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.bands[0].width

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.bands[0].height

    def getbands(self) -> tuple[str, ...]:
        """The names of the bands: their numbers, from 1."""
        return tuple(str(number) for number in range(1, len(self.bands) + 1))

    def map(self, operation: Callable[[Image.Image], Image.Image]) -> "Bands":
        """The image whose bands are the results of an operation on each band."""
        return Bands([operation(band) for band in self.bands])

    def resize(
        self,
        size: tuple[int, int],
        resample: Image.Resampling | None = None,
        box: tuple[float, float, float, float] | None = None,
    ) -> "Bands":
        """See ``PIL.Image.Image.resize``."""
        return self.map(lambda band: band.resize(size, resample, box))

    def transpose(self, method: Image.Transpose) -> "Bands":
        """See ``PIL.Image.Image.transpose``."""
        return self.map(lambda band: band.transpose(method))

    def transform(
        self,
        size: tuple[int, int],
        method: Image.Transform,
        data: Sequence[float],
        resample: Image.Resampling = Image.Resampling.NEAREST,
        *,
        fillcolor: Sequence[int],
    ) -> "Bands":
        """See ``PIL.Image.Image.transform``; ``fillcolor`` has one value per band."""
        pairs = zip(self.bands, fillcolor, strict=True)
        return Bands([band.transform(size, method, data, resample, fillcolor=value) for band, value in pairs])

    def filter(self, filter: ImageFilter.Filter) -> "Bands":
        """See ``PIL.Image.Image.filter``."""
        return self.map(lambda band: band.filter(filter))

    def tobytes(self) -> bytes:
        """The pixels of one band after another."""
        return b"".join(band.tobytes() for band in self.bands)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The pixels, uint8 ``[H, W, B]``."""
        pixels = np.stack([np.asarray(band) for band in self.bands], axis=2)
        return pixels if dtype is None else pixels.astype(dtype)


AnyImage = Image.Image | Bands
"""An RGB image of Pillow, or an image of another number of bands."""
ImageT = TypeVar("ImageT", bound=AnyImage)


def from_bytes(data: bytes | memoryview, size: tuple[int, int], num_bands: int) -> AnyImage:
    """The image whose ``tobytes`` gave ``data``."""
    if num_bands == 3:
        return Image.frombytes("RGB", size, data)
    length = size[0] * size[1]
    parts = (data[start : start + length] for start in range(0, num_bands * length, length))
    return Bands([Image.frombytes("L", size, part) for part in parts])


@overload
def on_canvas(
    image: Image.Image, size: tuple[int, int], fill: int | tuple[int, ...], corner: tuple[int, int]
) -> Image.Image: ...


@overload
def on_canvas(image: Bands, size: tuple[int, int], fill: tuple[int, ...], corner: tuple[int, int]) -> Bands: ...


def on_canvas(image: AnyImage, size: tuple[int, int], fill: Any, corner: tuple[int, int]) -> AnyImage:
    """An image pasted at ``corner`` on a canvas of the colour ``fill``; a negative corner crops."""
    if isinstance(image, Bands):
        pairs = zip(image.bands, fill, strict=True)
        return Bands([on_canvas(band, size, value, corner) for band, value in pairs])
    canvas = Image.new(image.mode, size, fill)
    canvas.paste(image, corner)
    return canvas


def visible(pixels: Pixels) -> Pixels:
    """What is shown of an image ``[H, W, B]``: its first three bands as RGB, or its first in grey; ``[H, W, 3]``."""
    bands = pixels.shape[2]
    return pixels if bands == 3 else pixels[..., [0, 1, 2] if bands > 3 else [0, 0, 0]]
