"""Batch norms folded into the convolutions before them: fewer passes over memory in evaluation."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.hooks import RemovableHandle


@torch.inference_mode()
def folded(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy of ``model`` that computes the same with fewer operations, or ``model`` itself if there is none.

    Args:
        model: in evaluation mode; gives ``{"out": logits}``.
        images: ``[N, 3, H, W]``, to see which batch norm follows which convolution, and to compare the results:
            a network that uses a convolution's output in another place as well cannot be folded.
    """
    pairs, expected = _pairs(model, images)
    if not pairs:
        return model
    copy = deepcopy(model)
    for conv_name, norm_name in pairs:
        conv, norm = copy.get_submodule(conv_name), copy.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
        _replace(copy, conv_name, fuse_conv_bn_eval(conv, norm))
        _replace(copy, norm_name, nn.Identity())
    difference = (copy(images)["out"] - expected).abs().max()
    return copy if difference <= 1e-3 * expected.abs().max() else model


def _pairs(model: nn.Module, images: Tensor) -> tuple[list[tuple[str, str]], Tensor]:
    """Names of each convolution and the batch norm that gets its output, and the logits of ``images``."""
    outputs: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept so that no other gets their id
    pairs: list[tuple[str, str]] = []
    handles: list[RemovableHandle] = []
    for name, module in model.named_modules():
        if type(module) is nn.Conv2d:

            def produced(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
                outputs[id(output)] = (name, output)

            handles.append(module.register_forward_hook(produced))
        elif _is_norm(module) and module.track_running_stats:

            def consumed(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                if id(inputs[0]) in outputs:
                    pairs.append((outputs[id(inputs[0])][0], name))

            handles.append(module.register_forward_pre_hook(consumed))
    try:
        logits: Tensor = model(images)["out"]
    finally:
        for handle in handles:
            handle.remove()
    return pairs, logits


def _is_norm(module: nn.Module) -> bool:
    """Whether it is one of torch's, or a device's own form of the convert_sync_batch_norm one; in evaluation they are the same."""
    return type(module) is nn.BatchNorm2d or isinstance(module, nn.SyncBatchNorm)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
