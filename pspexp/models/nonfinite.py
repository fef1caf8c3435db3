"""Finds numbers in weights that no training can have meant."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def nonfinite_names(state: Mapping[str, Tensor]) -> list[str]:
    """The names of those tensors of a state dict that hold NaN or infinity in float32.

    A tensor with -inf alone is none of them: masks of attention layers are made of it.
    """
    tensors = {name: value for name, value in state.items() if value.is_floating_point() and value.numel()}
    if not tensors:
        return []
    # The maximum is NaN if any value is. One synchronisation for all.
    fine = torch.stack([value.detach().float().amax() < math.inf for value in tensors.values()]).tolist()
    return [name for name, is_fine in zip(tensors, fine, strict=True) if not is_fine]
