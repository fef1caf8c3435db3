"""Parameter groups and optimizers."""

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from pspexp.errors import ArgumentError, setting
from pspexp.models.segmenter import Segmenter
from pspexp.utils.arguments import NonNegativeNumber, PositiveNumber, checked

Momentum = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Betas = Annotated[Sequence[Momentum], Field(min_length=2, max_length=2)]


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, head_lr_factor: float, decay_norm_and_bias: bool
) -> list[dict[str, Any]]:
    """Trainable parameters in up to four groups: backbone and head, each with and without weight decay.

    Args:
        model: Unwrapped model. Parameters whose name starts with its ``backbone_prefix`` (``backbone.`` unless the
            model has another) belong to the backbone, all others to the head.
        lr: Learning rate of the backbone.
        weight_decay: Weight decay of convolutions and other weights with more than one dimension.
        head_lr_factor: Learning rate of the head as a multiple of ``lr``.
        decay_norm_and_bias: Whether to apply weight decay to one-dimensional parameters (norms, biases), too.

    Returns:
        Non-empty groups with the keys ``name``, ``params``, ``lr`` and ``weight_decay``.
    """
    groups: dict[str, dict[str, Any]] = {}
    prefix = getattr(model, "backbone_prefix", Segmenter.backbone_prefix)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, factor = ("backbone", 1.0) if name.startswith(prefix) else ("head", head_lr_factor)
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
    lr: PositiveNumber,
    betas: Betas = (0.9, 0.999),
    eps: PositiveNumber = 1e-8,
    weight_decay: NonNegativeNumber = 0.0,
    head_lr_factor: PositiveNumber = 1.0,
    decay_norm_and_bias: bool = True,
) -> Adam:
    """Adam (Kingma and Ba, 2015) on ``parameter_groups``; weight decay as an L2 term in the gradient."""
    groups = parameter_groups(model, lr, weight_decay, head_lr_factor, decay_norm_and_bias)
    return Adam(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=use_fused(Adam, model))


@checked
def adamw(
    model: nn.Module,
    *,
    lr: PositiveNumber,
    betas: Betas = (0.9, 0.999),
    eps: PositiveNumber = 1e-8,
    weight_decay: NonNegativeNumber = 1e-4,
    head_lr_factor: PositiveNumber = 1.0,
    decay_norm_and_bias: bool = True,
) -> AdamW:
    """AdamW (Loshchilov and Hutter, 2019) on ``parameter_groups``; weight decay decoupled from the gradient."""
    groups = parameter_groups(model, lr, weight_decay, head_lr_factor, decay_norm_and_bias)
    return AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=use_fused(AdamW, model))


@checked
def sgd(
    model: nn.Module,
    *,
    lr: PositiveNumber,
    momentum: Momentum = 0.9,
    nesterov: bool = False,
    weight_decay: NonNegativeNumber = 1e-4,
    head_lr_factor: PositiveNumber = 1.0,
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


def refuse_step_arguments(updates: Any) -> None:
    """Refuse an optimizer or schedule that cannot be stepped by ``step()``, without arguments.

    Raises:
        ArgumentError: Names the arguments that it needs, and an alternative.
    """
    step, kind = getattr(updates, "step", None), type(updates).__name__
    if not callable(step):
        raise ArgumentError(f"_target_: made a {kind}, which has no method step; choose one that has")
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(step).parameters.values()
    if needed := [one.name for one in parameters if one.default is one.empty and one.kind not in variable]:
        other = setting("optimizer", "adamw") if isinstance(updates, Optimizer) else setting("scheduler", "cosine")
        raise ArgumentError(
            f"_target_: made a {kind}, whose step() needs {', '.join(needed)}, which a training does not supply; "
            f"choose one that needs no argument, such as {other}"
        )


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
