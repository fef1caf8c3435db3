"""Joint transforms of image and label, and their conversion to normalised tensors.

An augmentation is a callable ``(image, label, rng) -> (image, label)`` whose only source of randomness is ``rng``.
Labels are resampled with nearest-neighbour interpolation: anything else would invent class ids.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from pydantic import Field
from torch import Tensor

from pspexp.data.bands import AnyImage, Bands, on_canvas
from pspexp.data.dataset import Sample
from pspexp.errors import ArgumentError, UserError, setting
from pspexp.utils.arguments import checked

_BILINEAR, _NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST


class _Axis(NamedTuple):
    """The position of the crop along one axis, in pixels of the scaled image."""

    length: int  # of the image before scaling
    scaled: int  # of the image after scaling
    start: int  # first pixel in the crop
    kept: int  # number of pixels in the crop
    pad: int  # pixels of padding before them

    @classmethod
    def place(cls, length: int, scale: float, crop: int, place: float) -> "_Axis":
        """``place`` in [0, 1) chooses among the possible positions; an image smaller than the crop is centred."""
        scaled = max(1, round(length * scale))
        kept = min(scaled, crop)
        return cls(length, scaled, int(place * (scaled - kept + 1)), kept, (crop - kept) // 2)

    @property
    def source(self) -> tuple[float, float]:
        """The part of the original image that is in the crop."""
        return self.start * self.length / self.scaled, (self.start + self.kept) * self.length / self.scaled


class _Crop:
    """A square crop of ``crop_size`` pixels a side, padded with the mean colour and the ignore index."""

    def __init__(self, crop_size: int, mean: Sequence[float], ignore_index: int) -> None:
        if crop_size < 1:
            raise ArgumentError(f"crop_size={crop_size}: must be at least 1")
        self.crop_size = crop_size
        self.colour = tuple(round(255 * value) for value in mean)
        self.ignore_index = ignore_index

    def resized(self, image: AnyImage, label: Image.Image, x: _Axis, y: _Axis) -> Sample:
        """Scale and crop in one operation, which computes only the pixels in the crop."""
        (left, right), (top, bottom) = x.source, y.source
        size, box, corner = (x.kept, y.kept), (left, top, right, bottom), (x.pad, y.pad)
        return self._padded(image.resize(size, _BILINEAR, box), label.resize(size, _NEAREST, box), corner)

    def rotated(self, image: AnyImage, label: Image.Image, x: _Axis, y: _Axis, degrees: float) -> Sample:
        """The same with a rotation about the image's centre, as one affine map from the crop to the image."""
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        per_x, per_y = x.length / x.scaled, y.length / y.scaled
        dx, dy = x.start - x.pad - x.scaled / 2, y.start - y.pad - y.scaled / 2  # from the centre to the crop's corner
        # Pillow maps each output position (u, v) to (a·u + b·v + c, d·u + e·v + f) in the input.
        first = (per_x * cos, per_x * sin, per_x * (cos * dx + sin * dy) + x.length / 2)
        second = (-per_y * sin, per_y * cos, per_y * (cos * dy - sin * dx) + y.length / 2)
        size, affine, kind = (self.crop_size, self.crop_size), (*first, *second), Image.Transform.AFFINE
        return (
            image.transform(size, kind, affine, _BILINEAR, fillcolor=self.colour),
            label.transform(size, kind, affine, _NEAREST, fillcolor=self.ignore_index),
        )

    def centred(self, image: AnyImage, label: Image.Image) -> Sample:
        """The centre of the image, unscaled."""
        corner = ((self.crop_size - image.width) // 2, (self.crop_size - image.height) // 2)
        return self._padded(image, label, corner)

    def _padded(self, image: AnyImage, label: Image.Image, corner: tuple[int, int]) -> Sample:
        size = (self.crop_size, self.crop_size)
        if image.size == size:
            return image, label
        return on_canvas(image, size, self.colour, corner), on_canvas(label, size, self.ignore_index, corner)


Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]


class ScaleCropFlip:
    """Random scale, crop and horizontal flip, as in the reference; optional colour jitter.

    The scale is uniform between its limits (hszhao/semseg, ``transform.RandScale``), so that 1 to 2 is twice as
    frequent as 0.5 to 1. A scaled image smaller than the crop is centred in it.

    Args:
        crop_size: Side of the result in pixels.
        scale_min: Smallest factor of width and height.
        scale_max: Largest factor of width and height.
        flip_probability: Probability of a horizontal flip.
        mean: Colour of the padding, one value per band, as fractions of 255.
        ignore_index: Label of the padding.
        color_jitter: Largest relative change j: brightness, contrast and saturation are each multiplied by a factor
            from 1 - j to 1 + j. Of other images than RGB, brightness and contrast of each band, by the same factors.
    """

    @checked
    def __init__(
        self,
        crop_size: int,
        scale_min: Factor,
        scale_max: Factor,
        flip_probability: Probability,
        mean: Sequence[float],
        ignore_index: int,
        color_jitter: Probability = 0.0,
    ) -> None:
        _check_scale(scale_min, scale_max)
        self._crop = _Crop(crop_size, mean, ignore_index)
        self.scale_min, self.scale_max = scale_min, scale_max
        self.flip_probability, self.color_jitter = flip_probability, color_jitter

    def __call__(self, image: AnyImage, label: Image.Image, rng: np.random.Generator) -> Sample:
        x, y = _random_window(image.size, self._crop.crop_size, self.scale_min, self.scale_max, rng)
        flip = rng.random() < self.flip_probability
        image, label = _flipped(self._crop.resized(image, label, x, y), flip)
        if self.color_jitter:
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                factor = 1 + rng.uniform(-self.color_jitter, self.color_jitter)
                image = _enhanced(image, enhance, factor)
        return image, label


