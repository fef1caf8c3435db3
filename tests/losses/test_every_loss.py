"""What holds for every loss: gradients, ignored pixels, precision, outputs, and the options of ``conf/loss``."""

import inspect
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from pspexp import losses
from pspexp.losses import CrossEntropy, SegmentationLoss, Sum, mean_loss
from tests.losses.examples import CLASSES, LOSSES, WEIGHTS, batch, mean

CONF = Path(__file__).parents[2] / "conf" / "loss"
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@each_loss
def test_gradient_matches_finite_differences(loss: SegmentationLoss) -> None:
    logits, target = batch(1, size=2)
    assert torch.autograd.gradcheck(lambda x: mean(loss, x, target), (logits.requires_grad_(),))


@each_loss
def test_ignored_pixels_do_not_contribute(loss: SegmentationLoss) -> None:
    logits, target = batch(2)
    changed = logits + 100 * (target == 255)[:, None] * torch.randn_like(logits)
    logits.requires_grad_()
    value = mean(loss, logits, target)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == mean(loss, changed, target).item()
    assert gradient.movedim(1, -1)[target == 255].abs().max() == 0
    assert gradient.movedim(1, -1)[target != 255].abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@each_loss
def test_crop_without_labels_has_zero_loss_and_gradient(loss: SegmentationLoss, dtype: torch.dtype) -> None:
    logits = torch.randn(2, CLASSES, 3, 3, dtype=dtype, requires_grad=True)
    value = mean_loss(loss, {"out": logits, "aux": logits}, torch.full((2, 3, 3), 255))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


@each_loss
def test_outputs_are_weighted_if_there_are_two(loss: SegmentationLoss) -> None:
    (out, target), (aux, _) = batch(0), batch(1)
    main, auxiliary = mean(loss, out, target), mean(loss, aux, target)
    both = mean_loss(loss, {"out": out, "aux": aux}, target)
    torch.testing.assert_close(both, 0.6 * main + 0.4 * auxiliary)
    assert mean(loss, out, target).item() == main.item()  # unweighted


@each_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss: SegmentationLoss, dtype: torch.dtype) -> None:
    logits, target = batch(3)
    value = mean(loss, logits.to(dtype), target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, mean(loss, logits.to(dtype).float(), target), rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [CLASSES, 254, -1])
@each_loss
def test_class_id_out_of_range_is_refused(loss: SegmentationLoss, wrong: int) -> None:
    logits, target = batch(0)
    target[1, 2, 3] = wrong
    with pytest.raises(IndexError):
        mean(loss, logits, target)


@each_loss
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_logits_make_the_loss_non_finite(loss: SegmentationLoss, bad: float) -> None:
    logits, target = batch(0, ignored=0.0)
    logits[0, :, 1, 1] = bad
    assert not math.isfinite(mean(loss, logits, target).item())


@each_loss
def test_extreme_logits_have_finite_gradients(loss: SegmentationLoss) -> None:
    target = torch.tensor([[[0, 1]]])
    logits = torch.full((1, CLASSES, 1, 2), -500.0)
    logits[:, 0] = 500.0  # confident: correct for the first pixel, wrong for the second
    logits.requires_grad_()
    value = mean(loss, logits, target)
    value.backward()
    assert math.isfinite(value.item())
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@each_loss
def test_loss_does_not_read_values_from_the_device(loss: SegmentationLoss) -> None:
    # Meta tensors have no values: reading one raises.
    logits = torch.zeros(2, CLASSES, 5, 5, device="meta", requires_grad=True)
    target = torch.zeros(2, 5, 5, dtype=torch.int64, device="meta")
    mean_loss(loss, {"out": logits, "aux": logits}, target).backward()
    assert logits.grad is not None


def test_class_weights_move_with_the_module_but_are_not_saved() -> None:
    loss = CrossEntropy(CLASSES, class_weights=WEIGHTS)
    assert loss.state_dict() == {}
    assert loss.to("meta").class_weights.device.type == "meta"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", sorted({file.stem for file in CONF.glob("*.yaml")} - {"custom"}))
def test_yaml_and_signature_agree(name: str) -> None:
    values = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(values, dict)
    target = getattr(losses, values.pop("_target_").removeprefix("pspexp.losses."))
    defaults = {key: p.default for key, p in inspect.signature(target).parameters.items()}
    if target is Sum:
        values.pop("terms"), defaults.pop("terms")
    else:
        assert losses.sum.LOSSES[name] is target
    assert values == defaults | {
        "num_classes": "${dataset.num_classes}",
        "ignore_index": "${dataset.ignore_index}",
    }
