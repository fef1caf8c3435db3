"""Weighted sums of losses."""

from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from pspexp.errors import ArgumentError, as_yaml, did_you_mean
from pspexp.losses.base import LossSum, SegmentationLoss, mean_loss
from pspexp.losses.boundary import Boundary
from pspexp.losses.class_weights import ClassWeights
from pspexp.losses.pixel import OHEM, CrossEntropy, Focal
from pspexp.losses.region import Dice, Lovasz, Tversky
from pspexp.losses.tensor import as_loss, is_torch_loss, reduction_problems
from pspexp.utils.arguments import NonNegativeNumber, checked

LOSSES: dict[str, type[SegmentationLoss]] = {
    "boundary": Boundary,
    "cross_entropy": CrossEntropy,
    "dice": Dice,
    "focal": Focal,
    "lovasz": Lovasz,
    "ohem": OHEM,
    "tversky": Tversky,
}
SHARED = ("num_classes", "ignore_index", "main_weight", "aux_weight")  # arguments that no term has of its own


class Sum(SegmentationLoss):
    """Sum of the means of losses, each times a weight.

    Like a `RegionLoss`, it is a function of a whole batch, which counts as often as it has labelled pixels.

    Args:
        num_classes: See `SegmentationLoss`, also for the arguments that are not listed here.
        terms: The losses: a name in `LOSSES`; ``{name, weight, …}`` with further arguments of that loss; or
            ``{loss, weight}`` with any other loss. A weight is 1 by default.
        class_weights: Those of the terms in `LOSSES` without any of their own.
    """

    @checked
    def __init__(
        self,
        num_classes: int,
        *,
        terms: list[Any],
        ignore_index: int = 255,
        class_weights: ClassWeights = None,
        main_weight: NonNegativeNumber = 0.6,
        aux_weight: NonNegativeNumber = 0.4,
    ) -> None:
        super().__init__(num_classes, ignore_index, class_weights, main_weight, aux_weight)
        if problems := [*term_problems(terms, num_classes)]:
            raise ArgumentError(*problems)
        shared = {"ignore_index": ignore_index, "class_weights": class_weights}
        self.weights = [term.get("weight", 1.0) for term in map(as_mapping, terms)]
        self.terms = nn.ModuleList(as_module(term, num_classes, shared) for term in map(as_mapping, terms))

    def output_sum(self, logits: Tensor, target: Tensor) -> LossSum:
        """See `SegmentationLoss.output_sum`; the weight is the number of labelled pixels."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        means = [mean_loss(term, {"out": logits}, target) for term in self.terms]
        total = torch.stack([weight * mean for weight, mean in zip(self.weights, means, strict=True)]).sum()
        labelled = (target != self.ignore_index).sum().to(logits.dtype)
        return LossSum(total * labelled, labelled)


def as_mapping(term: Any) -> Mapping[str, Any]:
    """A term that is a name as ``{name}``."""
    return {"name": term} if isinstance(term, str) else term


def as_module(term: Mapping[str, Any], num_classes: int, shared: Mapping[str, Any]) -> nn.Module:
    """The loss of a term without `term_problems`."""
    if "loss" in term:
        return as_loss(term["loss"])
    arguments = {key: value for key, value in term.items() if key not in ("name", "weight")}
    return LOSSES[term["name"]](num_classes, **{**shared, **arguments})


def term_problems(terms: Sequence[Any], num_classes: int) -> Iterator[str]:
    """A line about each problem with the terms of a `Sum`, whose own losses need not have been built."""
    if not terms:
        yield f"terms=[]: must not be empty; give names of losses, such as {[*LOSSES][1]}"
    for number, term in enumerate(terms):
        key = f"terms.{number}"
        if not isinstance(term, str | Mapping):
            yield f"{key}={as_yaml(term)}: must be the name of a loss, {{name, weight, …}} or {{loss, weight}}"
            continue
        term = as_mapping(term)
        weight = term.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            yield f"{key}.weight={as_yaml(weight)}: must be a number that is at least 0"
        if "loss" in term:
            yield from (f"{key}.{name}: unknown key beside loss" for name in term if name not in ("loss", "weight"))
            yield from (f"{key}.{line}" for line in loss_problems(term["loss"]))
        elif "name" not in term:
            yield f"{key}: neither name nor loss; give it one of them"
        elif not isinstance(term["name"], str) or term["name"] not in LOSSES:
            known, similar = ", ".join(LOSSES), did_you_mean(str(term["name"]), LOSSES)
            yield f"{key}.name={as_yaml(term['name'])}: must be one of {known}{similar}"
        else:
            yield from (f"{key}.{line}" for line in argument_problems(term, num_classes))


def loss_problems(loss: Any) -> Iterator[str]:
    """A line about the value of ``loss`` in a term: a node that makes one, or the loss that it has made."""
    if isinstance(loss, str):
        yield f"loss={loss}: must be a node with _target_; to use a loss by name, write name"
    elif not callable(loss) and not (isinstance(loss, Mapping) and "_target_" in loss):
        yield f"loss={as_yaml(loss)}: must be a node whose _target_ makes a loss"
    elif is_torch_loss(loss):
        yield from (f"loss.{line}" for line in reduction_problems(loss))


def argument_problems(term: Mapping[str, Any], num_classes: int) -> Iterator[str]:
    """A line about each wrong argument of a term with a name."""
    known = [name for name in signature(LOSSES[term["name"]]).parameters if name not in SHARED]
    arguments = {key: value for key, value in term.items() if key not in ("name", "weight")}
    for key in arguments.keys() - known:
        if key in SHARED:
            yield f"{key}: is the same for all terms; remove it, and set that of the sum"
        else:
            yield f"{key}: unknown key{did_you_mean(key, [*known, 'weight'])}"
    try:
        LOSSES[term["name"]](num_classes, **{key: value for key, value in arguments.items() if key in known})
    except ArgumentError as error:
        yield from error.problems
