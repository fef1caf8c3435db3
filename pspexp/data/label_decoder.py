"""From label images of any mode to class ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pspexp.data.images import TURNS, orientation
from pspexp.data.label_values import MAX_NUMBER, Value, channels, pack, show_value, unpack, voc_colour
from pspexp.data.labels import VOID, palette_colours

UNDECLARED = -1
_RGB_TO_CODE = np.array([65536, 256, 1], np.int32)


@dataclass(frozen=True)
class Decoded:
    """A decoded label image.

    Attributes:
        ids: Class ids and the ignore index, uint8 ``[H, W]``; the ignore index where a value is undeclared, too.
        values: The values in the file, as they were understood: numbers or packed colours, ``[H, W]``.
        are_colours: Whether ``values`` are colours.
        has_undeclared: Whether some of ``values`` have no meaning.
        undeclared: bool ``[H, W]``, where this is the case.
        snapped: Number of pixels whose values are near a declared one.
    """

    ids: npt.NDArray[np.uint8]
    values: npt.NDArray[Any]
    are_colours: bool
    undeclared: npt.NDArray[np.bool_]
    has_undeclared: bool
    snapped: int

    def count(self, *, undeclared: bool = False) -> dict[Value, int]:
        """The number of pixels of each value, or of each undeclared one."""
        values, counts = np.unique(self.values[self.undeclared] if undeclared else self.values, return_counts=True)
        pairs = zip(values.tolist(), counts.tolist(), strict=True)
        return {unpack(value) if self.are_colours else value: n for value, n in pairs}


class LabelDecoder:
    """Maps the values in label images to class ids.

    Images with one channel hold numbers; 1-bit images match 0 and 1 as well as 0 and 255. Images with three channels
    hold colours, or, if they are grey and numbers are declared, numbers. Palette images hold numbers, their indices,
    or colours, those of the palette. With a palette of greys, all of them declared, the numbers are the greys: GIF
    stores 0 and 255 as the indices 0 and 1.

    Args:
        classes: The values of each class.
        ignored: Values of ignored pixels.
        ignore_index: Id of ignored pixels.
        tolerance: Largest absolute difference from a declared value, per channel, that is accepted.
        voc_colours: Whether VOC's colours stand for the numbers of their classes in images with three channels.
    """

    def __init__(
        self,
        classes: Sequence[Sequence[Value]],
        ignored: Sequence[Value],
        *,
        ignore_index: int = VOID,
        tolerance: int = 0,
        voc_colours: bool = False,
    ) -> None:
        meanings = [(value, index) for index, values in enumerate(classes) for value in values]
        meanings += [(value, ignore_index) for value in ignored]
        numbers = {value: index for value, index in meanings if isinstance(value, int)}
        colours = {value: index for value, index in meanings if not isinstance(value, int)}
        self.classes, self.ignored = [list(values) for values in classes], list(ignored)
        self.ignore_index, self.tolerance = ignore_index, tolerance
        self.voc_colours = voc_colours
        self._class_numbers = {value for value, index in numbers.items() if index != ignore_index}
        # Ignored values alone do not decide how files are read: 255 is ignored by default.
        self._has_numbers, self._has_colours = bool(self._class_numbers), bool(colours)
        if voc_colours:
            colours = {voc_colour(number): index for number, index in numbers.items() if number < 256} | colours
        # The last entry is for all larger numbers.
        self._meaning_of_number = np.full(MAX_NUMBER + 2, UNDECLARED, np.int16)
        for number, index in numbers.items():
            self._meaning_of_number[max(number - tolerance, 0) : min(number + tolerance, MAX_NUMBER) + 1] = index
        self._declared_numbers = np.array(sorted(numbers), np.int32)
        codes = sorted((pack(colour), index) for colour, index in colours.items())
        self._codes = np.array([code for code, _ in codes], np.int32)
        self._meaning_of_code = np.array([index for _, index in codes], np.int16)

    def describe(self) -> str:
        """The declared values, in short: ``0–20 and 255``."""
        numbers = self._declared_numbers.tolist()
        starts = [value for value in numbers if value - 1 not in numbers]
        ends = [value for value in numbers if value + 1 not in numbers]
        parts = [f"{a}" if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=True)]
        if self._has_colours:
            parts += [
                show_value(value)
                for values in [*self.classes, self.ignored]
                for value in values
                if value not in numbers
            ]
        shown = [*parts[:8], f"{len(parts) - 8} more"] if len(parts) > 9 else parts
        return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))

    def decode(self, image: Image.Image) -> Decoded:
        """Decode a label image of any mode that `as_label` returns; values without a meaning are no error here.

        Raises:
            ValueError: Greys are numbers as well as VOC's colours of other classes, or colours are declared, and a
                palette lacks some.
        """
        if image.mode in ("P", "PA"):
            return self._decode_palette(image if image.mode == "P" else image.convert("P"))
        if image.mode == "1":
            # Without declared numbers, black and white are colours.
            as_index = self._has_numbers and (1 in self._class_numbers or 255 not in self._class_numbers)
            return self._decode_channel(np.asarray(image).astype(np.uint8) * np.uint8(1 if as_index else 255))
        if image.mode in ("L", "LA") or image.mode.startswith("I"):
            return self._decode_channel(np.asarray(image.getchannel(0) if image.mode == "LA" else image))
        rgb = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        if self._has_numbers and is_grey(rgb, self.tolerance):
            decoded = self._decode_numbers(np.median(rgb, axis=2).astype(np.uint8) if self.tolerance else rgb[..., 0])
            if decoded.has_undeclared and len(self._codes):
                return self._decode_colours(rgb)
            if self.voc_colours and decoded.ids.any():
                by_colour = self._decode_colours(rgb)
                if not by_colour.has_undeclared and (by_colour.ids != decoded.ids).any():
                    raise ValueError("its greys are numbers as well as VOC's colours of other classes")
            return decoded
        return self._decode_colours(rgb)

    def _decode_channel(self, pixels: npt.NDArray[Any]) -> Decoded:
        if not self._has_numbers and pixels.max(initial=0) < 256:
            return self._decode_colours(np.repeat(pixels[..., None], 3, axis=2))
        return self._decode_numbers(pixels)

    def _decode_palette(self, image: Image.Image) -> Decoded:
        indices = np.asarray(image)
        used = np.flatnonzero(image.histogram())
        palette = np.zeros((256, 3), np.uint8)
        known = palette_colours(image)[:256]
        palette[: len(known)] = known
        if self._has_colours:
            # Viewers show an index beyond the palette in black, which may well be a class.
            missing = used[used >= len(known)].tolist()
            if missing and not self._has_numbers:
                raise ValueError(f"index {missing[0]} has no colour: its palette has {len(known)}; save it in RGB")
            if not self._has_numbers or (not missing and not self._decode_colours(palette[used][None]).has_undeclared):
                return self._decode_colours(palette[indices])
        if self._reads_greys(used, known):
            return self._decode_numbers(palette[indices, 0])
        if self.tolerance or (self._meaning_of_number[used] == UNDECLARED).any():
            return self._decode_numbers(indices)
        # Most labels of a training; Pillow looks bytes up five times as fast as NumPy.
        ids = np.asarray(image.point(self._meaning_of_number[:256].astype(np.uint8).tolist()))
        return Decoded(ids, indices, False, np.broadcast_to(np.False_, indices.shape), False, 0)

    def _reads_greys(self, used: npt.NDArray[np.intp], entries: npt.NDArray[np.uint8]) -> bool:
        """Whether the numbers of a palette image are the greys of its palette rather than the indices.

        The whole palette decides: files of one data set often have the same, but do not all use all of it.
        """
        if not is_grey(entries, self.tolerance) or (self._meaning_of_number[entries[:, 0]] == UNDECLARED).any():
            return False
        if len(used) and used[-1] >= len(entries):
            return False
        black_and_white = {*used.tolist()} <= {0, 1} and {*entries[:, 0].tolist()} <= {0, 255}  # a 1-bit image
        return not (black_and_white and 1 in self._class_numbers and 255 not in self._class_numbers)

    def _decode_numbers(self, values: npt.NDArray[Any]) -> Decoded:
        places = values
        if values.dtype.itemsize > 2:
            places = np.where((values < 0) | (values > MAX_NUMBER), MAX_NUMBER + 1, values)
        snapped = 0
        if self.tolerance:
            exact = np.isin(places, self._declared_numbers)
            snapped = int(((self._meaning_of_number[places] != UNDECLARED) & ~exact).sum())
        return self._decoded(values, self._meaning_of_number[places], False, snapped)

    def _decode_colours(self, rgb: npt.NDArray[np.uint8]) -> Decoded:
        packed = rgb.astype(np.int32) @ _RGB_TO_CODE
        if not len(self._codes):
            return self._decoded(packed, np.full(packed.shape, UNDECLARED, np.int16), True, 0)
        place = np.searchsorted(self._codes, packed).clip(max=len(self._codes) - 1)
        inexact = self._codes[place] != packed
        meaning, snapped = self._meaning_of_code[place], 0
        if inexact.any():
            codes, inverse = np.unique(packed[inexact], return_inverse=True)
            meaning[inexact] = self._nearest(codes)[inverse.reshape(-1)]
            snapped = int((inexact & (meaning != UNDECLARED)).sum())
        return self._decoded(packed, meaning, True, snapped)

    def _nearest(self, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.int16]:
        """The meaning of colours that are not declared, but perhaps within the tolerance of one that is."""
        meaning = np.full(len(codes), UNDECLARED, np.int16)
        if self.tolerance:
            colours = channels(codes)
            for declared, index in zip(channels(self._codes), self._meaning_of_code, strict=True):
                meaning[np.abs(colours - declared).max(axis=1) <= self.tolerance] = index
        return meaning

    def _decoded(
        self, values: npt.NDArray[Any], meaning: npt.NDArray[np.int16], are_colours: bool, snapped: int
    ) -> Decoded:
        undeclared = meaning == UNDECLARED
        has_undeclared = bool(undeclared.any())
        ids = (np.where(undeclared, self.ignore_index, meaning) if has_undeclared else meaning).astype(np.uint8)
        return Decoded(ids, values, are_colours, undeclared, has_undeclared, snapped)


def as_label(image: Image.Image) -> Image.Image:
    """A loaded label image as `LabelDecoder` takes it: whole numbers, turned as viewers show it.

    Raises:
        ValueError: The values are fractions.
    """
    if image.mode == "F":
        pixels = np.asarray(image)
        whole = np.isfinite(pixels) & (pixels == np.rint(pixels)) & (np.abs(pixels) < 2**31)
        if not whole.all():
            raise ValueError("holds fractions; save the class numbers as 8- or 16-bit integers")
        image = Image.fromarray(pixels.astype(np.int32))
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def is_grey(rgb: npt.NDArray[np.uint8], tolerance: int) -> bool:
    """Whether the channels ``[..., 3]`` differ by at most ``tolerance`` everywhere."""
    return rgb.size == 0 or int((rgb.max(axis=-1) - rgb.min(axis=-1)).max()) <= tolerance
