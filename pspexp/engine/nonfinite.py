"""Errors about NaN and infinity in training, with advice."""

from collections.abc import Sequence

from pspexp.errors import JobFailed, setting
from pspexp.utils.text import first_names


class NonFiniteError(JobFailed):
    """NaN or infinity: in a loss or gradient, before the weights are changed, or in weights, before they are saved."""


def bad_loss(step: int, loss: float, norm: float, images: Sequence[str], precision: str) -> NonFiniteError:
    """An error about the loss or the gradient of a step.

    Args:
        step: From 1.
        loss: That of the step.
        norm: Of its gradient.
        images: Names of the images that may be the cause.
        precision: The one in use.
    """
    # Before the first step, the learning rate has had no effect.
    cause = f"Lower {setting('optimizer.lr')}" if step > 1 else "Check the initial weights and the loss"
    shown = first_names(images, 20)
    return NonFiniteError(
        f"step {step}: the loss is {loss}, the gradient norm {norm} (images {shown}); the weights are unchanged. "
        f"{cause}{other_precision(precision)}, or check these images"
    )


def bad_weights(step: int, names: Sequence[str], precision: str) -> NonFiniteError:
    """An error about the weights or statistics, of these ``names``, after a step."""
    hold = "tensor of the network holds" if len(names) == 1 else "tensors of the network hold"
    return NonFiniteError(
        f"after step {step}, {len(names)} {hold} NaN or infinite values: {first_names(names)}; not saved, earlier "
        f"checkpoints are kept. Lower {setting('optimizer.lr')}{other_precision(precision)}"
    )


def other_precision(used: str) -> str:
    """The part of an advice that names formats with a larger range or more digits, if there are any."""
    better = {"fp32": None, "fp16": "bf16 or fp32"}.get(used, "fp32")
    return f", set {setting('precision', better)}" if better else ""
