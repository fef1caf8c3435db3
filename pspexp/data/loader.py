"""Batches for training and evaluation. The content of a batch depends only on the seed and the step."""

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from pspexp.data.bands import AnyImage
from pspexp.data.dataset import Sample, Split
from pspexp.data.transforms import to_tensors
from pspexp.data.workers import iterate, worker_options
from pspexp.errors import UserError, setting
from pspexp.utils.text import count, one_line

Augment = Callable[[AnyImage, Image.Image, np.random.Generator], Sample]
Prepare = Callable[[AnyImage, Image.Image], Sample]
_Item = tuple[Tensor, Tensor, int]

MAX_TRIES = 100  # samples in a row that cannot be read

log = logging.getLogger(__name__)


class _Skipped(NamedTuple):
    """Why samples were skipped, by name, and the sample in their place, if any."""

    reasons: dict[str, str]
    item: _Item | None = None


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


class _Loaded(NamedTuple):
    """What a worker returns: batches, and why samples were skipped, by name."""

    batches: list[Batch]
    skipped: dict[str, str]


class SkippedSamples(dict[str, str]):
    """Why samples were skipped, by name; each is logged once."""

    def add(self, loaded: _Loaded) -> list[Batch]:
        """Note what was skipped; returns the batches."""
        for name, reason in loaded.skipped.items():
            if name not in self:
                log.warning("skipped: %s", reason)
                self[name] = reason
        return loaded.batches


