"""Images for the report: training images with their labels, and the first batch as the network sees it."""

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
from omegaconf import DictConfig
from PIL import Image

from pspexp.config.build import build
from pspexp.config.training_data import image_repeats, training_data
from pspexp.data.bands import AnyImage, visible
from pspexp.data.dataset import DatasetInfo
from pspexp.data.masks import blend
from pspexp.data.subset import first_images
from pspexp.engine.device import Device
from pspexp.engine.distributed import ProcessInfo, World
from pspexp.errors import UserError
from pspexp.jobs.check.data import CheckedData, SplitSummary

SIZE = (360, 270)  # largest width and height in pixels
MAX_BATCH = 16


class ReportImage(NamedTuple):
    """An image and its label as data URLs, and the classes in it, largest first, with their shares of its pixels."""

    name: str
    image: str
    overlay: str
    classes: list[tuple[int, float]]
    void: float


def examples(data: CheckedData, number: int) -> list[ReportImage]:
    """Training images that together show as many classes as possible, the rarest first."""
    train, found = data.split("train"), []
    if train is None or data.info is None:
        return []
    for index in chosen(train, number):
        try:
            image, label = train.split[index]
        except UserError:
            continue
        found.append(report_image(train.split.names[index], image, label, data.info))
    return found


def chosen(train: SplitSummary, number: int) -> list[int]:
    """Indices of samples: for each class, from the rarest on, the one with most of it; then evenly spaced ones."""
    rows: list[int] = []
    for index in np.argsort(train.pixels):
        if train.pixels[index] and not (train.by_sample[rows, index] > 0).any():
            rows.append(int(train.by_sample[:, index].argmax()))
    spaced = np.linspace(0, train.counted - 1, min(number, train.counted)).round().astype(int).tolist()
    rows += [row for row in spaced if row not in rows]
    return [train.indices[row] for row in rows[:number]]


def first_batch(config: DictConfig, data: CheckedData) -> list[ReportImage] | str:
    """The first training batch, augmented, or why there is none."""
    train = data.split("train")
    if train is None or data.info is None:
        return "the data set cannot be opened"
    config = config.copy()
    config.loader.num_workers = 0  # the same samples with any number
    split, host = first_images(train.split, config.loader.max_train_images), Device("cpu")
    try:
        repeats = image_repeats(config, split, data.info)
        loader = training_data(config, host, World(ProcessInfo(), host), repeats, split, build(config.augment))
        batch = next(loader.batches(0, 1))
    except UserError as error:
        return str(error)
    pairs = zip(batch.images[:MAX_BATCH].numpy(), batch.labels[:MAX_BATCH].numpy(), batch.indices, strict=False)
    return [
        report_image(
            train.split.names[index],
            Image.fromarray(visible(image.transpose(1, 2, 0).copy())),
            Image.fromarray(label),
            data.info,
        )
        for image, label, index in pairs
    ]


def report_image(name: str, image: AnyImage, label: Image.Image, info: DatasetInfo) -> ReportImage:
    """A sample for the page."""
    pixels = np.array(label.histogram())
    total = max(int(pixels.sum()), 1)
    classes = [(int(index), float(pixels[index] / total)) for index in np.argsort(-pixels[: info.num_classes])]
    small = image.copy() if isinstance(image, Image.Image) else Image.fromarray(visible(np.asarray(image)))
    small.thumbnail(SIZE)
    ids = np.asarray(label.resize(small.size, Image.Resampling.NEAREST))
    overlay = Image.fromarray(blend(np.asarray(small), ids, info, opacity=0.55))
    present = [(index, share) for index, share in classes if share]
    return ReportImage(name, data_url(small), data_url(overlay), present, float(pixels[info.ignore_index] / total))


def data_url(image: Image.Image) -> str:
    """An image as the address of itself."""
    content = BytesIO()
    image.save(content, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{b64encode(content.getvalue()).decode()}"


def hex_colours(info: DatasetInfo) -> Sequence[str]:
    """The colour of each class for CSS."""
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in info.palette.tolist()]
