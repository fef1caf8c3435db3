"""Label files mean the same class ids in every form, and no value without a meaning becomes a class."""

import io
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pspexp.data.dataset import DatasetInfo
from pspexp.data.file_dataset import file_values
from pspexp.data.file_split import FileSplit, read_label
from pspexp.data.label_decoder import LabelDecoder, as_label
from pspexp.data.label_values import MAX_NUMBER, Value, check_tolerance, parse_label_values
from pspexp.data.labels import VOC_COLOURS, VOID
from pspexp.data.masks import label_image, palette_image
from pspexp.data.preparation.convert import convert_folder, to_index
from pspexp.data.splits import SampleFiles
from pspexp.errors import ArgumentError, UserError

Ids = npt.NDArray[np.uint8]

QUICK = settings(max_examples=150, deadline=None, derandomize=True, database=None)
FILES = {"png": "PNG", "tif": "TIFF", "bmp": "BMP", "gif": "GIF"}
COLOURS = st.tuples(*3 * [st.integers(0, 255)])
NUMBERS = st.one_of(st.integers(0, 255), st.integers(0, 65535))


def arrays(values: st.SearchStrategy[int], largest: int = 6) -> st.SearchStrategy[npt.NDArray[np.int64]]:
    """Arrays ``[H, W]`` of these values."""

    def shaped(size: tuple[int, int]) -> st.SearchStrategy[npt.NDArray[np.int64]]:
        length = size[0] * size[1]
        return st.lists(values, min_size=length, max_size=length).map(lambda one: np.array(one).reshape(size))

    return st.tuples(st.integers(1, largest), st.integers(1, largest)).flatmap(shaped)


def stored(image: Image.Image, suffix: str) -> Image.Image:
    """The image after a trip through a file of this format."""
    file = io.BytesIO()
    image.save(file, FILES[suffix], optimize=False)  # else Pillow renumbers the palette of a GIF
    loaded = Image.open(file)
    loaded.load()
    return loaded


def decoder(classes: Sequence[Any] | None, ignored: Sequence[Any], number: int, tolerance: int = 0) -> LabelDecoder:
    values, others = parse_label_values(classes, ignored, number)
    check_tolerance(tolerance, values, others)
    return LabelDecoder(values, others, tolerance=tolerance, voc_colours=classes is None)


def info(label_values: list[Value] | None, number: int) -> DatasetInfo:
    names = [str(index) for index in range(number)]
    palette = np.array(
        [
            value if isinstance(value, tuple) else VOC_COLOURS[index]
            for index, value in enumerate(label_values or range(number))
        ]
    )
    return DatasetInfo(names, VOID, [0.5] * 3, [0.2] * 3, palette.astype(np.uint8), label_values=label_values)


def declared(values: st.SearchStrategy[Any], most: int = 12) -> st.SearchStrategy[list[Any]]:
    """Different values, one for each class."""
    return st.lists(values, min_size=1, max_size=most, unique=True)


@QUICK
@given(data=st.data(), values=st.one_of(declared(NUMBERS), declared(COLOURS)), suffix=st.sampled_from(["png", "tif"]))
def test_ids_written_with_the_values_of_a_data_set_are_read_as_the_same(
    data: st.DataObject, values: list[Value], suffix: str
) -> None:
    ignored = [] if 255 in values else [255]
    labels = decoder([[value] if isinstance(value, int) else value for value in values], ignored, len(values))
    ids = data.draw(arrays(st.integers(0, len(values) - 1))).astype(np.uint8)
    image = label_image(ids, info(file_values(labels.classes), len(values)))
    for one in (image, stored(image, suffix)):
        decoded = labels.decode(one)
        assert decoded.ids.tolist() == ids.tolist()
        assert not decoded.has_undeclared


@QUICK
@given(data=st.data(), number=st.integers(1, 255), suffix=st.sampled_from([*FILES]))
def test_indices_and_their_colours_are_read_as_the_same(data: st.DataObject, number: int, suffix: str) -> None:
    """A prediction as a palette image, as a grey one of the same numbers, and in VOC's colours."""
    ids = data.draw(arrays(st.integers(0, number - 1))).astype(np.uint8)
    labels = decoder(None, [255], number)
    described = info(None, number)
    forms = [palette_image(ids, described), Image.fromarray(ids)]
    if not (VOC_COLOURS[ids] == VOC_COLOURS[ids][..., :1]).all():  # else greys, which are numbers
        forms.append(Image.fromarray(VOC_COLOURS[ids]))
    for image in forms:
        assert labels.decode(image).ids.tolist() == ids.tolist()
        if suffix != "gif" or image.mode == "P":  # GIF stores others as palettes of their values
            assert labels.decode(stored(image, suffix)).ids.tolist() == ids.tolist()


