"""Builds objects from the configuration: the only caller of Hydra's ``instantiate``. Reports all problems at once."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from pspexp.config.class_map import compare_start_weights
from pspexp.data.cache import SampleCache
from pspexp.data.dataset import Split
from pspexp.data.loader import TrainLoader
from pspexp.data.workers import worker_context
from pspexp.engine import checkpoint
from pspexp.engine.components import Components, TrainingComponents
from pspexp.engine.device import Device
from pspexp.engine.distributed import ProcessInfo, World
from pspexp.engine.hooks import Hook
from pspexp.engine.precision import Precision
from pspexp.errors import ArgumentError, UserError
from pspexp.models.exported import is_exported
from pspexp.models.weights import load_weights

Built = TypeVar("Built")

log = logging.getLogger(__name__)


def build(node: DictConfig | dict[str, Any], **arguments: Any) -> Any:
    """The object described by a node with ``_target_``, built from plain Python values.

    Args:
        node: Node of the configuration.
        arguments: Arguments that replace those in the node.

    Raises:
        UserError: The target refuses its arguments; the problems name the keys of the configuration.
    """
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        key = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE)
        with named(key[1] if key else ""):
            if isinstance(error.__cause__, ValueError):
                raise error.__cause__ from None
        raise


@contextmanager
def named(key: str) -> Iterator[None]:
    """Put the key of a target's node in front of the problems with its arguments.

    Raises:
        UserError: Replaces an ArgumentError, and any ValueError that is not a UserError.
    """
    try:
        yield
    except ArgumentError as error:
        raise UserError(*(f"{key}.{problem}".lstrip(".") for problem in error.problems), shared=error.shared) from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{key}: {error}".removeprefix(": ")) from error


def build_partial(node: DictConfig, **arguments: Any) -> Any:
    """`build` for a node with ``_partial_``, called with the arguments supplied at run time."""
    with named(node._get_full_key(None)):
        return build(node)(**arguments)


class ErrorCollector:
    """Builds one object after another and collects the problems with all of them, to report them together."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def __call__(self, make: Callable[..., Built], *needed: Any) -> Any:
        """``make(*needed)``; None if it fails, or if one of ``needed`` is None because it failed."""
        if any(one is None for one in needed):
            return None
        try:
            return make(*needed)
        except UserError as error:
            self.problems += [problem for problem in error.problems if problem not in self.problems]
            return None


def init_distributed(config: DictConfig, process: ProcessInfo) -> tuple[Device, World]:
    """The device of this process, and its connection to the others.

    Raises:
        UserError: The device cannot be used, or not by several processes; lists all other problems, too.
    """
    try:
        device: Device = build(config.device, local_rank=process.local_rank)
        return device, World(process, device)
    except UserError as error:
        collector, host = ErrorCollector(), Device("cpu")
        collector.problems += error.problems
        collect_components(config, collector, host, World(ProcessInfo(), host), start_weights=False)
        raise UserError(*collector.problems) from error


def build_components(config: DictConfig, device: Device, world: World) -> Components:
    """Build what a test needs, except for the model's weights.

    Raises:
        UserError: Lists everything that cannot be built, in any process.
    """
    collector = ErrorCollector()
    components = collect_components(config, collector, device, world, start_weights=False)
    world.raise_collectively(collector.problems)
    return Components(**components)


def build_trained(config: DictConfig, device: Device, world: World) -> tuple[Components, dict[str, Any]]:
    """Build what a test needs, with the weights of ``checkpoint.path``; returns the content of that file, too.

    Raises:
        UserError: Lists everything that cannot be built, in any process, or what is wrong with the checkpoint.
    """
    saved = world.broadcast_from_main(lambda: checkpoint.read(Path(config.checkpoint.path), foreign=True))
    components = build_components(config, device, world)
    if not is_exported(config.checkpoint.path):
        load_weights(components.model, saved, name=config.checkpoint.path, allow_backbone=False)
    return components, saved


