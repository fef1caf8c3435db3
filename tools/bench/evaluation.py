"""A validation, from image files to metrics, vs. the bare forward passes."""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

import pspexp
from pspexp.config.build import build_components, init_distributed
from pspexp.data.loader import Batch, eval_loader
from pspexp.data.transforms import normalize
from pspexp.engine.components import Components
from pspexp.engine.distributed import ProcessInfo
from pspexp.engine.evaluator import Evaluator
from pspexp.metrics import ConfusionMatrix
from tools.bench.loader import photographs
from tools.bench.options import Options
from tools.bench.records import quiet
from tools.bench.results import Row, Table
from tools.bench.timing import synchronize, take_turns

IMAGES = 20


def bench_evaluation(options: Options) -> Iterator[Table]:
    """``inference=whole`` on photographs of VOC's size, with one loader worker."""
    with tempfile.TemporaryDirectory() as name, quiet(Path(name)):
        root = options.dataset_root or photographs(Path(name))
        overrides = [f"model={options.network}", "model.backbone_weights=null", "dataset=voc2007", "inference=whole"]
        overrides += [f"dataset.root='{root}'", "loader.num_workers=1", f"loader.max_eval_images={IMAGES}"]
        config = pspexp.compose([*overrides, *options.overrides()])
        parts = build_components(config, *init_distributed(config, ProcessInfo()))
        split = parts.dataset.open("val")
        names = split.names[:IMAGES]
        loader = partial(
            eval_loader, split, parts.inference.prepare, batch_size=config.loader.eval_batch_size,
            num_workers=config.loader.num_workers, max_images=config.loader.max_eval_images,
            pin_memory=parts.device.pin_memory,
        )  # fmt: skip
        batches = [batch for by_size in loader() for batch in by_size]
        predictions = [torch.randint(0, parts.dataset.info.num_classes, batch.labels.shape) for batch in batches]
        samplers = {
            "forward passes": partial(forward, parts, batches),
            "images in memory": partial(evaluate, parts, lambda: batches, names),
            "validation": partial(evaluate, parts, lambda: (one for by_size in loader() for one in by_size), names),
            "confusion matrices": partial(count, parts, batches, predictions),
        }
        rows = {label: Row(images=len(names)) for label in samplers}
        for sampler in samplers.values():  # warm up
            sampler()
        take_turns(samplers, rows, options.repeats)
    sizes = {tuple(batch.images.shape[-2:]) for batch in batches}
    facts = {"images": f"{len(names)} of {len(sizes)} sizes, {config.loader.eval_batch_size} at a time"}
    yield Table(f"{options.network}, whole images", rows, "forward passes", facts)


@torch.inference_mode()
def forward(parts: Components, batches: Sequence[Batch]) -> float:
    """Seconds from images in memory to logits at their size: nothing is counted."""
    info = parts.dataset.info
    parts.model.eval()
    start = now(parts)
    network = parts.inference.network(parts.model, batches[0].images)
    for batch in batches:
        images = normalize(parts.device.move(batch.images), info.mean, info.std, torch.float32)
        with parts.precision.autocast(parts.device):
            parts.inference.logits(network, images)
    return now(parts) - start


def evaluate(parts: Components, batches: Callable[[], Iterable[Batch]], names: Sequence[str]) -> float:
    """Seconds of an evaluation, starting the loader's worker included."""
    start = now(parts)
    Evaluator(parts)(parts.model, batches(), names)
    return now(parts) - start


def count(parts: Components, batches: Sequence[Batch], predictions: Sequence[torch.Tensor]) -> float:
    """Seconds for the confusion matrices of all images."""
    info = parts.dataset.info
    matrix = ConfusionMatrix(info.num_classes, info.ignore_index)
    moved = [
        (parts.device.move(ids), parts.device.move(batch.labels).long())
        for ids, batch in zip(predictions, batches, strict=True)
    ]
    start = now(parts)
    for ids, labels in moved:
        for row in range(len(ids)):
            matrix.count(ids[row : row + 1], labels[row : row + 1])
    return now(parts) - start


def now(parts: Components) -> float:
    """The time at which the device has finished its work."""
    synchronize(parts.device.torch.type)
    return time.perf_counter()