@settings(QUICK, max_examples=60)
@given(data=st.data(), number=st.integers(1, 255), suffix=st.sampled_from([*FILES]), colours=st.booleans())
def test_a_renumbered_palette_is_noticed(data: st.DataObject, number: int, suffix: str, colours: bool) -> None:
    """Pillow leaves unused colours out of a GIF's palette, as some optimisers do of a PNG's."""
    ids = data.draw(arrays(st.integers(0, number - 1))).astype(np.uint8)
    described = info(None, number)
    labels = decoder([VOC_COLOURS[index].tolist() for index in range(number)] if colours else None, [255], number)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{suffix}"
        palette_image(ids, described).save(path, FILES[suffix])
        problem = ""
        try:
            assert read_label(path, labels).ids.tolist() == ids.tolist()
        except UserError as error:
            problem = str(error)
        assert not problem or (suffix == "gif" and not colours)
        assert not problem or "palette and indices disagree" in problem


@QUICK
@given(
    values=declared(COLOURS), pixels=arrays(st.integers(0, 15)), suffix=st.sampled_from([*FILES]), order=st.randoms()
)
def test_colours_of_a_palette_count_in_any_order(
    values: list[tuple[int, int, int]], pixels: npt.NDArray[np.int64], suffix: str, order: Any
) -> None:
    labels = decoder(values, [], len(values))
    ids = (pixels % len(values)).astype(np.uint8)
    places = [*range(len(values))]
    order.shuffle(places)
    image = Image.fromarray(np.array(places, np.uint8)[ids], "L")
    palette = np.zeros((len(values), 3), np.uint8)
    palette[places] = values
    image.putpalette(palette.tobytes())
    assert labels.decode(image).ids.tolist() == ids.tolist()
    assert labels.decode(stored(image, suffix)).ids.tolist() == ids.tolist()
    rgb = image.convert("RGB")
    assert labels.decode(stored(rgb, "png")).ids.tolist() == ids.tolist()


def expected(values: npt.NDArray[Any], classes: Sequence[Any], ignored: Sequence[Any], tolerance: int) -> list[Any]:
    """The id of each value or colour; None where it has no meaning."""

    def meaning(value: Any) -> int | None:
        if np.ndim(value) == 0 and not 0 <= value <= MAX_NUMBER:  # refused, even if it is near a declared one
            return None
        for index, one in [*enumerate(classes), *((VOID, one) for one in ignored)]:
            if np.abs(np.array(one, int) - np.array(value, int)).max() <= tolerance:
                return index
        return None

    return [[meaning(value) for value in row] for row in values]


def check_decoded(image: Image.Image, labels: LabelDecoder, wanted: list[Any], folder: Path) -> None:
    """The image decodes to the ids, and a file of it is refused as a sample if some are None."""
    decoded = labels.decode(as_label(image))
    found = [
        [None if wrong else int(one) for one, wrong in zip(*rows, strict=True)]
        for rows in zip(decoded.ids, decoded.undeclared, strict=True)
    ]
    assert found == wanted
    assert (decoded.ids[decoded.undeclared] == VOID).all()
    assert sum(decoded.count(undeclared=True).values()) == sum(one is None for row in wanted for one in row)
    suffix = "tif" if image.mode in ("I", "F") else "png"
    mask, picture = folder / f"mask.{suffix}", folder / "image.png"
    image.save(mask)
    Image.new("RGB", image.size).save(picture)
    split = FileSplit([SampleFiles("a", picture, mask)], labels)
    if any(None in row for row in wanted):
        with pytest.raises(UserError, match="but this data set has"):
            split[0]
    else:
        assert np.asarray(split[0][1]).tolist() == wanted


