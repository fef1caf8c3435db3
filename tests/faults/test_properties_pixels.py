"""Augmentation, sliding windows, metrics and prediction keep every pixel in its place, whatever the sizes."""

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

import pspexp
from pspexp.data.augment.cropping import NoAugment, ScaleCropFlip, SemsegAugment
from pspexp.data.augment.mixing import Mixing
from pspexp.data.augment.pipelines import Albumentations, TorchvisionV2
from pspexp.data.bands import AnyImage, Bands
from pspexp.data.samples import Augment, TrainSamples
from pspexp.data.sampling import SampleKey
from pspexp.engine.predictor import Predictor
from pspexp.errors import UserError
from pspexp.inference import CenterCrop, Inference, Slide, Whole
from pspexp.inference.slide import positions
from pspexp.metrics.confusion import ConfusionMatrix
from pspexp.metrics.report import MEANS
from tests.conftest import TINY, run_commands

QUICK = settings(max_examples=120, deadline=None, derandomize=True, database=None)
VOID = 255
MEAN = [0.5, 0.25, 0.75]
PADDING = (128, 64, 191)
Array = npt.NDArray[Any]

SIDES = st.integers(1, 120)
CROPS = st.integers(1, 70)
SEEDS = st.integers(0, 2**32 - 1)


