"""Changes of colour agree with straightforward computations, and what is off changes nothing."""

import colorsys
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspexp.data.augment.colour import Colour, changed_in_hsv, distorted
from pspexp.data.bands import Bands


def make_image(side: int = 40) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    pixels[0] = pixels[0, :, :1]  # grey, which has no hue
    pixels[1] = 0
    return Image.fromarray(pixels)


def colour(photometric: bool = False, grayscale: float = 0.0, jpeg: float = 0.0, quality: Any = (50, 50)) -> Colour:
    return Colour(photometric, grayscale, jpeg, quality, 3)


@pytest.mark.parametrize(("saturation", "degrees"), [(1.0, 20.0), (0.5, 0.0), (1.5, 0.0), (1.5, -36.0), (0.6, 36.0)])
def test_saturation_and_hue_are_those_of_hsv(saturation: float, degrees: float) -> None:
    pixels = np.asarray(make_image())
    found = changed_in_hsv(pixels, saturation, degrees)
    for row, column in np.ndindex(pixels.shape[:2]):
        hue, sat, value = colorsys.rgb_to_hsv(*(pixels[row, column] / 255))
        expected = colorsys.hsv_to_rgb((hue + degrees / 360) % 1, min(1.0, sat * saturation), value)
        np.testing.assert_allclose(found[:, row, column], 255 * np.array(expected), atol=1e-3)


def straightforward(image: Image.Image, seed: int) -> Any:
    """The distortion step by step in float64."""
    rng = np.random.default_rng(seed)
    brighter, contrasted, saturated, tinted, first = rng.random(5) < 0.5
    beta, alpha, saturation, hue = rng.uniform((-32, 0.5, 0.5, -36), (32, 1.5, 1.5, 36))
    pixels = np.asarray(image).astype(np.float64)
    if brighter:
        pixels = (pixels + beta).clip(0, 255)
    if contrasted and first:
        pixels = (pixels * alpha).clip(0, 255)
    if saturated or tinted:
        hsv = np.array([colorsys.rgb_to_hsv(*pixel) for pixel in pixels.reshape(-1, 3) / 255])
        hsv[:, 1] = (hsv[:, 1] * (saturation if saturated else 1)).clip(0, 1)
        hsv[:, 0] = (hsv[:, 0] + (hue / 360 if tinted else 0)) % 1
        pixels = 255 * np.array([colorsys.hsv_to_rgb(*pixel) for pixel in hsv]).reshape(pixels.shape)
    if contrasted and not first:
        pixels = (pixels * alpha).clip(0, 255)
    return pixels


def test_distortion_equals_its_steps() -> None:
    image = make_image()
    for seed in range(60):
        found = np.asarray(distorted(image, np.random.default_rng(seed))).astype(float)
        wrong = np.abs(found - straightforward(image, seed))
        # One rounding before HSV, where a hue depends on small differences, and one after it.
        assert np.quantile(wrong, 0.99) <= 2.5
        assert wrong.mean() < 0.6


def test_distortion_has_the_published_probabilities_and_ranges() -> None:
    grey = Image.new("RGB", (4, 4), (100, 100, 100))  # has neither saturation nor hue
    values = [int(np.asarray(distorted(grey, np.random.default_rng(seed)))[0, 0, 0]) for seed in range(800)]
    assert abs(values.count(100) / 800 - 0.25) < 0.06  # neither brightness nor contrast
    assert 33 <= min(values) < 45
    assert 180 < max(values) <= 198
    red = Image.new("RGB", (4, 4), (200, 100, 100))
    hues = []
    for seed in range(800):
        r, g, b = np.asarray(distorted(red, np.random.default_rng(seed)))[0, 0] / 255
        hues.append(((colorsys.rgb_to_hsv(r, g, b)[0] + 0.5) % 1 - 0.5) * 360)
    assert abs(np.mean([abs(hue) < 0.5 for hue in hues]) - 0.5) < 0.06
    assert -45 < min(hues) < -32  # a little more than 36: of a few grey levels, the hue is rounded
    assert 32 < max(hues) < 45


def test_distortion_agrees_with_opencv_up_to_its_coarser_hue() -> None:
    cv2 = pytest.importorskip("cv2")
    pixels = np.asarray(make_image(64).resize((128, 128)))
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + 10) % 180  # in units of two degrees
    hsv[..., 1] = (hsv[..., 1] * 0.7).astype(np.uint8)
    expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).astype(float)
    wrong = np.abs(changed_in_hsv(pixels, 0.7, 20.0).transpose(1, 2, 0) - expected)
    assert wrong.max() <= 6
    assert wrong.mean() < 1.5


def test_brightness_and_contrast_of_bands_change_alike() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 5), np.uint8)
    changed = 0
    for seed in range(20):
        found = np.asarray(distorted(Bands.from_array(pixels), np.random.default_rng(seed)))
        assert found.shape == pixels.shape
        table = {(int(a), int(b)) for a, b in zip(pixels.ravel(), found.ravel(), strict=True)}
        assert len(table) == len({before for before, _ in table})  # one curve for all
        changed += not np.array_equal(found, pixels)
    assert 10 <= changed < 20


def test_grey_scale_and_jpeg_noise() -> None:
    image = make_image()
    grey = np.asarray(colour(grayscale=1.0)(image, np.random.default_rng(0)))
    assert np.array_equal(grey, np.repeat(np.asarray(image.convert("L"))[..., None], 3, 2))
    content = BytesIO()
    image.save(content, "JPEG", quality=50)
    noisy = colour(jpeg=1.0)(image, np.random.default_rng(0))
    assert np.array_equal(np.asarray(noisy), np.asarray(Image.open(content)))
    sizes = {np.abs(np.asarray(colour(jpeg=1.0, quality=(1, 90))(image, np.random.default_rng(s))).astype(int)
                    - np.asarray(image)).mean() for s in range(10)}  # fmt: skip
    assert len(sizes) > 5
    bands = Bands.from_array(np.asarray(image)[..., [0, 1, 2, 0]])
    assert np.asarray(Colour(False, 0.0, 1.0, (50, 50), 4)(bands, np.random.default_rng(0))).shape == (40, 40, 4)


@pytest.mark.parametrize(("grayscale", "jpeg"), [(0.3, 0.0), (0.0, 0.3)])
def test_probabilities_are_kept(grayscale: float, jpeg: float) -> None:
    image = make_image(8)
    change = colour(grayscale=grayscale, jpeg=jpeg)
    changed = [change(image, np.random.default_rng(seed)).tobytes() != image.tobytes() for seed in range(500)]
    assert abs(np.mean(changed) - 0.3) < 0.07


def test_what_is_off_draws_no_random_numbers() -> None:
    image, rng = make_image(), np.random.default_rng(0)
    assert colour()(image, rng) is image
    assert rng.random() == np.random.default_rng(0).random()
