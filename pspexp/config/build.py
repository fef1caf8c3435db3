"""Builds objects from the configuration: the only caller of Hydra's ``instantiate``. Reports all problems at once."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pspexp.config.class_map import compare_start_weights
from pspexp.config.collector import ErrorCollector
from pspexp.config.network import build_network, check_compiler, check_inference, is_network, with_sync_batch_norm
from pspexp.config.signatures import with_promised_types
from pspexp.config.targets import superseded_weights, takes, try_target, without_start_weights
from pspexp.config.training_data import image_repeats, training_data, training_split, validation_split
from pspexp.data.cache import SampleCache
from pspexp.data.loader import TrainLoader
from pspexp.data.workers import worker_context
from pspexp.engine import checkpoint
from pspexp.engine.components import Components, TrainingComponents
from pspexp.engine.device import Device
from pspexp.engine.distributed import ProcessInfo, World
from pspexp.engine.finetune import Freezing, decay_learning_rates
from pspexp.engine.finetune_config import FinetuneConfig
from pspexp.engine.hooks import Hook
from pspexp.engine.precision import Precision
from pspexp.engine.trainer_config import TrainerConfig
from pspexp.errors import ArgumentError, UserError
from pspexp.losses.tensor import as_loss
from pspexp.metrics.base import AnyMetric, metric_problems
from pspexp.models.exported import is_exported
from pspexp.models.weights import load_weights
from pspexp.optim.optimizers import refuse_step_arguments
from pspexp.utils.text import one_line
from pspexp.utils.tracebacks import line_in_user_code

WRONG_ARGUMENTS = re.compile(r"unexpected keyword argument|missing \d+ required|multiple values for")


def build(node: DictConfig | dict[str, Any], **arguments: Any) -> Any:
    """The object described by a node with ``_target_``, built from plain Python values.

    Args:
        node: Node of the configuration.
        arguments: Arguments that replace those in the node.

    Raises:
        UserError: The target refuses its arguments; the problems name the keys of the configuration.
    """
    if is_network(node):
        return build_network(node, arguments, made)
    return made(node, **arguments)


def made(node: DictConfig | dict[str, Any], **arguments: Any) -> Any:
    """`build`, of any node but that of the network: exactly what its target returns."""
    try:
        typed = with_promised_types(node) if isinstance(node, DictConfig) else node
        return instantiate(typed, _convert_="all", **arguments)
    except InstantiationException as error:
        key = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE)
        cause = error.__cause__
        with named(key[1] if key else ""):
            if isinstance(cause, ValueError):
                raise cause from None
            if isinstance(cause, TypeError) and WRONG_ARGUMENTS.search(str(cause)):  # passed on by its **kwargs
                raise ValueError(f"{one_line(cause)}{line_in_user_code(cause)}") from error
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
        raise UserError(f"{key}: {one_line(error)}".removeprefix(": ")) from error


def build_partial(node: DictConfig, **arguments: Any) -> Any:
    """An optimizer or schedule: `build`, called with the arguments supplied at run time that its target takes.

    Raises:
        UserError: It refuses its arguments, or cannot be stepped without any.
    """
    target = try_target(node._target_)
    with named(node._get_full_key(None)):
        updates = build(node)(**{name: value for name, value in arguments.items() if takes(target, name)})
        refuse_step_arguments(updates)
        return updates


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
    config: DictConfig,
    device: Device,
    world: World,
    *,
    start_weights: bool,
    repeats: list[float] | None = None,
    prepare_loss: Callable[[bool], None] = lambda _: None,
) -> tuple[TrainingComponents, dict[str, Hook]]:
    """Build what training needs: its components, and its hooks by name.

    Args:
        start_weights: Whether to load the weights that the model is configured to start from; False if a saved state
            is loaded later.
        repeats: How often that state takes each image.
        prepare_loss: See `collect_components`.

    Raises:
        UserError: Lists everything that cannot be built, in any process.
    """
    collector = ErrorCollector()
    # The main process sends its weights to the others.
    load = start_weights and world.is_main_process
    components = collect_components(config, collector, device, world, load, prepare_loss)
    if start_weights and world.is_main_process:
        collector(lambda dataset: compare_start_weights(config, dataset.info.class_names), components["dataset"])
    training = collector(lambda dataset: training_split(config, dataset), components["dataset"])
    validation = collector(lambda *needed: validation_split(config, *needed), components["dataset"], training)
    cache = collector(SampleCache, config.loader.cache_mib, worker_context())
    training, validation = (collector(SampleCache.wrap, cache, split) for split in (training, validation))
    augment = collector(lambda: build(config.augment))
    hooks = collector(lambda: build_hooks(config.hooks))
    # After the model was moved: on some devices that replaces its parameters.
    freezing = collector(lambda model: Freezing(model, FinetuneConfig(**config.finetune)), components["model"])
    optimizer = collector(lambda model, _: build_optimizer(config, model), components["model"], freezing)
    repeats = repeats or world.broadcast_from_main(  # late, as it may take minutes
        lambda: None if collector.problems else image_repeats(config, training, components["dataset"].info)
    )
    loader = collector(lambda *needed: training_data(config, device, world, repeats, *needed), training, augment)
    scheduler = collector(lambda *needed: build_scheduler(config, *needed), optimizer, loader)
    world.raise_collectively(collector.problems)
    data = {"training": training, "validation": validation, "cache": cache, "loader": loader}
    parts = {"freezing": freezing, "optimizer": optimizer, "scheduler": scheduler}
    return TrainingComponents(**components, **data, **parts), hooks


def build_optimizer(config: DictConfig, model: nn.Module) -> Optimizer:
    """The optimizer of what is trained, with the learning rates of ``finetune.layer_decay``.

    Raises:
        UserError: An argument is refused, or the network has no backbone.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: Optimizer = build_partial(config.optimizer, model=model, params=trained)
    if config.finetune.layer_decay is not None:
        decay_learning_rates(optimizer, model, config.finetune.layer_decay)
    return optimizer