def ramp(width: int, height: int, along: Literal["x", "y"], bands: int = 3) -> tuple[AnyImage, Image.Image]:
    """An image whose first two bands are the column and the row of each pixel, and one of these as its label."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    pixels = np.stack([columns, rows, *[np.full_like(rows, 200)] * (bands - 2)], axis=2)
    image = Image.fromarray(pixels) if bands == 3 else Bands.from_array(pixels)
    return image, Image.fromarray(columns if along == "x" else rows)


def check_places(
    augment: Augment, width: int, height: int, crop: int, seed: int, near: float, bands: int = 3, edge: int = 0
) -> tuple[Array, Array]:
    """Image and label show the same places of the original, as far as interpolation allows; returns these places.

    ``edge`` pixels may be padding in the image only.
    """
    places = []
    for along, band in (("x", 0), ("y", 1)):
        image, label = augment(*ramp(width, height, along, bands), np.random.default_rng(seed))  # type: ignore[arg-type]
        pixels, ids = np.asarray(image).astype(int), np.asarray(label).astype(int)
        assert pixels.shape == (crop, crop, bands)
        assert ids.shape == (crop, crop)
        on_edge = (ids != VOID) & (pixels[..., :3] == PADDING).all(2)
        assert on_edge.sum() <= edge
        known = (ids != VOID) & ~on_edge
        assert np.abs(pixels[..., band] - ids)[known].max(initial=0) <= near
        assert (np.abs(pixels[..., 2] - 200)[known] <= 1).all()
        assert ids[known].max(initial=0) < (width if along == "x" else height)
        places.append(ids)
    assert ((places[0] == VOID) == (places[1] == VOID)).all()
    return places[0], places[1]


def tolerance(scale: float) -> float:
    """Largest distance of a nearest pixel from the centre of a linear interpolation, which averages when it shrinks.

    Half a pixel each for the nearest pixel and for rounding, and at the image's borders half of what is averaged.
    """
    return 0.5 + 0.5 * max(1.0, 1 / scale)


@QUICK
@given(
    width=SIDES,
    height=SIDES,
    crop=CROPS,
    scale=st.one_of(st.just(1.0), st.floats(0.3, 3)),
    stretch=st.one_of(st.just(1.0), st.floats(1, 1.5)),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    ratio=st.sampled_from([None, None, 0.5]),
    bands=st.sampled_from([3, 3, 4]),
    seed=SEEDS,
)
def test_scaled_crops_show_the_same_places_in_image_and_label(
    width: int,
    height: int,
    crop: int,
    scale: float,
    stretch: float,
    flip: float,
    ratio: float | None,
    bands: int,
    seed: int,
) -> None:
    mean = [*MEAN, 0.5][:bands]
    augment = ScaleCropFlip(crop, scale, scale * stretch, flip, mean, VOID)
    # The largest averaging is that of the side whose scaled length was rounded down most.
    real = min(max(1, math.floor(scale * side)) / side for side in (width, height))
    near = 0 if scale == stretch == 1 else tolerance(min(real, scale))
    x, y = check_places(augment, width, height, crop, seed, near, bands)
    # Each row of the crop is one row of the image, and each column one column.
    inside = x != VOID
    rows, columns = inside.any(1), inside.any(0)
    assert (inside == rows[:, None] & columns).all()
    assert len({tuple(row) for row in x[rows]}) == 1
    steps = np.diff(x[rows][0][columns])
    assert (steps >= 0).all() or ((steps <= 0).all() and flip > 0)
    assert (np.diff(y[:, columns][rows, 0]) >= 0).all()
    if ratio is not None:  # picks another crop by the label; then both labels would be cropped differently
        choosy = ScaleCropFlip(crop, scale, scale * stretch, flip, mean, VOID, cat_max_ratio=ratio)
        image, label = choosy(*ramp(width, height, "x", bands), np.random.default_rng(seed))
        ids = np.asarray(label).astype(int)
        difference = np.abs(np.asarray(image)[..., 0].astype(int) - ids)[ids != VOID]
        assert difference.max(initial=0) <= near


@QUICK
@given(
    width=SIDES,
    height=SIDES,
    crop=CROPS,
    scale=st.one_of(st.just(1.0), st.floats(0.5, 2)),
    degrees=st.floats(0, 180),
    rotate=st.sampled_from([0.0, 1.0, 1.0]),
    flip=st.sampled_from([0.0, 1.0]),
    bands=st.sampled_from([3, 3, 4]),
    seed=SEEDS,
)
def test_rotated_crops_show_the_same_places_in_image_and_label(
    width: int, height: int, crop: int, scale: float, degrees: float, rotate: float, flip: float, bands: int, seed: int
) -> None:
    arguments: dict[str, Any] = {"blur_probability": 0.0, "blur_sigma": 1.0, "mean": [*MEAN, 0.5][:bands]}
    augment = SemsegAugment(crop, scale, scale, flip, degrees, rotate, ignore_index=VOID, **arguments)
    real = min(max(1, math.floor(scale * side)) / side for side in (width, height))
    near = 0 if scale == 1 and (not rotate or not degrees) else tolerance(min(real, scale))
    # Pillow finds nearest pixels in fixed point: one that lies exactly on the border may be outside for the image only.
    check_places(augment, width, height, crop, seed, near, bands, edge=3)


@QUICK
@given(width=SIDES, height=SIDES, crop=CROPS, seed=SEEDS)
def test_the_centre_is_cropped_exactly(width: int, height: int, crop: int, seed: int) -> None:
    x, y = check_places(NoAugment(crop, MEAN, VOID), width, height, crop, seed, 0)
    assert (x != VOID).sum() == min(width, crop) * min(height, crop)
    assert len({*zip(x[x != VOID].tolist(), y[y != VOID].tolist(), strict=True)}) == (x != VOID).sum()


CHANGES: dict[str, Any] = {"photometric": True, "grayscale_probability": 0.5, "jpeg_probability": 0.5}


@settings(QUICK, max_examples=60)
@given(width=SIDES, height=SIDES, crop=CROPS, jitter=st.floats(0, 1), semseg=st.booleans(), seed=SEEDS)
def test_changes_of_colour_leave_the_label_as_it_is(
    width: int, height: int, crop: int, jitter: float, semseg: bool, seed: int
) -> None:
    rotation: dict[str, Any] = {"rotate_degrees": 10.0, "rotate_probability": 0.5, "blur_sigma": 1.0}

    def label(**changes: Any) -> bytes:
        both: dict[str, Any] = {"mean": MEAN, "ignore_index": VOID, "scale_min": 0.5, "scale_max": 2.0}
        both |= {"crop_size": crop, "flip_probability": 0.5}
        augment: Augment
        if semseg:
            augment = SemsegAugment(**both, **rotation, **({"blur_probability": 0.0} | changes))
        else:
            augment = ScaleCropFlip(**both, **changes)
        image, found = augment(*ramp(width, height, "x"), np.random.default_rng(seed))
        assert image.size == found.size == (crop, crop)
        return found.tobytes()

    extra: dict[str, Any] = {"blur_probability": 1.0} if semseg else {"color_jitter": jitter}
    assert label(**CHANGES, **extra) == label()


def marked(side: int, seed: int, *, second: bool, bands: int) -> tuple[AnyImage, Image.Image]:
    """A sample of random classes, 0 to 99 or 100 to 199, with some ignored pixels, whose image shows the label."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 6, (side, side)) * 17 + 100 * second
    ids[rng.random((side, side)) < 0.1] = VOID
    place = np.arange(side * side).reshape(side, side) % 251
    pixels = np.stack([ids, place, *[np.full_like(ids, 255 * second)] * (bands - 2)], axis=2).astype(np.uint8)
    image = Image.fromarray(pixels) if bands == 3 else Bands.from_array(pixels)
    return image, Image.fromarray(ids.astype(np.uint8))


