"""Compares an exported file with the network it was made from, on real images."""

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pspexp.data.dataset import DatasetInfo
from pspexp.data.transforms import normalize, to_tensors
from pspexp.engine.components import Components
from pspexp.inference import Inference, Whole
from pspexp.jobs.predict.inputs import Input, Inputs
from pspexp.metrics import ConfusionMatrix
from pspexp.models.exported import ExportedNetwork
from pspexp.utils.progress import slow_loop

MIN_EQUAL_LABELS = 0.9999  # of a float32 file


@dataclass(frozen=True)
class Agreement:
    """How a file compares with the network in float32 on the CPU.

    Attributes:
        images: Number of images compared.
        largest_error: Of the logits; for the interface ``image``, of the confidence.
        relative_error: The same, relative to the largest value.
        equal_labels: Share of the pixels with the same class.
        mean_iou, reference_mean_iou: Of the file and of the network; None if the images have no labels.
        seconds, reference_seconds: Median time per image, measured alternately.
    """

    images: int
    largest_error: float
    relative_error: float
    equal_labels: float
    mean_iou: float | None
    reference_mean_iou: float | None
    seconds: float
    reference_seconds: float

    @property
    def speedup(self) -> float:
        """How many times as fast as the network the file is."""
        return self.reference_seconds / self.seconds


def samples(inputs: Inputs, limit: int | None) -> Sequence[Input]:
    """The images to compare: up to ``limit``, evenly spread."""
    items = inputs.items
    if limit is None or limit >= len(items):
        return items
    return [items[index] for index in np.linspace(0, len(items) - 1, limit).round().astype(int)]


class _Totals:
    """Adds up how results compare, image by image."""

    def __init__(self, info: DatasetInfo) -> None:
        self._info = info
        self._matrices = [ConfusionMatrix(info.num_classes, info.ignore_index) for _ in range(2)]
        self._images = self._pixels = self._equal = 0
        self._error = self._largest = 0.0
        self._labelled = False
        self._times: list[tuple[float, float]] = []

    def add(
        self, given: Tensor, expected: Tensor, label: Tensor | None, times: tuple[float, float], *, by_confidence: bool
    ) -> None:
        """Add an image.

        Args:
            given: Logits ``[1, C, H, W]`` of the file.
            expected: Those of the network.
            label: Class ids ``[1, H, W]``, if they are known.
            times: Seconds that the two took.
            by_confidence: Whether to compare the probability of the predicted class instead of all logits.
        """
        ids, expected_ids = given.max(1).indices, expected.max(1).indices
        self._images += 1
        self._pixels += ids.numel()
        self._equal += int((ids == expected_ids).sum())
        self._times.append(times)
        if label is not None:
            self._labelled = True
            for matrix, prediction in zip(self._matrices, (ids, expected_ids), strict=True):
                matrix.update(prediction, label.long())
        if by_confidence:
            given, expected = (logits.softmax(1).amax(1) for logits in (given, expected))
        error = (given - expected).abs().nan_to_num(math.inf)
        self._error = max(self._error, float(error.max()))
        self._largest = max(self._largest, float(expected.abs().max()))

    def agreement(self) -> Agreement:
        """The result."""
        iou, reference = (
            matrix.report(self._info.class_names).mean_iou if self._labelled else None for matrix in self._matrices
        )
        seconds, reference_seconds = (statistics.median(times) for times in zip(*self._times, strict=True))
        return Agreement(
            images=self._images,
            largest_error=self._error,
            relative_error=self._error / max(self._largest, 1e-12),
            equal_labels=self._equal / self._pixels,
            mean_iou=iou,
            reference_mean_iou=reference,
            seconds=seconds,
            reference_seconds=reference_seconds,
        )


@torch.inference_mode()
def compare(
    reference: nn.Module, exported: ExportedNetwork, components: Components, inputs: Inputs, limit: int | None
) -> Agreement:
    """Compare a file with the network it was made from, both in the inference mode of the file.

    Args:
        reference: The network in float32 on the CPU, in evaluation mode.
        exported: The file.
        components: Data set and inference mode.
        inputs: The images.
        limit: Largest number of images.
    """
    info, totals = components.dataset.info, _Totals(components.dataset.info)
    # The interface ``image`` contains the inference mode.
    inference = Whole() if exported.interface == "image" else components.inference
    chosen = samples(inputs, limit)
    for images, label in slow_loop(tensors(chosen, inputs, inference), len(chosen), "comparing with the network"):
        normalized = normalize(images, info.mean, info.std)
        expected, reference_s = timed(inference, reference, normalized)
        given, seconds = timed(inference, exported, normalized)
        totals.add(given, expected, label, (seconds, reference_s), by_confidence=exported.interface == "image")
    return totals.agreement()


def tensors(items: Sequence[Input], inputs: Inputs, inference: Inference) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images ``[1, 3, H, W]`` and, if they have any, labels ``[1, H, W]``, as the evaluation sees them."""
    for item in items:
        image, label = inputs.read(item)
        blank = Image.new("L", image.size) if label is None else Image.fromarray(label)
        pixels, ids = to_tensors(*inference.prepare(image, blank))
        yield pixels[None], None if label is None else ids[None]


def timed(inference: Inference, network: nn.Module, images: Tensor) -> tuple[Tensor, float]:
    """Logits, and the seconds they took."""
    begin_s = time.perf_counter()
    logits = inference.logits(network, images)
    return logits, time.perf_counter() - begin_s
