"""Parameter groups, optimizers and learning-rate schedules.

Every schedule is a closed form in the number of steps done, times the learning rate of the group. So it goes
on after a resume without a history, and any step can be checked on its own.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pspexp.errors import UserError

Rule = tuple[str, object, bool, str]
"""Key, value, whether the value is allowed, and what is."""


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, head_lr_factor: float, decay_norm_and_bias: bool
) -> list[dict[str, Any]]:
    """Trainable parameters in up to four groups: backbone before head, each with and without weight decay.

    Args:
        model: the bare model, before any wrapper. Parameters whose name starts with ``backbone.`` are the
            backbone's, all others the head's.
        lr: learning rate of the backbone.
        weight_decay: weight decay of convolutions and other weights of more than one dimension.
        head_lr_factor: the head's learning rate is ``lr * head_lr_factor``.
        decay_norm_and_bias: also decay one-dimensional parameters (scale and shift of norms, biases).

    Returns:
        Groups with the keys ``name``, ``params``, ``lr`` and ``weight_decay``; empty ones are left out.
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


def adam(
    model: nn.Module,
    *,
    lr: float,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    head_lr_factor: float = 1.0,
    decay_norm_and_bias: bool = True,
) -> Adam:
    """Adam (Kingma and Ba, 2015) on ``parameter_groups``; weight decay as an L2 term in the gradient."""
    _require(*_common_rules(lr, weight_decay, head_lr_factor), *_adam_rules(betas, eps))
    groups = parameter_groups(model, lr, weight_decay, head_lr_factor, decay_norm_and_bias)
    return Adam(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=_can_fuse(Adam, model))


def adamw(
    model: nn.Module,
    *,
    lr: float,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    head_lr_factor: float = 1.0,
    decay_norm_and_bias: bool = True,
) -> AdamW:
    """AdamW (Loshchilov and Hutter, 2019) on ``parameter_groups``; weight decay apart from the gradient."""
    _require(*_common_rules(lr, weight_decay, head_lr_factor), *_adam_rules(betas, eps))
    groups = parameter_groups(model, lr, weight_decay, head_lr_factor, decay_norm_and_bias)
    return AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=_can_fuse(AdamW, model))


def sgd(
    model: nn.Module,
    *,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
    head_lr_factor: float = 1.0,
    decay_norm_and_bias: bool = True,
) -> SGD:
    """Stochastic gradient descent with momentum on ``parameter_groups``."""
    _require(
        *_common_rules(lr, weight_decay, head_lr_factor),
        ("optimizer.momentum", momentum, 0 <= momentum < 1, "at least 0 and below 1"),
        ("optimizer.nesterov", nesterov, not nesterov or momentum > 0, "false without momentum"),
    )
    groups = parameter_groups(model, lr, weight_decay, head_lr_factor, decay_norm_and_bias)
    optimizer = SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=_can_fuse(SGD, model))
    if momentum:  # zeros are what torch starts from; its fused kernel cannot begin for one parameter later than others
        for group in optimizer.param_groups:
            optimizer.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in group["params"]})
    return optimizer


def load_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """``optimizer.load_state_dict`` of a state that another device, or another memory layout, has saved.

    The kernels' kind is this device's. Moments take the layout of their parameters: fused kernels go through
    both side by side in memory without looking.
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


def skips_on_request(optimizer: Optimizer) -> bool:
    """Whether a step leaves the weights alone when ``optimizer.found_inf``, a tensor on the device, is 1.

    Torch's fused optimizers do, for its gradient scaler. So a found_nonfinite step can be refused without asking the device.
    """
    return bool(optimizer.defaults.get("fused"))


def _can_fuse(kind: Any, model: nn.Module) -> bool | None:
    """True if torch can update all parameters in one pass on the model's device, else None: as torch likes."""
    return _fuses(kind, next(model.parameters()).device.type) or None


@cache
def _fuses(kind: Any, device: str) -> bool:
    """Tried, and so is `skips_on_request`: torch lists devices that lack the kernels or whose kernels do not look."""
    try:
        weight = torch.ones(1, device=device, requires_grad=True)
        weight.grad = torch.ones_like(weight)
        optimizer = kind([weight], lr=0.1, fused=True)
        optimizer.found_inf = torch.ones((), device=device)
        optimizer.step()
    except RuntimeError:
        return False
    return weight.item() == 1


