"""Evaluation: metrics, loss and samples."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.classification import BinaryCohenKappa

from pspexp.data.dataset import DatasetInfo
from pspexp.data.loader import Batch
from pspexp.engine.evaluator import Evaluator
from pspexp.losses import CrossEntropy
from pspexp.metrics import BoundaryIoU, Metric
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


def test_images_are_ranked_by_their_mean_iou(evaluator: Evaluator) -> None:
    batches = [
        batch(0, [[0, 255]], [[0, 1]]),
        batch(1, [[255, 255, 0, 0]], [[1, 0, 255, 0]]),
        batch(2, [[255, 255]], [[255, 255]]),
        batch(3, [[255, 255, 0]], [[0, 0, 1]]),
    ]
    found = evaluator(Bright(), batches, ["right", "half", "ignored", "wrong"])
    assert [image.name for image in found.images] == ["wrong", "half", "right", "ignored"]
    wrong, half, right, ignored = found.images
    assert (wrong.iou, wrong.mean_iou, wrong.overall_acc, wrong.pixels) == ((0.0, 0.0), 0.0, 0.0, 3)
    assert (half.iou, half.mean_iou, half.pixels) == ((0.5, 0.5), 0.5, 3)
    assert half.overall_acc == pytest.approx(2 / 3)
    assert (right.iou, right.mean_iou) == ((1.0, 1.0), 1.0)
    assert ignored.pixels == 0
    assert all(map(math.isnan, (*ignored.iou, ignored.mean_iou, ignored.overall_acc)))
    assert [sample.name for sample in found.worst] == ["wrong", "half", "right"]
    assert found.worst[0].label.tolist() == [[0, 0, 1]]
    assert found.worst[0].prediction.tolist() == [[1, 1, 0]]


def test_ten_worst_images_are_kept_whatever_their_order_and_batch(evaluator: Evaluator) -> None:
    rng = np.random.default_rng(0)
    width = 40
    errors = [*rng.permutation(20).tolist(), 5, 5]
    names = [f"image {index}" for index in range(len(errors))]
    values = [[[0] * width]] * len(errors)
    labels = [[[1] * wrong + [0] * (width - wrong)] for wrong in errors]
    one_by_one = [batch(*item) for item in zip(range(len(errors)), values, labels, strict=True)]
    together = [
        Batch(torch.cat([one.images for one in part]), torch.cat([one.labels for one in part]), [*range(start, end)])
        for start, end in ((0, 15), (15, len(errors)))
        for part in [one_by_one[start:end]]
    ]
    expected = sorted(range(len(errors)), key=lambda index: (-errors[index] if errors[index] else 0, index))
    for batches in (one_by_one, together):
        found = evaluator(Bright(), batches, names)
        assert [image.name for image in found.images] == [names[index] for index in expected]
        assert [sample.name for sample in found.worst] == [names[index] for index in expected[:10]]
        assert [int(sample.label.sum()) for sample in found.worst] == [errors[index] for index in expected[:10]]


def test_large_image_is_kept_for_display_at_reduced_size(evaluator: Evaluator) -> None:
    rows = torch.arange(3000, dtype=torch.uint8)
    big = Batch(rows.expand(1, 3, 2, -1).clone(), torch.zeros(1, 2, 3000, dtype=torch.uint8), [0])
    (kept,) = evaluator(Bright(), [big], ["big"]).worst
    assert (kept.image.shape, kept.label.shape, kept.prediction.shape) == ((1, 1000, 3), (1, 1000), (1, 1000))
    assert kept.image[0, :3, 0].tolist() == [0, 3, 6]


class Wrong(Metric):
    """Wrong pixels."""

    def reset(self) -> None:
        self.state = torch.zeros(2, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        valid = target != 255
        self.add(torch.stack([((prediction != target) & valid).sum(), valid.sum()]))

    def compute(self) -> float:
        wrong, pixels = self.state.tolist()
        return wrong / pixels  # type: ignore[no-any-return]


def test_further_metrics_are_in_the_report(evaluator: Evaluator) -> None:
    metrics = {"wrong": Wrong(), "boundary_iou": BoundaryIoU(2), "kappa": BinaryCohenKappa(ignore_index=255)}
    evaluator = Evaluator(replace(evaluator.components, metrics=metrics))
    batches = [batch(0, [[0, 255]], [[0, 1]]), batch(1, [[255, 255, 0]], [[1, 0, 255]])]
    for _ in range(2):  # the second evaluation starts anew
        found = evaluator(Bright(), batches, ["a", "b"])
        values = found.scalars("val")
        assert values["val/wrong"] == 0.25
        assert found.report.class_columns["boundary_iou"] == found.report.iou  # every pixel is near a boundary
        assert values["val/mean_boundary_iou"] == found.report.mean_iou
        assert values["val/kappa"] == pytest.approx(0.5)


def test_error_of_a_metric_names_it(evaluator: Evaluator) -> None:
    class Failing(Wrong):
        def update(self, prediction: Tensor, target: Tensor) -> None:
            raise ValueError("unlucky")

    evaluator = Evaluator(replace(evaluator.components, metrics={"mine": Failing()}))
    with pytest.raises(RuntimeError, match=r"metrics\.mine: update failed: ValueError\('unlucky'\)"):
        evaluator(Bright(), [batch(0, [[0, 255]], [[0, 1]])], ["a"])
