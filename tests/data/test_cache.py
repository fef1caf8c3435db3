"""Cached samples equal the original ones, are decoded once for all processes, and respect the memory limit."""

import logging
import multiprocessing
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_loader import content, make_loader, same

from pspexp.config.build import build_training, init_distributed
from pspexp.config.compose import compose
from pspexp.data import workers
from pspexp.data.cache import SampleCache
from pspexp.data.loader import eval_loader
from pspexp.data.shapes import ShapesSplit
from pspexp.data.workers import worker_context
from pspexp.engine.distributed import ProcessInfo
from pspexp.errors import UserError
from tests.conftest import TINY


class Counted:
    """Random samples; counts how often samples are decoded in all processes."""

    def __init__(self, length: int, side: int = 8, context: Any = None) -> None:
        self.names = [str(index) for index in range(length)]
        self.side = side
        self.decoded = (context or worker_context()).Value("q", 0)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image.Image, Image.Image]:
        with self.decoded:
            self.decoded.value += 1
        rng = np.random.default_rng(index)
        pixels = rng.integers(0, 256, (self.side, self.side, 4), np.uint8)
        return Image.fromarray(np.ascontiguousarray(pixels[..., :3])), Image.fromarray(pixels[..., 3].copy())

    def new_count(self) -> int:
        with self.decoded:
            count, self.decoded.value = self.decoded.value, 0
        return int(count)


def make_cache(limit_mib: int = 1, context: Any = None) -> SampleCache:
    return SampleCache(limit_mib, context or worker_context())


def values(sample: tuple[Image.Image, Image.Image]) -> list[object]:
    return [(part.mode, part.size, part.tobytes()) for part in sample]


def samples(split: Any) -> list[list[object]]:
    return [values(split[index]) for index in range(len(split))]


class Sized(Counted):
    """Each sample has a different size."""

    def __getitem__(self, index: int) -> tuple[Image.Image, Image.Image]:
        image, label = super().__getitem__(index)
        size = (1 + index, 30 - index)
        return image.resize(size), label.resize(size, Image.Resampling.NEAREST)


@pytest.mark.parametrize("kind", [Counted, Sized])
def test_cached_split_equals_the_split_and_decodes_once(kind: Callable[[int], Counted]) -> None:
    split = kind(20)
    cached = make_cache().wrap(split)
    assert list(cached.names) == split.names
    assert len(cached) == 20
    expected = samples(split)
    split.new_count()
    assert samples(cached) == samples(cached) == expected
    assert split.new_count() == 20
    assert values(cached[-1]) == expected[19]
    with pytest.raises(IndexError):
        cached[20]


def test_limit_of_zero_disables_the_cache() -> None:
    split = Counted(3)
    assert make_cache(0).wrap(split) is split


def test_limit_is_shared_by_all_splits_and_nothing_is_evicted(caplog: pytest.LogCaptureFixture) -> None:
    cache = make_cache(1)
    first, second = Counted(2, side=256), Counted(5, side=256)  # a quarter of the limit each, without the tables
    cached = cache.wrap(first), cache.wrap(second)
    expected = samples(first) + samples(second)
    for counts in ((2, 5), (0, 4), (0, 4)):
        first.new_count(), second.new_count()
        assert [sample for split in cached for sample in samples(split)] == expected
        assert (first.new_count(), second.new_count()) == counts
    with caplog.at_level(logging.INFO):
        cache.report()
        cache.report()
    assert caplog.messages == ["cache: 3 of 7 samples so far, 0.8 of 1 MiB"]


def test_small_samples_are_cached_although_a_large_one_does_not_fit() -> None:
    cache = make_cache(1)
    large, small = Counted(3, side=400), Counted(3, side=8)
    for split, kept in ((large, 1), (small, 3)):
        cached = cache.wrap(split)
        samples(cached)
        split.new_count()
        samples(cached)
        assert split.new_count() == 3 - kept


def test_split_is_not_wrapped_if_its_table_does_not_fit() -> None:
    split = Counted(50_000)
    assert make_cache(1).wrap(split) is split


def test_returned_samples_are_writable_copies() -> None:
    cached = make_cache().wrap(Counted(1))
    before = values(cached[0])
    for _ in range(2):
        for part in cached[0]:
            part.paste(part.getpixel((3, 3)), (0, 0, 2, 2))
            part.load()[5, 5] = part.getpixel((0, 0))
            part.im.putpixel((7, 7), part.getpixel((0, 0)))
        assert values(cached[0]) == before


def test_reused_memory_is_cleared() -> None:
    context = multiprocessing.get_context("spawn")
    for side in (200, 150, 210):
        split = Counted(4, side)
        cached = make_cache(1, context).wrap(split)
        assert samples(cached) == samples(split)
        del cached  # the next block may be allocated at the same address


def test_broken_files_are_not_cached() -> None:
    class Broken(Counted):
        broken = True

        def __getitem__(self, index: int) -> tuple[Image.Image, Image.Image]:
            if self.broken and index == 1:
                raise UserError("1.jpg: broken")
            return super().__getitem__(index)

    split = Broken(2)
    cached = make_cache().wrap(split)
    for _ in range(2):
        with pytest.raises(UserError, match=r"1\.jpg: broken"):
            cached[1]
    split.broken = False
    assert values(cached[1]) == values(split[1])


