"""Parameter groups, optimizers and learning-rate schedules.

Every schedule multiplies the learning rate of each group by a closed-form function of the step, so resuming needs no
history and any step can be checked on its own.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pspexp.errors import ArgumentError
from pspexp.utils.arguments import checked

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Betas = Annotated[Sequence[Momentum], Field(min_length=2, max_length=2)]
Steps = Annotated[int, Field(ge=0)]


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, head_lr_factor: float, decay_norm_and_bias: bool
) -> list[dict[str, Any]]:
    """Trainable parameters in up to four groups: backbone and head, each with and without weight decay.

    Args:
        model: Unwrapped model. Parameters whose name starts with ``backbone.`` belong to the backbone, all others to
            the head.
        lr: Learning rate of the backbone.
        weight_decay: Weight decay of convolutions and other weights with more than one dimension.
        head_lr_factor: Learning rate of the head as a multiple of ``lr``.
        decay_norm_and_bias: Whether to apply weight decay to one-dimensional parameters (norms, biases), too.

    Returns:
        Non-empty groups with the keys ``name``, ``params``, ``lr`` and ``weight_decay``.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, factor = ("backbone", 1.0) if name.startswith("backbone.") else ("head", head_lr_factor)
        decayed = decay_norm_and_bias or parameter.ndim > 1
        key = part if decayed else f"{part}/no_decay"
        group = {
            "name": key,
            "params": [],
            "lr": lr * factor,
            "weight_decay": weight_decay if decayed else 0.0,
        }
        groups.setdefault(key, group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


@checked
def adam(
    model: nn.Module,
    *,
    lr: Positive,
    betas: Betas = (0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.0,
    head_lr_factor: Positive = 1.0,
    decay_norm_and_bias: bool = True,
) -> Adam:
    """Adam (Kingma and Ba, 2015) on ``parameter_groups``; weight decay as an L2 term in the gradient."""
    groups = parameter_groups(model, lr, weight_decay, head_lr_factor, decay_norm_and_bias)
    return Adam(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=use_fused(Adam, model))


@checked
def adamw(
    model: nn.Module,
    *,
    lr: Positive,
    betas: Betas = (0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 1e-4,
    head_lr_factor: Positive = 1.0,
    decay_norm_and_bias: bool = True,
) -> AdamW:
    """AdamW (Loshchilov and Hutter, 2019) on ``parameter_groups``; weight decay decoupled from the gradient."""
    groups = parameter_groups(model, lr, weight_decay, head_lr_factor, decay_norm_and_bias)
    return AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=use_fused(AdamW, model))


@checked
def sgd(
    model: nn.Module,
    *,
    lr: Positive,
    momentum: Momentum = 0.9,
    nesterov: bool = False,
    weight_decay: NonNegative = 1e-4,
    head_lr_factor: Positive = 1.0,
    decay_norm_and_bias: bool = True,
) -> SGD:
    """Stochastic gradient descent with momentum on ``parameter_groups``."""
    if nesterov and not momentum:
        raise ArgumentError("nesterov=true: needs momentum above 0; set momentum, or nesterov to false")
    groups = parameter_groups(model, lr, weight_decay, head_lr_factor, decay_norm_and_bias)
    optimizer = SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=use_fused(SGD, model))
    if momentum:  # torch starts from zeros, too, but its fused kernel needs all buffers to start at the same step
        for group in optimizer.param_groups:
            optimizer.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in group["params"]})
    return optimizer


