"""Changes of colour that leave the label as it is: photometric distortion, grey-scale, JPEG noise."""

from collections.abc import Sequence
from io import BytesIO
from typing import Annotated

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from pspexp.data.bands import AnyImage, Bands, Pixels
from pspexp.errors import ArgumentError

Quality = Annotated[Sequence[Annotated[int, Field(ge=1, le=100)]], Field(min_length=2, max_length=2)]

# Limits of the distortion: brightness (added), contrast and saturation (factors), hue (degrees). The publications give
# the hue as ±18 in OpenCV's unit of two degrees.
_LOWEST, _HIGHEST = (-32.0, 0.5, 0.5, -36.0), (32.0, 1.5, 1.5, 36.0)
_ROWS = 32  # of the image at a time: intermediate results stay in the processor's cache, which halves the time


class Colour:
    """Photometric distortion, grey-scale and JPEG noise, in this order; what is off draws no random numbers.

    Args:
        photometric: Whether to distort each image; see `distorted`.
        grayscale_probability: Probability of grey-scale, for RGB images only.
        jpeg_probability: Probability of JPEG noise: each image is compressed and decompressed.
        jpeg_quality: Lowest and highest quality of this JPEG, 1 to 100.
        num_bands: Number of bands of the images.
    """

    def __init__(
        self,
        photometric: bool,
        grayscale_probability: float,
        jpeg_probability: float,
        jpeg_quality: Sequence[int],
        num_bands: int,
    ) -> None:
        if grayscale_probability and num_bands != 3:
            raise ArgumentError(
                f"grayscale_probability={grayscale_probability}: is for RGB images, but mean has {num_bands} "
                f"value{'s' * (num_bands != 1)}, one per band; set it to 0"
            )
        if jpeg_quality[0] > jpeg_quality[1]:
            raise ArgumentError(f"jpeg_quality={list(jpeg_quality)}: the lowest quality comes first; swap them")
        self.photometric, self.grayscale_probability = photometric, grayscale_probability
        self.jpeg_probability, self.jpeg_quality = jpeg_probability, jpeg_quality

    def __call__(self, image: AnyImage, rng: np.random.Generator) -> AnyImage:
        if self.photometric:
            image = distorted(image, rng)
        if self.grayscale_probability and rng.random() < self.grayscale_probability and not isinstance(image, Bands):
            image = image.convert("L").convert("RGB")
        if self.jpeg_probability and rng.random() < self.jpeg_probability:
            quality = int(rng.integers(self.jpeg_quality[0], self.jpeg_quality[1] + 1))
            image = (
                image.map(lambda band: _recompressed(band, quality))
                if isinstance(image, Bands)
                else _recompressed(image, quality)
            )
        return image


def distorted(image: AnyImage, rng: np.random.Generator) -> AnyImage:
    """The photometric distortion of SSD (Liu et al. 2016), as mmsegmentation's ``PhotoMetricDistortion``.

    Brightness (±32), contrast, saturation (each ×0.5 to 1.5) and hue (±36°) are changed with a probability of 0.5 each,
    the contrast before or after the other two by the toss of a coin. Saturation and hue are those of HSV, which is
    computed without rounding. In images of other bands than RGB, only brightness and contrast change, alike in all.
    """
    brighter, contrasted, saturated, tinted, contrast_first = rng.random(5) < 0.5
    brightness, contrast, saturation, hue = rng.uniform(_LOWEST, _HIGHEST)
    curve = np.arange(256.0)
    if brighter:
        curve = (curve + brightness).clip(0, 255)
    in_hsv = (saturated or tinted) and not isinstance(image, Bands)
    if contrasted and (contrast_first or not in_hsv):
        curve = (curve * contrast).clip(0, 255)
    table = curve.round().astype(int).tolist()
    if isinstance(image, Bands):
        return image.map(lambda band: band.point(table))
    if brighter or contrasted:
        image = image.point(table * 3)
    if not in_hsv:
        return image
    pixels = np.array(image)
    for first in range(0, len(pixels), _ROWS):
        rows = pixels[first : first + _ROWS]
        changed = changed_in_hsv(rows, saturation if saturated else 1.0, hue if tinted else 0.0)
        if contrasted and not contrast_first:
            changed *= np.float32(contrast)
            np.minimum(changed, 255, out=changed)
        changed += np.float32(0.5)
        rows[:] = changed.transpose(1, 2, 0)
    return Image.fromarray(pixels)


def changed_in_hsv(pixels: Pixels, saturation: float, degrees: float) -> npt.NDArray[np.float32]:
    """RGB pixels with another saturation and hue.

    Args:
        pixels: uint8 ``[H, W, 3]``.
        saturation: Factor of the saturation, which is limited to 1.
        degrees: Angle added to the hue, at most 60 in either direction.

    Returns:
        float32 ``[3, H, W]``, 0 to 255.
    """
    red, green, blue = planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    new_chroma = np.minimum(chroma * np.float32(saturation), value)
    inverse = 1 / np.maximum(chroma, 1)  # grey pixels have no hue: their chroma is 0 whatever it is
    if not degrees:
        new_chroma *= inverse
        return np.asarray(value - (value - planes) * new_chroma)
    # The hue in sectors of 60°, from -1 to 5 before it is changed.
    hue = np.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    np.copyto(hue, green - blue, where=value == red)
    hue *= inverse
    hue += np.float32(degrees / 60)
    hue[hue < 0] += 6
    floor = value - new_chroma
    for plane, centre, sign, offset in ((red, 3, 1, -1), (green, 2, -1, 2), (blue, 4, -1, 2)):
        np.subtract(hue, centre, out=plane)
        np.abs(plane, out=plane)
        plane *= sign
        plane += offset
        np.clip(plane, 0, 1, out=plane)
        plane *= new_chroma
        plane += floor
    return planes


def _recompressed(image: Image.Image, quality: int) -> Image.Image:
    content = BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content).convert(image.mode)
