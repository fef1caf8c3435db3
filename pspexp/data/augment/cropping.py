"""Random scale, crop and flip, with rotation, blur and changes of colour: the recipes that were published."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from pydantic import Field

from pspexp.data.augment.colour import Colour, Quality
from pspexp.data.augment.geometry import Crop, flipped
from pspexp.data.augment.mixing import Mix, Mixing
from pspexp.data.bands import AnyImage, Bands
from pspexp.data.dataset import Sample
from pspexp.errors import ArgumentError
from pspexp.utils.arguments import checked

Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Side = Annotated[int, Field(gt=0)]


class ScaleCropFlip:
    """Random scale, crop and horizontal flip, as in the reference; optional changes of colour, and mixing.

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
        base_size: Largest long and short side, in this order, of the image at scale 1, whose aspect ratio is kept (as
            mmsegmentation's ``RandomResize``); None: the image's own size.
        cat_max_ratio: Share of the labelled pixels: where one class fills more of the crop, another is tried, up to ten
            times (as mmsegmentation's ``RandomCrop``); None or 1: never.
        photometric: Whether to distort the colours; see `pspexp.data.augment.colour.distorted`.
        grayscale_probability: Probability of grey-scale, for RGB images only.
        jpeg_probability: Probability of JPEG noise.
        jpeg_quality: Lowest and highest JPEG quality, 1 to 100.
        mix: Which part of a second sample is pasted in; see `pspexp.data.augment.mixing.Mixing`. None: no mixing.
        mix_probability: Probability of mixing.
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
        base_size: Annotated[Sequence[Side], Field(min_length=2, max_length=2)] | None = None,
        cat_max_ratio: Share | None = None,
        photometric: bool = False,
        grayscale_probability: Probability = 0.0,
        jpeg_probability: Probability = 0.0,
        jpeg_quality: Quality = (30, 95),
        mix: Mix | None = None,
        mix_probability: Probability = 0.5,
    ) -> None:
        _check_scale(scale_min, scale_max)
        if base_size is not None and base_size[0] < base_size[1]:
            raise ArgumentError(f"base_size={list(base_size)}: the long side comes first; use {list(base_size)[::-1]}")
        self._crop = Crop(crop_size, mean, ignore_index, cat_max_ratio)
        self._colour = Colour(photometric, grayscale_probability, jpeg_probability, jpeg_quality, len(mean))
        self.mixing = Mixing(mix, mix_probability, ignore_index) if mix else None
        self.scale_min, self.scale_max, self.base_size = scale_min, scale_max, base_size
        self.flip_probability, self.color_jitter = flip_probability, color_jitter

    def __call__(self, image: AnyImage, label: Image.Image, rng: np.random.Generator) -> Sample:
        crop = self._crop
        scale = rng.uniform(self.scale_min, self.scale_max) * self._base_scale(image.size)
        window = crop.window(image.size, scale, rng)
        flip = rng.random() < self.flip_probability
        window, label = crop.choose(window, partial(crop.label, label), rng)
        image = self._colour(crop.image(image, window), rng)
        image, label = flipped(crop.padded(image, label, window), flip)
        if self.color_jitter:
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                factor = 1 + rng.uniform(-self.color_jitter, self.color_jitter)
                image = _enhanced(image, enhance, factor)
        return image, label

    def _base_scale(self, size: tuple[int, int]) -> float:
        if self.base_size is None:
            return 1.0
        return min(self.base_size[0] / max(size), self.base_size[1] / min(size))


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
        cat_max_ratio: Share | None = None,
        photometric: bool = False,
        grayscale_probability: Probability = 0.0,
        jpeg_probability: Probability = 0.0,
        jpeg_quality: Quality = (30, 95),
        mix: Mix | None = None,
        mix_probability: Probability = 0.5,
    ) -> None:
        _check_scale(scale_min, scale_max)
        self._crop = Crop(crop_size, mean, ignore_index, cat_max_ratio)
        self._colour = Colour(photometric, grayscale_probability, jpeg_probability, jpeg_quality, len(mean))
        self.mixing = Mixing(mix, mix_probability, ignore_index) if mix else None
        self.scale_min, self.scale_max = scale_min, scale_max
        self.flip_probability = flip_probability
        self.rotate_degrees, self.rotate_probability = rotate_degrees, rotate_probability
        self.blur_probability, self.blur_sigma = blur_probability, blur_sigma

    def __call__(self, image: AnyImage, label: Image.Image, rng: np.random.Generator) -> Sample:
        crop = self._crop
        window = crop.window(image.size, rng.uniform(self.scale_min, self.scale_max), rng)
        flip, rotate, blur = rng.random(3) < (
            self.flip_probability,
            self.rotate_probability,
            self.blur_probability,
        )
        degrees = rng.uniform(-self.rotate_degrees, self.rotate_degrees)
        if rotate:
            window, label = crop.choose(window, partial(crop.rotated_label, label, degrees=degrees), rng)
            image = crop.rotated_image(image, window, degrees)
        else:
            window, label = crop.choose(window, partial(crop.label, label), rng)
            image, label = crop.padded(crop.image(image, window), label, window)
        if blur:
            image = image.filter(ImageFilter.GaussianBlur(self.blur_sigma))
        return flipped((self._colour(image, rng), label), bool(flip))


class NoAugment:
    """The centre of the image, unscaled, cropped or padded to the crop size.

    Args:
        crop_size: Side of the result in pixels.
        mean: Colour of the padding, one value per band, as fractions of 255.
        ignore_index: Label of the padding.
    """

    def __init__(self, crop_size: int, mean: Sequence[float], ignore_index: int) -> None:
        self._crop = Crop(crop_size, mean, ignore_index)

    def __call__(self, image: AnyImage, label: Image.Image, rng: np.random.Generator) -> Sample:
        return self._crop.centred(image, label)


def _enhanced(image: AnyImage, enhance: Callable[[Image.Image], Any], factor: float) -> AnyImage:
    if isinstance(image, Bands):  # a change of saturation changes no single band
        return image.map(lambda band: enhance(band).enhance(factor))
    enhanced: Image.Image = enhance(image).enhance(factor)
    return enhanced


def _check_scale(scale_min: float, scale_max: float) -> None:
    if scale_min > scale_max:
        raise ArgumentError(f"scale_min={scale_min}, scale_max={scale_max}: scale_min must not exceed scale_max")
