"""What the workers of a loader do: read samples, augment and mix them, and put them into batches."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from pspexp.data.bands import AnyImage
from pspexp.data.dataset import DatasetInfo, Sample, Split
from pspexp.data.sampling import SampleKey
from pspexp.data.transforms import to_tensors
from pspexp.errors import UserError, setting
from pspexp.utils.text import one_line

Augment = Callable[[AnyImage, Image.Image, np.random.Generator], Sample]
Prepare = Callable[[AnyImage, Image.Image], Sample]
_Item = tuple[Tensor, Tensor, int]  # image, label, index

MAX_TRIES = 100  # samples in a row that cannot be read

log = logging.getLogger(__name__)


class Mixing(Protocol):
    """What an augmentation may have as ``mixing``: a combination of two of its results."""

    @property
    def probability(self) -> float: ...

    def __call__(self, sample: Sample, partner: Sample, rng: np.random.Generator) -> Sample: ...


class _Skipped(NamedTuple):
    """Why samples were skipped, by name, and the sample in their place, if any."""

    reasons: dict[str, str]
    item: _Item | None = None


Loadable = _Item | _Skipped | UserError


class Batch(NamedTuple):
    """Samples of the same size.

    Attributes:
        images: uint8 ``[N, B, H, W]``, with their number of bands B.
        labels: uint8 ``[N, H, W]``.
        indices: Index of each sample in its split.
    """

    images: Tensor
    labels: Tensor
    indices: list[int]


class Loaded(NamedTuple):
    """What a worker returns: batches, and why samples were skipped, by name."""

    batches: list[Batch]
    skipped: dict[str, str]


class SkippedSamples(dict[str, str]):
    """Why samples were skipped, by name; each is logged once."""

    def add(self, loaded: Loaded) -> list[Batch]:
        """Note what was skipped; returns the batches."""
        for name, reason in loaded.skipped.items():
            if name not in self:
                log.warning("skipped: %s", reason)
                self[name] = reason
        return loaded.batches


class TrainSamples(Dataset[Any]):
    """Augmented samples, mixed if the augmentation has an attribute ``mixing``.

    Both are addressed by ``(seed, epoch, index)``: an augmentation draws the same numbers with and without mixing.

    Args:
        split: The images and their labels.
        augment: The augmentation.
        seed: Seed of all random numbers.
        skip_errors: Whether to take the next sample instead of one that cannot be read.
    """

    def __init__(self, split: Split, augment: Augment, seed: int, skip_errors: bool) -> None:
        self._split, self._augment, self._seed, self._skip_errors = split, augment, seed, skip_errors
        self._mixing: Mixing | None = getattr(augment, "mixing", None)

    def __getitem__(self, key: SampleKey) -> Loadable:
        reasons: dict[str, str] = {}
        try:
            index, sample = self._read(key.index, reasons)
            stream = 2 * key.repeat
            augmented = self._augment(*sample, self._generator(key.epoch, index, stream))
            if self._mixing is not None:
                augmented = self._mixed(augmented, index, self._generator(key.epoch, index, stream + 1), reasons)
        except UserError as error:
            return error
        item = (*to_tensors(*augmented), index)
        return _Skipped(reasons, item) if reasons else item

    def _mixed(self, sample: Sample, index: int, rng: np.random.Generator, reasons: dict[str, str]) -> Sample:
        """The sample mixed with another one, augmented for this purpose, or as it is."""
        assert self._mixing is not None
        if rng.random() >= self._mixing.probability:
            return sample
        others = len(self._split) - 1
        _, partner = self._read((index + 1 + int(rng.integers(others))) % len(self._split), reasons)
        return self._mixing(sample, self._augment(*partner, rng), rng)

    def _generator(self, epoch: int, index: int, stream: int) -> np.random.Generator:
        words = [self._seed, epoch, index]
        return np.random.default_rng([*words, stream] if stream else words)

    def _read(self, first: int, reasons: dict[str, str]) -> tuple[int, Sample]:
        """The sample at ``first``, or the next one that can be read; ``reasons`` gains why others cannot.

        Raises:
            UserError: It cannot be read, and must not be skipped, or too many in a row cannot.
        """
        found: dict[str, str] = {}
        for index in range(first, first + min(MAX_TRIES, len(self._split))):
            index %= len(self._split)
            try:
                sample = self._split[index]
            except UserError as error:
                if not self._skip_errors:
                    raise
                found[self._split.names[index]] = one_line(error)
                continue
            reasons |= found
            return index, sample
        raise UserError(*found.values(), f"{len(found)} samples in a row cannot be read; stopped")


class EvalSamples(Dataset[Any]):
    """Samples as they are evaluated.

    Args:
        split: The images and their labels.
        prepare: Function that transforms image and label before they become tensors.
        skip_errors: Whether to leave out samples that cannot be read.
    """

    def __init__(self, split: Split, prepare: Prepare, skip_errors: bool) -> None:
        self._split, self._prepare, self._skip_errors = split, prepare, skip_errors

    def __getitem__(self, index: int) -> Loadable:
        try:
            return (*to_tensors(*self._prepare(*self._split[index])), index)
        except UserError as error:
            return _Skipped({self._split.names[index]: one_line(error)}) if self._skip_errors else error


def collate(items: Sequence[Loadable]) -> Loaded | UserError:
    """The batches of what a worker has read, one for each image size."""
    failures = [item for item in items if isinstance(item, UserError)]
    if failures:
        return UserError(*dict.fromkeys(problem for failure in failures for problem in failure.problems))
    skipped: dict[str, str] = {}
    groups: dict[torch.Size, list[_Item]] = {}
    for item in items:
        if isinstance(item, _Skipped):
            skipped |= item.reasons
        read = item.item if isinstance(item, _Skipped) else item
        if read is not None:
            assert not isinstance(read, UserError)
            groups.setdefault(read[1].shape, []).append(read)
    return Loaded([_one_batch(group) for group in groups.values()], skipped)


def refuse_unknown_ids(batch: Batch, names: Sequence[str], info: DatasetInfo) -> None:
    """Raise UserError if a label holds an id that is neither a class nor ignored: it would crash an accelerator.

    Labels from files never do; those of other data sets and augmentations may.

    Args:
        batch: On the CPU.
        names: Names of all images of the split.
        info: The classes.
    """
    labels = batch.labels.numpy()  # compares forty times as fast as torch
    wrong = (labels >= info.num_classes) & (labels != info.ignore_index)
    if wrong.any():
        row = int(np.argmax(wrong.any((1, 2))))
        name, found = names[batch.indices[row]], labels[row][wrong[row]][0]
        raise UserError(
            f"{name}: its label holds the id {found}; must be 0 to {info.num_classes - 1}, or "
            f"{setting('dataset.ignore_index', info.ignore_index)}; correct the data set or the augmentation"
        )


def _one_batch(items: Sequence[_Item]) -> Batch:
    images, labels, indices = zip(*items, strict=True)
    # In a worker, default_collate stacks directly into shared memory.
    return Batch(default_collate(list(images)), default_collate(list(labels)), list(indices))
