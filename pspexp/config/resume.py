"""Differences in configuration and data that rule out resuming a saved training state."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pspexp.errors import as_yaml
from pspexp.utils.text import count
from pspexp.utils.trees import flatten

# A saved training state can only be resumed with the same values of these, except for FREE_KEYS.
FIXED_BY_STATE = (
    "model",
    "dataset",
    "augment",
    "loss",
    "optimizer",
    "scheduler",
    "precision",
    "seed",
    "crop_size",
)
FIXED_KEYS = (
    "loader.batch_size",
    "loader.max_eval_images",
    "trainer.accumulate",
    "trainer.ema",
    "trainer.grad_clip",
    "trainer.epochs",
    "sync_batch_norm",
)
# Schedulers that do not depend on the length of the training, so that it may change.
ENDLESS_SCHEDULERS = ("pspexp.optim.constant",)
SHARED_OUT = ("loader.batch_size", "trainer.accumulate")  # with more processes, each takes fewer images
FREE_KEYS = ("dataset.root", "dataset.on_error", "dataset.max_image_pixels", "model.weights", "model.backbone_weights")
# Where and how fast a run computes, and how often it logs: these do not change the result.
MACHINE_KEYS = ("device.index", "dataset.root", "loader.num_workers", "loader.cache_mib", "trainer.log_every")


def resume_conflicts(saved: dict[str, Any], config: dict[str, Any], world_size: int) -> list[str]:
    """One line for each difference that rules out a bit-exact resume: key, value now, saved value.

    Args:
        saved: The content of a ``last.pt``.
        config: The current configuration, as plain values.
        world_size: Current number of processes.
    """
    then, now = flatten(saved["config"]), flatten(config)
    saved_size = saved.get("training", {}).get("world_size", 1)
    may_change = config["checkpoint"]["allow_world_size_change"]

    def fixed(key: str) -> bool:
        if key in SHARED_OUT and may_change and saved_size != world_size:
            return False
        if key == "trainer.epochs" and now.get("scheduler._target_") in ENDLESS_SCHEDULERS:
            return False
        return key not in FREE_KEYS and (key in FIXED_KEYS or key.partition(".")[0] in FIXED_BY_STATE)

    conflicts = [
        f"{key}={as_yaml(now.get(key))}: the saved run has {as_yaml(then.get(key))}; resume with that, or start a new "
        "run from its weights with model.weights=<checkpoint>"
        for key in sorted(then.keys() | now.keys())
        if fixed(key) and then.get(key) != now.get(key)
    ]
    return [*conflicts, *world_size_conflicts(then, now, saved_size, world_size, may_change)]


def world_size_conflicts(
    then: dict[str, Any], now: dict[str, Any], saved_size: int, size: int, may_change: bool
) -> Iterator[str]:
    """What rules out resuming with another number of processes."""
    if saved_size == size:
        return
    if not may_change:
        yield (
            f"launcher: {count(size, 'process')} now, but {count(saved_size, 'process')} in the saved run, "
            "so sums would be taken in another order and each process would draw other random numbers; resume with "
            f"{count(saved_size, 'process')}, or set checkpoint.allow_world_size_change=true"
        )
        return
    before, after = (math.prod(flat[key] for key in SHARED_OUT) for flat in (then, now))
    if before * saved_size != after * size:
        yield (
            f"loader.batch_size × trainer.accumulate × processes = {after} × {size}: the saved run takes "
            f"{before} × {saved_size} images per step; choose a batch size or accumulation with the same product"
        )


def data_conflicts(saved: Mapping[str, Any], data: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """How the data differs from that of a saved training state, if the state says what that was.

    Args:
        saved: The training state in a ``last.pt``.
        data: `pspexp.engine.state.data_state` of the splits ``train`` and ``val``.

    Returns:
        Lines about what rules out resuming, and lines about what does not.
    """
    then = saved.get("data") or {}
    refused, warnings = [], []
    for role, what in (("train", "training image"), ("val", "validation image")):
        if role not in then or then[role] == data[role]:
            continue
        before, here = then[role]["images"], data[role]["images"]
        if before != here:
            line = f"dataset: {count(here, what)} here, {before} in the saved run"
        elif then[role]["names"] != data[role]["names"]:
            line = f"dataset: the {what}s or their order differ from the saved run ({before} in both)"
        else:
            warnings.append(f"dataset: files of the {what}s have changed since the saved run: their sizes differ")
            continue
        if role == "train":
            fix = "restore the original images, or start a new run from its weights with model.weights=<checkpoint>"
            refused.append(f"{line}; {fix}")
        else:
            best = saved["state"]["best"].get("best/mean_iou")
            known = "" if best is None else f", {100 * best:.2f} %,"
            warnings.append(f"{line}; the best mean IoU so far{known} was measured on those images")
    return refused, warnings
