"""Builds the node ``model``, whose target may be any network."""

import logging
import math
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from pspexp.config.rules import TRAINING_MODES, crop_fits_stride
from pspexp.config.targets import takes, try_target
from pspexp.engine.device import Device
from pspexp.engine.distributed import World
from pspexp.errors import UserError, as_yaml, setting
from pspexp.inference import CenterCrop, Inference, Slide, Whole
from pspexp.models.adapter import AdaptedNetwork, adapt
from pspexp.models.exported import ExportedNetwork
from pspexp.models.segmenter import Segmenter
from pspexp.models.trial import TrialError
from pspexp.models.weights import start_from

log = logging.getLogger(__name__)


def is_network(node: object) -> TypeGuard[DictConfig]:
    """Whether a node is the node ``model`` of a configuration."""
    return isinstance(node, DictConfig) and node._get_full_key(None) == "model"


def build_network(node: DictConfig, arguments: dict[str, Any], make: Callable[..., Any]) -> nn.Module:
    """The network that the node ``model`` describes, adapted if it is not one of this project's.

    ``weights``, a whole checkpoint to start from, is loaded here if the target does not take it.

    Args:
        node: The node.
        arguments: Arguments that replace those in the node.
        make: Function that builds a node's target.

    Raises:
        UserError: The target is no network, or one that cannot be used.
    """
    weights = None
    if "weights" in {*node, *arguments} and not takes(try_target(node._target_), "weights"):
        weights = arguments.get("weights", node.get("weights"))
        node, arguments = without(node, "weights"), {key: one for key, one in arguments.items() if key != "weights"}
    network: object = make(node, **arguments)
    root: Any = node._get_root()
    if not isinstance(network, nn.Module):
        raise UserError(f"model._target_={node._target_}: made a {type(network).__name__}, not a torch.nn.Module")
    if not isinstance(network, ExportedNetwork):
        network = adapted(network, {**{str(key): node[key] for key in node}, **arguments}, root)
        if weights is not None:
            start_from(network, network.backbone_name, None, weights)
    if root.get("mode") in ("train", "check"):
        check_crop(network, root.get("crop_size"))
    return network


def without(node: DictConfig, key: str) -> DictConfig:
    """A copy of a node, at the same place of the configuration, without one of its keys."""
    copy = node.copy()
    OmegaConf.set_struct(copy, False)
    copy.pop(key, None)
    return copy


def adapted(network: nn.Module, arguments: dict[str, Any], root: Any) -> Segmenter:
    """A network with this project's interface, for the classes and bands of the data set.

    Raises:
        UserError: It cannot be used; says why.
    """
    classes = arguments.get("num_classes", OmegaConf.select(root, "dataset.num_classes"))
    mean = OmegaConf.select(root, "dataset.mean")
    bands = arguments.get("in_channels") or (3 if mean is None else len(mean))
    try:
        return adapt(network, classes, bands, crop_size=root.get("crop_size"))
    except TrialError as error:
        option = OmegaConf.select(root, "choices.model")
        raise UserError(f"model{'' if option is None else f'={option}'}: {error}") from error


def check_crop(network: nn.Module, crop_size: int | None) -> None:
    """Check the crop size against the network's true stride, which may not be the configured one.

    Raises:
        UserError: The crops do not fit its aligned corners.
    """
    if isinstance(network, AdaptedNetwork):
        note_padding(network, crop_size)
    elif isinstance(network, Segmenter) and crop_size is not None:
        model = {"output_stride": network.output_stride, "align_corners": network.align_corners}
        if problems := [*crop_fits_stride({"model": model, "crop_size": crop_size})]:
            raise UserError(*problems)


def note_padding(network: AdaptedNetwork, crop_size: int | None) -> None:
    """Say that crops are padded, which takes time and memory for nothing."""
    stride = network.output_stride
    if crop_size is not None and not network.takes_all and crop_size % stride:
        name, padded = type(network.network).__name__, crop_size + -crop_size % stride
        log.warning(
            "crop_size=%d: %s takes sides that are multiples of %d, so each crop is padded to %d pixels; "
            "crop_size=%d wastes no time on that",
            crop_size, name, stride, padded, max(round(crop_size / stride), 1) * stride,
        )  # fmt: skip


def check_inference(network: nn.Module, inference: Inference) -> None:
    """Refuse an inference mode that gives a network for images of one size larger ones.

    Raises:
        UserError: Names what helps.
    """
    if isinstance(network, AdaptedNetwork) and network.only_side is not None:
        side = largest_side(inference)
        if side > network.only_side:
            what = f"windows of {side}×{side}" if isinstance(inference, Slide) else inference.describe()
            raise network.wrong_size(what)


def check_compiler(config: DictConfig, device: Device) -> None:
    """Refuse to compile without a C++ compiler for the CPU, or with a version of torch that compiles each validation.

    Raises:
        UserError: Names the keys that ask for it.
    """
    keys = {"trainer.compile": config.mode in TRAINING_MODES, "inference.compile": config.mode != "export"}
    wanted = [key for key, applies in keys.items() if applies and OmegaConf.select(config, key)]
    given = {key: f"{key}={as_yaml(OmegaConf.select(config, key))}" for key in wanted}
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as torch chooses
    problems = []
    if device.type == "cpu" and sys.platform != "win32" and shutil.which(compiler) is None:
        fix = "install it (Debian: apt-get install g++), name another one in the environment variable CXX"
        problems = [
            f"{given[key]}: torch.compile needs a C++ compiler on CPUs, and {compiler} was not found; {fix}, or set "
            f"{setting(key, 'false')}"
            for key in wanted
        ]
    if "inference.compile" in wanted and not hasattr(torch.compiler, "set_stance"):  # came with torch 2.6
        problems.append(
            f"{given['inference.compile']}: needs torch 2.6 or later, not {torch.__version__}; set it to false"
        )
    if problems:
        raise UserError(*problems)


def largest_side(inference: Inference) -> float:
    """The largest side of the images that a network is given; 0 for an inference mode of the user's own."""
    if isinstance(inference, Slide):
        return inference.window
    if isinstance(inference, CenterCrop):
        side = inference.crop_size
        return max(max(inference.scaled_size(side, side, scale)) for scale in inference.scales)
    return math.inf if isinstance(inference, Whole) else 0


def with_sync_batch_norm(model: nn.Module, device: Device, world: World) -> nn.Module:
    """``model`` with batch norms over the images of all processes, where the device can do that."""
    converted = world.convert_sync_batchnorm(model)
    if converted is None:
        log.warning(
            "sync_batch_norm: device=%s has no synchronised batch normalisation: each of the %d processes normalises "
            "over its own images", device.type, world.size,
        )  # fmt: skip
    return model if converted is None else converted
