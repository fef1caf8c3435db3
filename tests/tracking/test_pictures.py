"""Pictures of evaluated images, as a reader sees them."""

import numpy as np
import pytest
from PIL import Image

from pspexp.data.dataset import DatasetInfo, EvaluatedSample
from pspexp.data.masks import title
from pspexp.tracking.pictures import GAP, MIN_COLUMN, side_by_side


def dataset(*names: str) -> DatasetInfo:
    palette = np.array([[200, 0, 0], [0, 200, 0]], np.uint8)[: len(names)]
    return DatasetInfo(list(names), 255, [0.5] * 3, [0.5] * 3, palette)


def sample(name: str, height: int, width: int) -> EvaluatedSample:
    """A black image of class 0 throughout, predicted as class 1."""
    label = np.zeros((height, width), np.uint8)
    return EvaluatedSample(name, np.zeros((height, width, 3), np.uint8), label, label + 1)


def inked(picture: Image.Image, left: int, top: int, right: int, bottom: int) -> bool:
    """Whether a part of the picture is not all white."""
    return picture.crop((left, top, right, bottom)).getextrema() != ((255, 255),) * 3


@pytest.mark.parametrize(("size", "shown"), [((8, 12), (160, 240)), ((300, 200), (300, 200)), ((60, 241), (60, 241))])
def test_parts_have_titles_and_a_legend(size: tuple[int, int], shown: tuple[int, int]) -> None:
    picture, (height, width) = side_by_side(sample("x", *size), dataset("road", "sky"), "val"), shown
    assert picture.width == 3 * width + 2 * GAP
    lines = picture.height - height
    assert 2 * 13 < lines < 4 * 13  # a line of titles above, one of the legend below
    for column in range(3):
        left = column * (width + GAP)
        assert inked(picture, left, 0, left + width, lines // 2)
    assert inked(picture, 0, picture.height - lines // 2, width, picture.height)
    colours = [picture.getpixel((column * (width + GAP) + width // 2, lines // 2 + height // 2)) for column in range(3)]
    assert colours[0] == (0, 0, 0)
    assert colours[1][0] > 2 * colours[1][1]  # type: ignore[index]
    assert colours[2][1] > 2 * colours[2][0]  # type: ignore[index]


def test_long_names_are_shortened_in_the_middle() -> None:
    """Their ends often tell them apart."""
    first, second, short = (title(name, 240) for name in ("n" * 5000 + "A", "n" * 5000 + "B", "n"))
    assert first.size == second.size == short.size
    assert first.tobytes() != second.tobytes()
    assert inked(first, 0, 0, 120, first.height)
    assert inked(first, 120, 0, 240, first.height)


@pytest.mark.parametrize("name", ["$b_", "猫", "two\nlines", "tab\t\0", "\udcff", "🐈", "", " "])
def test_any_name_is_drawn(name: str) -> None:
    picture = side_by_side(sample(name, 10, 2), dataset(name, "犬"), "val")
    assert picture.width == 3 * MIN_COLUMN + 2 * GAP  # a narrow image has room for its title
    assert inked(picture, 0, 0, MIN_COLUMN, 13)
    assert picture.getpixel((MIN_COLUMN // 2, picture.height // 2)) == (0, 0, 0)  # and is below its middle
