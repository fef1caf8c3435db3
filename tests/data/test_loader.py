"""Batches do not depend on workers or restarts, and errors of workers are reported in full."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pspexp.data.loader import Batch, TrainLoader, eval_loader
from pspexp.errors import UserError


class Numbered:
    """Sample i is an image of value i; ``broken`` samples cannot be read."""

    def __init__(self, length: int, broken: tuple[int, ...] = (), sizes: tuple[int, ...] = (4,)) -> None:
        self.names = [str(index) for index in range(length)]
        self.broken, self.sizes = broken, sizes

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image.Image, Image.Image]:
        if index in self.broken:
            raise UserError(f"{index}.jpg: broken")
        size = (4, self.sizes[index % len(self.sizes)])
        return Image.new("RGB", size, (index, 0, 0)), Image.new("L", size, index % 3)


def noise(image: Image.Image, label: Image.Image, rng: np.random.Generator) -> Any:
    pixels = np.asarray(image).copy()
    pixels[..., 1:] = rng.integers(0, 256, (*pixels.shape[:2], 2))
    return Image.fromarray(pixels), label


def same(image: Image.Image, label: Image.Image) -> Any:
    return image, label


def make_loader(split: Any = None, **changes: Any) -> TrainLoader:
    options: dict[str, Any] = {
        "batch_size": 3,
        "accumulate": 2,
        "num_workers": 0,
        "seed": 7,
        "pin_memory": False,
    }
    return TrainLoader(split or Numbered(20), noise, **{**options, **changes})


def content(batches: Any) -> list[tuple[list[int], bytes, bytes]]:
    return [(b.indices, b.images.numpy().tobytes(), b.labels.numpy().tobytes()) for b in batches]


def test_epoch_is_a_permutation_in_whole_steps() -> None:
    loader = make_loader()
    assert loader.steps_per_epoch == 3
    batches = list(loader.batches(0, 6))
    assert len(batches) == 12
    first, second = ([i for b in part for i in b.indices] for part in (batches[:6], batches[6:]))
    assert len(set(first)) == len(set(second)) == 18
    assert first != second
    batch = batches[0]
    assert isinstance(batch, Batch)
    assert (batch.images.dtype, tuple(batch.images.shape)) == (torch.uint8, (3, 3, 4, 4))
    assert (batch.labels.dtype, tuple(batch.labels.shape)) == (torch.uint8, (3, 4, 4))
    assert batch.images[:, 0, 0, 0].tolist() == batch.indices


def test_batches_do_not_depend_on_workers_or_restarts() -> None:
    whole = content(make_loader().batches(0, 8))
    assert content(make_loader(num_workers=2).batches(0, 8)) == whole
    loader = make_loader(num_workers=1)
    for cut in (1, 3, 5):
        assert content(loader.batches(0, cut)) + content(loader.batches(cut, 8)) == whole
    assert content(make_loader(seed=8).batches(0, 8)) != whole


def test_augmentation_differs_between_epochs() -> None:
    batches = list(make_loader(batch_size=20, accumulate=1).batches(0, 2))
    a, b = (batch.images[batch.indices.index(5)] for batch in batches)
    assert not torch.equal(a, b)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_global_random_state_is_unchanged(num_workers: int) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(make_loader(num_workers=num_workers).batches(0, 2))
    list(eval_loader(Numbered(3), same, batch_size=2, num_workers=num_workers, max_images=None, pin_memory=False))
    assert torch.equal(torch.get_rng_state(), before)


def test_zero_steps_give_no_batches() -> None:
    assert list(make_loader(num_workers=2).batches(4, 4)) == []


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"batch_size=3 × trainer\.accumulate=7 is more than the 20"):
        make_loader(accumulate=7)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_name_the_files_without_a_traceback(num_workers: int) -> None:
    loader = make_loader(Numbered(6, broken=(1, 4)), batch_size=6, accumulate=1, num_workers=num_workers)
    with pytest.raises(UserError) as caught:
        list(loader.batches(0, 1))
    assert sorted(caught.value.problems) == ["1.jpg: broken", "4.jpg: broken"]
    evaluation = eval_loader(
        Numbered(6, broken=(4,)), same, batch_size=1, num_workers=num_workers, max_images=None, pin_memory=False
    )
    with pytest.raises(UserError) as caught:
        list(evaluation)
    assert caught.value.problems == ("4.jpg: broken",)


def test_workers_ignore_interrupts() -> None:
    batches = make_loader(num_workers=2).batches(0, 12)
    got = content([next(batches)])
    children = [child.pid for child in multiprocessing.active_children()]
    assert len(children) >= 2
    for pid in filter(None, children):
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    assert got + content(batches) == content(make_loader().batches(0, 12))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_is_ordered_and_grouped_by_size(num_workers: int, batch_size: int) -> None:
    split = Numbered(10, sizes=(4, 6, 4))
    loader = eval_loader(split, same, batch_size=batch_size, num_workers=num_workers, max_images=9, pin_memory=False)
    assert len(loader) == -(-9 // batch_size)
    seen = []
    for step, batches in enumerate(loader):
        indices = sorted(index for batch in batches for index in batch.indices)
        assert indices == list(range(step * batch_size, min(9, (step + 1) * batch_size)))
        for batch in batches:
            assert tuple(batch.images.shape) == (len(batch.indices), 3, split.sizes[batch.indices[0] % 3], 4)
        seen += indices
    assert seen == list(range(9))
    assert len(list(loader)) == len(loader)


def test_abandoned_iterator_does_not_keep_the_process_alive() -> None:
    """Like after a crash, when a traceback still refers to the iterator at exit."""
    code = """