def build_scheduler(config: DictConfig, optimizer: Optimizer, loader: TrainLoader) -> LRScheduler:
    """The learning-rate schedule of an optimizer, for the whole training."""
    total_steps = TrainerConfig(**config.trainer).total_steps(loader.steps_per_epoch)
    scheduler: LRScheduler = build_partial(config.scheduler, optimizer=optimizer, total_steps=total_steps)
    return scheduler


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


def build_loss(node: DictConfig) -> nn.Module:
    """The loss, as a module.

    Raises:
        UserError: It cannot be built, or is no loss.
    """
    loss = build(node)
    with named("loss"):
        return as_loss(loss)


def build_metrics(node: DictConfig, num_processes: int) -> dict[str, AnyMetric]:
    """The metrics of the node ``metrics`` by name, in its order, except for those set to null.

    Raises:
        UserError: A metric cannot be built, or cannot be used, see `metric_problems`.
    """
    metrics = {name: metric for name, metric in build(node).items() if metric is not None}
    if problems := [*metric_problems(metrics, num_processes)]:
        raise UserError(*(f"metrics.{problem}" for problem in problems))
    return metrics


def collect_components(
    config: DictConfig,
    collector: ErrorCollector,
    device: Device,
    world: World,
    start_weights: bool,
    prepare_loss: Callable[[bool], None] = lambda _: None,
) -> dict[str, Any]:
    """The fields of `Components`, None where something failed.

    In every process, ``prepare_loss`` completes ``config.loss``; it is told whether there is a network.
    """
    # Not loaded: the files may no longer exist.
    unused = superseded_weights(config.model) if start_weights else without_start_weights(config.model)
    precision = collector(lambda: build(config.precision))
    resolved = collector(lambda precision: precision.resolve(device), precision)
    collector(Precision.apply, precision)
    torch.manual_seed(config.seed)  # initial weights must not depend on what was built before
    model = collector(lambda: build(config.model, **unused))
    with torch.random.fork_rng(devices=[]):
        prepare_loss(model is not None)
    loss = collector(lambda: build_loss(config.loss))
    if resolved is not None and model is not None and loss is not None:
        # Nearly twice as fast with bf16 on CUDA (docs/benchmarks.md), about as fast with fp32.
        channels_last = resolved != "fp32" if config.channels_last is None else config.channels_last
        # Activations follow the layout of the weights.
        layout = torch.channels_last if channels_last else torch.preserve_format
        model, loss = model.to(device.torch, memory_format=layout), loss.to(device.torch)
        if world.size > 1 and config.mode == "train" and config.sync_batch_norm:
            model = with_sync_batch_norm(model, device, world)
        precision.prepare(model, device)
    evaluates = config.mode in ("train", "check", "test")
    inference = collector(lambda: build(config.inference))
    collector(check_compiler, config, device)
    if evaluates:
        collector(check_inference, model, inference)
    return {
        "world": world,
        "device": device,
        "precision": precision,
        "dataset": collector(lambda: build(config.dataset)),
        "inference": inference,
        "model": model,
        "loss": loss,
        "metrics": collector(lambda: build_metrics(config.metrics, world.size)) if evaluates else {},
    }
