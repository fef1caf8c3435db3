"""Fills in the colour statistics of a data set that leaves them to the network's weights."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pspexp.config.targets import try_target
from pspexp.errors import UserError

KEYS = ("mean", "std")


def fill_statistics(config: DictConfig) -> None:
    """Replace ``dataset.mean`` and ``dataset.std``, where they are null, by those of the weights."""
    dataset = OmegaConf.select(config, "dataset")
    missing = [key for key in KEYS if OmegaConf.is_dict(dataset) and key in dataset and dataset[key] is None]
    if missing:
        found = weights_statistics(config)
        for key in missing:
            dataset[key] = found.get(f"dataset.{key}")


def weights_statistics(config: DictConfig) -> dict[str, list[float]]:
    """The statistics that belong to the weights which a network starts from, by key; empty without a network.

    These are the statistics that a checkpoint of this project, from which a training starts, was trained with, and else
    those of the network, see `pspexp.models.statistics`.
    """
    model = OmegaConf.select(config, "model")
    if not OmegaConf.is_dict(model):
        return {}
    arguments: Any = OmegaConf.to_container(model, resolve=True)
    found = _of_start_weights(config) or _of_network(arguments)
    return {f"dataset.{key}": values for key, values in zip(KEYS, found, strict=True)}


def _of_network(node: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    from pspexp.models.statistics import image_statistics  # imports torch, which takes seconds

    return image_statistics(try_target(node.get("_target_")), node)  # a wrong target is reported by the schema


def _of_start_weights(config: DictConfig) -> tuple[list[float], list[float]] | None:
    """Those of the checkpoint that the training starts from, if it is one of this project."""
    from pspexp.engine import checkpoint  # as above
    from pspexp.models.checkpoint_file import is_own_format

    if OmegaConf.select(config, "mode") not in ("train", "check"):
        return None
    for key in ("model.weights", "model.backbone_weights"):  # the first supersedes the second
        path = OmegaConf.select(config, key)
        if isinstance(path, str) and Path(path).is_file():
            with suppress(UserError):  # reported when the weights are loaded
                content = checkpoint.read(Path(path), foreign=True)
                dataset = checkpoint.saved_config(content, path)["dataset"] if is_own_format(content) else {}
                return (dataset["mean"], dataset["std"]) if {*KEYS} <= {*dataset} else None
    return None
