"""The saved training state to resume, and the differences in configuration and data that rule it out."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pspexp.config.class_weights import uncounted
from pspexp.config.targets import START_WEIGHTS
from pspexp.errors import UserError, as_yaml
from pspexp.utils.text import count
from pspexp.utils.trees import flatten

Plain = Mapping[str, Any]

MLFLOW_RUN = "runs:/"

# A saved training state can only be resumed with the same values of these, except for FREE_KEYS.
FIXED_BY_STATE = (
    "model",
    "dataset",
    "augment",
    "loss",
    "optimizer",
    "scheduler",
    "finetune",
    "precision",
    "seed",
    "crop_size",
)
FIXED_KEYS = (
    "loader.batch_size",
    "loader.max_train_images",
    "loader.max_eval_images",
    "loader.sampling",
    "loader.repeat_threshold",
    "trainer.accumulate",
    "trainer.ema",
    "trainer.grad_clip",
    "sync_batch_norm",
)
# Schedulers that do not depend on the length of the training, so that it may change.
ENDLESS_SCHEDULERS = ("pspexp.optim.constant",)
ON_EXTEND = "scheduler.on_extend"
RESOLVED_PRECISION = "precision.resolved"  # what ``auto`` meant, once the training has begun
SHARED_OUT = ("loader.batch_size", "trainer.accumulate")  # with more processes, each takes fewer images
FREE_KEYS = (
    "dataset.root",
    "dataset.on_error",
    "dataset.max_image_pixels",
    *(f"model.{name}" for name in START_WEIGHTS),
    ON_EXTEND,
    RESOLVED_PRECISION,
)
OTHERWISE = "resume with that, or start a new run from its weights with model.weights=<checkpoint>"
HOW_TO_EXTEND = (
    f"{ON_EXTEND}=stretch (as if planned with the new length), restart (a new cycle from the full rate, warm-up "
    "included) or constant (stays at the last rate)"
)
# Where and how fast a run computes, and how often it logs: these do not change the result.
MACHINE_KEYS = (
    *("device.index", "dataset.root", "loader.num_workers", "loader.cache_mib", "trainer.log_every"),
    "inference.compile",
)


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
    free = SHARED_OUT if may_change and saved_size != world_size else ()
    conflicts = [
        f"{key}={as_yaml(here)}: the saved run has {as_yaml(before)}; {OTHERWISE}"
        for key, before, here in differences(then, now)
        if key not in free
    ]
    lengths = length_conflicts(then, now, saved.get("training", {}))
    return [*conflicts, *lengths, *world_size_conflicts(then, now, saved_size, world_size, may_change)]


def differences(then: Plain, now: Plain) -> list[tuple[str, Any, Any]]:
    """Each key that must not change between two flat configurations but differs, and its values there."""
    then = uncounted(then, now)
    if then.get("precision.name") == "auto" and then.get(RESOLVED_PRECISION) == now.get("precision.name"):
        then["precision.name"] = now["precision.name"]
    return [
        (key, then.get(key), now.get(key))
        for key in sorted(then.keys() | now.keys())
        if key not in FREE_KEYS
        and (key in FIXED_KEYS or key.partition(".")[0] in FIXED_BY_STATE)
        and then.get(key) != now.get(key)
    ]


def length_conflicts(then: Plain, now: Plain, training: Plain) -> Iterator[str]:
    """What rules out resuming with another length of the training.

    Args:
        then, now: Flat configurations.
        training: The saved training state.
    """
    per_epoch, key = training.get("steps_per_epoch", 1), length_key(now)
    before, here = (flat.get(length_key(flat), 0) * (per_epoch if is_in_epochs(flat) else 1) for flat in (then, now))
    in_steps = key == length_key(then) == "trainer.steps"
    if in_steps and here == before and now["trainer.epochs"] != then["trainer.epochs"]:
        value = now["trainer.epochs"]
        yield f"trainer.epochs={value}: has no effect, since trainer.steps={here} takes precedence; change that instead"
    if here == before:
        return
    left, warmup = here - training.get("state", {}).get("step", 0), now.get("scheduler.warmup_steps", 0)
    if now.get(ON_EXTEND) == "restart" and warmup >= left:
        yield (
            f"scheduler.warmup_steps={warmup}: {ON_EXTEND}=restart repeats the warm-up, but {key}={now[key]} leaves "
            f"{count(max(left, 0), 'step')}; increase that, or choose another {ON_EXTEND}"
        )
    if now.get("scheduler._target_") in ENDLESS_SCHEDULERS:
        return
    what = f"{key}={now[key]}: the saved run has {describe_length(then, unless=key)}"
    if here < before:
        yield (
            f"{what}, and a training can be extended, but not shortened; resume with that, and set "
            "trainer.max_steps=<steps> to stop earlier"
        )
    elif ON_EXTEND not in now:
        yield f"{what}, and {now.get('scheduler._target_')} cannot be extended; {OTHERWISE}"
    elif now[ON_EXTEND] is None:
        yield f"{what}; to extend it, choose how the learning rate continues: {HOW_TO_EXTEND}"


def unequal(then: Plain, now: Plain) -> list[tuple[str, Any, Any]]:
    """`differences`, and that in the length of the training."""
    key = length_key(now)
    length = [(key, then.get(key), now[key])] if then.get(key) != now[key] else []
    return [*differences(then, now), *length]


def extends(then: Plain, now: Plain) -> bool:
    """Whether a flat configuration says how a run with another one is extended, and by how much."""
    key = length_key(now)
    return now.get(ON_EXTEND) is not None and then.get(key) != now[key]


def extension(saved: dict[str, Any], config: dict[str, Any]) -> dict[str, str]:
    """A tag about how a resume changes the length of the training; none if it does not.

    Args:
        saved: The content of the ``last.pt``.
        config: The current configuration, as plain values.
    """
    then, now = flatten(saved["config"]), flatten(config)
    if all(then.get(key) == now.get(key) for key in ("trainer.epochs", "trainer.steps")):
        return {}
    key, rule = length_key(now), as_yaml(now.get(ON_EXTEND))
    step = saved["training"]["state"]["step"]
    return {
        "extended": f"{key}={now[key]} from step {step} on, {describe_length(then, key)} before ({ON_EXTEND}={rule})"
    }


def is_in_epochs(flat: Plain) -> bool:
    """Whether a flat configuration gives the length of the training in epochs."""
    return flat.get("trainer.steps") is None


def length_key(flat: Plain) -> str:
    """The key that gives the length of the training."""
    return "trainer.epochs" if is_in_epochs(flat) else "trainer.steps"


def describe_length(flat: Plain, unless: str) -> str:
    """The length of the training; with its key, unless that is the given one."""
    key = length_key(flat)
    return str(flat[key]) if key == unless else f"{key}={flat[key]}"


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


def find_state(resume: str, output_root: str, tracking_uri: str | None) -> Path:
    """The ``last.pt`` that ``checkpoint.resume`` names; of a run in MLflow, that in its folder if it is here.

    Args:
        resume: A run folder, a ``last.pt`` in one or elsewhere, or ``runs:/<MLflow run id>``.
        output_root: Where the folder of an MLflow run is looked for; see `pspexp.tracking.mlflow_client.resolve_uri`.
        tracking_uri: See there.

    Raises:
        UserError: It does not exist.
    """
    from pspexp.tracking import runs  # slow to import

    folder = folder_of_mlflow_run(resume, output_root)
    try:
        return runs.find_checkpoint(str(folder or resume), "last.pt", output_root, tracking_uri)
    except UserError as error:
        fix = "give a run that has saved one, or remove checkpoint.resume to start a new run"
        raise UserError(*(f"checkpoint.resume={problem}; {fix}" for problem in error.problems)) from error


def state_folder(resume: str, output_root: str, tracking_uri: str | None) -> Path | None:
    """The run folder of `find_state`; None for another file, such as an earlier state or an artifact of MLflow."""
    from pspexp.tracking import runs  # as above

    if resume.startswith(MLFLOW_RUN):
        return folder_of_mlflow_run(resume, output_root)
    file = find_state(resume, output_root, tracking_uri)
    return runs.run_folder(file) if file.name == "last.pt" else None


def folder_of_mlflow_run(resume: str, output_root: str) -> Path | None:
    """The run folder in ``output_root`` of ``runs:/<MLflow run id>``, if it has a ``last.pt``."""
    from pspexp.tracking.run_folder import read_summary

    if not resume.startswith(MLFLOW_RUN):
        return None
    run_id = resume.removeprefix(MLFLOW_RUN).strip("/")
    for pattern in ("*/*/checkpoints/last.pt", "sweeps/*/*/checkpoints/last.pt"):
        for file in Path(output_root).glob(pattern):
            if read_summary(file.parents[1]).get("mlflow_run_id") == run_id:
                return file.parents[1]
    return None
