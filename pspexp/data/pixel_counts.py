"""How many pixels of each class there are in each image of a split."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, Dataset

from pspexp.data.cache import uncached
from pspexp.data.dataset import Split
from pspexp.data.file_split import FileSplit
from pspexp.data.inspection.cache import FactsCache
from pspexp.data.inspection.collect import Reader, common_root
from pspexp.data.workers import iterate, worker_options
from pspexp.errors import UserError
from pspexp.utils.progress import slow_loop

Counts = npt.NDArray[np.int64]
CHUNK = 1000  # label files whose facts are in memory at a time
MAX_WORKERS = 8  # processes that draw the samples of a split without files


def pixel_counts(split: Split, num_classes: int) -> Counts:
    """The number of labelled pixels of each class in each image, int64 ``[len(split), num_classes]``.

    Of a split in files, only the label files are read, in several threads, and what is in them is cached, see
    `pspexp.data.inspection.cache`. Any other split is read by worker processes, anew in each call.

    An image whose label cannot be read has no labelled pixels here; the look at the data before training reports it.

    Args:
        split: The split; images are counted as stored, before augmentation.
        num_classes: Number of classes, C.
    """
    source = uncached(split)
    rows: Callable[[Any, int], Iterator[Counts]] = _file_rows if isinstance(source, FileSplit) else _sample_rows
    counts = np.zeros((len(source), num_classes), np.int64)
    found = slow_loop(rows(source, num_classes), len(source), "counting labelled pixels")
    for index, row in enumerate(found):
        counts[index] = row
    return counts


def _file_rows(split: FileSplit, num_classes: int) -> Iterator[Counts]:
    cache = FactsCache(common_root([split]))
    reader = Reader(cache)
    try:
        for start in range(0, len(split), CHUNK):
            for label in reader.labels(split, range(len(split))[start : start + CHUNK]):
                ids = label.ids if label is not None else {}
                yield np.array([ids.get(index, 0) for index in range(num_classes)], np.int64)
    finally:  # if it is interrupted, what was read is kept
        cache.save()


def _sample_rows(split: Split, num_classes: int) -> Iterator[Counts]:
    workers = min(MAX_WORKERS, (os.cpu_count() or 1) if len(split) > 2 * MAX_WORKERS else 0)
    loader = DataLoader(_Rows(split, num_classes), batch_size=None, **worker_options(workers, pin_memory=False))
    return iterate(loader)


class _Rows(Dataset[Counts]):
    def __init__(self, split: Split, num_classes: int) -> None:
        self._split, self._num_classes = split, num_classes

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> Counts:
        try:
            label = np.asarray(self._split[index][1])
        except UserError:
            return np.zeros(self._num_classes, np.int64)
        return np.bincount(label.ravel(), minlength=256)[: self._num_classes].astype(np.int64)
