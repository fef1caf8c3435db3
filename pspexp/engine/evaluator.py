"""The evaluator, for validation during training, ``mode=test`` and any other evaluation of a model."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from pspexp.data.bands import visible
from pspexp.data.dataset import EvaluatedSample
from pspexp.data.loader import Batch
from pspexp.data.transforms import normalize
from pspexp.engine.components import Components
from pspexp.losses import mean_loss
from pspexp.metrics import ConfusionMatrix, Report
from pspexp.models.folding import fold_batch_norms


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        report: The metrics.
        loss: Mean over images.
        samples: A few images to display.
        skipped: Number of images that could not be read.
    """

    report: Report
    loss: float
    samples: list[EvaluatedSample] = field(default_factory=list)
    skipped: int = 0

    def extra(self, prefix: str) -> dict[str, float]:
        """Metric name → value, of those that are not in the report."""
        return {f"{prefix}/loss": self.loss} | ({f"{prefix}/skipped_images": self.skipped} if self.skipped else {})

    def scalars(self, prefix: str) -> dict[str, float]:
        """Metric name → value, as in ``val/mean_iou``."""
        return self.extra(prefix) | self.report.scalars(prefix)


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
        matrix = ConfusionMatrix(info.num_classes, info.ignore_index)
        # By image: their mean must not depend on the batch size or on which process evaluated which image. Kept on the
        # device: reading them after each batch would make the device wait for the host.
        losses = torch.zeros(len(names), device=parts.device.torch)
        evaluated = torch.zeros(len(names), dtype=torch.bool)
        shown = set(np.linspace(0, len(names) - 1, min(self.num_samples, len(names))).astype(int).tolist())
        samples: dict[int, EvaluatedSample] = {}
        network: nn.Module | None = None
        for batch in batches:
            images = normalize(parts.device.move(batch.images), info.mean, info.std, torch.float32)
            labels = parts.device.move(batch.labels).long()
            network = network or fold_batch_norms(model, images)
            with parts.precision.autocast(parts.device):
                logits = parts.inference.logits(network, images)
            prediction = logits.max(1).indices  # six times as fast as argmax on CPUs
            matrix.update(prediction, labels)
            evaluated[batch.indices] = True
            for row, index in enumerate(batch.indices):
                own = slice(row, row + 1)
                losses[index] = mean_loss(parts.loss, {"out": logits[own]}, labels[own])
                if index in shown:
                    samples[index] = as_sample(names[index], batch, row, prediction)
            on_batch_end(len(batch.indices))
        matrix.counts, losses = parts.world.all_reduce_cpu(matrix.counts), parts.world.all_reduce_cpu(losses)
        samples = {index: sample for found in parts.world.all_gather_object(samples) for index, sample in found.items()}
        number = int(parts.world.all_reduce_cpu(evaluated.sum()).item())
        loss = losses.double().sum().item() / max(number, 1)
        shown_samples = [samples[index] for index in sorted(samples)]
        return Evaluation(matrix.report(info.class_names), loss, shown_samples, len(names) - number)


def as_sample(name: str, batch: Batch, row: int, prediction: Tensor) -> EvaluatedSample:
    """Image number ``row`` of a batch with its predicted class ids ``[N, H, W]``."""
    return EvaluatedSample(
        name,
        visible(batch.images[row].permute(1, 2, 0).numpy()),
        batch.labels[row].numpy(),
        prediction[row].to("cpu", torch.uint8).numpy(),
    )
