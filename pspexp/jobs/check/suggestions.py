"""Suggested settings, derived from the data and the machine."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from pspexp.config.build import build
from pspexp.config.targets import without_start_weights
from pspexp.data.inspection.findings import Finding
from pspexp.engine.components import TrainingComponents
from pspexp.jobs.check.data import CheckedData, SplitSummary
from pspexp.jobs.check.environment import memory_bytes
from pspexp.losses.class_weights import weights_from_counts
from pspexp.models.segmenter import size_rule
from pspexp.utils.files import mib

LARGEST_CROP = 769  # pixels; larger ones are rarely worth their time
MIN_STEPS = 10  # an epoch
LARGEST_BATCH = 64
MISREAD = ("undeclared values", "label values", "nothing labelled", "one class")  # findings that make shares wrong
USABLE = 0.8  # of a device's memory; on a CPU half of the machine's


class Suggestion(NamedTuple):
    """Something to add to the command, and what it is based on."""

    overrides: str
    basis: str


def suggestions(
    config: DictConfig, components: TrainingComponents | None, data: CheckedData, findings: Sequence[Finding]
) -> list[Suggestion]:
    """Suggestions for training on the data; no class weights if the findings say that labels are misread."""
    train = data.split("train")
    if train is None or not train.counted or not train.sizes:
        return []
    found = [crop_size(config, components, train)]
    if components is not None:
        found += batch_size(config, components, train)
    if not any(finding.level == "error" and finding.kind in MISREAD for finding in findings):
        found += class_weights(train)
    return [one for one in found if not is_set(config, one.overrides)]


def is_set(config: DictConfig, override: str) -> bool:
    """Whether a configuration has the value of an override."""
    key, _, value = override.partition("=")
    return str(OmegaConf.select(config, key)) == value


def crop_size(config: DictConfig, components: TrainingComponents | None, train: SplitSummary) -> Suggestion:
    """A crop about as large as the shorter side of most images, valid for the network's stride."""
    sizes = [(min(size), max(size)) for size, number in train.sizes.items() for _ in range(number)]
    shorter, longer = (int(np.median(sides)) for sides in zip(*sizes, strict=True))
    stride, remainder = size_rule(config.model if components is None else components.model)
    side = max(min(shorter, LARGEST_CROP) // stride, 1) * stride + remainder
    side -= stride if side > shorter and side > stride + 1 else 0
    padded = sum(one[0] < config.crop_size for one in sizes) / len(sizes)
    basis = f"the median image has sides of {shorter} and {longer} pixels"
    if stride > 1:
        basis += f"; a valid crop has a multiple of {stride}{' plus 1' if remainder else ''}"
    return Suggestion(
        f"crop_size={side}",
        f"{basis}. With crop_size={config.crop_size}, {padded:.0%} of the images are padded at scale 1",
    )


def batch_size(config: DictConfig, components: TrainingComponents, train: SplitSummary) -> Iterator[Suggestion]:
    """The largest power of two that fits into memory and leaves enough steps in an epoch."""
    try:
        each = activation_bytes(config, components.dataset.info.num_bands)
    except Exception:  # a network that cannot run without data, or on torch's "meta" device
        return
    if components.precision.resolve(components.device) in ("bf16", "fp16"):
        each //= 2
    weights = 4 * 4 * sum(parameter.numel() for parameter in components.model.parameters())
    memory, where = usable_memory(components)
    fits = max((memory - weights) // max(each, 1), 2)
    enough = max(len(train.split) // MIN_STEPS, 2)
    size = 2 ** int(np.log2(min(fits, enough, LARGEST_BATCH)))
    limit = f"{MIN_STEPS} steps in an epoch of {len(train.split)} images" if enough <= fits else where
    yield Suggestion(
        f"loader.batch_size={size}",
        f"limited by {limit}. About {mib(each)} for each crop of {config.crop_size} pixels (activations that the "
        f"network keeps for its backward pass), {mib(weights)} for weights, gradients and optimizer; {where}",
    )


def usable_memory(components: TrainingComponents) -> tuple[int, str]:
    """Bytes that training may use, and what that is."""
    device = components.device
    module: Any = getattr(torch, device.type, None)
    if device.type != "cpu" and hasattr(module, "get_device_properties"):
        total = int(module.get_device_properties(device.torch).total_memory)
        return int(USABLE * total), f"{USABLE:.0%} of the {mib(total)} of {device.torch}"
    return memory_bytes() // 2, f"half of the {mib(memory_bytes())} of this machine"


def activation_bytes(config: DictConfig, num_bands: int) -> int:
    """Bytes that a training step keeps for each image, as torch would save them in fp32.

    The network runs on torch's "meta" device, which computes shapes but no values.
    """
    unused = without_start_weights(config.model)
    with torch.device("meta"):
        model = build(config.model, **unused).train()
        images = torch.zeros(2, num_bands, config.crop_size, config.crop_size)
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    seen: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            seen[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = model(images)
    loss = (
        3 * 4 * sum(int(output.numel()) for output in outputs.values())
    )  # logits, log-probabilities and their gradient
    kept: int = sum(storage.nbytes() for storage in seen.values())
    return (kept + loss) // 2


def class_weights(train: SplitSummary) -> Iterator[Suggestion]:
    """Weights by the frequencies of the classes, see `pspexp.losses.class_weights`."""
    present = train.pixels > 0
    if present.sum() < 2:
        return
    values = ", ".join(f"{weight:.3g}" for weight in weights_from_counts(train.by_sample, "auto"))
    rest = "" if present.all() else "; 1 for classes that do not occur"
    yield Suggestion(
        "loss.class_weights=auto",
        "if rare classes matter: the square root of median frequency / frequency, in the training images that contain "
        f"the class (after Eigen and Fergus, 2015), here {values}{rest}",
    )