import sys
sys.path[:0] = sys.argv[1:]
from test_loader import make_loader
if __name__ == "__main__":
    kept = make_loader(num_workers=2).batches(0, 12)
    next(kept)
    raise SystemExit(3)
"""
    here = Path(__file__).parent
    overrides = [sys.executable, "-c", code, str(here), str(here.parents[1])]
    assert subprocess.run(overrides, timeout=60, check=False).returncode == 3


def test_the_next_sample_takes_the_place_of_one_that_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    loader = make_loader(Numbered(20, broken=(4, 5)), skip_errors=True)
    taken = [index for batch in loader.batches(0, 6) for index in batch.indices]
    assert len(taken) == 36
    assert not {4, 5} & {*taken}
    assert dict(loader.skipped) == {"4": "4.jpg: broken", "5": "5.jpg: broken"}
    assert caplog.text.count("4.jpg: broken") == 1


def test_skipping_ends_when_nothing_can_be_read() -> None:
    loader = make_loader(Numbered(6, broken=tuple(range(6))), skip_errors=True)
    with pytest.raises(UserError, match="6 samples in a row cannot be read"):
        list(loader.batches(0, 1))


def test_evaluation_leaves_out_what_cannot_be_read() -> None:
    loader = eval_loader(
        Numbered(5, broken=(1,)), same, batch_size=2, num_workers=0, max_images=None, pin_memory=False, skip_errors=True
    )
    assert [index for batches in loader for batch in batches for index in batch.indices] == [0, 2, 3, 4]
    assert [*loader.skipped] == ["1"]


class Mixed:
    """`noise` with mixing."""

    def __init__(self, probability: float) -> None:
        self.mixing = Partner(probability)

    def __call__(self, image: Image.Image, label: Image.Image, rng: np.random.Generator) -> Any:
        return noise(image, label, rng)


class Partner:
    """Writes into the first pixels whom a sample was mixed with."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, sample: Any, partner: Any, rng: np.random.Generator) -> Any:
        pixels, other = np.asarray(sample[0]).copy(), np.asarray(partner[0])
        pixels[0, 0, 1:] = other[0, 0, 0], 255
        pixels[1, 0] = other[1, 0]
        return Image.fromarray(pixels), sample[1]


def mixed_loader(split: Any = None, probability: float = 1.0, **changes: Any) -> TrainLoader:
    options: dict[str, Any] = {"batch_size": 3, "accumulate": 2, "num_workers": 0, "seed": 7, "pin_memory": False}
    return TrainLoader(split or Numbered(20), Mixed(probability), **{**options, **changes})