@QUICK
@given(
    classes=declared(NUMBERS, 5),
    ignored=st.lists(NUMBERS, max_size=2, unique=True),
    tolerance=st.sampled_from([0, 0, 1, 3]),
    mode=st.sampled_from(["L", "I;16", "I", "F"]),
    data=st.data(),
)
@example(classes=[0], ignored=[], tolerance=1, mode="I", data=None)
def test_numbers_without_a_meaning_are_refused(
    classes: list[int], ignored: list[int], tolerance: int, mode: str, data: st.DataObject | None
) -> None:
    assume(not {*classes} & {*ignored})
    try:
        labels = decoder([[value] for value in classes], ignored, len(classes), tolerance)
    except ArgumentError:
        assume(False)
    kinds = {"L": np.uint8, "I;16": np.uint16, "I": np.int32, "F": np.float32}
    limits = {"L": (0, 255), "I;16": (0, 65535), "I": (-(2**31), 2**31 - 1), "F": (-(2**20), 2**20)}
    near = [value + step for value in [*classes, *ignored] for step in (-4, -3, -1, 0, 0, 0, 0, 1, 3, 4)]
    low, high = limits[mode]
    inside = [
        value for value in [*near, 65535, 65536, 65537, 65536 + classes[0], -1, low, high] if low <= value <= high
    ]
    pixels = (
        np.array([inside])
        if data is None
        else data.draw(arrays(st.one_of(st.sampled_from(inside), st.integers(low, high))))
    )
    image = Image.fromarray(pixels.astype(kinds[mode]))
    assert image.mode == mode
    with TemporaryDirectory() as folder:
        check_decoded(image, labels, expected(pixels, classes, ignored, tolerance), Path(folder))


@QUICK
@given(
    classes=declared(COLOURS, 4),
    ignored=st.lists(COLOURS, max_size=2, unique=True),
    tolerance=st.sampled_from([0, 0, 2, 9]),
    mode=st.sampled_from(["RGB", "RGBA", "P", "L"]),
    data=st.data(),
)
def test_colours_without_a_meaning_are_refused(
    classes: list[tuple[int, int, int]],
    ignored: list[tuple[int, int, int]],
    tolerance: int,
    mode: str,
    data: st.DataObject,
) -> None:
    assume(not {*classes} & {*ignored})
    try:
        labels = decoder(classes, ignored, len(classes), tolerance)
    except ArgumentError:
        assume(False)
    known = [*classes, *ignored]
    near = st.builds(
        lambda colour, step, channel: tuple(
            min(255, max(0, part + step * (place == channel))) for place, part in enumerate(colour)
        ),
        st.sampled_from(known),
        st.sampled_from([-10, -9, -2, -1, 0, 0, 0, 0, 1, 2, 9, 10]),
        st.integers(0, 2),
    )
    palette = np.array(
        data.draw(st.lists(st.one_of(st.sampled_from(known), near, COLOURS), min_size=1, max_size=6)), np.uint8
    )
    indices = data.draw(arrays(st.integers(0, len(palette) - 1))).astype(np.uint8)
    rgb = palette[indices]
    if mode == "P":
        image = Image.fromarray(indices)
        image.putpalette(palette.tobytes())
    elif mode == "L":
        image = Image.fromarray(rgb[..., 0])
        rgb = rgb[..., :1].repeat(3, 2)
    else:
        image = Image.fromarray(rgb).convert(mode)
    with TemporaryDirectory() as folder:
        check_decoded(image, labels, expected(rgb, classes, ignored, tolerance), Path(folder))


@QUICK
@given(classes=declared(st.integers(0, 255), 6), black=st.booleans(), size=st.integers(1, 8), data=st.data())
def test_indices_without_a_colour_are_no_class(classes: list[int], black: bool, size: int, data: st.DataObject) -> None:
    """Pillow keeps such indices, which damaged or hand-made files contain; viewers show them in any colour."""
    colours = [(1, 2, value) for value in classes]
    if black:
        colours[0] = (0, 0, 0)
    labels = decoder(colours, [], len(colours))
    palette = np.array([*colours, *3 * [(9, 9, 9)]])[:size]
    indices = data.draw(arrays(st.integers(0, 9))).astype(np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.astype(np.uint8).tobytes())
    length = min(size, len(palette))
    if (indices >= length).any():
        with pytest.raises(ValueError, match=f"has no colour: its palette has {length}"):
            labels.decode(image)
    else:
        assert labels.decode(image).undeclared.tolist() == (indices >= len(colours)).tolist()


