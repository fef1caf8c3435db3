"""Sums of losses, and losses of tensors in them."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pspexp.errors import ArgumentError
from pspexp.losses import Boundary, CrossEntropy, Dice, Lovasz, Sum, TensorLoss, mean_loss
from pspexp.losses.sum import term_problems
from pspexp.losses.tensor import as_loss
from tests.losses.examples import CLASSES, WEIGHTS, batch, mean


def test_sum_is_the_weighted_sum_of_means() -> None:
    logits, target = batch(0)
    terms: list[Any] = [
        "lovasz",
        {"name": "boundary", "weight": 0.5, "label_smoothing": 0.1},
        {"name": "dice", "weight": 0},
    ]
    parts = mean(Lovasz(CLASSES), logits, target), mean(Boundary(CLASSES, label_smoothing=0.1), logits, target)
    torch.testing.assert_close(mean(Sum(CLASSES, terms=terms), logits, target), parts[0] + 0.5 * parts[1])


def test_terms_take_arguments_of_the_sum_unless_they_have_their_own() -> None:
    logits, target = batch(0)
    target[target == 255] = 254
    terms: list[Any] = ["cross_entropy", {"name": "dice", "class_weights": None}]
    found = mean(Sum(CLASSES, terms=terms, class_weights=WEIGHTS, ignore_index=254), logits, target)
    entropy = mean(CrossEntropy(CLASSES, class_weights=WEIGHTS, ignore_index=254), logits, target)
    torch.testing.assert_close(found, entropy + mean(Dice(CLASSES, ignore_index=254), logits, target))


def test_outputs_are_weighted_by_the_sum() -> None:
    (out, target), (aux, _) = batch(0), batch(1)
    loss = Sum(CLASSES, terms=["cross_entropy", "dice"], main_weight=1.0, aux_weight=0.25)
    parts = [mean(CrossEntropy(CLASSES), one, target) + mean(Dice(CLASSES), one, target) for one in (out, aux)]
    torch.testing.assert_close(mean_loss(loss, {"out": out, "aux": aux}, target), parts[0] + 0.25 * parts[1])


def test_term_may_be_any_loss() -> None:
    logits, target = batch(0)

    def own(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        return outputs["out"].square().mean()

    terms: list[Any] = [{"loss": own, "weight": 2.0}, {"loss": nn.CrossEntropyLoss(ignore_index=255)}]
    expected = 2 * logits.square().mean() + mean(CrossEntropy(CLASSES), logits, target)
    torch.testing.assert_close(mean(Sum(CLASSES, terms=terms), logits, target), expected)


def test_every_problem_with_the_terms_is_reported() -> None:
    terms: list[Any] = [
        "dise",
        {"name": "dice", "smoth": 1.0, "smooth": -1.0, "weight": -1},
        {"name": "focal", "aux_weight": 0.4},
        {"weight": 1.0},
        3,
        {"loss": "dice", "smooth": 1.0},
        {"name": "cross_entropy", "class_weights": "atuo"},
        {"name": ["dice"]},
        {"loss": {"gamma": 2}},
        {"loss": 3},
        {"loss": None},
        {"loss": nn.CrossEntropyLoss(reduction="sum")},
    ]
    with pytest.raises(ArgumentError) as caught:
        Sum(CLASSES, terms=terms)
    expected = [
        "terms.0.name=dise: must be one of boundary, cross_entropy, dice, focal, lovasz, ohem, tversky; did you mean",
        "terms.1.weight=-1: must be a number that is at least 0",
        "terms.1.smoth: unknown key; did you mean 'smooth'?",
        "terms.1.smooth=-1.0: must be greater than or equal to 0",
        "terms.2.aux_weight: is the same for all terms; remove it, and set that of the sum",
        "terms.3: neither name nor loss; give it one of them",
        "terms.4=3: must be the name of a loss, {name, weight, …} or {loss, weight}",
        "terms.5.smooth: unknown key beside loss",
        "terms.5.loss=dice: must be a node with _target_; to use a loss by name, write name",
        "terms.6.class_weights=atuo: must be null, a list with one weight for each class, auto,",
        "terms.7.name=[dice]: must be one of boundary, cross_entropy, dice,",
        "terms.8.loss={'gamma': 2}: must be a node whose _target_ makes a loss",
        "terms.9.loss=3: must be a node whose _target_ makes a loss",
        "terms.10.loss=null: must be a node whose _target_ makes a loss",
        "terms.11.loss.reduction=sum: must be mean, the default; remove it",
    ]
    problems = caught.value.problems
    assert [one.startswith(start) for one, start in zip(problems, expected, strict=True)] == [True] * len(expected)
    with pytest.raises(ArgumentError, match=r"terms=\[\]: must not be empty"):
        Sum(CLASSES, terms=[])


def test_node_of_a_term_need_not_have_been_built() -> None:
    assert [*term_problems([{"loss": {"_target_": "my_module.MyLoss"}}], CLASSES)] == []


def test_loss_of_torch_takes_both_outputs() -> None:
    (out, target), (aux, _) = batch(0), batch(1)
    loss = as_loss(nn.CrossEntropyLoss(ignore_index=255))
    expected = mean_loss(CrossEntropy(CLASSES), {"out": out, "aux": aux}, target)
    torch.testing.assert_close(mean_loss(loss, {"out": out, "aux": aux}, target), expected)


def test_loss_of_torch_is_zero_without_labels() -> None:
    logits = torch.randn(2, CLASSES, 3, 3, requires_grad=True)
    value = mean(as_loss(nn.CrossEntropyLoss(ignore_index=255)), logits, torch.full((2, 3, 3), 255))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


def test_only_losses_of_torch_are_wrapped() -> None:
    class Own(nn.CrossEntropyLoss):
        pass

    own = Own()
    assert as_loss(own) is own
    logits, target = batch(0)
    for explicit in (Own(ignore_index=255), partial(cross_entropy, ignore_index=255)):
        loss = TensorLoss(explicit, main_weight=1.0)
        torch.testing.assert_close(mean(loss, logits, target), mean(CrossEntropy(CLASSES), logits, target))


def test_function_and_object_that_can_be_called_become_modules() -> None:
    class Own:
        def __call__(self, outputs: dict[str, Tensor], target: Tensor) -> Tensor:
            return outputs["out"].square().mean()

    logits, target = batch(0)
    for loss in (Own(), partial(Own.__call__, None)):
        torch.testing.assert_close(mean(as_loss(loss).to(torch.float64), logits, target), logits.square().mean())


def test_what_is_no_mean_loss_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^_target_: made a dict, not a loss; name a class whose objects map"):
        as_loss({"gamma": 2})
    for reduction in ("sum", "none"):
        summed = nn.CrossEntropyLoss(reduction=reduction)
        with pytest.raises(ArgumentError, match=f"^reduction={reduction}: must be mean, the default; remove it$"):
            as_loss(summed)
        with pytest.raises(ArgumentError, match=f"^loss.reduction={reduction}: must be mean"):
            TensorLoss(summed)
