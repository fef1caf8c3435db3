"""The samples of a prepared data set: how many there are, how many there should be, and what has no partner."""

from collections.abc import Mapping
from pathlib import Path

from pspexp.data.dataset import Role, SegmentationDataset
from pspexp.data.patterns import Pattern
from pspexp.errors import UserError
from pspexp.utils.text import count, first_names

_ROLES: tuple[Role, ...] = ("train", "val")


def count_samples(dataset: SegmentationDataset) -> dict[str, int]:
    """The number of samples to train and to validate on, each with an image and a label.

    Raises:
        UserError: Lists everything that is wrong with these splits.
    """
    numbers, problems = dict[str, int](), list[str]()
    for role in _ROLES:
        try:
            numbers[role] = len(dataset.open(role))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return numbers


def describe(numbers: Mapping[str, int], official: Mapping[str, int]) -> list[str]:
    """A line for each split; it says so if the number is not the official one, which may be meant: a subset."""
    return [
        f"{split}: {count(number, 'image')}" + ("" if number == official[split] else f", officially {official[split]}")
        for split, number in numbers.items()
    ]


def labels_without_image(root: Path, images: str, masks: str) -> list[str]:
    """A line about labels without an image, which are not used; they may show that an archive is missing.

    Args:
        root: The data set's folder.
        images: Pattern of the image files.
        masks: Pattern of the label files.
    """
    found = Pattern("images", images).files(root)
    extra = [name for split, name in Pattern("masks", masks).files(root) if (split, name) not in found]
    return [f"{count(len(extra), 'label')} without an image, not used: {first_names(extra)}"] if extra else []