def test_an_index_without_a_colour_is_not_read_as_black(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 255]], np.uint8))
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "a.bmp")
    with pytest.raises(UserError, match=r"a\.bmp: index 255 has no colour: its palette has 2; save it in RGB"):
        read_label(tmp_path / "a.bmp", decoder(["#000000", "#ff0000"], [255], 2))
    assert read_label(tmp_path / "a.bmp", decoder([[0, "#000000"], [1, "#ff0000"]], [255], 2)).ids.tolist() == [
        [0, 1, 255]
    ]
    assert read_label(tmp_path / "a.bmp", decoder([0, 1], [255], 2)).ids.tolist() == [[0, 1, 255]]


@QUICK
@given(number=st.integers(1, 255), pixels=arrays(st.one_of(st.integers(0, 254), st.just(VOID))))
def test_conversion_to_colours_and_back_is_the_identity(number: int, pixels: npt.NDArray[np.int64]) -> None:
    ids = np.where(pixels == VOID, VOID, pixels % number).astype(np.uint8)
    colour = Image.fromarray(ids)
    colour.putpalette(VOC_COLOURS.tobytes())
    for image in (Image.fromarray(ids), colour, colour.convert("RGB"), stored(colour, "gif"), stored(colour, "bmp")):
        found, unknown = to_index(image, number)
        assert (found.tolist(), unknown) == (ids.tolist(), {})


@QUICK
@given(number=st.integers(1, 255), pixels=arrays(st.integers(0, 255)), mode=st.sampled_from(["L", "P", "RGB"]))
def test_conversion_counts_every_pixel_without_a_class(number: int, pixels: npt.NDArray[np.int64], mode: str) -> None:
    ids = pixels.astype(np.uint8)
    image = Image.fromarray(ids)
    if mode != "L":
        image.putpalette(VOC_COLOURS.tobytes())
    _, unknown = to_index(image if mode != "RGB" else image.convert("RGB"), number)
    assert sum(unknown.values()) == ((ids >= number) & (ids != VOID)).sum()


@QUICK
@given(rgb=st.lists(COLOURS, min_size=1, max_size=9), cut=st.integers(0, 4))
def test_conversion_knows_no_colours_but_vocs(rgb: list[tuple[int, int, int]], cut: int) -> None:
    known = {tuple(colour) for colour in VOC_COLOURS.tolist()}
    pixels = np.array(rgb, np.uint8)[None]
    for image in (Image.fromarray(pixels), stored(Image.fromarray(pixels), "png")):
        _, unknown = to_index(image, 255)
        assert sum(unknown.values()) == sum(colour not in known for colour in rgb)
    indices = Image.fromarray(np.arange(len(rgb), dtype=np.uint8)[None])
    indices.putpalette(pixels[:, : max(1, len(rgb) - cut)].tobytes())
    _, unknown = to_index(indices, 255)
    missing = len(rgb) - max(1, len(rgb) - cut)
    assert sum(unknown.values()) == missing + sum(colour not in known for colour in rgb[: len(rgb) - missing])


@settings(QUICK, max_examples=25)
@given(
    labels=st.lists(arrays(st.one_of(st.integers(0, 20), st.just(VOID))), min_size=1, max_size=3),
    bad=st.sampled_from([None, None, 21, 254]),
)
def test_folders_are_converted_there_and_back_or_not_at_all(
    labels: list[npt.NDArray[np.int64]], bad: int | None
) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "grey").mkdir()
        for number, pixels in enumerate(labels):
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "grey" / f"{number}.png")
        if bad is not None:
            Image.fromarray(np.array([[bad]], np.uint8)).save(folder / "grey" / "bad.png")
            with pytest.raises(UserError, match="is not a class"):
                convert_folder(folder / "grey", folder / "colour", to_colour=True, num_workers=1)
            assert [path.name for path in folder.iterdir()] == ["grey"]
            return
        there = convert_folder(folder / "grey", folder / "colour", to_colour=True, num_workers=1)
        back = convert_folder(folder / "colour", folder / "back", num_workers=1)
        assert there.written == back.written == len(labels)
        values = decoder(None, [255], 21)
        for number, pixels in enumerate(labels):
            assert np.asarray(Image.open(folder / "back" / f"{number}.png")).tolist() == pixels.tolist()
            for form in ("grey", "colour", "back"):
                assert read_label(folder / form / f"{number}.png", values).ids.tolist() == pixels.tolist()
        assert convert_folder(folder / "colour", folder / "back", num_workers=1).kept == len(labels)