@QUICK
@given(
    mode=st.sampled_from(["cutmix", "classmix"]),
    side=st.integers(1, 40),
    bands=st.sampled_from([3, 5]),
    seed=SEEDS,
)
def test_mixing_pastes_image_and_label_alike(mode: Any, side: int, bands: int, seed: int) -> None:
    first, second = (marked(side, seed + number, second=bool(number), bands=bands) for number in (0, 1))
    image, label = Mixing(mode, 1.0, VOID)(first, second, np.random.default_rng(seed))
    pixels, ids = np.asarray(image), np.asarray(label)
    assert (pixels[..., 0] == ids).all()
    assert (pixels[..., 1] == np.asarray(first[0])[..., 1]).all()  # each pixel keeps its place
    pasted = pixels[..., 2] == 255
    assert (ids == np.where(pasted, np.asarray(second[1]), np.asarray(first[1]))).all()
    if mode == "classmix":
        assert not (ids[pasted] == VOID).any()
        assert not {*ids[pasted].tolist()} & {*np.asarray(second[1])[~pasted].tolist()}


@cache
def pipeline(library: str, crop: int, number: int) -> Augment:
    """A pipeline that changes places only."""
    arguments: dict[str, Any] = {"crop_size": crop, "mean": MEAN, "ignore_index": VOID}
    if library == "torchvision":
        lists: list[list[Any]] = [
            [v2.RandomHorizontalFlip(), v2.RandomCrop(crop, pad_if_needed=True)],
            [v2.ScaleJitter((60, 60), (0.5, 2.0)), v2.RandomCrop(crop, pad_if_needed=True)],
            [v2.RandomAffine(30, (0.1, 0.1)), v2.RandomVerticalFlip(), v2.RandomCrop(crop, pad_if_needed=True)],
        ]
        return TorchvisionV2(lists[number], **arguments)
    alb = pytest.importorskip("albumentations")
    end = alb.RandomCrop(crop, crop, pad_if_needed=True)
    lists = [
        [alb.HorizontalFlip(), end],
        [alb.RandomScale((-0.5, 1.0), p=1.0), end],
        [alb.Rotate(30, interpolation=0, p=1.0), alb.VerticalFlip(), end],
    ]
    return Albumentations(lists[number], **arguments)


@settings(QUICK, max_examples=60)
@given(
    width=st.integers(4, 100),
    height=st.integers(4, 100),
    crop=st.sampled_from([1, 16, 41]),
    number=st.integers(0, 2),
    seed=SEEDS,
)
@pytest.mark.parametrize("library", ["torchvision", "albumentations"])
def test_pipelines_of_other_libraries_show_the_same_places(
    library: str, width: int, height: int, crop: int, number: int, seed: int
) -> None:
    # Both libraries place nearest pixels up to a pixel elsewhere. Rotated images are the nearest, too: by default,
    # torchvision interpolates so, and albumentations blends the pixels at the borders with black.
    near = {0: 0.0, 1: tolerance(30 / max(width, height, 60)) + 1.0, 2: 2.0}[number]
    x, y = check_places(pipeline(library, crop, number), width, height, crop, seed, near)
    if number == 0:
        assert (x != VOID).sum() == min(width, crop) * min(height, crop)
        assert (y != VOID).sum() == min(width, crop) * min(height, crop)


class Samples:
    """A split of samples of different sizes."""

    names = ("a", "b", "c")

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        rng = np.random.default_rng(index)
        label = rng.integers(0, 4, (20 + 9 * index, 31), np.uint8)
        return Image.fromarray(label[..., None].repeat(3, 2) * np.uint8(60)), Image.fromarray(label)

    def fingerprint(self) -> str:
        return ""


