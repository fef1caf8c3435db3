"""``mode=predict`` vs. the bare network."""

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import pspexp
from pspexp.config.build import build_components, init_distributed
from pspexp.data.transforms import normalize
from pspexp.engine.components import Components
from pspexp.engine.distributed import ProcessInfo
from pspexp.engine.predictor import Predictor
from pspexp.jobs.predict.inputs import Inputs
from pspexp.jobs.predict.outputs import Outputs, Table
from pspexp.jobs.predict.predict import predict_all
from pspexp.models.folding import fold_batch_norms
from tools.bench.options import Options
from tools.bench.records import quiet
from tools.bench.results import Row
from tools.bench.results import Table as Results
from tools.bench.timing import take_turns

IMAGES = 20
SIZE = 480, 360  # width and height in pixels


def bench_prediction(options: Options) -> Iterator[Results]:
    """From JPEG files to masks and overlays, and the network alone on images in memory, one at a time."""
    overrides = [f"model={options.network}", "dataset=shapes", "inference=whole", *options.overrides()]
    with tempfile.TemporaryDirectory() as name, quiet(Path(name)):
        folder = Path(name)
        write_photos(folder / "photos")
        config = pspexp.compose(overrides)
        components = build_components(config, *init_distributed(config, ProcessInfo()))
        samplers = {
            "bare network": partial(bare, components),
            "mode=predict": partial(predict, components, folder),
        }
        rows = {label: Row(images=1) for label in samplers}
        for sampler in samplers.values():  # warm up
            sampler()
        take_turns(samplers, rows, options.repeats)
    yield Results(f"{options.network}, {SIZE[0]}×{SIZE[1]}, one image at a time", rows, "bare network")


def write_photos(folder: Path) -> None:
    """Smooth random images, which compress like photographs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
        small.resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"{index:02d}.jpg", quality=90)


@torch.inference_mode()
def bare(components: Components) -> float:
    """Seconds per image of the folded network, without reading, resizing or writing."""
    width, height = SIZE
    pixels = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    images = normalize(components.device.move(pixels), components.dataset.info.mean, components.dataset.info.std)
    network = fold_batch_norms(components.model.eval(), images)
    with components.precision.autocast(components.device):
        begin = time.perf_counter()
        for _ in range(IMAGES):
            components.inference.logits(network, images).max(1).indices.cpu()
    return (time.perf_counter() - begin) / IMAGES


def predict(components: Components, folder: Path) -> float:
    """Seconds per image from file to files."""
    info, world = components.dataset.info, components.world
    with tempfile.TemporaryDirectory(dir=folder) as name:
        target = Path(name)
        inputs = Inputs(str(folder / "photos"), components.dataset, target)
        predictor = Predictor(components)
        predictor.predict(np.zeros((SIZE[1], SIZE[0], 3), np.uint8))  # folds the batch norms
        written, table = Outputs(target, ["ids", "overlay"], info), Table(target, info.class_names, 0)
        begin = time.perf_counter()
        predict_all(inputs.items, inputs, predictor, written, table, info, world, lambda: None)
        return (time.perf_counter() - begin) / IMAGES
