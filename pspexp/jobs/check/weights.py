"""What a training would start from, and whether that is there."""

import torch
from omegaconf import DictConfig

from pspexp.config.build import build
from pspexp.data.inspection.findings import Finding
from pspexp.engine.components import TrainingComponents
from pspexp.errors import ArgumentError
from pspexp.models import pretrained
from pspexp.utils.files import mib


def to_download(config: DictConfig) -> str | None:
    """timm's name of the backbone whose ImageNet weights a training would download; None if it would not."""
    model = config.model
    if config.checkpoint.resume is not None or model.get("weights") is not None:
        return None
    if model.get("backbone_weights") != "timm":
        return None
    try:
        with torch.device("meta"):
            name = str(build(model, weights=None, backbone_weights=None).backbone_name)
        return None if pretrained.is_cached(name) else name
    except Exception:  # reported when everything is built
        return None


def describe(
    config: DictConfig, components: TrainingComponents | None, missing: str | None
) -> tuple[str, list[Finding]]:
    """What a training would start from, and a warning if that cannot be downloaded.

    Args:
        config: The configuration.
        components: What was built, with the initial weights except for the missing ones.
        missing: Of `to_download`.
    """
    if config.checkpoint.resume is not None:
        return f"those of checkpoint.resume={config.checkpoint.resume}", []
    if missing is not None:
        return ask_hub(missing)
    if components is None:
        return "unknown, since not everything can be built", []
    return getattr(components.model, "initial_weights", "") or "set by the network's own class", []


def ask_hub(name: str) -> tuple[str, list[Finding]]:
    """Whether the hub has the ImageNet weights of timm's network ``name``, and their size."""
    try:
        file = pretrained.find_on_hub(name)
    except ArgumentError as error:
        what, _, ways = error.problems[0].partition(pretrained.ALTERNATIVES)
        fix = "; ".join(line.strip() for line in ways.splitlines() if line.strip())
        text = f"ImageNet weights of {name}, which are not in the cache and cannot be downloaded"
        return text, [Finding("warning", "weights", None, f"model.{what}", fix)]
    size = "" if file.size is None else f" ({mib(file.size)})"
    return f"ImageNet weights of {name}, which the first training downloads{size} from {file.repository}", []
