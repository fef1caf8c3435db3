"""Which training images an epoch takes, and in which order."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, order=True)
class SampleKey:
    """The address of a training sample; its augmentation depends on this and the seed alone.

    Attributes:
        epoch: Number of the epoch, from 0.
        index: Index of the image in its split.
        repeat: How often the epoch has taken this image before.
    """

    epoch: int
    index: int
    repeat: int = 0


def repeat_factors(pixel_counts: npt.NDArray[np.int64], threshold: float) -> npt.NDArray[np.float64]:
    """How often images are to be taken so that rare classes are seen more often: LVIS's (Gupta et al. 2019).

    With f(c) as the share of the images that contain the class c, it is repeated r(c) = max(1, √(threshold / f(c)))
    times, and an image as often as the one of its classes that is repeated most.

    Args:
        pixel_counts: ``[N, C]``, the number of pixels of each class in each image.
        threshold: The share of the images below which a class is repeated; 1 repeats every class that is not in all.

    Returns:
        ``[N]``, each at least 1.
    """
    present = pixel_counts > 0
    share = np.maximum(present.mean(axis=0), 1 / max(len(present), 1))
    by_class = np.maximum(1.0, np.sqrt(threshold / share))
    return np.asarray(np.where(present, by_class, 1.0).max(axis=1, initial=1.0))


def epoch_order(length: int, seed: int, epoch: int, repeats: Sequence[float] | None = None) -> list[SampleKey]:
    """The samples of an epoch in order, ``length`` of them: a permutation, or a draw in proportion to ``repeats``.

    Each image is put in as often as its factor says, rounded up or down at random, and all are shuffled; only the
    first ``length`` are kept.

    Args:
        length: Number of images in the split.
        seed: Seed of the order, which depends on it and the epoch alone.
        epoch: Number of the epoch.
        repeats: A factor for each image, at least 1; see `repeat_factors`. None: every image once.
    """
    state = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(state)
    if repeats is None:
        return [SampleKey(epoch, index) for index in torch.randperm(length, generator=generator).tolist()]
    factors = torch.as_tensor(repeats, dtype=torch.float64)
    times = (factors + torch.rand(length, dtype=torch.float64, generator=generator)).floor().long()
    images = torch.repeat_interleave(torch.arange(length), times)
    shuffled = images[torch.randperm(len(images), generator=generator)][:length].tolist()
    seen = Counter[int]()
    keys = []
    for index in shuffled:
        keys.append(SampleKey(epoch, index, seen[index]))
        seen[index] += 1
    return keys
