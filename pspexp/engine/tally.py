"""What an evaluation has found so far: in one process, and at its end in all of them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pspexp.data.bands import visible
from pspexp.data.dataset import EvaluatedSample
from pspexp.data.loader import Batch
from pspexp.engine.components import Components
from pspexp.engine.device import Device
from pspexp.engine.distributed import World, outside_inference_mode
from pspexp.errors import UserError, setting
from pspexp.losses import mean_loss
from pspexp.metrics import ConfusionMatrix, Metric
from pspexp.metrics.base import AnyMetric, Results, results_of
from pspexp.metrics.images import image_scores, worst_first

NUM_WORST = 10
MAX_SIDE = 1024  # pixels of an image kept for display

Fetched = Callable[[], tuple[Tensor, ...]]


class Tally:
    """Adds up the results of batches.

    The device never waits for the host: what the host has to see of a batch is read after the next one was queued.

    Args:
        parts: Components of the job.
        names: Names of all images of the split.
        num_samples: Number of images, evenly spread over the split, that are kept for display.
    """

    def __init__(self, parts: Components, names: Sequence[str], num_samples: int) -> None:
        info = parts.dataset.info
        self._parts, self._info, self._names = parts, info, names
        self._matrix = ConfusionMatrix(info.num_classes, info.ignore_index)
        # By image: their mean must not depend on the batch size or on which process evaluated which image.
        self._losses = torch.zeros(len(names), device=parts.device.torch)
        self._nonfinite = torch.zeros(len(names), dtype=torch.int64, device=parts.device.torch)
        self._evaluated = torch.zeros(len(names), dtype=torch.int64)
        self._totals = torch.zeros(len(names), 3, info.num_classes, dtype=torch.int64)
        self._shown = set(np.linspace(0, len(names) - 1, min(num_samples, len(names))).astype(int).tolist())
        self._samples: dict[int, EvaluatedSample] = {}
        self._worst: dict[tuple[float, int], EvaluatedSample] = {}  # by mean IoU and index
        self._unread: tuple[Batch, Fetched] | None = None
        self._metrics = FurtherMetrics(parts.metrics, parts.device, parts.world)

    def add(self, batch: Batch, logits: Tensor, prediction: Tensor, labels: Tensor, is_finite: Tensor) -> None:
        """Add a batch.

        Args:
            batch: The images.
            logits: ``[N, C, H, W]`` on the device.
            prediction: Class ids ``[N, H, W]`` on the device.
            labels: int64 ``[N, H, W]`` on the device.
            is_finite: Whether the outputs for an image are neither NaN nor infinite, ``[N]`` on the device.
        """
        totals = []
        for row, index in enumerate(batch.indices):
            own = slice(row, row + 1)
            self._nonfinite[index] = ~is_finite[row]
            self._losses[index] = mean_loss(self._parts.loss, {"out": logits[own]}, labels[own])
            matrix = self._matrix.count(prediction[own], labels[own])
            totals.append(matrix.totals)
            self._matrix = matrix + self._matrix
        self._metrics.update(prediction, labels)
        fetched = self._parts.device.fetch(torch.stack(totals), prediction.to(torch.uint8))
        self._read()
        self._unread = batch, fetched

    def _read(self) -> None:
        """Take over the results of the batch that was added last."""
        if self._unread is None:
            return
        batch, fetched = self._unread
        totals, prediction = fetched()
        self._unread = None
        for row, index in enumerate(batch.indices):
            self._evaluated[index], self._totals[index] = 1, totals[row]
            name = self._names[index]
            if index in self._shown:
                self._samples[index] = as_sample(name, batch, row, prediction)
            mean_iou = image_scores(name, *totals[row].tolist()).mean_iou
            if math.isnan(mean_iou):
                continue
            if len(self._worst) < NUM_WORST or (mean_iou, index) < max(self._worst):
                self._worst[mean_iou, index] = as_sample(name, batch, row, prediction)
            if len(self._worst) > NUM_WORST:
                del self._worst[max(self._worst)]

    def total(self) -> dict[str, Any]:
        """The fields of `pspexp.engine.evaluator.Evaluation`, over the images of all processes."""
        self._read()
        world = self._parts.world
        self._matrix.counts, losses = world.all_reduce_cpu(self._matrix.counts), world.all_reduce_cpu(self._losses)
        totals = world.all_reduce_cpu(self._totals).tolist()
        found = world.all_reduce_cpu(self._evaluated).nonzero().flatten().tolist()
        bad = dict.fromkeys(world.all_reduce_cpu(self._nonfinite).nonzero().flatten().tolist())
        scores = {index: image_scores(self._names[index], *totals[index]) for index in found if index not in bad}
        # Only what is among the worst of all processes is sent to the others.
        worst = [index for index in worst_first(scores) if not math.isnan(scores[index].mean_iou)][:NUM_WORST]
        worst = [] if bad else worst  # some of the bad ones are kept in their place
        kept = {index: sample for (_, index), sample in self._worst.items() if index in worst}
        samples, pictures = (
            {index: sample for part in parts for index, sample in part.items()}
            for parts in zip(*world.all_gather_object((self._samples, kept)), strict=True)
        )
        others, class_columns = self._metrics.compute(self._info.num_classes)
        report = replace(self._matrix.report(self._info.class_names), others=others, class_columns=class_columns)
        return {
            "report": report.without_metrics() if bad else report,
            "loss": losses.double().sum().item() / max(len(found), 1),
            "samples": [samples[index] for index in sorted(samples)],
            "skipped": len(self._names) - len(found),
            "images": [scores[index] for index in worst_first(scores)],
            "worst": [pictures[index] for index in worst],
            "nonfinite": [self._names[index] for index in bad],
        }


class FurtherMetrics:
    """The metrics of the configuration, over the images of all processes.

    Args:
        metrics: By name.
        device: Where the images are evaluated.
        world: The processes. Metrics that are not a `Metric` synchronise themselves, as those of torchmetrics do.
    """

    def __init__(self, metrics: Mapping[str, AnyMetric], device: Device, world: World) -> None:
        self._metrics, self._world = metrics, world
        for name, metric in metrics.items():
            with failing(name, "reset"):
                if isinstance(metric, nn.Module):
                    metric.to(device.torch)
                metric.reset()

    def update(self, prediction: Tensor, labels: Tensor) -> None:
        """Add a batch."""
        for name, metric in self._metrics.items():
            with failing(name, "update"):
                metric.update(prediction, labels)

    @outside_inference_mode
    def compute(self, num_classes: int) -> Results:
        """The results; called once, by all processes."""
        computed = {}
        for name, metric in self._metrics.items():
            if isinstance(metric, Metric):
                metric.state = self._world.all_reduce_cpu(metric.state)
            with failing(name, "compute"):
                computed[name] = metric.compute()
        return results_of(computed, num_classes)


@contextmanager
def failing(name: str, event: str) -> Iterator[None]:
    """Name the metric if it raises an error."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise RuntimeError(f"{setting('metrics')}.{name}: {event} failed: {error!r}") from error


def as_sample(name: str, batch: Batch, row: int, prediction: Tensor) -> EvaluatedSample:
    """Image number ``row`` of a batch with its predicted class ids, uint8 ``[N, H, W]``, for display.

    A copy with at most `MAX_SIDE` rows and columns, every n-th of them.
    """
    image, label, ids = batch.images[row].permute(1, 2, 0).numpy(), batch.labels[row].numpy(), prediction[row].numpy()
    step = -(-max(label.shape) // MAX_SIDE)
    return EvaluatedSample(name, *(one[::step, ::step].copy() for one in (visible(image), label, ids)))