def augmentations(mix: Any) -> list[Augment]:
    both: dict[str, Any] = {"mean": MEAN, "ignore_index": VOID, "mix": mix, "mix_probability": 0.5}
    scale: dict[str, Any] = {"crop_size": 17, "scale_min": 0.5, "scale_max": 2.0, "flip_probability": 0.5, **CHANGES}
    rotation: dict[str, Any] = {"rotate_degrees": 10.0, "rotate_probability": 0.5}
    return [
        ScaleCropFlip(**both, **scale, color_jitter=0.5, cat_max_ratio=0.5),
        SemsegAugment(**both, **scale, **rotation, blur_probability=0.5, blur_sigma=1.0, cat_max_ratio=0.5),
        TorchvisionV2(
            [v2.ColorJitter(0.5), v2.RandomHorizontalFlip(), v2.RandomCrop(17, pad_if_needed=True)],
            crop_size=17,
            **both,
        ),
    ]


AUGMENTATIONS = {mix: augmentations(mix) for mix in (None, "cutmix", "classmix")}


@settings(QUICK, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    keys=st.lists(
        st.builds(SampleKey, st.integers(0, 9), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=5
    ),
    mix=st.sampled_from([None, "cutmix", "classmix"]),
    number=st.integers(0, 2),
    order=st.randoms(),
)
def test_samples_depend_on_seed_epoch_and_index_only(
    seed: int, keys: list[SampleKey], mix: Any, number: int, order: Any
) -> None:
    augment = AUGMENTATIONS[mix][number]
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]

    def read(samples: TrainSamples, key: SampleKey) -> Any:
        image, label, index = samples[key]  # type: ignore[misc]
        assert (image.shape, label.shape, index) == ((3, 17, 17), (17, 17), key.index)
        assert {*label.unique().tolist()} <= {0, 1, 2, 3, VOID}
        return image.tolist(), label.tolist()

    first = {key: read(TrainSamples(Samples(), augment, seed, False), key) for key in keys}
    shuffled = [*keys, *keys]
    order.shuffle(shuffled)
    samples = TrainSamples(Samples(), augment, seed, False)
    assert all(read(samples, key) == first[key] for key in shuffled)
    after = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]


