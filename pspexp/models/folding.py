"""Batch norms folded into the convolutions in front of them: fewer passes over memory in evaluation."""

import logging
from collections import Counter
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pspexp.utils.text import one_line

PROBE_SIZE = 129  # pixels; one image of random numbers shows whether folding leaves the logits unchanged
TOLERANCE = 1e-3  # relative to the largest logit: far above rounding in float32, far below a wrongly folded network

log = logging.getLogger(__name__)


@torch.inference_mode()
def fold_batch_norms(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy of ``model`` that computes the same function with fewer operations, or ``model`` itself.

    The copy is used only if it gives the same logits for a fixed random image. ``model`` is neither run nor changed.

    Args:
        model: A network in evaluation mode that returns ``{"out": logits}``.
        images: The first batch of the evaluation, ``[N, 3, H, W]``. On accelerators, folding is faster for one image at
            a time and slower for several (docs/benchmarks.md), for which it is skipped.
    """
    if len(images) > 1 and images.device.type != "cpu":
        return model
    probe = torch.randn(1, 3, PROBE_SIZE, PROBE_SIZE, generator=torch.Generator().manual_seed(0)).to(images)
    try:
        return _folded_copy(model, probe) or model
    except Exception as error:  # copying, probing or folding an arbitrary network may fail in any way
        log.debug("batch norms are not folded: %s: %s", type(error).__name__, one_line(error))
        return model


def _folded_copy(model: nn.Module, probe: Tensor) -> nn.Module | None:
    """The folded copy; None if nothing can be folded or the logits differ."""
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return None  # hooks may depend on what the modules compute, and a copy would call them, too
    if not any(_is_batch_norm(module) for module in model.modules()):
        return None
    copy = deepcopy(model)
    pairs, expected = _find_pairs(copy, probe)
    if not pairs:
        return None
    for conv, norm in pairs:
        _replace(copy, conv, fuse_conv_bn_eval(conv, norm))
        _replace(copy, norm, nn.Identity())
    difference = (copy(probe)["out"] - expected).abs().max()
    return copy if difference <= TOLERANCE * expected.abs().max() else None


def _find_pairs(model: nn.Module, probe: Tensor) -> tuple[list[tuple[nn.Conv2d, Any]], Tensor]:
    """Each convolution with the batch norm that is given its output, and the logits of ``probe``.

    Modules that are called more than once, or have more than one name, are not folded.
    """
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # holding the tensors keeps their ids from being reused
    pairs: list[tuple[nn.Conv2d, Any]] = []
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))

    def after_convolution(module: nn.Conv2d, _: object, output: Tensor) -> None:
        uses[module] += 1
        outputs[id(output)] = module, output

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        uses[module] += 1
        if id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], module))

    handles = [m.register_forward_hook(after_convolution) for m in model.modules() if type(m) is nn.Conv2d]
    handles += [m.register_forward_pre_hook(before_norm) for m in model.modules() if _is_batch_norm(m)]
    logits: Tensor = model(probe)["out"]
    for handle in handles:
        handle.remove()
    return [(conv, norm) for conv, norm in pairs if uses[conv] == uses[norm] == 2], logits  # one name and one call


def _is_batch_norm(module: nn.Module) -> bool:
    """Whether it is torch's batch norm or a synchronised one (torch's or a device's), which evaluate alike."""
    is_norm = type(module) is nn.BatchNorm2d or isinstance(module, nn.SyncBatchNorm)
    return is_norm and bool(module.track_running_stats)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    name = next(name for name, module in model.named_modules() if module is old)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
