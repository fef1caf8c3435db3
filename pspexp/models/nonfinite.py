"""Finds numbers in weights that no training can have meant."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

STATISTICS = ("running_mean", "running_var")


def learned_names(model: nn.Module) -> set[str]:
    """The names of what training changes: parameters and running statistics.

    Other buffers may hold infinity on purpose, as masks of attention layers and observers of ranges do.
    """
    buffers = {name for name, _ in model.named_buffers() if name.rpartition(".")[2] in STATISTICS}
    return {name for name, _ in model.named_parameters()} | buffers


def nonfinite_names(state: Mapping[str, Tensor]) -> list[str]:
    """The names of those tensors that hold NaN or infinity in float32."""
    tensors = {name: value for name, value in state.items() if value.is_floating_point() and value.numel()}
    if not tensors:
        return []
    # The maximum is NaN if any value is. One synchronisation for all.
    fine = torch.stack([value.detach().float().abs().amax() < math.inf for value in tensors.values()]).tolist()
    return [name for name, is_fine in zip(tensors, fine, strict=True) if not is_fine]