def test_sample_cached_by_two_processes_is_stored_once() -> None:
    class Overtaken(Counted):
        """While one process decodes a sample, another one decodes and caches it."""

        cached: Any = None
        requested = False

        def __getitem__(self, index: int) -> tuple[Image.Image, Image.Image]:
            if not self.requested:
                self.requested = True
                self.cached[index]
            return super().__getitem__(index)

    split = Overtaken(3, side=256)
    split.cached = cached = make_cache(1).wrap(split)
    expected = [values(cached[index]) for index in range(3)]
    split.new_count()
    assert samples(cached) == expected  # a second copy of the first would have left no memory for the third
    assert split.new_count() == 0


def test_sample_is_not_returned_before_it_is_complete() -> None:
    class Slow:
        """An image whose pixels arrive late: another process requests the sample before."""

        def __init__(self, image: Image.Image, meanwhile: Callable[[], object]) -> None:
            self.image, self.size, self.meanwhile = image, image.size, meanwhile
            self.getbands = image.getbands

        def tobytes(self) -> bytes:
            self.meanwhile()
            return self.image.tobytes()

    class Late(Counted):
        cached: Any = None
        late = True

        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            if not self.late:
                return image, label
            self.late = False
            return Slow(image, lambda: seen.append(values(self.cached[index]))), label

    seen: list[object] = []
    split = Late(3, side=256)
    split.cached = cached = make_cache(1).wrap(split)
    cached[0]
    expected = samples(split)
    assert seen == expected[:1]
    assert samples(cached) == expected
    split.new_count()
    assert samples(cached) == expected  # nor did it take memory twice
    assert split.new_count() == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_same_with_and_without_cache(num_workers: int) -> None:
    whole = content(make_loader(Counted(20)).batches(0, 8))
    cached = make_cache().wrap(Counted(20))
    data = make_loader(cached, num_workers=num_workers)
    assert content(data.batches(0, 8)) == whole
    for cut in (1, 5):  # everything is cached by now
        assert content(data.batches(0, cut)) + content(data.batches(cut, 8)) == whole


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_share_the_cache(num_workers: int) -> None:
    split = Counted(20)
    data = make_loader(make_cache().wrap(split), batch_size=20, accumulate=1, num_workers=num_workers)
    list(data.batches(0, 1))
    assert split.new_count() == 20
    list(data.batches(1, 4))
    assert split.new_count() == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_later_validations_do_not_decode(num_workers: int) -> None:
    split = Counted(10)
    cached = make_cache().wrap(split)
    seen = []
    for decoded in (10, 0, 0):
        groups = eval_loader(
            cached, same, batch_size=2, num_workers=num_workers, max_images=None, pin_memory=False
        )  # with new workers
        seen.append(content(batch for group in groups for batch in group))
        assert split.new_count() == decoded
    assert seen[0] == seen[1] == seen[2]


def test_concurrent_processes_do_not_mix_up_samples() -> None:
    context = worker_context()
    split = Counted(40, side=64)
    expected = samples(split)
    cached = make_cache(1).wrap(split)

    def sweep() -> None:
        for _ in range(20):
            assert samples(cached) == expected

    sweepers = [context.Process(target=sweep) for _ in range(3)]
    for process in sweepers:
        process.start()
    for process in sweepers:
        process.join()
    assert [process.exitcode for process in sweepers] == [0, 0, 0]


def test_spawned_workers_share_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are spawned on macOS and Windows."""
    spawn = multiprocessing.get_context("spawn")
    monkeypatch.setattr(workers, "worker_context", lambda: spawn)
    split = Counted(6, context=spawn)
    cached = make_cache(1, spawn).wrap(split)
    data = make_loader(cached, batch_size=6, accumulate=1, num_workers=1)
    batches = content(data.batches(0, 2))
    assert split.new_count() == 6
    data = make_loader(cached, batch_size=6, accumulate=1)
    assert content(data.batches(0, 2)) == batches
    assert split.new_count() == 0


def test_cache_larger_than_the_memory_is_refused() -> None:
    with pytest.raises(UserError, match=r"loader\.cache_mib=1000000000: .*make it smaller"):
        make_cache(10**9)


@pytest.mark.parametrize(("mib", "count"), [(0, 2 * 8 + 3 * 3), (1, 4 + 1 + 3)])
def test_training_and_validation_share_a_cache(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mib: int, count: int
) -> None:
    decoded = []
    decode = ShapesSplit.__getitem__
    monkeypatch.setattr(ShapesSplit, "__getitem__", lambda split, index: decoded.append(index) or decode(split, index))
    config = compose([*TINY, "trainer.epochs=4", f"loader.cache_mib={mib}"])
    parts, _ = build_training(config, *init_distributed(config, ProcessInfo()), start_weights=False)
    for epoch in range(4):  # 4 of the 5 images
        list(parts.loader.batches(2 * epoch, 2 * epoch + 2))
        if epoch:
            samples(parts.validation)
    assert len(decoded) == count
    with caplog.at_level(logging.INFO):
        parts.cache.report()
    assert caplog.messages == (["cache: 8 of 8 samples so far, 0.1 of 1 MiB"] if mib else [])
