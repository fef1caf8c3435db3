"""The one evaluator."""

import pytest
import torch
from torch import Tensor, nn

from pspexp.data.loader import Batch
from pspexp.engine.device import Device
from pspexp.engine.distributed import ProcessInfo, World
from pspexp.engine.evaluator import Evaluator
from pspexp.engine.precision import Precision
from pspexp.inference import Whole
from pspexp.losses import CrossEntropy


class Bright(nn.Module):
    """Class 1 where the normalised image is positive."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        assert not self.training
        return {"out": torch.stack([torch.zeros_like(images[:, 0]), images[:, 0]], 1)}


@pytest.fixture
def evaluator() -> Evaluator:
    return Evaluator(
        Whole(8, True),
        CrossEntropy(2),
        device := Device("cpu"),
        Precision("fp32"),
        World(ProcessInfo(), device),
        ["dark", "bright"],
        255,
        [0.5] * 3,
        [0.5] * 3,
    )


def batch(index: int, values: list[list[int]], labels: list[list[int]]) -> Batch:
    image = torch.tensor(values, dtype=torch.uint8)
    return Batch(image.expand(1, 3, *image.shape).clone(), torch.tensor([labels], dtype=torch.uint8), [index])


def test_counts_over_images_of_different_sizes(evaluator: Evaluator) -> None:
    groups = [[batch(0, [[0, 255]], [[0, 1]])], [batch(1, [[255, 255, 0]], [[1, 0, 255]])]]
    model = Bright().train()
    seen: list[int] = []
    found = evaluator(model, groups, num_images=2, on_images=seen.append)

    assert found.report.confusion == ((1, 1), (0, 2))
    assert found.report.mean_iou == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert seen == [1, 1]
    assert model.training  # left as it was

    # Loss: mean over images of the mean over pixels. Logits are 0 and ±1.
    right, wrong = torch.log1p(torch.tensor(-1.0).exp()), torch.log1p(torch.tensor(1.0).exp())
    assert found.loss == pytest.approx(float((right + (right + wrong) / 2) / 2), rel=1e-6)
    assert found.scalars("val")["val/loss"] == found.loss


def test_the_loss_does_not_depend_on_the_batch_size(evaluator: Evaluator) -> None:
    first, second = batch(0, [[0, 255]], [[0, 255]]), batch(1, [[0, 200]], [[1, 1]])
    together = Batch(torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels]), [0, 1])
    one_by_one = evaluator(Bright(), [[first], [second]], num_images=2)
    assert evaluator(Bright(), [[together]], num_images=2).loss == one_by_one.loss


def test_pictures_are_spread_over_the_set(evaluator: Evaluator) -> None:
    groups = [[batch(index, [[index, 255]], [[0, 1]])] for index in range(20)]
    found = evaluator(Bright(), groups, num_images=20)
    assert [picture.position for picture in found.pictures] == [0, 6, 12, 19]
    third = found.pictures[2]
    assert third.image[0, 0].tolist() == [12, 12, 12]
    assert third.truth.tolist() == third.prediction.tolist() == [[0, 1]]


def test_a_failing_model_is_left_in_its_mode(evaluator: Evaluator) -> None:
    model = nn.Identity().train()
    with pytest.raises(TypeError):
        evaluator(model, [[batch(0, [[0]], [[0]])]], num_images=1)
    assert model.training
