"""A part of a split."""

from pspexp.data.dataset import Sample, Split, fingerprint
from pspexp.data.file_split import FileSplit


def first_images(split: Split, number: int | None) -> Split:
    """The first ``number`` samples of a split; all of them if it is None or has fewer."""
    if number is None or number >= len(split):
        return split
    if isinstance(split, FileSplit):  # remains one, so that its files are looked at, and what was counted is cached
        return FileSplit(split.samples[:number], split.decoder, split.max_pixels, split.num_bands)
    return _FirstImages(split, number)


class _FirstImages:
    def __init__(self, split: Split, number: int) -> None:
        self._split, self.names = split, split.names[:number]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        return self._split[range(len(self))[index]]

    def fingerprint(self) -> str:
        return fingerprint([self._split.fingerprint(), len(self)])
