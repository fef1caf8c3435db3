"""Trained parameters on which the loss does not depend: torch's DDP would wait for their gradients."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pspexp.engine.distributed import World
from pspexp.models.trial import preserved


def freeze_unused(model: nn.Module, loss: Callable[[slice], Tensor], world: World) -> list[str]:
    """Freeze the parameters that get no gradient in any process; returns their names.

    A single process does not change them either, since optimizers skip parameters without a gradient.

    Args:
        model: The network. Nothing else of it changes, nor does torch's random state on the CPU.
        loss: Function that returns the loss of some images of a batch.
        world: The processes.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    unused: list[str] = []
    for images in (slice(2), slice(None)):  # two take less memory; all, lest the loss depends on more of them
        with preserved(model), torch.enable_grad():
            if (value := loss(images)).requires_grad:
                value.backward()  # type: ignore[no-untyped-call]
        found = world.all_gather_object([name for name, parameter in trained.items() if parameter.grad is None])
        model.zero_grad(set_to_none=True)
        unused = [name for name in found[0] if all(name in others for others in found)]
        if not unused:
            break
    for name in unused:
        trained[name].requires_grad_(False)
    return unused
