"""Batches for training and evaluation: what one holds depends only on the seed and its place in the run."""

import atexit
import multiprocessing
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from pspexp.data.dataset import Sample, Split
from pspexp.data.transforms import to_tensors
from pspexp.errors import UserError, setting

__all__ = ["Batch", "EvalLoader", "Split", "TrainLoader", "eval_loader", "worker_context"]

Augment = Callable[[Image.Image, Image.Image, np.random.Generator], Sample]
Prepare = Callable[[Image.Image, Image.Image], Sample]
_Item = tuple[Tensor, Tensor, int]
_T = TypeVar("_T")
_open_iterators: WeakSet[Any] = WeakSet()
_PARENTS = (signal.SIGINT, signal.SIGTERM)  # signals that are the parent's to answer


class Batch(NamedTuple):
    """Samples of one size.

    Attributes:
        images: uint8 ``[N, 3, H, W]``.
        labels: uint8 ``[N, H, W]``.
        indices: places of the samples in their split.
    """

    images: Tensor
    labels: Tensor
    indices: list[int]


class TrainLoader:
    """Endless shuffled training data, addressed by optimizer step.

    The order of epoch e depends only on ``(seed, e)``, a sample's augmentation only on ``(seed, e, index)``:
    the number of workers and the step at which a run starts change nothing. Samples that do not fill the last
    step of an epoch are left out; the next epoch leaves out others. Several processes share each step's samples:
    which samples it has depends only on ``batch_size * accumulate * world_size``.

    Args:
        batch_size: samples of one micro-batch.
        accumulate: micro-batches of one optimizer step, in each process.
        seed: not negative.
        pin_memory: put batches into page-locked memory (for CUDA).
        rank, world_size: this process's number among those that share the data.

    Raises:
        UserError: the split is too small for one step.
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
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._split, self._augment = split, augment
        self._rank, self._world_size = rank, world_size
        self._batch_size, self._accumulate, self._seed = batch_size, accumulate, seed
        self._num_workers, self._pin_memory = num_workers, pin_memory
        self.images_per_step = batch_size * accumulate * world_size  # of all processes
        self.steps_per_epoch = len(split) // self.images_per_step
        if self.steps_per_epoch == 0:
            processes = f" × {world_size} processes" if world_size > 1 else ""
            raise UserError(
                f"{setting('loader.batch_size', batch_size)} × {setting('trainer.accumulate', accumulate)}{processes} "
                f"is more than the {len(split)} training images; make either smaller"
            )

    def batches(self, first_step: int, last_step: int) -> Generator[Batch, None, None]:
        """The micro-batches of steps ``first_step`` … ``last_step - 1`` (from 0), across epochs.

        One set of workers serves the whole call.
        """
        if first_step >= last_step:
            return
        loader: DataLoader[Any] = DataLoader(
            _TrainSamples(self._split, self._augment, self._seed),
            batch_sampler=_Plan(self, first_step, last_step),
            collate_fn=_one_batch,
            **_worker_options(self._num_workers, self._pin_memory),
        )
        yield from _raise_failures(loader)

    def plan(self, first_step: int, last_step: int, rank: int | None = None) -> Iterator[list[tuple[int, int]]]:
        """``(epoch, index)`` of the samples of each micro-batch of this process, or of another ``rank``.

        Micro-batch a of the processes together is one contiguous piece of the order: batch norms that are
        synchronised see what those of a single process would.
        """
        rank = self._rank if rank is None else rank
        first, stride = rank * self._batch_size, self._world_size * self._batch_size
        epoch, order = -1, []
        for step in range(first_step, last_step):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self._order(epoch)
            start = step % self.steps_per_epoch * self.images_per_step
            for at in range(start + first, start + self.images_per_step, stride):
                yield [(epoch, index) for index in order[at : at + self._batch_size]]

    def _order(self, epoch: int) -> list[int]:
        seed = int(np.random.SeedSequence([self._seed, epoch]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        order: list[int] = torch.randperm(len(self._split), generator=generator).tolist()
        return order


class EvalLoader:
    """Batches in the split's order; see `eval_loader`."""

    def __init__(self, loader: "DataLoader[Any]") -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[Batch]]:
        return _raise_failures(self._loader)