def partners(batches: Any) -> dict[int, int]:
    return {index: int(image[1, 0, 0]) for b in batches for index, image in zip(b.indices, b.images, strict=True)}


def test_partners_do_not_depend_on_workers_restarts_or_processes() -> None:
    loader = mixed_loader()
    whole = content(loader.batches(0, 6))
    assert content(mixed_loader(num_workers=2).batches(0, 6)) == whole
    assert content(loader.batches(4, 6)) == whole[8:]
    found = partners(loader.batches(0, 3))
    shared: dict[int, int] = {}
    for rank in (0, 1):
        shared |= partners(mixed_loader(accumulate=1, rank=rank, world_size=2).batches(0, 3))
    assert shared == found
    assert all(index != partner for index, partner in found.items())
    assert len(set(found.values())) > 8
    assert partners(loader.batches(3, 6)) != found  # another epoch


def test_mixing_leaves_the_rest_of_the_augmentation_as_it_is() -> None:
    plain = {key: image for b in make_loader().batches(0, 3) for key, image in zip(b.indices, b.images, strict=True)}
    seen = 0
    for batch in mixed_loader(probability=0.5).batches(0, 3):
        for index, image in zip(batch.indices, batch.images, strict=True):
            mixed = image[2, 0, 0] == 255 and not torch.equal(image, plain[index])
            seen += int(mixed)
            if not mixed:
                assert torch.equal(image, plain[index])
            else:
                assert torch.equal(image[:, 2:], plain[index][:, 2:])
    assert 3 <= seen <= 15


def test_partner_that_cannot_be_read_is_replaced_by_the_next() -> None:
    whole = partners(mixed_loader().batches(0, 3))
    broken = next(partner for partner in whole.values() if partner not in (0, 19))
    loader = mixed_loader(Numbered(20, broken=(broken,)), skip_errors=True)
    found = partners(loader.batches(0, 3))
    for index in found.keys() & whole.keys() - {broken, broken + 1}:
        assert found[index] == (broken + 1 if whole[index] == broken else whole[index])
    assert dict(loader.skipped) == {str(broken): f"{broken}.jpg: broken"}
    with pytest.raises(UserError, match=f"{broken}.jpg: broken"):
        list(mixed_loader(Numbered(20, broken=(broken,))).batches(0, 3))


def test_error_of_an_augmentation_is_no_reason_to_skip_the_image() -> None:
    def refuse(image: Image.Image, label: Image.Image, rng: np.random.Generator) -> Any:
        raise UserError("augment: refused")

    loader = TrainLoader(
        Numbered(6), refuse, batch_size=2, accumulate=1, num_workers=1, seed=0, pin_memory=False, skip_errors=True
    )
    with pytest.raises(UserError) as caught:
        list(loader.batches(0, 1))
    assert caught.value.problems == ("augment: refused",)


def test_repeated_images_are_augmented_anew_and_the_length_of_an_epoch_stays() -> None:
    def loader(**changes: Any) -> TrainLoader:
        return make_loader(**changes, repeats=[1.0] * 15 + [4.0] * 5)

    assert loader().steps_per_epoch == make_loader().steps_per_epoch
    whole = content(loader().batches(0, 6))
    assert content(loader(num_workers=2).batches(0, 6)) == whole
    assert content(loader().batches(2, 6)) == whole[4:]
    keys = [key for batch in loader().sample_keys(0, 6) for key in batch]
    by_two = [
        key
        for step in range(6)
        for rank in (0, 1)
        for batch in loader(accumulate=1, world_size=2, rank=rank).sample_keys(step, step + 1)
        for key in batch
    ]
    assert by_two == keys
    times = [key.index for key in keys]
    assert sum(times.count(index) for index in range(15, 20)) > 12
    images = {key: image.numpy().tobytes() for key, image in zip(
        keys, (image for batch in loader().batches(0, 6) for image in batch.images), strict=True)}  # fmt: skip
    assert len(set(images.values())) == len(images) == 36
