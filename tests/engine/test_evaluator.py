"""Evaluation: metrics, loss and samples."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pspexp.data.dataset import DatasetInfo
from pspexp.data.loader import Batch
from pspexp.engine.evaluator import Evaluator
from pspexp.losses import CrossEntropy
from tests.training import make_components


class Bright(nn.Module):
    """Predicts class 1 where the normalised image is positive."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        assert not self.training
        return {"out": torch.stack([torch.zeros_like(images[:, 0]), images[:, 0]], 1)}


@pytest.fixture
def evaluator() -> Evaluator:
    info = DatasetInfo(["dark", "bright"], 255, [0.5] * 3, [0.5] * 3, np.zeros((2, 3), np.uint8))
    components = make_components(loss=CrossEntropy(2))
    return Evaluator(replace(components, dataset=SimpleNamespace(info=info)))


def batch(index: int, values: list[list[int]], labels: list[list[int]]) -> Batch:
    image = torch.tensor(values, dtype=torch.uint8)
    return Batch(image.expand(1, 3, *image.shape).clone(), torch.tensor([labels], dtype=torch.uint8), [index])


def test_metrics_and_loss_over_images_of_different_sizes(evaluator: Evaluator) -> None:
    batches = [batch(0, [[0, 255]], [[0, 1]]), batch(1, [[255, 255, 0]], [[1, 0, 255]])]
    model = Bright().train()
    seen: list[int] = []
    found = evaluator(model, batches, ["a", "b"], seen.append)

    assert found.report.confusion == ((1, 1), (0, 2))
    assert found.report.mean_iou == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert seen == [1, 1]
    assert model.training  # the mode is restored

    # Loss: mean over images of the mean over pixels. Logits are 0 and ±1.
    right, wrong = torch.log1p(torch.tensor(-1.0).exp()), torch.log1p(torch.tensor(1.0).exp())
    assert found.loss == pytest.approx(float((right + (right + wrong) / 2) / 2), rel=1e-6)
    assert found.scalars("val")["val/loss"] == found.loss


def test_loss_does_not_depend_on_the_batch_size(evaluator: Evaluator) -> None:
    first, second = batch(0, [[0, 255]], [[0, 255]]), batch(1, [[0, 200]], [[1, 1]])
    together = Batch(torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels]), [0, 1])
    one_by_one = evaluator(Bright(), [first, second], ["a", "b"])
    assert evaluator(Bright(), [together], ["a", "b"]).loss == one_by_one.loss


def test_samples_are_spread_over_the_split(evaluator: Evaluator) -> None:
    batches = [batch(index, [[index, 255]], [[0, 1]]) for index in range(20)]
    found = evaluator(Bright(), batches, [f"image {index}" for index in range(20)])
    assert [sample.name for sample in found.samples] == ["image 0", "image 6", "image 12", "image 19"]
    third = found.samples[2]
    assert third.image[0, 0].tolist() == [12, 12, 12]
    assert third.label.tolist() == third.prediction.tolist() == [[0, 1]]


def test_mode_is_restored_if_the_model_fails(evaluator: Evaluator) -> None:
    model = nn.Identity().train()
    with pytest.raises(TypeError):
        evaluator(model, [batch(0, [[0]], [[0]])], ["a"])
    assert model.training


def test_images_that_were_skipped_do_not_count(evaluator: Evaluator) -> None:
    first, third = batch(0, [[0, 255]], [[0, 1]]), batch(2, [[255, 0]], [[0, 0]])
    found = evaluator(Bright(), [first, third], ["a", "b", "c"])
    alone = [evaluator(Bright(), [one], ["a", "b", "c"]).loss for one in (first, third)]
    assert found.loss == pytest.approx(sum(alone) / 2)
    assert found.skipped == 1
    assert found.scalars("val")["val/skipped_images"] == 1
