"""Pipelines of albumentations and torchvision are addressed by the sample's random numbers, and checked beforehand."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pspexp.data.augment.pipelines import Albumentations, TorchvisionV2
from pspexp.data.bands import Bands
from pspexp.data.loader import TrainLoader
from pspexp.data.shapes import ShapesSplit
from pspexp.errors import UserError

MEAN = [0.5, 0.5, 0.5]


def albumentations() -> Any:
    """The library, which must not ask for a newer version of itself."""
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"
    return pytest.importorskip("albumentations")


def with_albumentations(crop: int = 32) -> Albumentations:
    library = albumentations()
    return Albumentations(
        [
            library.RandomScale((-0.5, 1.0), p=1.0),
            library.RandomCrop(crop, crop, pad_if_needed=True),
            library.HorizontalFlip(p=0.5),
            library.OneOf([library.Affine(rotate=(-20, 20), p=1.0), library.GaussNoise(p=1.0)], p=0.7),
            library.CoarseDropout(p=0.3),
            library.ColorJitter(p=0.5),
        ],
        crop,
        MEAN,
        255,
    )


def with_torchvision(crop: int = 32) -> TorchvisionV2:
    turn = v2.RandomRotation(20, fill=77)
    return TorchvisionV2(
        [
            v2.RandomResize(20, 80),
            v2.RandomCrop(crop, pad_if_needed=True, fill=[9, 9, 9]),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([turn], p=0.5),
            v2.RandomPhotometricDistort(p=0.5),
        ],
        crop,
        MEAN,
        255,
    )


PIPELINES = pytest.mark.parametrize("make", [with_albumentations, with_torchvision])


def sample(seed: int = 0, size: int = 48) -> Any:
    return ShapesSplit("train", 6, size, seed, 255)[0]


def content(pair: Any) -> tuple[bytes, bytes]:
    return pair[0].tobytes(), pair[1].tobytes()


@PIPELINES
def test_results_depend_on_the_random_numbers_alone(make: Callable[[], Any]) -> None:
    augment, other = make(), make()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    seeds = list(range(12))
    found = {seed: content(augment(*sample(), np.random.default_rng(seed))) for seed in seeds}
    assert {seed: content(other(*sample(), np.random.default_rng(seed))) for seed in reversed(seeds)} == found
    assert len(set(found.values())) == len(seeds)
    assert torch.equal(torch.get_rng_state(), before)


@PIPELINES
def test_batches_do_not_depend_on_workers_or_restarts(make: Callable[[], Any]) -> None:
    def batches(num_workers: int, first: int = 0) -> list[tuple[list[int], bytes, bytes]]:
        split = ShapesSplit("train", 6, 48, 0, 255)
        loader = TrainLoader(
            split, make(), batch_size=2, accumulate=1, num_workers=num_workers, seed=1, pin_memory=False
        )
        return [(b.indices, b.images.numpy().tobytes(), b.labels.numpy().tobytes()) for b in loader.batches(first, 6)]

    whole = batches(0)
    assert batches(2) == whole
    assert batches(0, first=4) == whole[4:]
    by_index = {index: images for indices, images, _ in whole[:3] for index in indices}
    assert all(by_index[index] != images for indices, images, _ in whole[3:] for index in indices)  # another epoch


@PIPELINES
def test_labels_keep_their_values_and_padding_is_ignored(make: Callable[[], Any]) -> None:
    augment = make()
    image = Image.new("RGB", (30, 20), (255, 255, 255))
    padded = 0
    for seed in range(40):
        pixels, ids = augment(image, Image.new("L", (30, 20), 3), np.random.default_rng(seed))
        assert (pixels.mode, pixels.size, ids.mode, ids.size) == ("RGB", (32, 32), "L", (32, 32))
        assert {*np.unique(ids).tolist()} <= {3, 255}
        padded += 255 in np.unique(ids)
    assert padded > 10


def test_label_moves_with_the_image() -> None:
    for augment in (
        TorchvisionV2([v2.RandomRotation(45), v2.CenterCrop(32)], 32, MEAN, 255),
        Albumentations([albumentations().Affine(rotate=45, p=1.0), albumentations().CenterCrop(32, 32)], 32, MEAN, 255),
    ):
        label = Image.new("L", (48, 48))
        label.paste(1, (10, 4, 30, 44))
        image = Image.merge("RGB", [label.point(lambda value: 250 * value)] * 3)
        for seed in range(5):
            pixels, ids = (np.asarray(part) for part in augment(image, label, np.random.default_rng(seed)))
            known = ids != 255
            assert ((pixels[..., 0] > 125) == (ids == 1))[known].mean() > 0.97


def test_transforms_of_one_pipeline_are_independent() -> None:
    library = albumentations()
    augment = Albumentations(
        [library.Resize(16, 16), library.HorizontalFlip(p=0.5), library.VerticalFlip(p=0.5)], 16, MEAN, 255
    )
    label = Image.new("L", (16, 16))
    label.putpixel((0, 0), 1)
    ends = [np.argwhere(np.asarray(augment(Image.new("RGB", (16, 16)), label, np.random.default_rng(s))[1]))[0]
            for s in range(200)]  # fmt: skip
    both = np.mean([tuple(end) == (15, 15) for end in ends])
    assert abs(both - 0.25) < 0.1  # 0.5 if each transform had the same seed


def test_images_of_other_bands_are_taken() -> None:
    bands = Bands.from_array(np.random.default_rng(0).integers(0, 256, (40, 50, 5), np.uint8))
    library = albumentations()
    for augment in (
        Albumentations([library.RandomCrop(32, 32), library.HorizontalFlip()], 32, [0.5] * 5, 255),
        TorchvisionV2([v2.RandomCrop(32), v2.RandomHorizontalFlip()], 32, [0.5] * 5, 255),
    ):
        image, _ = augment(bands, Image.new("L", (50, 40)), np.random.default_rng(0))
        assert np.asarray(image).shape == (32, 32, 5)


def refusal(make: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as refused:
        make()
    (problem,) = refused.value.problems
    return problem


def test_what_cannot_be_trained_on_is_refused_before_training() -> None:
    library = albumentations()

    def wrong(*transforms: Any, bands: int = 3) -> str:
        return refusal(lambda: Albumentations([*transforms], 32, [0.5] * bands, 255))

    assert wrong(library.Resize(30, 40)) == (
        "transforms: returns 40×30 pixels for an image of 64×49 pixels, but crop_size=32 needs 32×32; end the list "
        "with albumentations.RandomCrop and its pad_if_needed=true"
    )
    crop = library.RandomCrop(32, 32)
    assert wrong(crop, library.Normalize()).startswith("transforms: returns float32 instead of uint8; remove")
    blurred = library.Affine(rotate=45, mask_interpolation=1, p=1.0)
    assert wrong(crop, blurred).startswith("transforms: writes label values that were not there (")
    assert wrong(crop, library.ToGray(1, p=1.0)).startswith("transforms: returns 1 band for an image of 3;")
    assert wrong(library.RandomCrop(99, 9)).startswith("transforms: fails on an image of 64×49 pixels: CropSizeError:")
    assert wrong(crop, library.HueSaturationValue(p=1.0), bands=5).startswith("transforms: fails on an image of")
    assert wrong(v2.RandomCrop(32)) == "transforms.0: RandomCrop is not a transform of albumentations 2; use one"


def test_wrong_torchvision_pipelines_are_refused_before_training() -> None:
    def wrong(*transforms: Any) -> str:
        return refusal(lambda: TorchvisionV2([*transforms], 32, MEAN, 255))

    assert "returns 30×30 pixels" in wrong(v2.RandomCrop(30))
    assert "returns float32 instead of uint8" in wrong(v2.RandomCrop(32), v2.ToDtype(torch.float32, scale=True))
    assert "fails on an image of 64×49 pixels: " in wrong(v2.RandomCrop(99))
    assert wrong() == "transforms=[]: must have at least 1 item, not 0"


def test_image_that_the_transforms_cannot_take_is_named_while_training() -> None:
    augment = TorchvisionV2([v2.RandomCrop(32)], 32, MEAN, 255)
    message = refusal(lambda: augment(Image.new("RGB", (20, 20)), Image.new("L", (20, 20)), np.random.default_rng(0)))
    assert message.startswith("augment.transforms: fails on an image of 20×20 pixels: ")
