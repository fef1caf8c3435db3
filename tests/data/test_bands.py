"""Images of other numbers of bands than three: operations band by band, and their files."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from pspexp.data.augment.cropping import NoAugment, ScaleCropFlip, SemsegAugment
from pspexp.data.band_files import read_bands
from pspexp.data.bands import AnyImage, Bands, from_bytes, on_canvas, visible
from pspexp.data.cache import SampleCache
from pspexp.data.dataset import DatasetInfo, Sample, check_mean_std
from pspexp.data.file_split import FileSplit
from pspexp.data.images import ORIENTATION
from pspexp.data.inspection.facts import read_image_facts
from pspexp.data.label_decoder import LabelDecoder
from pspexp.data.masks import overlay
from pspexp.data.splits import SampleFiles
from pspexp.data.transforms import normalize, to_tensors
from pspexp.data.workers import worker_context
from pspexp.errors import ArgumentError, UserError
from pspexp.inference import CenterCrop


def pixels(bands: int, dtype: Any = np.uint8, height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (height, width, bands), dtype, endpoint=True)


def greys(array: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(array, 2, 0)]


def write_tiff(file: Path, array: np.ndarray, **options: Any) -> Path:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(file, array, photometric="minisblack", **options)
    return file


# --- operations ---------------------------------------------------------------------------------------------------


AFFINE = (1.0, 0.5, -1.0, -0.5, 1.0, 2.0)
OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "resize": lambda image: image.resize((4, 5), Image.Resampling.BILINEAR, (1.5, 0, 7, 5.5)),
    "resize to the default": lambda image: image.resize((4, 5)),
    "transpose": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "filter": lambda image: image.filter(ImageFilter.GaussianBlur(1.1)),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("bands", [1, 2, 4, 8])
def test_operation_equals_the_same_on_each_band(bands: int, name: str) -> None:
    operate, array = OPERATIONS[name], pixels(bands)
    found = operate(Bands.from_array(array))
    expected = np.stack([np.asarray(operate(grey)) for grey in greys(array)], axis=2)
    assert np.array_equal(np.asarray(found), expected)
    assert (found.width, found.height) == found.size == expected.shape[1::-1]


def test_transform_and_padding_have_a_colour_per_band() -> None:
    array, fill = pixels(4), (10, 20, 30, 40)
    image, size = Bands.from_array(array), (12, 7)
    kind, resample = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    turned, padded = (
        np.asarray(image.transform(size, kind, AFFINE, resample, fillcolor=fill)),
        np.asarray(on_canvas(image, size, fill, (-2, 1))),
    )
    for band, (grey, value) in enumerate(zip(greys(array), fill, strict=True)):
        expected = grey.transform(size, kind, AFFINE, resample, fillcolor=value)
        assert np.array_equal(turned[..., band], np.asarray(expected))
        canvas = Image.new("L", size, value)
        canvas.paste(grey, (-2, 1))
        assert np.array_equal(padded[..., band], np.asarray(canvas))


@pytest.mark.parametrize("bands", [1, 3, 4, 13])
def test_bytes_give_the_image_again(bands: int) -> None:
    array = pixels(bands)
    image: AnyImage = Image.fromarray(array) if bands == 3 else Bands.from_array(array)
    again = from_bytes(memoryview(image.tobytes()), image.size, bands)
    assert type(again) is type(image)
    assert len(again.getbands()) == bands
    assert np.array_equal(np.asarray(again), array)


def test_first_three_bands_are_shown_or_the_first_in_grey() -> None:
    assert np.array_equal(visible(pixels(5)), pixels(5)[..., :3])
    for bands in (1, 2):
        assert np.array_equal(visible(pixels(bands)), np.repeat(pixels(bands)[..., :1], 3, axis=2))
    info = DatasetInfo(["a", "b"], 255, [0.5] * 4, [0.5] * 4, np.array([[0, 0, 0], [255, 0, 0]], np.uint8))
    ids = np.ones((6, 9), np.uint8)
    shown = overlay(Bands.from_array(pixels(4)), ids, info)
    assert np.array_equal(np.asarray(shown), np.asarray(overlay(Image.fromarray(pixels(4)[..., :3]), ids, info)))


# --- pipeline -----------------------------------------------------------------------------------------------------


def augmented(bands: int, augment: Any) -> tuple[np.ndarray, np.ndarray]:
    array = pixels(8, height=40, width=30)[..., :bands]
    label = Image.fromarray(pixels(1, height=40, width=30)[..., 0] % 3)
    image: AnyImage = Image.fromarray(array) if bands == 3 else Bands.from_array(array)
    found, ids = augment(image, label, np.random.default_rng(1))
    return np.asarray(found), np.asarray(ids)


def make(name: str, mean: list[float]) -> Any:
    common: dict[str, Any] = {"crop_size": 33, "mean": mean, "ignore_index": 255}
    scales: dict[str, Any] = {"scale_min": 0.5, "scale_max": 0.9, "flip_probability": 0.5}
    if name == "scale_crop_flip":
        return ScaleCropFlip(**common, **scales)
    if name == "none":
        return NoAugment(**common)
    chances = {"rotate_probability": 1.0, "blur_probability": 1.0}
    return SemsegAugment(**common, **scales, **chances, rotate_degrees=10.0, blur_sigma=1.1)


@pytest.mark.parametrize("name", ["scale_crop_flip", "semseg", "none"])
def test_first_three_bands_are_augmented_as_an_rgb_image(name: str) -> None:
    mean = [0.1, 0.2, 0.3, 0.4, 0.5]
    five, label = augmented(5, make(name, mean))
    three, same = augmented(3, make(name, mean[:3]))
    assert five.shape == (33, 33, 5)
    assert np.array_equal(label, same)
    # A blur of an RGB image rounds like one of its bands.
    assert np.array_equal(five[..., :3], three)


def test_jitter_changes_brightness_and_contrast_of_each_band() -> None:
    plain = {"crop_size": 33, "scale_min": 1.0, "scale_max": 1.0, "flip_probability": 0.0, "ignore_index": 255}
    before, _ = augmented(4, ScaleCropFlip(**plain, mean=[0.5] * 4))
    found, _ = augmented(4, ScaleCropFlip(**plain, mean=[0.5] * 4, color_jitter=0.5))
    rng = np.random.default_rng(1)
    rng.uniform(), rng.random(2), rng.random()  # scale, place, flip
    brightness, contrast = (1 + rng.uniform(-0.5, 0.5) for _ in range(2))
    for band, grey in enumerate(greys(before)):
        brighter = ImageEnhance.Brightness(grey).enhance(brightness)
        assert np.array_equal(found[..., band], np.asarray(ImageEnhance.Contrast(brighter).enhance(contrast)))
    assert not np.array_equal(found, before)


def test_inference_tensors_and_normalisation_take_every_band() -> None:
    array, label = pixels(5, height=12, width=20), Image.new("L", (20, 12))
    image, label = CenterCrop(8).prepare(Bands.from_array(array), label)
    rgb, _ = CenterCrop(8).prepare(Image.fromarray(array[..., :3]), label)
    tensor, ids = to_tensors(image, label)
    assert (tuple(tensor.shape), tuple(ids.shape)) == ((5, 8, 8), (8, 8))
    assert np.array_equal(tensor[:3].numpy(), np.asarray(rgb).transpose(2, 0, 1))
    mean, std = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]
    scaled = normalize(tensor[None], mean, std)[0]
    assert np.allclose(scaled[4].numpy(), (tensor[4].numpy() / 255 - 0.5) / 0.1, atol=1e-5)
    with pytest.raises(
        UserError, match=r"^dataset\.mean=\[0\.1, 0\.2\]: must have 5 values, one per band of the images"
    ):
        normalize(tensor[None], mean[:2], std[:2])


@pytest.mark.parametrize("bands", [1, 3, 8])
def test_cached_samples_equal_the_original_ones(bands: int) -> None:
    class One:
        names = ("a",)
        reads = 0

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Sample:
            self.reads += 1
            image: AnyImage = Image.fromarray(pixels(3)) if bands == 3 else Bands.from_array(pixels(bands))
            return image, Image.fromarray(pixels(1)[..., 0])

        def fingerprint(self) -> str:
            return ""

    split = One()
    cached = SampleCache(1, worker_context()).wrap(split)
    for _ in range(2):
        image, label = cached[0]
        assert np.array_equal(np.asarray(image), pixels(bands))
        assert np.array_equal(np.asarray(label), pixels(1)[..., 0])
    assert split.reads == 1


@pytest.mark.parametrize(
    ("mean", "std", "problem"),
    [
        ([0.5] * 4, [0.5] * 3, "each needs one value per band"),
        ([], [], "each needs one value per band"),
        ([0.5], [0.0], r"std=\[0\.0\]: must be at least 1e-06"),
    ],
)
def test_mean_and_std_have_one_value_per_band(mean: list[float], std: list[float], problem: str) -> None:
    for bands in (1, 3, 4, 13):
        check_mean_std([0.5] * bands, [0.5] * bands)
    with pytest.raises(ArgumentError, match=problem):
        check_mean_std(mean, std)


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "bands", "suffix"),
    [
        *[("L", 1, "png"), ("L", 1, "tif"), ("1", 1, "png"), ("LA", 2, "png"), ("RGBA", 4, "png"), ("RGBA", 4, "webp")],
        ("CMYK", 4, "jpg"),
    ],
)
def test_channels_of_a_file_are_its_bands(tmp_path: Path, mode: str, bands: int, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    image = Image.fromarray(np.squeeze(pixels(bands))) if mode in ("L", "RGBA") else Image.new(mode, (9, 6))
    if mode in ("LA", "CMYK"):
        image = Image.merge(mode, [Image.new("L", (9, 6), 40 * band) for band in range(1, bands + 1)])
    image.save(file, **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    found = np.asarray(read_bands(file, bands))
    expected = np.asarray(image.convert("L") if mode == "1" else image).reshape(6, 9, bands)
    assert np.abs(found.astype(int) - expected).max() <= (2 if suffix == "jpg" else 0)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_single_band_of_16_bits_is_divided_by_257(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(np.array([[0, 128, 129, 65535]], np.uint16)).save(tmp_path / f"a.{suffix}")
    assert np.asarray(read_bands(tmp_path / f"a.{suffix}", 1))[0, :, 0].tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [2, 4, 8, 13])
def test_tiff_files_of_any_number_of_bands(tmp_path: Path, bands: int, dtype: Any, planar: bool) -> None:
    array = pixels(bands, dtype)
    stored = np.moveaxis(array, 2, 0) if planar else array
    file = write_tiff(tmp_path / "a.tif", stored, planarconfig="separate" if planar else "contig")
    expected = array if dtype == np.uint8 else np.round(array / 257).astype(np.uint8)
    found = read_bands(file, bands)
    assert found.size == (9, 6)
    assert np.array_equal(np.asarray(found), expected)


def test_pages_of_a_tiff_file_are_bands(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "a.tif", np.moveaxis(pixels(5), 2, 0))
    assert np.array_equal(np.asarray(read_bands(file, 5)), pixels(5))


def test_compressed_and_big_endian_tiff_files(tmp_path: Path) -> None:
    options = {"compression": "zlib", "predictor": False, "byteorder": ">", "planarconfig": "contig", "bigtiff": True}
    file = write_tiff(tmp_path / "a.tif", pixels(4, np.uint16), **options)
    assert np.array_equal(np.asarray(read_bands(file, 4)), np.round(pixels(4, np.uint16) / 257))


def test_transparency_of_tiff_files_is_a_band_like_others(tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    for mode in ("RGBA", "CMYK"):
        Image.frombytes(mode, (9, 6), pixels(4).tobytes()).save(tmp_path / "a.tif")
        assert np.array_equal(np.asarray(read_bands(tmp_path / "a.tif", 4)), pixels(4))


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    file, array = tmp_path / f"a.{suffix}", pixels(4)
    if suffix == "tif":
        write_tiff(file, array, planarconfig="contig", extratags=[(ORIENTATION, "H", 1, orientation, True)])
    else:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        Image.fromarray(array).save(file, exif=exif)
    shown = np.rot90(array, {1: 0, 3: 2, 6: -1}[orientation])
    assert np.array_equal(np.asarray(read_bands(file, 4)), shown)
    if orientation == 6:  # its label has the size of the image as stored
        assert np.array_equal(np.asarray(read_bands(file, 4, label_size=(9, 6))), array)


def test_three_bands_are_read_as_rgb(tmp_path: Path) -> None:
    Image.fromarray(pixels(4)).save(tmp_path / "a.png")
    found = read_bands(tmp_path / "a.png", 3)
    assert isinstance(found, Image.Image)
    assert np.array_equal(np.asarray(found), pixels(4)[..., :3])


# --- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "found"), [("RGB", 3), ("RGBA", 4), ("P", 3), ("LA", 2)])
def test_other_numbers_of_bands_are_refused(tmp_path: Path, mode: str, found: int) -> None:
    file = tmp_path / "a.png"
    Image.new(mode, (9, 6)).save(file)
    with pytest.raises(UserError) as caught:
        read_bands(file, 1)
    assert str(caught.value) == (
        f"{file}: {found} bands, but dataset.mean has 1 value; give dataset.mean and dataset.std one value per band, "
        "or convert the image"
    )
    if found != 4:
        with pytest.raises(UserError, match=rf"a\.png: {found} bands, but dataset\.mean has 4 values"):
            read_bands(file, 4)


@pytest.mark.parametrize("wanted", [1, 3, 4, 13])
@pytest.mark.parametrize("bands", [2, 8])
def test_other_numbers_of_bands_in_tiff_files_are_refused(tmp_path: Path, bands: int, wanted: int) -> None:
    file = write_tiff(tmp_path / "a.tif", pixels(bands, np.uint16), planarconfig="contig")
    with pytest.raises(UserError, match=rf"a\.tif: {bands} bands, but dataset\.mean has {wanted} value"):
        read_bands(file, wanted)


def test_second_band_that_pillow_skips_is_counted(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "a.tif", pixels(2), planarconfig="contig")
    assert Image.open(file).mode == "L"
    with pytest.raises(UserError, match=r"a\.tif: 2 bands, but dataset\.mean has 1 value"):
        read_bands(file, 1)


@pytest.mark.parametrize("dtype", ["int16", "float32", "uint32"])
def test_other_types_of_values_are_refused(tmp_path: Path, dtype: str) -> None:
    file = write_tiff(tmp_path / "a.tif", pixels(4).astype(dtype), planarconfig="contig")
    with pytest.raises(UserError, match=rf"a\.tif: {dtype} values have no defined range; convert the file to uint8 or"):
        read_bands(file, 4)


def test_further_axes_are_refused(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "a.tif", np.zeros((2, 3, 6, 9), np.uint8))
    with pytest.raises(UserError, match=r"a\.tif: its axes are \w+YX; must be height \(Y\), width \(X\) and bands"):
        read_bands(file, 6)


def test_large_tiff_files_are_refused(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "a.tif", pixels(4), planarconfig="contig")
    with pytest.raises(UserError, match=r"a\.tif: 9×6 pixels are more than dataset\.max_image_pixels=50; increase it"):
        read_bands(file, 4, max_pixels=50)


@pytest.mark.parametrize("kept", [4, 60, -100])
def test_damaged_tiff_files_are_named(tmp_path: Path, kept: int) -> None:
    file = write_tiff(tmp_path / "a.tif", pixels(4), planarconfig="contig", compression="zlib")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"a\.tif: not a readable image \("):
        read_bands(file, 4)
    with pytest.raises(UserError, match=r"absent\.tif: not a readable image"):
        read_bands(tmp_path / "absent.tif", 4)


def test_compression_that_needs_another_package_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile = pytest.importorskip("tifffile")
    file = write_tiff(tmp_path / "a.tif", pixels(4), planarconfig="contig")

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", fail)
    with pytest.raises(UserError, match=r"LZW.*; pip install imagecodecs, or save it uncompressed"):
        read_bands(file, 4)


def test_missing_tifffile_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    file = tmp_path / "a.tif"
    Image.new("RGBA", (9, 6)).save(file)
    with pytest.raises(UserError) as caught:
        read_bands(file, 4)
    assert str(caught.value) == f"{file}: this kind of TIFF file needs tifffile; pip install 'pspexp[tiff]'"
    assert read_bands(file, 3).size == (9, 6)


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize(("bands", "dtype"), [(4, np.uint8), (4, np.uint16), (8, np.uint16)])
def test_inspection_reads_files_that_pillow_cannot(tmp_path: Path, bands: int, dtype: Any, decode: bool) -> None:
    file = write_tiff(tmp_path / "a.tif", pixels(bands, dtype), planarconfig="contig")
    facts = read_image_facts(file, 1000, decode=decode)
    assert (facts.error, facts.shown, facts.bands, facts.is_decoded) == (None, (9, 6), bands, decode)


def test_inspection_names_missing_tifffile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_tiff(tmp_path / "a.tif", pixels(4), planarconfig="contig")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    facts = read_image_facts(file, 1000, decode=False)
    assert facts.error == "this kind of TIFF file needs tifffile; pip install 'pspexp[tiff]'"


def test_split_reads_the_bands_of_its_data_set(tmp_path: Path) -> None:
    Image.fromarray(pixels(4)).save(tmp_path / "a.png")
    Image.new("L", (9, 6)).save(tmp_path / "m.png")
    decoder = LabelDecoder([[0], [1]], [], ignore_index=255, tolerance=0, voc_colours=False)
    split = FileSplit([SampleFiles("a", tmp_path / "a.png", tmp_path / "m.png")], decoder, num_bands=4)
    assert np.array_equal(np.asarray(split[0][0]), pixels(4))
