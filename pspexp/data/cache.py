"""Decoded samples kept in memory, so that later epochs and validations need not decode them again."""

import logging
import mmap
import struct
from multiprocessing.context import BaseContext
from multiprocessing.heap import BufferWrapper

from PIL import Image

from pspexp.data.dataset import Sample, Split
from pspexp.errors import UserError, setting

log = logging.getLogger(__name__)

_HEAD = struct.Struct("=qq")  # bytes in use, samples kept
_ENTRY = struct.Struct("=qqq")  # where a sample's pixels start (0: not kept, -1: being written), width, height


class SampleCache:
    """Pixels of decoded samples in one block of memory that a process shares with its workers.

    Whoever decodes a sample first keeps it for all, until there is no room for the next. Nothing is evicted: an
    epoch asks once for everything, so what had to go would be wanted again as soon as what came in its place.

    The block holds everything, tables included, and takes memory only as it fills. Like a lock it can be sent to
    workers when they start, and not otherwise be pickled.

    Args:
        limit_mib: size of the block in MiB; 0 keeps nothing.
        context: how the workers start.

    Raises:
        UserError: the machine cannot give so much memory.
    """

    def __init__(self, limit_mib: int, context: BaseContext) -> None:
        self._limit = limit_mib << 20
        self._samples, self._reported = 0, False
        try:
            self._lock = context.Lock()
            self._memory = _shared_memory(max(self._limit, _HEAD.size), context)
        except (OSError, OverflowError) as error:
            size = setting("loader.cache_mib", limit_mib)
            raise UserError(f"{size}: not available here ({error}); make it smaller") from error
        _HEAD.pack_into(self._bytes, 0, _HEAD.size, 0)

    def over(self, split: Split) -> Split:
        """``split`` through this cache, for workers that start later; itself where not even its table finds room."""
        self._samples += len(split)
        with self._lock:
            table = self._reserve(size := _ENTRY.size * len(split))
        if table is None:
            return split
        self._bytes[table : table + size] = bytes(size)  # memory that was used before need not be zero
        return _CachedSplit(split, self, table)

    def get(self, entry: int) -> Sample | None:
        """A copy of the sample whose table entry lies at ``entry``; None if it is not kept."""
        data = self._bytes
        with self._lock:  # or a processor might see the entry before the pixels, which were written first
            start, width, height = _ENTRY.unpack_from(data, entry)
        if start <= 0:
            return None
        size, middle, end = (width, height), start + 3 * width * height, start + 4 * width * height
        return Image.frombytes("RGB", size, data[start:middle]), Image.frombytes("L", size, data[middle:end])

    def put(self, entry: int, sample: Sample) -> None:
        """Keep a sample, unless another process does or there is no room."""
        data, (width, height) = self._bytes, sample[0].size
        with self._lock:
            if _ENTRY.unpack_from(data, entry)[0] or (start := self._reserve(4 * width * height, samples=1)) is None:
                return
            _ENTRY.pack_into(data, entry, -1, 0, 0)
        data[start : start + 4 * width * height] = sample[0].tobytes() + sample[1].tobytes()
        with self._lock:
            _ENTRY.pack_into(data, entry, start, width, height)

    def report(self) -> None:
        """Log once, unless nothing can be kept, how many samples are and in how much memory."""
        if self._limit and not self._reported:
            used, kept = _HEAD.unpack_from(self._bytes)
            mib = used / 2**20
            log.info("cache: %d of %d samples so far, %.1f of %d MiB", kept, self._samples, mib, self._limit >> 20)
            self._reported = True

    def _reserve(self, size: int, samples: int = 0) -> int | None:
        """The start of ``size`` bytes of one's own, or None if there is no room; for holders of the lock."""
        start, kept = _HEAD.unpack_from(self._bytes)
        if start + size > self._limit:
            return None
        _HEAD.pack_into(self._bytes, 0, start + size, kept + samples)
        return int(start)

    @property
    def _bytes(self) -> memoryview:
        return self._memory.create_memoryview() if isinstance(self._memory, BufferWrapper) else memoryview(self._memory)


class _CachedSplit:
    def __init__(self, split: Split, cache: SampleCache, table: int) -> None:
        self._split, self._cache, self._table, self.names = split, cache, table, split.names

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> Sample:
        entry = self._table + _ENTRY.size * range(len(self))[index]
        if (sample := self._cache.get(entry)) is None:
            self._cache.put(entry, sample := self._split[index])
        return sample

    def fingerprint(self) -> str:
        return self._split.fingerprint()


def _shared_memory(size: int, context: BaseContext) -> mmap.mmap | BufferWrapper:
    """Bytes that take no memory before they are written; a RawArray of them would be filled with zeros at once.

    Forked workers inherit an anonymous map. It needs no room in ``/dev/shm``, which containers keep small: a
    process that writes more than fits there is killed. Other workers are sent what a RawArray is made of.
    """
    return mmap.mmap(-1, size) if context.get_start_method() == "fork" else BufferWrapper(size)
