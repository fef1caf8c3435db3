"""What readers of annotations find: labels to be drawn from shapes, or read from images."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np

from pspexp.data.labels import Labels
from pspexp.data.preparation.annotations.classes import Classes
from pspexp.data.preparation.annotations.shapes import Geometry, Size
from pspexp.utils.text import count, first_names

Overlap = Literal["file", "area", "class"]
OVERLAPS: tuple[Overlap, ...] = get_args(Overlap)


class Item(Protocol):
    """One label to write."""

    @property
    def source(self) -> str:
        """The file it comes from."""

    @property
    def name(self) -> str:
        """Its file in the output folder, without ``.png``."""

    def labels(self) -> Iterable[str]:
        """The label of each shape."""

    def render(self, classes: Classes, overlap: Overlap) -> tuple[Labels, str]:
        """Its pixels, and a warning or an empty string; raises UserError if it cannot be read."""


class Shape(NamedTuple):
    """A labelled area.

    Attributes:
        label: Its class.
        geometry: What it covers.
        where: Its place in the file, for messages.
    """

    label: str
    geometry: Geometry
    where: str


class Drawing(NamedTuple):
    """An image's shapes, later ones on top."""

    source: str
    name: str
    size: Size
    shapes: list[Shape]

    def labels(self) -> Iterable[str]:
        return (shape.label for shape in self.shapes)

    def render(self, classes: Classes, overlap: Overlap) -> tuple[Labels, str]:
        """See `Item`. Shapes with unknown labels are ignored."""
        width, height = self.size
        pixels = np.full((height, width), classes.unlabelled, np.uint8)
        shapes = [(shape, index) for shape in self.shapes if (index := classes.value(shape.label)) is not None]
        if overlap == "class":
            shapes.sort(key=lambda pair: pair[1])
        elif overlap == "area":  # drawn twice: the masks of all shapes together may not fit into memory
            shapes.sort(key=lambda pair: -np.count_nonzero(pair[0].geometry.mask(self.size)))
        invisible = []
        for shape, index in shapes:
            mask = shape.geometry.mask(self.size)
            pixels[mask] = index
            if not mask.any():
                invisible.append(f"{shape.where} ({shape.label})")
        if not invisible:
            return pixels, ""
        return pixels, (
            f"{self.source}: {self.name}: {count(len(invisible), 'shape')} without a pixel in the "
            f"{width}×{height} image: {first_names(invisible)}"
        )


@dataclass
class Found:
    """The content of annotation files.

    Attributes:
        items: The labels to write.
        names: Names of the classes in the format's order.
        problems: What is wrong.
        ignored: Number of shapes that the format's rules ignore.
        classes: The classes, if the format defines their indices.
    """

    items: list[Item] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    ignored: int = 0
    classes: Classes | None = None


@dataclass(frozen=True)
class Options:
    """How annotations are converted.

    Attributes:
        class_names: Names of the classes in the order of their indices; None takes those found.
        background: Whether pixels without a label are class 0; otherwise they are ignored.
        overlap: Which of overlapping shapes is on top: the later, the smaller, or that with the higher index.
        palette: Whether to write palette PNGs with VOC's colours.
        images: Folder of the images, for formats without their sizes.
        train_ids: Whether to write Cityscapes' trainIds.
        overwrite: Whether to replace files with other contents.
        num_workers: Number of processes; None means one per core.
        show_progress: Whether to show progress bars.
    """

    class_names: list[str] | None = None
    background: bool = True
    overlap: Overlap = "file"
    palette: bool = False
    images: Path | None = None
    train_ids: bool = False
    overwrite: bool = False
    num_workers: int | None = None
    show_progress: bool = False