def pairs(classes: int, most: int = 30) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Predicted and true ids."""
    truth = st.one_of(st.integers(0, classes - 1), st.integers(0, classes - 1), st.just(VOID))
    return st.lists(st.tuples(st.integers(0, classes - 1), truth), max_size=most)


CLASSES = st.one_of(st.integers(1, 5), st.integers(1, 255))


def matrix(classes: int, found: Sequence[tuple[int, int]], dtype: torch.dtype = torch.int64) -> ConfusionMatrix:
    counted = ConfusionMatrix(classes, VOID)
    prediction, target = torch.tensor(found, dtype=dtype).reshape(1, -1, 2).unbind(2)
    counted.update(prediction[None], target[None])
    return counted


@QUICK
@given(data=st.data(), classes=CLASSES, dtype=st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]))
def test_the_sum_of_parts_is_the_whole_in_any_order(data: st.DataObject, classes: int, dtype: torch.dtype) -> None:
    parts = data.draw(st.lists(pairs(classes, 20), min_size=1, max_size=4))
    whole = matrix(classes, [pair for part in parts for pair in part], dtype)
    assert whole.matrix.dtype == torch.int64
    one_by_one, added = ConfusionMatrix(classes, VOID), ConfusionMatrix(classes, VOID)
    for part in data.draw(st.permutations(parts)):
        shuffled = data.draw(st.permutations(part))
        prediction, target = torch.tensor(shuffled, dtype=dtype).reshape(1, -1, 2).unbind(2)
        one_by_one.update(prediction, target)
        added = matrix(classes, shuffled) + added
    assert torch.equal(one_by_one.counts, whole.counts)
    assert torch.equal(added.counts, whole.counts)
    assert int(whole.matrix.sum()) == sum(target != VOID for part in parts for _, target in part)
    ignored = [(prediction, VOID) for part in parts for prediction, _ in part]
    names = [str(index) for index in range(classes)]
    before = whole.report(names)
    whole.update(*(torch.tensor(ignored, dtype=dtype).reshape(1, -1, 2).unbind(2)))
    assert repr(whole.report(names)) == repr(before)  # as text, since NaN equals nothing


@QUICK
@given(data=st.data(), classes=CLASSES)
@example(data=None, classes=3)
def test_reports_agree_with_numpy_and_lie_between_0_and_1(data: st.DataObject | None, classes: int) -> None:
    found = [] if data is None else data.draw(pairs(classes, 60))
    report = matrix(classes, found).report([str(index) for index in range(classes)])
    kept = np.array([pair for pair in found if pair[1] != VOID], int).reshape(-1, 2)
    prediction, target = kept[:, 0], kept[:, 1]
    iou, dice, precision, recall, pixels = np.full((5, classes), np.nan)
    for index in range(classes):
        is_found, is_true = prediction == index, target == index
        hit, union = (is_found & is_true).sum(), (is_found | is_true).sum()
        iou[index] = hit / union if union else np.nan
        dice[index] = 2 * hit / (is_found.sum() + is_true.sum()) if union else np.nan
        precision[index] = hit / is_found.sum() if is_found.any() else np.nan
        recall[index] = hit / is_true.sum() if is_true.any() else np.nan
        pixels[index] = is_true.sum()
    np.testing.assert_allclose(report.iou, iou, rtol=1e-12)
    np.testing.assert_allclose(report.dice, dice, rtol=1e-12)
    np.testing.assert_allclose(report.precision, precision, rtol=1e-12)
    np.testing.assert_allclose(report.recall, recall, rtol=1e-12)
    assert list(report.pixels) == pixels.tolist()

    def mean(values: Array) -> float:
        return float(np.nanmean(values)) if not np.isnan(values).all() else math.nan

    weighted = np.nansum(iou * pixels) / pixels.sum() if len(kept) else math.nan
    overall = float((prediction == target).mean()) if len(kept) else math.nan
    wanted = [overall, mean(recall), weighted, mean(iou), mean(dice), mean(precision), mean(recall)]
    np.testing.assert_allclose([getattr(report, name) for name in MEANS], wanted, rtol=1e-12)
    numbers = [*report.iou, *report.dice, *report.precision, *report.recall, *(getattr(report, one) for one in MEANS)]
    assert all(math.isnan(number) or 0 <= number <= 1 for number in numbers)
    assert all(math.isnan(a) or a <= b + 1e-12 for a, b in zip(report.iou, report.dice, strict=True))
    assert len(report.table().splitlines()) >= classes
    if len(kept) and (prediction == target).all():
        assert (report.mean_iou, report.overall_acc, report.freqw_acc) == (1, 1, 1)


class PerPixel(nn.Module):
    """A network without a neighbourhood: its logits at a pixel depend on that pixel alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": 2 * torch.einsum("cb,nbhw->nchw", self.weight, images).sin()}


MODEL = PerPixel().eval()


@QUICK
@given(data=st.data(), window=st.integers(1, 40), extra=st.integers(0, 100))
def test_windows_cover_every_pixel_once_per_stride(data: st.DataObject, window: int, extra: int) -> None:
    length = window + extra
    stride = data.draw(st.integers(1, window))
    starts = positions(length, window, stride)
    covered = {place for start in starts for place in range(start, start + window)}
    assert covered == {*range(length)}
    assert [*starts] == sorted({*starts})
    assert all(later - start <= stride for start, later in pairwise(starts))


