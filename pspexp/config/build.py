"""Configuration becomes objects: the only caller of Hydra's ``instantiate``. All problems are reported at once."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from pspexp.data.cache import SampleCache
from pspexp.data.dataset import Split
from pspexp.data.loader import TrainLoader, worker_context
from pspexp.engine.components import Components, TrainingComponents
from pspexp.engine.device import Device
from pspexp.engine.distributed import ProcessInfo, World
from pspexp.engine.precision import Precision
from pspexp.errors import ArgumentError, UserError

Built = TypeVar("Built")

log = logging.getLogger(__name__)


def build(node: DictConfig | dict[str, Any], **arguments: Any) -> Any:
    """The object that a node with ``_target_`` describes, made from plain Python values.

    Args:
        node: Of the configuration.
        arguments: Take the place of those in the node.

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
    """Put the key of a node in front of what its target refuses.

    Raises:
        UserError: In place of an ArgumentError, or another ValueError than a UserError.
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
    """`build` for a node with ``_partial_``, which is called with the arguments that are supplied at run time."""
    with named(node._get_full_key(None)):
        return build(node)(**arguments)


class ErrorCollector:
    """Builds one thing after another and collects the problems with each, so that all are reported at once."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def __call__(self, make: Callable[..., Built], *needed: Any) -> Any:
        """``make(*needed)``; None where it failed, or where something needed is None because it failed before."""
        if any(one is None for one in needed):
            return None
        try:
            return make(*needed)
        except UserError as error:
            self.problems += error.problems
            return None


def init_distributed(config: DictConfig, process: ProcessInfo) -> tuple[Device, World]:
    """The device of this process, and its connection to the others.

    Raises:
        UserError: The device cannot be used, or not by several processes; lists what else cannot be built, too.
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
    """Build what a test needs; the model's weights follow from its checkpoint.

    Raises:
        UserError: with everything that cannot be built, in any process.
    """
    collector = ErrorCollector()
    components = collect_components(config, collector, device, world, start_weights=False)
    world.raise_collectively(collector.problems)
    return Components(**components)


def build_training(config: DictConfig, device: Device, world: World, *, start_weights: bool) -> TrainingComponents:
    """Build what a training needs.

    Args:
        start_weights: let the model load the weights it is configured to start from. A saved state follows otherwise.

    Raises:
        UserError: with everything that cannot be built, in any process.
    """
    collector = ErrorCollector()
    # The first process gives its weights to the others.
    components = collect_components(config, collector, device, world, start_weights and world.is_main_process)
    training = collector(lambda dataset: dataset.open("train"), components["dataset"])
    validation = collector(lambda dataset: dataset.open("val"), components["dataset"])
    cache = collector(SampleCache, config.loader.cache_mib, worker_context())
    training, validation = (collector(SampleCache.over, cache, split) for split in (training, validation))
    augment = collector(lambda: build(config.augment))
    loader = collector(lambda *needed: training_data(config, device, world, *needed), training, augment)
    # After the model has moved: on some devices moving replaces the parameters.
    optimizer = collector(lambda model: build_partial(config.optimizer, model=model), components["model"])
    scheduler = collector(
        lambda optimizer, loader: build_partial(
            config.scheduler, optimizer=optimizer, total_steps=config.trainer.epochs * loader.steps_per_epoch
        ),
        optimizer,
        loader,
    )
    world.raise_collectively(collector.problems)
    return TrainingComponents(
        **components,
        training=training,
        validation=validation,
        cache=cache,
        loader=loader,
        optimizer=optimizer,
        scheduler=scheduler,
    )


def collect_components(
    config: DictConfig, collector: ErrorCollector, device: Device, world: World, start_weights: bool
) -> dict[str, Any]:
    """The fields of :class:`Components`, None where something failed."""
    # Without start weights: the files it once started from may be gone.
    unused = {} if start_weights else {key: None for key in ("weights", "backbone_weights") if key in config.model}
    precision = collector(lambda: build(config.precision))
    resolved = collector(lambda precision: precision.resolve(device), precision)
    collector(Precision.apply, precision)
    torch.manual_seed(config.seed)  # the fresh weights must not depend on what was built before
    model, loss = collector(lambda: build(config.model, **unused)), collector(lambda: build(config.loss))
    if resolved is not None and model is not None and loss is not None:
        # Nearly twice as fast with bf16 on CUDA (docs/benchmarks.md); with fp32 it gains or loses a little.
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
        rank=world.rank,
        world_size=world.size,
    )
