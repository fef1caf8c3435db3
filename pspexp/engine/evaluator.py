"""The evaluator, for validation during training, ``mode=test`` and any other evaluation of a model."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from pspexp.data.dataset import EvaluatedSample
from pspexp.data.loader import Batch
from pspexp.data.samples import refuse_unknown_ids
from pspexp.data.transforms import normalize
from pspexp.engine.components import Components
from pspexp.engine.tally import Tally
from pspexp.errors import setting
from pspexp.metrics import Report
from pspexp.metrics.images import ImageScores
from pspexp.utils.text import count, first_names


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        report: The metrics; all undefined if ``nonfinite`` has images.
        loss: Mean over images.
        samples: A few images to display.
        skipped: Number of images that could not be read.
        images: The metrics of each image, worst first, without those in ``nonfinite``.
        worst: The first of these images, to display.
        nonfinite: Names of the images for which the network's outputs are NaN or infinite somewhere.
    """

    report: Report
    loss: float
    samples: list[EvaluatedSample] = field(default_factory=list)
    skipped: int = 0
    images: list[ImageScores] = field(default_factory=list)
    worst: list[EvaluatedSample] = field(default_factory=list)
    nonfinite: list[str] = field(default_factory=list)

    def extra(self, prefix: str) -> dict[str, float]:
        """Metric name → value, of those that are not in the report."""
        return {f"{prefix}/loss": self.loss} | ({f"{prefix}/skipped_images": self.skipped} if self.skipped else {})

    def scalars(self, prefix: str) -> dict[str, float]:
        """Metric name → value, as in ``val/mean_iou``."""
        return self.extra(prefix) | self.report.scalars(prefix)

    def describe_nonfinite(self) -> str:
        """One line about the images in ``nonfinite``."""
        total = len(self.images) + len(self.nonfinite)
        return (
            f"the network's outputs for {len(self.nonfinite)} of {count(total, 'image')} "
            f"({first_names(self.nonfinite)}) are NaN or infinite, so there are no metrics; train with a lower "
            f"{setting('optimizer.lr')}, or with {setting('precision', 'fp32')} if it is not set"
        )


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a model on images that are distributed over all processes; each process gets the whole result.

    Args:
        components: Components of the job; the model in them is not used, since each call is given one.
        num_samples: Number of images, evenly spread over the split, that are kept for display.
    """

    components: Components
    num_samples: int = 4

    def __call__(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        names: Sequence[str],
        on_batch_end: Callable[[int], None] = lambda num_images: None,
    ) -> Evaluation:
        """Evaluate ``model``, which stays in the mode (training or evaluation) it was in.

        Args:
            model: Network that maps normalised images to ``{"out": logits}``.
            batches: This process's share of the images; all images of a batch have the same size.
            names: Names of all images, by the index that the batches give.
            on_batch_end: Callback that is given the number of images in each batch.
        """
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                return self._evaluate(model, batches, names, on_batch_end)
        finally:
            model.train(was_training)

    def _evaluate(
        self, model: nn.Module, batches: Iterable[Batch], names: Sequence[str], on_batch_end: Callable[[int], None]
    ) -> Evaluation:
        parts, info = self.components, self.components.dataset.info
        tally = Tally(parts, names, self.num_samples)
        network: nn.Module | None = None
        for batch in batches:
            refuse_unknown_ids(batch, names, info)
            images = normalize(parts.device.move(batch.images), info.mean, info.std, torch.float32)
            labels = parts.device.move(batch.labels).long()
            if network is None:
                network = parts.inference.network(model, images)
            with parts.precision.autocast(parts.device):
                logits = parts.inference.logits(network, images)
            best = logits.max(1)  # six times as fast as argmax on CPUs; NaN if any of the logits is
            is_finite = best.values.abs().flatten(1).amax(1) < math.inf
            tally.add(batch, logits, best.indices, labels, is_finite)
            on_batch_end(len(batch.indices))
        return Evaluation(**tally.total())