def build_training(
    config: DictConfig, device: Device, world: World, *, start_weights: bool
) -> tuple[TrainingComponents, dict[str, Hook]]:
    """Build what training needs: its components, and its hooks by name.

    Args:
        start_weights: Whether to load the weights that the model is configured to start from; False if a saved state
            is loaded later.

    Raises:
        UserError: Lists everything that cannot be built, in any process.
    """
    collector = ErrorCollector()
    # The main process sends its weights to the others.
    components = collect_components(config, collector, device, world, start_weights and world.is_main_process)
    if start_weights and world.is_main_process:
        collector(lambda dataset: compare_start_weights(config, dataset.info.class_names), components["dataset"])
    training = collector(lambda dataset: dataset.open("train"), components["dataset"])
    validation = collector(lambda dataset: dataset.open("val"), components["dataset"])
    cache = collector(SampleCache, config.loader.cache_mib, worker_context())
    training, validation = (collector(SampleCache.wrap, cache, split) for split in (training, validation))
    augment = collector(lambda: build(config.augment))
    loader = collector(lambda *needed: training_data(config, device, world, *needed), training, augment)
    hooks = collector(lambda: build_hooks(config.hooks))
    # After the model was moved: on some devices that replaces its parameters.
    optimizer = collector(lambda model: build_partial(config.optimizer, model=model), components["model"])
    scheduler = collector(
        lambda optimizer, loader: build_partial(
            config.scheduler, optimizer=optimizer, total_steps=config.trainer.epochs * loader.steps_per_epoch
        ),
        optimizer,
        loader,
    )
    world.raise_collectively(collector.problems)
    data = {"training": training, "validation": validation, "cache": cache, "loader": loader}
    return TrainingComponents(**components, **data, optimizer=optimizer, scheduler=scheduler), hooks


def build_hooks(node: DictConfig) -> dict[str, Hook]:
    """The hooks of the node ``hooks`` by name, in its order, except for those set to null.

    Raises:
        UserError: A hook cannot be built, or is not a `pspexp.engine.hooks.Hook`.
    """
    hooks = {name: hook for name, hook in build(node).items() if hook is not None}
    if wrong := [
        f"hooks.{name}: {type(hook).__name__} is not a subclass of pspexp.engine.hooks.Hook; derive it from that class"
        for name, hook in hooks.items()
        if not isinstance(hook, Hook)
    ]:
        raise UserError(*wrong)
    return hooks


def collect_components(
    config: DictConfig, collector: ErrorCollector, device: Device, world: World, start_weights: bool
) -> dict[str, Any]:
    """The fields of `Components`, None where something failed."""
    # Not loaded: the files may no longer exist.
    unused = {} if start_weights else {key: None for key in ("weights", "backbone_weights") if key in config.model}
    precision = collector(lambda: build(config.precision))
    resolved = collector(lambda precision: precision.resolve(device), precision)
    collector(Precision.apply, precision)
    torch.manual_seed(config.seed)  # initial weights must not depend on what was built before
    model, loss = collector(lambda: build(config.model, **unused)), collector(lambda: build(config.loss))
    if resolved is not None and model is not None and loss is not None:
        # Nearly twice as fast with bf16 on CUDA (docs/benchmarks.md), about as fast with fp32.
        channels_last = resolved != "fp32" if config.channels_last is None else config.channels_last
        # Activations follow the layout of the weights.
        layout = torch.channels_last if channels_last else torch.preserve_format
        model, loss = model.to(device.torch, memory_format=layout), loss.to(device.torch)
        if world.size > 1 and config.mode == "train" and config.sync_batch_norm:
            model = with_sync_batch_norm(model, device, world)
    return {
        "world": world,
        "device": device,
        "precision": precision,
        "dataset": collector(lambda: build(config.dataset)),
        "inference": collector(lambda: build(config.inference)),
        "model": model,
        "loss": loss,
    }


def with_sync_batch_norm(model: nn.Module, device: Device, world: World) -> nn.Module:
    """``model`` with batch norms over the images of all processes, where the device can do that."""
    converted = world.convert_sync_batchnorm(model)
    if converted is None:
        log.warning(
            "sync_batch_norm: device=%s has no synchronised batch normalisation: each of the %d processes normalises "
            "over its own images", device.type, world.size,
        )  # fmt: skip
    return model if converted is None else converted


def training_data(config: DictConfig, device: Device, world: World, split: Split, augment: Any) -> TrainLoader:
    """The loader of augmented training images."""
    return TrainLoader(
        split,
        augment,
        batch_size=config.loader.batch_size,
        accumulate=config.trainer.accumulate,
        num_workers=config.loader.num_workers,
        seed=config.seed,
        pin_memory=device.pin_memory,
        skip_errors=config.dataset.get("on_error") == "skip",
        rank=world.rank,
        world_size=world.size,
    )