@QUICK
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    window=st.integers(1, 40),
    part=st.floats(0.01, 1),
    by_overlap=st.booleans(),
    weights=st.sampled_from(["uniform", "gaussian"]),
    average=st.sampled_from(["probabilities", "logits"]),
    batch=st.integers(1, 5),
    number=st.integers(1, 3),
    flip=st.booleans(),
)
def test_windows_do_not_change_what_a_network_says_of_each_pixel(
    height: int,
    width: int,
    window: int,
    part: float,
    by_overlap: bool,
    weights: Any,
    average: Any,
    batch: int,
    number: int,
    flip: bool,
) -> None:
    step: dict[str, Any] = {"overlap": 1 - part} if by_overlap else {"stride": max(1, round(part * window))}
    slide = Slide(window, window_weights=weights, average=average, window_batch=batch, flip=flip, **step)
    assume((height // slide.stride + 1) * (width // slide.stride + 1) < 300)
    images = torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(height * width))
    with torch.inference_mode():
        wanted = MODEL(images)["out"].softmax(1)
        found = slide.probabilities(MODEL, images)
        assert found.shape == (number, 4, height, width)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        rows = sum(strip.shape[2] for strip in slide.strips(MODEL, images))
        assert rows == height


@settings(QUICK, max_examples=60)
@given(
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    kind=st.sampled_from(["whole", "slide", "crop"]),
    scales=st.lists(st.floats(0.1, 3), min_size=1, max_size=3),
    base=st.one_of(st.none(), st.integers(1, 60), st.tuples(st.integers(30, 60), st.integers(1, 30))),
    flip=st.booleans(),
)
def test_results_have_the_size_of_the_image_at_any_scale(
    height: int, width: int, kind: str, scales: list[float], base: Any, flip: bool
) -> None:
    options: dict[str, Any] = {"scales": scales, "base_size": base, "flip": flip}
    inference: Inference = {
        "whole": Whole(**options),
        "slide": Slide(20, **options),
        "crop": CenterCrop(16, **options),
    }[kind]
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = inference.probabilities(MODEL, images)
    assert found.shape == (1, 4, height, width)
    torch.testing.assert_close(found.sum(1), torch.ones(1, height, width), rtol=1e-4, atol=1e-4)
    assert (found >= 0).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trained network."""
    home = tmp_path_factory.mktemp("predict")
    run_commands(home, (*TINY, "trainer.epochs=1", "output_root=runs"))
    (folder,) = {path.parent.parent for path in home.rglob("best.pt")}
    return folder


@pytest.fixture(scope="module")
def predictors(run: Path) -> list[Predictor]:
    options = (["inference=whole"], ["inference=slide", "inference.window=33"], ["inference=center_crop"])
    return [pspexp.load(run, option) for option in options]


MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "I;16",
    "I;16B",
    "I",
    "F",
    "LAB",
    "La",
)


@settings(QUICK, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    mode=st.sampled_from(MODES),
    number=st.integers(0, 2),
    form=st.sampled_from(["image", "png", "tif", "bmp", "gif", "jpg", "array"]),
    seed=SEEDS,
)
@example(width=1, height=1, mode="RGB", number=0, form="image", seed=0)
@example(width=1, height=70, mode="I;16", number=2, form="png", seed=0)
def test_every_image_is_predicted_at_its_size_or_refused(
    predictors: list[Predictor],
    tmp_path_factory: pytest.TempPathFactory,
    width: int,
    height: int,
    mode: str,
    number: int,
    form: str,
    seed: int,
) -> None:
    noise = np.random.default_rng(seed).integers(0, 65536, (height, width))
    image: Any = (
        Image.frombytes(mode, (width, height), noise.astype(np.uint32).tobytes() * 2)
        if mode in ("I;16", "I;16B")
        else None
    )
    if image is None:
        rgb = Image.fromarray(np.stack([noise % 256, noise // 256, noise % 251], axis=2).astype(np.uint8))
        image = Image.new(mode, (width, height)) if mode in ("LAB", "La", "RGBX", "PA") else rgb.convert(mode)
    source: Any = image
    if form == "array":
        source = np.asarray(image)
    elif form != "image":
        source = tmp_path_factory.getbasetemp() / f"any.{form}"
        try:
            image.save(source)
        except (OSError, KeyError, ValueError):  # not a mode of this format
            assume(False)
    try:
        found = predictors[number](source)
    except UserError:
        assert mode in ("I", "F", "LAB", "La") or form == "array"
        return
    assert found.dtype == np.uint8
    assert found.shape == (height, width)
    classes = len(predictors[number].class_names)
    assert {*np.unique(found).tolist()} <= {*range(classes), *([VOID] if number == 2 else [])}


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused(predictors: list[Predictor], size: tuple[int, int]) -> None:
    for predictor in predictors:
        with pytest.raises(UserError, match=f"image: {size[0]}×{size[1]} pixels; an image must have some"):
            predictor(Image.new("RGB", size))
