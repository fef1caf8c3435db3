"""Mixing of two labelled samples: CutMix and ClassMix."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from pspexp.data.bands import AnyImage, Bands
from pspexp.data.dataset import Sample

Mix = Literal["cutmix", "classmix"]


class Mixing:
    """Pastes a part of a second augmented sample, image and label, into a first one.

    ``cutmix`` (Yun et al. 2019) pastes a rectangle whose share of the image, before it is cut off at the borders, is
    uniform between 0 and 1. ``classmix`` (Olsson et al. 2021), here on labelled data, pastes all pixels of half of the
    classes of the second sample, rounded up; ignored pixels are not pasted.

    The loader asks for this, with a second sample of its choice, when an augmentation has it as ``mixing``.

    Args:
        mode: Which part is pasted.
        probability: Share of the samples that are mixed.
        ignore_index: Label of ignored pixels.
    """

    def __init__(self, mode: Mix, probability: float, ignore_index: int) -> None:
        self.mode, self.probability, self.ignore_index = mode, probability, ignore_index

    def __call__(self, sample: Sample, partner: Sample, rng: np.random.Generator) -> Sample:
        """``sample`` with a part of ``partner``, which has the same size."""
        label = np.asarray(partner[1])
        mask = _rectangle(label.shape, rng) if self.mode == "cutmix" else self._half_of_classes(label, rng)
        where = Image.fromarray(mask.astype(np.uint8) * 255)
        return _pasted(sample[0], partner[0], where), _paste(sample[1], partner[1], where)

    def _half_of_classes(self, label: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        pixels = np.bincount(label.ravel(), minlength=256)
        pixels[self.ignore_index] = 0
        classes = np.flatnonzero(pixels)
        chosen = np.zeros(256, np.bool_)
        chosen[rng.permutation(classes)[: (len(classes) + 1) // 2]] = True
        return np.asarray(chosen[label])


def _rectangle(shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    share, *centre = rng.random(3)
    mask = np.zeros(shape, np.bool_)
    rows, columns = (
        slice(max(0, round(side * (place - share**0.5 / 2))), max(0, round(side * (place + share**0.5 / 2))))
        for side, place in zip(shape, centre, strict=True)
    )
    mask[rows, columns] = True
    return mask


def _pasted(image: AnyImage, partner: AnyImage, mask: Image.Image) -> AnyImage:
    if isinstance(image, Bands) and isinstance(partner, Bands):
        return Bands([_paste(*bands, mask) for bands in zip(image.bands, partner.bands, strict=True)])
    assert isinstance(image, Image.Image) and isinstance(partner, Image.Image)  # noqa: PT018 - of one data set
    return _paste(image, partner, mask)


def _paste(image: Image.Image, partner: Image.Image, mask: Image.Image) -> Image.Image:
    return Image.composite(partner, image, mask)
