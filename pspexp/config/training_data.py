"""The training images, their loader, and how often it takes each of them."""

import logging
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from pspexp.data.dataset import DatasetInfo, SegmentationDataset, Split
from pspexp.data.loader import TrainLoader
from pspexp.data.pixel_counts import pixel_counts
from pspexp.data.sampling import repeat_factors
from pspexp.data.subset import first_images
from pspexp.engine.device import Device
from pspexp.engine.distributed import World

log = logging.getLogger(__name__)


def training_split(config: DictConfig, dataset: SegmentationDataset) -> Split:
    """The images to train on: those of the split, up to ``loader.max_train_images``."""
    return first_images(dataset.open("train"), config.loader.max_train_images)


def validation_split(config: DictConfig, dataset: SegmentationDataset, training: Split) -> Split:
    """The images to validate on; with ``loader.validate_on_train`` those of ``training``."""
    return training if config.loader.validate_on_train else dataset.open("val")


def test_split(config: DictConfig, dataset: SegmentationDataset) -> Split:
    """The images to test on; with ``loader.validate_on_train`` those that are validated on, to reproduce that."""
    return training_split(config, dataset) if config.loader.validate_on_train else dataset.open("test")


def training_data(
    config: DictConfig, device: Device, world: World, repeats: Sequence[float] | None, split: Split, augment: Any
) -> TrainLoader:
    """The loader of augmented training images; ``repeats`` are those of `image_repeats`."""
    return TrainLoader(
        split,
        augment,
        batch_size=config.loader.batch_size,
        accumulate=config.trainer.accumulate,
        num_workers=config.loader.num_workers,
        seed=config.seed,
        pin_memory=device.pin_memory,
        skip_errors=config.dataset.get("on_error") == "skip",
        rank=world.rank,
        world_size=world.size,
        repeats=repeats,
    )


def image_repeats(config: DictConfig, split: Split, info: DatasetInfo) -> list[float] | None:
    """How often ``loader.sampling`` takes each image of a split; None: once per epoch."""
    if config.loader.sampling == "uniform":
        return None
    repeats = repeat_factors(pixel_counts(split, info.num_classes), config.loader.repeat_threshold)
    log.info("class-balanced sampling: some images are taken up to %.1f times as often as others", repeats.max())
    found: list[float] = repeats.tolist()
    return found