class SemsegAugment:
    """`ScaleCropFlip` with random rotation and Gaussian blur, the recipe of hszhao/semseg.

    Its blur is OpenCV's 5×5 kernel, which has a sigma of 1.1. Rotations are about the image's centre.

    Args:
        crop_size: See `ScaleCropFlip`, also for the arguments that are not listed here.
        rotate_degrees: Largest angle in either direction; the distribution is uniform.
        rotate_probability: Probability of a rotation.
        blur_probability: Probability of a blur.
        blur_sigma: Standard deviation of the blur in pixels of the result.
    """

    @checked
    def __init__(
        self,
        crop_size: int,
        scale_min: Factor,
        scale_max: Factor,
        flip_probability: Probability,
        rotate_degrees: Annotated[float, Field(ge=0, allow_inf_nan=False)],
        rotate_probability: Probability,
        blur_probability: Probability,
        blur_sigma: Annotated[float, Field(ge=0, allow_inf_nan=False)],
        mean: Sequence[float],
        ignore_index: int,
    ) -> None:
        _check_scale(scale_min, scale_max)
        self._crop = _Crop(crop_size, mean, ignore_index)
        self.scale_min, self.scale_max = scale_min, scale_max
        self.flip_probability = flip_probability
        self.rotate_degrees, self.rotate_probability = rotate_degrees, rotate_probability
        self.blur_probability, self.blur_sigma = blur_probability, blur_sigma

    def __call__(self, image: AnyImage, label: Image.Image, rng: np.random.Generator) -> Sample:
        x, y = _random_window(image.size, self._crop.crop_size, self.scale_min, self.scale_max, rng)
        flip, rotate, blur = rng.random(3) < (
            self.flip_probability,
            self.rotate_probability,
            self.blur_probability,
        )
        degrees = rng.uniform(-self.rotate_degrees, self.rotate_degrees)
        if rotate:
            image, label = self._crop.rotated(image, label, x, y, degrees)
        else:
            image, label = self._crop.resized(image, label, x, y)
        if blur:
            image = image.filter(ImageFilter.GaussianBlur(self.blur_sigma))
        return _flipped((image, label), bool(flip))


class NoAugment:
    """The centre of the image, unscaled, cropped or padded to the crop size.

    Args:
        crop_size: Side of the result in pixels.
        mean: Colour of the padding, one value per band, as fractions of 255.
        ignore_index: Label of the padding.
    """

    def __init__(self, crop_size: int, mean: Sequence[float], ignore_index: int) -> None:
        self._crop = _Crop(crop_size, mean, ignore_index)

    def __call__(self, image: AnyImage, label: Image.Image, rng: np.random.Generator) -> Sample:
        return self._crop.centred(image, label)


def to_tensors(image: AnyImage, label: Image.Image) -> tuple[Tensor, Tensor]:
    """Image and "L" label as uint8 ``[B, H, W]``, with its number of bands B, and uint8 ``[H, W]``."""
    pixels = np.asarray(image).transpose(2, 0, 1).copy()  # NumPy transposes twice as fast as torch
    return torch.from_numpy(pixels), torch.from_numpy(np.array(label))


def normalize(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """``(images / 255 - mean) / std`` on the images' device.

    Args:
        images: uint8 ``[N, B, H, W]``, with their number of bands B.
        mean: Mean of each band, as fractions of 255.
        std: Standard deviation of each band, likewise.
        dtype: Type of the result, which is computed in float32 or better.

    Raises:
        UserError: There is another number of means.
    """
    if images.shape[1] != len(mean):
        raise UserError(
            f"{setting('dataset.mean', mean)}: must have {images.shape[1]} values, one per band of the images"
        )
    scaled = images.to(torch.promote_types(dtype, torch.float32))
    # Python numbers: tensors would be copied to the device, with a synchronisation, for every batch.
    for channel, (shift, width) in enumerate(zip(mean, std, strict=True)):
        scaled[:, channel].sub_(255 * shift).div_(255 * width)
    return scaled.to(dtype)


def _random_window(
    size: tuple[int, int], crop: int, scale_min: float, scale_max: float, rng: np.random.Generator
) -> tuple[_Axis, _Axis]:
    scale = rng.uniform(scale_min, scale_max)
    places = rng.random(2)
    return _Axis.place(size[0], scale, crop, places[0]), _Axis.place(size[1], scale, crop, places[1])


def _enhanced(image: AnyImage, enhance: Callable[[Image.Image], Any], factor: float) -> AnyImage:
    if isinstance(image, Bands):  # a change of saturation changes no single band
        return image.map(lambda band: enhance(band).enhance(factor))
    enhanced: Image.Image = enhance(image).enhance(factor)
    return enhanced


def _flipped(sample: Sample, flip: bool) -> Sample:
    if not flip:
        return sample
    mirror = Image.Transpose.FLIP_LEFT_RIGHT
    return sample[0].transpose(mirror), sample[1].transpose(mirror)


def _check_scale(scale_min: float, scale_max: float) -> None:
    if scale_min > scale_max:
        raise ArgumentError(f"scale_min={scale_min}, scale_max={scale_max}: scale_min must not exceed scale_max")
