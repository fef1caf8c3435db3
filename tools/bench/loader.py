"""The training loader alone, by number of workers."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from PIL import Image, ImageDraw

import pspexp
from pspexp.config.build import build_training, init_distributed
from pspexp.data.labels import VOC_COLOURS
from pspexp.data.loader import TrainLoader
from pspexp.engine.distributed import ProcessInfo
from tools.bench.options import Options
from tools.bench.results import Row, Table
from tools.bench.timing import take_turns
from tools.bench.works import CLASSES, IGNORE

PHOTOGRAPHS = 60


EPOCHS_READ = 3


CACHE_MIB = 1024


def bench_loader(options: Options) -> Iterator[Table]:
    """The training loader without a network."""
    with tempfile.TemporaryDirectory() as folder:
        root = options.dataset_root or photographs(Path(folder))
        overrides = ["model=pspnet18", "dataset=voc2007", f"dataset.root='{root}'", f"crop_size={options.size}"]
        config = pspexp.compose([*overrides, *options.overrides()])
        training = build_training(config, *init_distributed(config, ProcessInfo()), start_weights=True)[0].training
        rows, samplers = {"decoding alone": Row(images=1)}, {"decoding alone": partial(decoding, training)}
        caches = {"": [], ", cached": [f"loader.cache_mib={CACHE_MIB}"]}
        for workers in options.workers:
            for label, cached in caches.items():
                name = f"{workers} workers{label}"
                config = pspexp.compose([*overrides, *options.overrides(), f"loader.num_workers={workers}", *cached])
                rows |= {f"{name}, first epoch": Row(workers=workers), f"{name}, later": Row(workers=workers)}
                samplers[f"{name}, later"] = partial(
                    reading, config, rows[f"{name}, first epoch"], rows[f"{name}, later"]
                )
        take_turns(samplers, rows, options.repeats)
        sizes = [path.stat().st_size / 1024 for path in Path(root).rglob("*.jpg")]
        facts = {"images": f"{len(training)}, JPEGs of {statistics.mean(sizes):.0f} KiB on average"}
        facts["first epoch"] = "includes starting the workers"
        yield Table(f"crop {options.size}", rows, facts=facts)


def decoding(training: Any) -> float:
    """Mean seconds to read and decode one image and its label."""
    start = time.perf_counter()
    for index in range(len(training)):
        training[index]
    return (time.perf_counter() - start) / len(training)


def reading(config: DictConfig, first: Row, later: Row) -> float:
    """Mean seconds of the epochs after the first, whose time is added to its row ``first``. The cache starts empty."""
    data: TrainLoader = build_training(config, *init_distributed(config, ProcessInfo()), start_weights=True)[0].loader
    first.images = later.images = data.steps_per_epoch * data.images_per_step
    ends = [time.perf_counter()]
    for step, _ in enumerate(data.batches(0, EPOCHS_READ * data.steps_per_epoch), start=1):
        if step % data.steps_per_epoch == 0:
            ends.append(time.perf_counter())
    epochs = [end - start for start, end in pairwise(ends)]
    first.times.append(epochs[0])
    return statistics.mean(epochs[1:])


def photographs(folder: Path) -> Path:
    """A generated data set in the VOC layout: JPEGs of VOC's size with noise at several scales, and palette labels."""
    tree, rng = folder / "VOC2007", np.random.default_rng(0)
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tree / part).mkdir(parents=True)
    for index in range(PHOTOGRAPHS):
        image = np.full((375, 500, 3), 128.0)
        for cells, contrast in ((4, 45), (16, 25), (64, 15), (256, 25)):
            noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8)).resize((500, 375))
            image += (np.asarray(noise) / 128.0 - 1) * contrast
        file = tree / "JPEGImages" / f"{index:03}.jpg"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, quality=92)
        label = Image.new("P", (500, 375))
        label.putpalette(VOC_COLOURS.tobytes())
        for class_id in rng.integers(1, CLASSES, 3).tolist():
            left, top = rng.integers(0, 250, 2).tolist()
            ImageDraw.Draw(label).ellipse((left, top, left + 240, top + 120), class_id, IGNORE, 3)
        label.save(tree / "SegmentationClass" / f"{index:03}.png")
    for split in ("train", "val"):
        lines = "".join(f"{index:03}\n" for index in range(PHOTOGRAPHS))
        (tree / "ImageSets/Segmentation" / f"{split}.txt").write_text(lines)
    return folder