def eval_loader(
    split: Split,
    prepare: Prepare,
    *,
    batch_size: int,
    num_workers: int,
    max_images: int | None,
    pin_memory: bool,
    rank: int = 0,
    world_size: int = 1,
) -> EvalLoader:
    """The first ``max_images`` samples (None: all) in order, ``batch_size`` at a time.

    Each item is a list of batches, one for each image size among its samples: nothing is padded to a common
    size, so results do not depend on ``batch_size``. Of several processes each gets every ``world_size``-th
    sample, beginning with number ``rank``; nothing is padded to a common number either.

    Args:
        prepare: what is done to image and label before they become tensors.
    """
    count = len(split) if max_images is None else min(max_images, len(split))
    loader: DataLoader[Any] = DataLoader(
        _EvalSamples(split, prepare),
        sampler=range(rank, count, world_size),
        batch_size=batch_size,
        collate_fn=_by_size,
        **_worker_options(num_workers, pin_memory),
    )
    return EvalLoader(loader)


class _Plan:
    """`TrainLoader.plan` as something that can be iterated again."""

    def __init__(self, loader: TrainLoader, first_step: int, last_step: int) -> None:
        self._loader, self._steps = loader, (first_step, last_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self._loader.plan(*self._steps)


class _TrainSamples(Dataset[Any]):
    def __init__(self, split: Split, augment: Augment, seed: int) -> None:
        self._split, self._augment, self._seed = split, augment, seed

    def __getitem__(self, key: tuple[int, int]) -> _Item | UserError:
        epoch, index = key
        try:
            sample = self._split[index]
        except UserError as error:
            return error
        rng = np.random.default_rng([self._seed, epoch, index])
        return (*to_tensors(*self._augment(*sample, rng)), index)


class _EvalSamples(Dataset[Any]):
    def __init__(self, split: Split, prepare: Prepare) -> None:
        self._split, self._prepare = split, prepare

    def __getitem__(self, index: int) -> _Item | UserError:
        try:
            return (*to_tensors(*self._prepare(*self._split[index])), index)
        except UserError as error:
            return error


# A UserError raised in a worker would arrive with a traceback as its message: so it travels as a value.


def _one_batch(items: Sequence[_Item | UserError]) -> Batch | UserError:
    failures = [item for item in items if isinstance(item, UserError)]
    if failures:
        return UserError(*(problem for failure in failures for problem in failure.problems))
    images, labels, indices = zip(*items, strict=True)
    # default_collate stacks straight into shared memory when it runs in a worker
    return Batch(default_collate(images), default_collate(labels), list(indices))


def _by_size(items: Sequence[_Item | UserError]) -> list[Batch | UserError]:
    groups: dict[object, list[_Item | UserError]] = {}
    for item in items:
        groups.setdefault(None if isinstance(item, UserError) else item[1].shape, []).append(item)
    return [_one_batch(group) for group in groups.values()]


def _raise_failures(loader: Iterable[_T]) -> Iterator[_T]:
    with _signals_held_back():  # until the workers have said that they ignore them
        items = iter(loader)
    _open_iterators.add(items)
    try:
        for item in items:
            for part in item if isinstance(item, list) else [item]:
                if isinstance(part, UserError):
                    raise part
            yield item
    finally:
        _end_workers(items)


def _end_workers(items: Any) -> None:
    """Let the workers end now, not when nothing, such as a traceback, refers to their iterator any more.

    Python terminates forgotten ones at exit with the SIGTERM that they ignore, and would wait for them for ever.
    """
    if hasattr(items, "_shutdown_workers"):  # without workers there is none
        items._shutdown_workers()


@atexit.register
def _end_all_workers() -> None:
    for items in list(_open_iterators):
        _end_workers(items)


def worker_context() -> BaseContext:
    """How workers start, whatever the process-wide start method is: joblib sets its own, with which a DataLoader fails.

    On Linux they are forked: a spawned worker imports torch again for seconds. Forking after torch has started
    its threads is safe here because a worker uses one thread and no accelerator. Elsewhere it is not, or cannot
    be done.
    """
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def _worker_options(num_workers: int, pin_memory: bool) -> dict[str, Any]:
    """Options of every DataLoader here."""
    return {
        "num_workers": num_workers,
        "pin_memory": pin_memory,
        "worker_init_fn": _start_worker,
        "multiprocessing_context": worker_context() if num_workers else None,
        "generator": torch.Generator().manual_seed(0),  # else each iterator draws from the global generator
    }


def _start_worker(worker_id: int) -> None:
    """One thread; and leave Ctrl-C and SIGTERM to the parent.

    They reach the whole process group, but the parent still needs its workers for as long as it goes on.
    Workers end when it tells them to, or when it is gone.
    """
    torch.set_num_threads(1)
    for number in _PARENTS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PARENTS)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Deliver the parent's signals later; processes that start meanwhile hold them back as well."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
