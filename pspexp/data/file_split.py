"""Samples in image files and label files."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from pspexp.data.band_files import read_bands
from pspexp.data.dataset import Sample, fingerprint, identity
from pspexp.data.images import MAX_PIXELS, load
from pspexp.data.label_decoder import Decoded, LabelDecoder, as_label
from pspexp.data.label_values import show_values
from pspexp.data.labels import check_palette
from pspexp.data.splits import SampleFiles
from pspexp.errors import UserError, setting
from pspexp.utils.progress import slow_loop


class FileSplit:
    """The samples of a split, in order.

    Args:
        samples: Their names and files.
        decoder: What the values in the label files mean.
        max_pixels: Largest number of pixels of an image.
        num_bands: Number of bands of the images.
    """

    def __init__(
        self,
        samples: Sequence[SampleFiles],
        decoder: LabelDecoder,
        max_pixels: int = MAX_PIXELS,
        num_bands: int = 3,
    ) -> None:
        self.samples, self.decoder, self.max_pixels, self.num_bands = list(samples), decoder, max_pixels, num_bands
        self.names = [sample.name for sample in samples]
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """Image and "L" label; raises UserError if one is damaged or they do not match."""
        _, image_file, mask_file = self.samples[index]
        decoded = read_label(mask_file, self.decoder, self.max_pixels)
        if decoded.has_undeclared:
            raise UserError(undeclared_values(mask_file, decoded, self.decoder))
        label = Image.fromarray(decoded.ids)
        image = read_bands(image_file, self.num_bands, self.max_pixels, label.size)
        if image.size != label.size:
            raise UserError(different_sizes(mask_file, label.size, image_file, image.size))
        return image, label

    def fingerprint(self) -> str:
        """A hash of the names, and of each file's folder, name and size. Files are looked at once."""
        if self._fingerprint is None:
            parts = [self.samples[first : first + 256] for first in range(0, len(self), 256)]
            with ThreadPoolExecutor(16) as pool:  # on network drives each file has a latency
                entries = (entry for found in pool.map(_identities, parts) for entry in found)
                self._fingerprint = fingerprint(slow_loop(entries, len(self), "checking the files"))
        return self._fingerprint


def _identities(samples: Sequence[SampleFiles]) -> list[tuple[str | int, ...]]:
    return [(name, *identity(image), *identity(mask)) for name, image, mask in samples]


def read_label(path: Path, decoder: LabelDecoder, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Read a label file.

    Raises:
        UserError: It cannot be read, or its palette contradicts its indices.
    """
    image = load(path, "mask", max_pixels)
    if decoder.voc_colours and image.mode == "P":
        check_palette(path, image)
    try:
        return decoder.decode(as_label(image))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def undeclared_values(path: Path, decoded: Decoded, decoder: LabelDecoder) -> str:
    """A message about the values in a label file that have no meaning."""
    noun = "colour" if decoded.are_colours else "value"
    return (
        f"{path}: label {noun} {show_values(decoded.count(undeclared=True))}, but this data set has "
        f"{decoder.describe()}; add to {setting('dataset.label_values')} or {setting('dataset.ignore_values')}, "
        f"or run {setting('mode', 'check')}, which suggests values"
    )


def different_sizes(mask: Path, mask_size: tuple[int, int], image: Path, image_size: tuple[int, int]) -> str:
    """A message about a mask that does not have the size of its image."""
    sizes = [f"{width}×{height}" for width, height in (mask_size, image_size)]
    return f"{mask}: {sizes[0]} pixels, but {image.name} has {sizes[1]}; mask and image must have the same size"