def load_optimizer_state(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load a state dict that may have been saved on another device or with another memory format.

    The choice of kernels (fused, foreach) stays that of this device. Moments get the memory format of their
    parameters, since fused kernels read both in memory order without checking.
    """
    groups = [
        theirs | {key: ours[key] for key in ("fused", "foreach") if key in ours}
        for theirs, ours in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**saved, "param_groups": groups})
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def supports_found_inf(optimizer: Optimizer) -> bool:
    """Whether a step is skipped when ``optimizer.found_inf``, a tensor on the device, is 1.

    Torch's fused optimizers do this for its gradient scaler. It allows skipping a step without synchronisation.
    """
    return bool(optimizer.defaults.get("fused"))


def use_fused(optimizer_class: Any, model: nn.Module) -> bool | None:
    """True if torch's fused kernels work on the model's device, else None, which leaves the choice to torch."""
    return fused_works(optimizer_class, next(model.parameters()).device.type) or None


@cache
def fused_works(optimizer_class: Any, device: str) -> bool:
    """Whether a fused step runs and honours ``found_inf``. On some devices that torch lists, one of them fails."""
    try:
        weight = torch.ones(1, device=device, requires_grad=True)
        weight.grad = torch.ones_like(weight)
        optimizer = optimizer_class([weight], lr=0.1, fused=True)
        optimizer.found_inf = torch.ones((), device=device)
        optimizer.step()
    except RuntimeError:
        return False
    return weight.item() == 1


@checked
def cosine(
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup_steps: Steps = 0,
    final_factor: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.01,
) -> LambdaLR:
    """Cosine decay from 1 down to ``final_factor`` (Loshchilov and Hutter, 2017, eq. 5); see ``with_warmup``."""
    return with_warmup(
        optimizer,
        total_steps,
        warmup_steps,
        lambda progress: final_factor + (1 - final_factor) * (1 + math.cos(math.pi * float(progress))) / 2,
    )


@checked
def poly(optimizer: Optimizer, total_steps: int, *, warmup_steps: Steps = 0, power: Positive = 0.9) -> LambdaLR:
    """``(1 - progress)^power``, down to 0 (Zhao et al., 2017, sec. 5.1); see ``with_warmup``."""
    return with_warmup(optimizer, total_steps, warmup_steps, lambda progress: float(1 - progress) ** power)


@checked
def step(
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup_steps: Steps = 0,
    factor: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.1,
    parts: Annotated[int, Field(ge=1)] = 5,
) -> LambdaLR:
    """``parts`` equal parts, each at ``factor`` times the learning rate of the previous one; see ``with_warmup``."""
    return with_warmup(
        optimizer, total_steps, warmup_steps, lambda progress: float(factor ** min(int(progress * parts), parts - 1))
    )


@checked
def constant(optimizer: Optimizer, total_steps: int, *, warmup_steps: Steps = 0) -> LambdaLR:
    """The full learning rate after the warm-up; see ``with_warmup``."""
    return with_warmup(optimizer, total_steps, warmup_steps, lambda progress: 1.0)


def with_warmup(
    optimizer: Optimizer, total_steps: int, warmup_steps: int, decay: Callable[[Fraction], float]
) -> LambdaLR:
    """A linear warm-up, then ``decay``; ``.step()`` must be called after each optimizer step.

    Args:
        optimizer: Optimizer with the full learning rates.
        total_steps: Number of optimizer steps in the training.
        warmup_steps: Number of warm-up steps. Step s (from 0) runs at ``(s + 1) / (warmup_steps + 1)`` of the full
            learning rate: never at 0, and the step after the warm-up is the first at the full rate.
        decay: Factor of the learning rate as a function of the progress after the warm-up: 0 at its first step, 1 at
            the end of the training and beyond.

    Raises:
        ArgumentError: The warm-up is not shorter than the training.
    """
    assert total_steps >= 1, total_steps
    if warmup_steps >= total_steps:
        raise ArgumentError(
            f"warmup_steps={warmup_steps}: must be from 0 to {total_steps - 1}, fewer than the {total_steps} steps of "
            "the training"
        )

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        # Exact: with floats some boundaries of `step` would be one step late (15 / 22 * 22 < 15).
        return decay(min(Fraction(step - warmup_steps, total_steps - warmup_steps), Fraction(1)))

    # A plain function, so that the state dict holds numbers only.
    return LambdaLR(optimizer, factor)
