"""Configuration becomes objects: the only caller of Hydra's ``instantiate``. What is wrong is told all at once."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from pspexp.data.cache import SampleCache
from pspexp.data.dataset import Split
from pspexp.data.loader import TrainLoader, worker_context
from pspexp.engine.components import Components, TrainingComponents
from pspexp.engine.device import Device
from pspexp.engine.distributed import ProcessInfo, World
from pspexp.engine.precision import Precision
from pspexp.errors import UserError

Built = TypeVar("Built")

log = logging.getLogger(__name__)


def build(node: DictConfig | dict[str, Any]) -> Any:
    """The object that a node with ``_target_`` describes, made from plain Python values.

    Raises:
        UserError: the arguments are of the right type but not acceptable.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, ValueError):  # a constructor's word for an argument it cannot take
            raise UserError(f"{node['_target_']}: {cause}") from cause
        raise


class ErrorCollector:
    """Makes one thing after another and keeps what is wrong with each, so that it can be told at once."""

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


def init_distributed(config: DictConfig, place: ProcessInfo) -> tuple[Device, World]:
    """This process's device, then its fellow processes.

    Raises:
        UserError: the device cannot be used, or not by several processes; with what else cannot be built.
    """
    try:
        device: Device = build({**config.device, "local_rank": place.local_rank})
        return device, World(place, device)
    except UserError as error:
        attempt, host = ErrorCollector(), Device("cpu")
        attempt.problems += error.problems
        collect_components(config, attempt, host, World(ProcessInfo(), host), start_weights=False)
        raise UserError(*attempt.problems) from error


def build_components(config: DictConfig, device: Device, world: World) -> Components:
    """Build what a test needs; the model's weights follow from its checkpoint.

    Raises:
        UserError: with everything that cannot be built, in any process.
    """
    attempt = ErrorCollector()
    parts = collect_components(config, attempt, device, world, start_weights=False)
    world.raise_collectively(attempt.problems)
    return Components(**parts)


def build_training(config: DictConfig, device: Device, world: World, *, start_weights: bool) -> TrainingComponents:
    """Build what a training needs.

    Args:
        start_weights: let the model load the weights it is configured to start from. A saved state follows otherwise.

    Raises:
        UserError: with everything that cannot be built, in any process.
    """
    attempt = ErrorCollector()
    # The first process gives its weights to the others.
    parts = collect_components(config, attempt, device, world, start_weights and world.is_main_process)
    training = attempt(lambda dataset: dataset.open("train"), parts["dataset"])
    validation = attempt(lambda dataset: dataset.open("val"), parts["dataset"])
    cache = attempt(SampleCache, config.loader.cache_mib, worker_context())
    training, validation = (attempt(SampleCache.over, cache, split) for split in (training, validation))
    augment = attempt(lambda: build(config.augment))
    loader = attempt(lambda *needed: training_data(config, device, world, *needed), training, augment)
    # After the model has moved: on some devices moving replaces the parameters.
    optimizer = attempt(lambda model: build(config.optimizer)(model=model), parts["model"])
    scheduler = attempt(
        lambda optimizer, loader: build(config.scheduler)(
            optimizer=optimizer, total_steps=config.trainer.epochs * loader.steps_per_epoch
        ),
        optimizer,
        loader,
    )
    world.raise_collectively(attempt.problems)
    return TrainingComponents(
        **parts,
        training=training,
        validation=validation,
        cache=cache,
        loader=loader,
        optimizer=optimizer,
        scheduler=scheduler,
    )


def collect_components(
    config: DictConfig, attempt: ErrorCollector, device: Device, world: World, start_weights: bool
) -> dict[str, Any]:
    """The fields of :class:`Components`, None where something failed."""
    node = config.model
    if not start_weights:  # the files it once started from may be gone
        node = OmegaConf.merge(node, {key: None for key in ("weights", "backbone_weights") if key in node})
    precision = attempt(lambda: build(config.precision))
    resolved = attempt(lambda precision: precision.resolve(device), precision)
    attempt(Precision.apply, precision)
    torch.manual_seed(config.seed)  # the fresh weights must not depend on what was built before
    model, loss = attempt(lambda: build(node)), attempt(lambda: build(config.loss))
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
        "dataset": attempt(lambda: build(config.dataset)),
        "inference": attempt(lambda: build(config.inference)),
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
