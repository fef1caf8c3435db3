"""The one evaluator: validation during training, ``mode=test`` and whatever else asks how good a model is."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pspexp.data.loader import Batch
from pspexp.data.transforms import normalize
from pspexp.engine.device import Device
from pspexp.engine.distributed import World
from pspexp.engine.precision import Precision
from pspexp.inference import Inference
from pspexp.metrics import ConfusionMatrix, Report
from pspexp.models.folding import folded

FOLDING_TRIAL = 129  # pixels: one image, the same in every process, shows whether folding leaves the results alone


class Picture(NamedTuple):
    """Image number ``position`` of a set: uint8 ``image [H, W, 3]``, ``truth [H, W]`` and ``prediction [H, W]``."""

    position: int
    image: np.ndarray[Any, np.dtype[np.uint8]]
    truth: np.ndarray[Any, np.dtype[np.uint8]]
    prediction: np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: the report, the mean loss over images, and a few pictures."""

    report: Report
    loss: float
    pictures: list[Picture] = field(default_factory=list)

    def scalars(self, prefix: str) -> dict[str, float]:
        """Metric name → value, as in ``val/mean_iou``."""
        return {f"{prefix}/loss": self.loss, **self.report.scalars(prefix)}


@dataclass(frozen=True)
class Evaluator:
    """Runs a model over a loader.

    Args:
        inference: from image to logits.
        loss: called with ``{"out": logits}`` and the labels.
        world: shares the images; every process gets the whole result.
        class_names, ignore_index, mean, std: of the dataset.
        pictures: how many images, evenly spread over the set, are kept to look at.
    """

    inference: Inference
    loss: Callable[[dict[str, Tensor], Tensor], Tensor]
    device: Device
    precision: Precision
    world: World
    class_names: list[str]
    ignore_index: int
    mean: list[float]
    std: list[float]
    pictures: int = 4

    @torch.inference_mode()
    def __call__(
        self,
        model: nn.Module,
        groups: Iterable[list[Batch]],
        *,
        num_images: int,
        on_images: Callable[[int], None] = lambda count: None,
    ) -> Evaluation:
        """Evaluate ``model``; it is left in the mode (training or not) it was in.

        Args:
            groups: from :func:`pspexp.data.loader.eval_loader`; each batch holds images of one size.
            num_images: how many images ``groups`` will bring, in all processes together.
            on_images: told the number of images after each batch.
        """
        was_training = model.training
        model.eval()
        try:
            return self._evaluate(model, groups, num_images, on_images)
        finally:
            model.train(was_training)

    def _evaluate(
        self,
        model: nn.Module,
        groups: Iterable[list[Batch]],
        num_images: int,
        on_images: Callable[[int], None],
    ) -> Evaluation:
        matrix = ConfusionMatrix(len(self.class_names), self.ignore_index)
        # By image: their mean must not depend on the batch size or on who evaluated which. Kept on the device:
        # reading after each batch would make the device wait for the host.
        losses = torch.zeros(num_images, device=self.device.torch)
        shown = set(np.linspace(0, num_images - 1, min(self.pictures, num_images)).astype(int).tolist())
        pictures: list[Picture] = []
        network: nn.Module | None = None
        for batch in (batch for group in groups for batch in group):
            images = self.device.move(batch.images)
            labels = self.device.move(batch.labels).long()
            images = normalize(images, self.mean, self.std, torch.float32)
            network = network or folded(model, trial_image().to(images))
            with self.precision.autocast(self.device):
                logits = self.inference.logits(network, images)
            prediction = logits.max(1).indices  # on CPUs six times as fast as argmax
            matrix.update(prediction, labels)
            for one, index in enumerate(batch.indices):
                losses[index] = self.loss({"out": logits[one : one + 1]}, labels[one : one + 1])
            pictures += [as_picture(batch, at, prediction) for at, index in enumerate(batch.indices) if index in shown]
            on_images(len(batch.indices))
        matrix.counts, losses = self.world.sum(matrix.counts), self.world.sum(losses)
        pictures = [picture for found in self.world.gather(pictures) for picture in found]
        loss = losses.double().sum().item() / max(num_images, 1)
        return Evaluation(matrix.report(self.class_names), loss, sorted(pictures, key=lambda one: one.position))


def trial_image() -> Tensor:
    """``[1, 3, H, W]`` of fixed random numbers, as normalised images have them."""
    return torch.randn(1, 3, FOLDING_TRIAL, FOLDING_TRIAL, generator=torch.Generator().manual_seed(0))


def as_picture(batch: Batch, at: int, prediction: Tensor) -> Picture:
    """Image number ``at`` of a batch with its predicted class ids ``[N, H, W]``."""
    return Picture(
        batch.indices[at],
        batch.images[at].permute(1, 2, 0).numpy(),
        batch.labels[at].numpy(),
        prediction[at].to("cpu", torch.uint8).numpy(),
    )