def cosine(optimizer: Optimizer, total_steps: int, *, warmup_steps: int = 0, final_factor: float = 0.01) -> LambdaLR:
    """Half a cosine from 1 down to `final_factor` (Loshchilov and Hutter, 2017, eq. 5); see ``_schedule``."""
    return _schedule(
        optimizer,
        total_steps,
        warmup_steps,
        lambda done: final_factor + (1 - final_factor) * (1 + math.cos(math.pi * float(done))) / 2,
        ("scheduler.final_factor", final_factor, 0 <= final_factor <= 1, "from 0 to 1"),
    )


def poly(optimizer: Optimizer, total_steps: int, *, warmup_steps: int = 0, power: float = 0.9) -> LambdaLR:
    """``(1 - done)^power``, down to 0 (Zhao et al., 2017, sec. 5.1); see ``_schedule``."""
    return _schedule(
        optimizer,
        total_steps,
        warmup_steps,
        lambda done: float(1 - done) ** power,
        ("scheduler.power", power, 0 < power < math.inf, "finite and above 0"),
    )


def step(
    optimizer: Optimizer, total_steps: int, *, warmup_steps: int = 0, factor: float = 0.1, parts: int = 5
) -> LambdaLR:
    """`parts` equal parts, each at `factor` times the rate of the one before; see ``_schedule``."""
    return _schedule(
        optimizer,
        total_steps,
        warmup_steps,
        lambda done: float(factor ** min(int(done * parts), parts - 1)),
        ("scheduler.factor", factor, 0 < factor <= 1, "above 0 and at most 1"),
        ("scheduler.parts", parts, parts >= 1, "1 or more"),
    )


def constant(optimizer: Optimizer, total_steps: int, *, warmup_steps: int = 0) -> LambdaLR:
    """The full rate throughout, after the warm-up; see ``_schedule``."""
    return _schedule(optimizer, total_steps, warmup_steps, lambda done: 1.0)


def _schedule(
    optimizer: Optimizer,
    total_steps: int,
    warmup_steps: int,
    decay: Callable[[Fraction], float],
    *rules: Rule,
) -> LambdaLR:
    """A schedule over `total_steps` optimizer steps, with ``.step()`` to be called after each of them.

    Step s (from 0) of the warm-up runs at ``(s + 1) / (warmup_steps + 1)`` of the full rate: never at 0, and
    the step after the warm-up is the first at the full rate. From there `decay` takes over, called with the
    share of the remaining steps that is done: 0 at its first step, 1 when training has ended and after that.
    """
    assert total_steps >= 1, total_steps
    limit = f"from 0 to {total_steps - 1}, fewer than the {total_steps} steps of the training"
    _require(("scheduler.warmup_steps", warmup_steps, 0 <= warmup_steps < total_steps, limit), *rules)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        # Exact: floats would put some borders of `step` one step late (15 / 22 * 22 < 15).
        return decay(min(Fraction(step - warmup_steps, total_steps - warmup_steps), Fraction(1)))

    # A plain function, so that the state dict holds numbers only.
    return LambdaLR(optimizer, factor)


def _common_rules(lr: float, weight_decay: float, head_lr_factor: float) -> list[Rule]:
    return [
        ("optimizer.lr", lr, 0 < lr < math.inf, "finite and above 0"),
        ("optimizer.weight_decay", weight_decay, 0 <= weight_decay < math.inf, "finite and not negative"),
        ("optimizer.head_lr_factor", head_lr_factor, 0 < head_lr_factor < math.inf, "finite and above 0"),
    ]


def _adam_rules(betas: Sequence[float], eps: float) -> list[Rule]:
    allowed = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
    return [
        ("optimizer.betas", betas, allowed, "two values, each at least 0 and below 1"),
        ("optimizer.eps", eps, 0 < eps < math.inf, "finite and above 0"),
    ]


def _require(*rules: Rule) -> None:
    """Raise one error that names every rule that does not hold."""
    problems = [f"{key}={value}: must be {limit}" for key, value, allowed, limit in rules if not allowed]
    if problems:
        raise UserError(*problems)
