"""Decoded samples kept in memory, so that later epochs and validations need not decode them again."""

import logging
import mmap
import struct
from multiprocessing.context import BaseContext
from multiprocessing.heap import BufferWrapper

from PIL import Image

from pspexp.data.bands import from_bytes
from pspexp.data.dataset import Sample, Split
from pspexp.errors import UserError, setting

log = logging.getLogger(__name__)

_HEAD = struct.Struct("=qq")  # bytes in use, samples cached
# Offset of a sample's pixels (0: not cached, -1: being written), width, height, number of bands of the image.
_ENTRY = struct.Struct("=qqqq")


class SampleCache:
    """Pixels of decoded samples in one block of memory shared by a process and its workers.

    The first process to decode a sample stores it for all of them, until the block is full. Nothing is evicted: every
    epoch reads every sample once, so an evicted sample would be needed again as soon as the one that replaced it.

    The block contains the index tables, too, and takes up memory only as it fills. Like a lock, it can be passed to
    workers when they start, but cannot be pickled otherwise.

    Args:
        limit_mib: Size of the block in MiB; 0 disables the cache.
        context: Multiprocessing context in which the workers are started.

    Raises:
        UserError: The machine cannot provide that much memory.
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

    def wrap(self, split: Split) -> Split:
        """``split`` read through this cache, for workers that start later; unchanged if its table does not fit."""
        self._samples += len(split)
        with self._lock:
            table = self._reserve(size := _ENTRY.size * len(split))
        if table is None:
            return split
        self._bytes[table : table + size] = bytes(size)  # reused memory may not be zero
        return _CachedSplit(split, self, table)

    def get(self, entry: int) -> Sample | None:
        """A copy of the sample whose table entry is at offset ``entry``; None if it is not cached."""
        data = self._bytes
        with self._lock:  # without it, another core could see the entry before the pixels, although it is written later
            start, width, height, bands = _ENTRY.unpack_from(data, entry)
        if start <= 0:
            return None
        size, middle, end = (width, height), start + bands * width * height, start + (bands + 1) * width * height
        return from_bytes(data[start:middle], size, bands), Image.frombytes("L", size, data[middle:end])

    def put(self, entry: int, sample: Sample) -> None:
        """Store a sample, unless another process already has or it does not fit."""
        data, (width, height), bands = self._bytes, sample[0].size, len(sample[0].getbands())
        size = (bands + 1) * width * height
        with self._lock:
            if _ENTRY.unpack_from(data, entry)[0] or (start := self._reserve(size, samples=1)) is None:
                return
            _ENTRY.pack_into(data, entry, -1, 0, 0, 0)
        data[start : start + size] = sample[0].tobytes() + sample[1].tobytes()
        with self._lock:
            _ENTRY.pack_into(data, entry, start, width, height, bands)

    def report(self) -> None:
        """Log, once, how many samples are cached and how much memory they take, unless the cache is disabled."""
        if self._limit and not self._reported:
            used, kept = _HEAD.unpack_from(self._bytes)
            mib = used / 2**20
            log.info("cache: %d of %d samples so far, %.1f of %d MiB", kept, self._samples, mib, self._limit >> 20)
            self._reported = True

    def _reserve(self, size: int, samples: int = 0) -> int | None:
        """Reserve ``size`` bytes; returns their offset, or None if they do not fit. The caller holds the lock."""
        start, kept = _HEAD.unpack_from(self._bytes)
        if start + size > self._limit:
            return None
        _HEAD.pack_into(self._bytes, 0, start + size, kept + samples)
        return int(start)

    @property
    def _bytes(self) -> memoryview:
        return self._memory.create_memoryview() if isinstance(self._memory, BufferWrapper) else memoryview(self._memory)


def uncached(split: Split) -> Split:
    """The split itself, without the cache around it."""
    return split.source if isinstance(split, _CachedSplit) else split


class _CachedSplit:
    def __init__(self, split: Split, cache: SampleCache, table: int) -> None:
        self.source, self._cache, self._table, self.names = split, cache, table, split.names

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        entry = self._table + _ENTRY.size * range(len(self))[index]
        if (sample := self._cache.get(entry)) is None:
            self._cache.put(entry, sample := self.source[index])
        return sample

    def fingerprint(self) -> str:
        return self.source.fingerprint()


def _shared_memory(size: int, context: BaseContext) -> mmap.mmap | BufferWrapper:
    """Shared memory that takes up space only when written; a RawArray would be filled with zeros at once.

    Forked workers inherit an anonymous mapping. It does not use ``/dev/shm``, which is small in containers, where a
    process that writes beyond its size is killed. Spawned workers receive the buffer that underlies a RawArray.
    """
    return mmap.mmap(-1, size) if context.get_start_method() == "fork" else BufferWrapper(size)
