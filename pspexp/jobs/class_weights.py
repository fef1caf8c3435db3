"""Class weights of the loss that are counted: ``loss.class_weights=auto`` and the like."""

import logging
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from pspexp.config.build import build
from pspexp.config.class_weights import methods
from pspexp.config.training_data import training_split
from pspexp.data.pixel_counts import pixel_counts
from pspexp.engine.distributed import World
from pspexp.errors import UserError
from pspexp.losses.class_weights import METHODS, weights_from_counts
from pspexp.utils.text import first_names

log = logging.getLogger(__name__)


def resolve_class_weights(
    config: DictConfig, world: World, saved: Mapping[str, Any] | None = None, has_network: bool = True
) -> None:
    """Replace the names of methods in the loss by numbers, so that these are what is built, recorded and saved.

    Args:
        config: The configuration, which is changed. In a training whose data set cannot be opened, which building it
            will report, it stays as it is.
        world: The processes; the main process counts.
        saved: The training state to resume from, which has the same methods. Its numbers are used, and nothing is
            counted.
        has_network: Whether there is a network to train; without one, in the main process, nothing is counted either.

    Raises:
        UserError: A test needs class weights, but there is no training split to count.
    """
    loss = OmegaConf.to_container(config.loss)
    named = {key: method for key, method in methods(loss, "loss") if method in METHODS}
    if not named:
        return
    if saved is None:
        weights = world.broadcast_from_main(lambda: count_weights(config, named) if has_network else {})
    else:
        then = OmegaConf.create({"loss": saved["config"]["loss"]})
        weights = {key: OmegaConf.select(then, key) for key in named}
    with open_dict(config):
        for key, numbers in weights.items():
            OmegaConf.update(config, key, numbers, merge=False)
            config.choices[key] = named[key]


def count_weights(config: DictConfig, named: Mapping[str, str]) -> dict[str, list[float]]:
    """The weights for each key of ``named``, by the method that it names."""
    try:
        dataset = build(config.dataset)
        split = training_split(config, dataset)
    except UserError as error:
        if config.mode == "train":
            return {}
        problem = f"counted in the training images, which cannot be opened ({error.problems[0]})"
        raise UserError(*(f"{key}={named[key]}: is {problem}; give numbers, or null" for key in named)) from error
    names = dataset.info.class_names
    counts = pixel_counts(split, len(names))
    found = {key: weights_from_counts(counts, method) for key, method in named.items()}
    for key, weights in found.items():
        shown = ", ".join(f"{name}: {weight:g}" for name, weight in zip(names, weights, strict=True))
        log.info("%s=%s: %s", key, named[key], shown)
    if absent := [name for name, pixels in zip(names, counts.sum(axis=0), strict=True) if not pixels]:
        log.warning("%s: classes without training pixels have weight 1: %s", next(iter(named)), first_names(absent, 10))
    return found