class TrainLoader:
    """Endless shuffled training data, addressed by optimizer step.

    The order of epoch e depends only on ``(seed, e)`` and a sample's augmentation only on ``(seed, e, index)``, so
    neither the number of workers nor the first step of a resumed run makes a difference. Samples that do not fill the
    last step of an epoch are dropped; each epoch drops different ones. Several processes share the samples of each
    step, which depend only on ``batch_size * accumulate * world_size``.

    Args:
        batch_size: Samples per micro-batch.
        accumulate: Micro-batches per optimizer step, in each process.
        seed: Seed of the order and the augmentation; not negative.
        pin_memory: Whether to put batches into page-locked memory (for CUDA).
        skip_errors: Whether to take the next sample instead of one that cannot be read.
        rank: Rank of this process among those that share the data.
        world_size: Number of these processes.

    Attributes:
        skipped: Samples of this process that could not be read, so far.

    Raises:
        UserError: The split is too small for one step.
    """

    def __init__(
        self,
        split: Split,
        augment: Augment,
        *,
        batch_size: int,
        accumulate: int,
        num_workers: int,
        seed: int,
        pin_memory: bool,
        skip_errors: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._split, self._augment = split, augment
        self.skip_errors, self.skipped = skip_errors, SkippedSamples()
        self._rank, self._world_size = rank, world_size
        self._batch_size, self._accumulate, self._seed = batch_size, accumulate, seed
        self._num_workers, self._pin_memory = num_workers, pin_memory
        self.images_per_step = batch_size * accumulate * world_size  # of all processes
        self.steps_per_epoch = steps_per_epoch(len(split), batch_size, accumulate, world_size)

    def batches(self, first_step: int, last_step: int) -> Generator[Batch, None, None]:
        """The micro-batches of steps ``first_step`` to ``last_step - 1`` (from 0), across epochs.

        One set of workers loads all of them.
        """
        if first_step >= last_step:
            return
        loader: DataLoader[Any] = DataLoader(
            _TrainSamples(self._split, self._augment, self._seed, self.skip_errors),
            batch_sampler=_BatchSampler(self, first_step, last_step),
            collate_fn=_load,
            **worker_options(self._num_workers, self._pin_memory),
        )
        for loaded in iterate(loader):
            yield from self.skipped.add(loaded)

    def sample_keys(self, first_step: int, last_step: int, rank: int | None = None) -> Iterator[list[tuple[int, int]]]:
        """``(epoch, index)`` of the samples in each micro-batch of this process, or of another ``rank``.

        The k-th micro-batches of all processes together are one contiguous slice of the order, so that synchronised
        batch norms see the same images as those of a single process.
        """
        rank = self._rank if rank is None else rank
        first, stride = rank * self._batch_size, self._world_size * self._batch_size
        epoch, order = -1, []
        for step in range(first_step, last_step):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self._order(epoch)
            start = step % self.steps_per_epoch * self.images_per_step
            for begin in range(start + first, start + self.images_per_step, stride):
                yield [(epoch, index) for index in order[begin : begin + self._batch_size]]

    def _order(self, epoch: int) -> list[int]:
        seed = int(np.random.SeedSequence([self._seed, epoch]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        order: list[int] = torch.randperm(len(self._split), generator=generator).tolist()
        return order


def steps_per_epoch(num_images: int, batch_size: int, accumulate: int, world_size: int) -> int:
    """The number of optimizer steps in an epoch.

    Raises:
        UserError: There are too few images for one step.
    """
    if num_images < 2:
        raise UserError(
            f"{setting('dataset.train_split')}: {count(num_images, 'image')} to train on, but batch normalisation "
            f"needs at least 2; add images, or lower {setting('dataset.val_fraction')}"
        )
    steps = num_images // (batch_size * accumulate * world_size)
    if steps == 0:
        processes = f" × {world_size} processes" if world_size > 1 else ""
        raise UserError(
            f"{setting('loader.batch_size', batch_size)} × {setting('trainer.accumulate', accumulate)}{processes} "
            f"is more than the {num_images} training images; make either smaller"
        )
    return steps


class EvalLoader:
    """Batches in the split's order; see `eval_loader`.

    Attributes:
        skipped: Samples of this process that could not be read, so far.
    """

    def __init__(self, loader: "DataLoader[Any]") -> None:
        self._loader, self.skipped = loader, SkippedSamples()

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[Batch]]:
        return map(self.skipped.add, iterate(self._loader))


def eval_loader(
    split: Split,
    prepare: Prepare,
    *,
    batch_size: int,
    num_workers: int,
    max_images: int | None,
    pin_memory: bool,
    skip_errors: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> EvalLoader:
    """The first ``max_images`` samples (None: all) in order, ``batch_size`` at a time.

    Each item is a list of batches, one per image size among its samples. Images are not padded to a common size, so
    results do not depend on ``batch_size``. With several processes, each gets every ``world_size``-th sample, starting
    with number ``rank``; no sample is repeated to even out their numbers.

    Args:
        prepare: Function that transforms image and label before they become tensors.
        skip_errors: Whether to leave out samples that cannot be read.
    """
    count = len(split) if max_images is None else min(max_images, len(split))
    loader: DataLoader[Any] = DataLoader(
        _EvalSamples(split, prepare, skip_errors),
        sampler=range(rank, count, world_size),
        batch_size=batch_size,
        collate_fn=_load,
        **worker_options(num_workers, pin_memory),
    )
    return EvalLoader(loader)


class _BatchSampler:
    """`TrainLoader.sample_keys` as an iterable that can be started again."""

    def __init__(self, loader: TrainLoader, first_step: int, last_step: int) -> None:
        self._loader, self._steps = loader, (first_step, last_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self._loader.sample_keys(*self._steps)


class _TrainSamples(Dataset[Any]):
    def __init__(self, split: Split, augment: Augment, seed: int, skip_errors: bool) -> None:
        self._split, self._augment, self._seed, self._skip_errors = split, augment, seed, skip_errors

    def __getitem__(self, key: tuple[int, int]) -> "_Item | _Skipped | UserError":
        epoch, first = key
        reasons: dict[str, str] = {}
        for index in range(first, first + min(MAX_TRIES, len(self._split))):
            index %= len(self._split)
            try:
                sample = self._split[index]
            except UserError as error:
                if not self._skip_errors:
                    return error
                reasons[self._split.names[index]] = one_line(error)
                continue
            rng = np.random.default_rng([self._seed, epoch, index])
            item = (*to_tensors(*self._augment(*sample, rng)), index)
            return _Skipped(reasons, item) if reasons else item
        return UserError(*reasons.values(), f"{len(reasons)} samples in a row cannot be read; stopped")


class _EvalSamples(Dataset[Any]):
    def __init__(self, split: Split, prepare: Prepare, skip_errors: bool) -> None:
        self._split, self._prepare, self._skip_errors = split, prepare, skip_errors

    def __getitem__(self, index: int) -> "_Item | _Skipped | UserError":
        try:
            return (*to_tensors(*self._prepare(*self._split[index])), index)
        except UserError as error:
            return _Skipped({self._split.names[index]: one_line(error)}) if self._skip_errors else error


def _load(items: Sequence["_Item | _Skipped | UserError"]) -> _Loaded | UserError:
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
    return _Loaded([_one_batch(group) for group in groups.values()], skipped)


def _one_batch(items: Sequence[_Item]) -> Batch:
    images, labels, indices = zip(*items, strict=True)
    # In a worker, default_collate stacks directly into shared memory.
    return Batch(default_collate(list(images)), default_collate(list(labels)), list(indices))
