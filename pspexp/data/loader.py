"""Batches for training and evaluation. The content of a batch depends only on the seed and the step."""

from collections.abc import Generator, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader

from pspexp.data.dataset import Split
from pspexp.data.samples import Augment, Batch, EvalSamples, Prepare, SkippedSamples, TrainSamples, collate
from pspexp.data.sampling import SampleKey, epoch_order
from pspexp.data.workers import iterate, worker_options
from pspexp.errors import UserError, setting
from pspexp.utils.text import count

__all__ = ["Batch", "EvalLoader", "TrainLoader", "eval_loader", "steps_per_epoch"]


class TrainLoader:
    """Endless shuffled training data, addressed by optimizer step.

    The order of epoch e depends only on ``(seed, e)`` and a sample's augmentation, with the second sample that it may
    be mixed with, only on ``(seed, e, index)``, so neither the number of workers nor the first step of a resumed run
    makes a difference. Samples that do not fill the last step of an epoch are dropped; each epoch drops different ones.
    Several processes share the samples of each step, which depend only on ``batch_size * accumulate * world_size``.

    Args:
        batch_size: Samples per micro-batch.
        accumulate: Micro-batches per optimizer step, in each process.
        seed: Seed of the order and the augmentation; not negative.
        pin_memory: Whether to put batches into page-locked memory (for CUDA).
        skip_errors: Whether to take the next sample instead of one that cannot be read.
        rank: Rank of this process among those that share the data.
        world_size: Number of these processes.
        repeats: How often each image is taken, as a factor of at least 1; see `pspexp.data.sampling.epoch_order`. None:
            once per epoch.

    Attributes:
        skipped: Samples of this process that could not be read, so far.
        repeats: The argument.

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
        repeats: Sequence[float] | None = None,
    ) -> None:
        self._split, self._augment = split, augment
        self.repeats = repeats
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
            TrainSamples(self._split, self._augment, self._seed, self.skip_errors),
            batch_sampler=_BatchSampler(self, first_step, last_step),
            collate_fn=collate,
            **worker_options(self._num_workers, self._pin_memory),
        )
        for loaded in iterate(loader):
            yield from self.skipped.add(loaded)

    def sample_keys(self, first_step: int, last_step: int, rank: int | None = None) -> Iterator[list[SampleKey]]:
        """The samples in each micro-batch of this process, or of another ``rank``.

        The k-th micro-batches of all processes together are one contiguous slice of the order, so that synchronised
        batch norms see the same images as those of a single process.
        """
        rank = self._rank if rank is None else rank
        first, stride = rank * self._batch_size, self._world_size * self._batch_size
        epoch, order = -1, list[SampleKey]()
        for step in range(first_step, last_step):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = epoch_order(len(self._split), self._seed, epoch, self.repeats)
            start = step % self.steps_per_epoch * self.images_per_step
            for begin in range(start + first, start + self.images_per_step, stride):
                yield order[begin : begin + self._batch_size]


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
        EvalSamples(split, prepare, skip_errors),
        sampler=range(rank, count, world_size),
        batch_size=batch_size,
        collate_fn=collate,
        **worker_options(num_workers, pin_memory),
    )
    return EvalLoader(loader)


class _BatchSampler:
    """`TrainLoader.sample_keys` as an iterable that can be started again."""

    def __init__(self, loader: TrainLoader, first_step: int, last_step: int) -> None:
        self._loader, self._steps = loader, (first_step, last_step)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self._loader.sample_keys(*self._steps)
