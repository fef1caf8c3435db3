"""The records of a job: begun, resumed and closed, however the job ends."""

import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pspexp.config.build import build
from pspexp.config.from_run import config_changes
from pspexp.config.modes import COMMAND_NODES
from pspexp.data.dataset import Split
from pspexp.engine.components import Components
from pspexp.errors import Interrupted, UserError, setting
from pspexp.tracking import provenance, provenance_diff, runs
from pspexp.tracking.local import LocalTracker
from pspexp.tracking.logger import Logger, Status
from pspexp.tracking.run_folder import read_summary
from pspexp.tracking.secrets import mask_logins, mask_overrides, mask_secrets
from pspexp.tracking.tracker import SilentTracker, Tracker
from pspexp.utils.text import one_line
from pspexp.utils.trees import flatten

GRACE_S = 5.0  # after a failure, the launcher kills the other processes of a job ten seconds later

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What one run does.

    Attributes:
        config: Complete and checked.
        folder: The run folder; that of the main process counts if processes were launched externally.
        overrides: The command line's overrides.
        command: The whole command, without secrets.
        is_restart: An earlier attempt was stopped or failed; continue from its checkpoint and its records.
        tags: Further tags for the loggers.
    """

    config: DictConfig
    folder: Path
    overrides: list[str]
    command: str = ""
    is_restart: bool = False
    tags: dict[str, str] = field(default_factory=dict)


def training_state_file(folder: Path) -> Path:
    """The training state to resume from, in a run folder."""
    return folder / "checkpoints" / "last.pt"


def has_finished(folder: Path) -> bool:
    """Whether a folder holds the weights of a finished training, whose state may have been dropped."""
    best = training_state_file(folder).with_name("best.pt")
    return best.is_file() and read_summary(folder).get("status") == "FINISHED"


def start_tracker(job: Request, components: Components, splits: dict[str, Split], *, resume: bool) -> Tracker:
    """A tracker that has begun to record: in the run folder, and in the configured loggers.

    Only the main process records. For a rerun, differences from the repeated run are logged.

    Args:
        job: What is recorded.
        components: What it runs with.
        splits: The data, by role.
        resume: Continue the records in the run folder.

    Raises:
        UserError: The folder holds checkpoints of another run.
    """
    world = components.world
    last = training_state_file(job.folder)
    if not resume and world.broadcast_from_main(lambda: last.is_file() or has_finished(job.folder)):
        how = f"resume it with {setting('checkpoint.resume', 'auto')}, or choose" if last.is_file() else "choose"
        raise UserError(
            f"{setting('hydra.run.dir', job.folder)}: holds a run that would be overwritten; {how} another folder",
            shared=True,
        )
    if not world.is_main_process:
        return SilentTracker(job.folder)
    backbone = str(getattr(components.model, "backbone_name", ""))
    record = provenance.record(
        command=job.command,
        device=components.device.describe(),
        plugin=job.config.device.get("plugin"),
        processes=world.size,
        data={name: {"images": len(split), "fingerprint": split.fingerprint()} for name, split in splits.items()},
        weights={} if resume or job.config.mode == "test" else provenance.weights_hashes(job.config.model, backbone),
    )
    log_differences(job, record)
    tracker = open_tracker(
        job, components.device.type, resume=resume or job.is_restart, record=record, num_processes=world.size
    )
    if job.is_restart and not resume:  # the earlier attempt has not saved anything
        tracker.rewind(0, keep_evaluation=False)
    return tracker


def build_loggers(tracking: DictConfig, folder: Path) -> dict[str, Logger]:
    """The loggers of the node ``tracking`` by name. One that cannot be built is omitted with a warning.

    Args:
        tracking: The node.
        folder: Where the local records are, for the warning.
    """

    def build_or_warn(name: str, node: Any) -> Any:
        try:
            return build(node)
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
            log.warning("%s", mask_logins(f"logger {name} disabled; local records continue in {folder}: {reason}"))
            return None

    builtin = build_or_warn("mlflow", {**tracking, "loggers": {}}) or {}
    nodes = tracking.get("loggers") or {}
    others = {name: build_or_warn(name, node) for name, node in nodes.items() if node is not None}
    return builtin | {name: logger for name, logger in others.items() if logger is not None}


def wait_s(tracking: DictConfig | None) -> float:
    """How long the end of a run waits for a logger that is unavailable."""
    return float(tracking.get("wait_s", 0.0)) if tracking else 0.0


def log_differences(job: Request, record: dict[str, Any]) -> None:
    """Log how a rerun differs from the run it repeats: in configuration, code, versions, machine or data."""
    config = job.config
    if config.rerun is None:
        return

    def find(file: str) -> Path:
        return runs.find_file(config.rerun, file, config.output_root, config.tracking.get("tracking_uri"))

    try:
        then: Any = OmegaConf.to_container(OmegaConf.load(find("config.yaml")))
    except (UserError, OSError) as error:  # it could be read before; this run no longer needs it
        log.warning("rerun: differences are unknown: %s", error)
        return
    earlier, unknown = provenance_diff.read_records(find)
    unasked, asked = config_changes(flatten(then), flatten(public(config)), job.overrides)
    differences = [*([unknown] if unknown else []), *unasked, *provenance_diff.differences(earlier, record, find)]
    for line in differences:
        log.warning("rerun: %s", line)
    for line in asked:
        log.info("rerun: as overridden, %s", line)
    if not differences:
        log.info("rerun of %s: code, versions, machine and data are unchanged", config.rerun)


def open_tracker(
    job: Request,
    device_type: str,
    *,
    resume: bool,
    record: dict[str, Any] | None = None,
    num_processes: int = 1,
) -> Tracker:
    """Begin the records of a job, or continue those in its folder.

    Args:
        job: What is recorded.
        device_type: For the tags.
        resume: Continue the records in the run folder.
        record: The provenance of what is run; None if nothing is run.
        num_processes: Number of processes of the job.
    """
    config, shown = job.config, public(job.config)
    loggers = build_loggers(config.tracking, job.folder) if "tracking" in config else {}
    failure_s = math.inf if num_processes == 1 else GRACE_S
    tracker = Tracker(LocalTracker(job.folder), loggers, wait_s=wait_s(config.get("tracking")), failure_s=failure_s)
    tracker.start(
        name=config.run_name or default_name(config, job.folder),
        # As a parameter, the name would differ in every comparison.
        config={key: value for key, value in shown.items() if key != "run_name"},
        config_text=OmegaConf.to_yaml(OmegaConf.create(shown)),
        overrides=mask_overrides(job.overrides),
        tags={
            "mode": config.mode,
            "model": config.choices.model,
            "dataset": config.choices.dataset,
            "device": device_type,
            **job.tags,
        },
        resume=resume,
        provenance=record,
        rerun_of=config.rerun,
    )
    return tracker


def default_name(config: DictConfig, folder: Path) -> str:
    """The name of a run that is given none: its mode unless it is a training, data set, model, and month to second."""
    mode = [] if config.mode == "train" else [str(config.mode)]
    when = re.sub(r"^\d{4}-(?=\d\d-\d\d_)", "", folder.name)
    return " ".join([*mode, str(config.choices.dataset), str(config.choices.model), when])


def close_abandoned(job: Request, status: Status) -> None:
    """End the records of a job whose processes could not do it themselves."""
    if read_summary(job.folder).get("status") == "RUNNING":
        open_tracker(job, job.config.choices.device, resume=True).finish(status)


def record_failure(job: Request) -> None:
    """Record a job that failed before it had any records: its configuration, and that it failed."""
    status = read_summary(job.folder).get("status")
    if status in ("FAILED", "FINISHED"):  # not KILLED: that was an earlier attempt
        return
    job = replace(job, config=resolvable(job.config))
    open_tracker(job, job.config.choices.device, resume=status is not None).finish("FAILED")


def resolvable(config: DictConfig) -> DictConfig:
    """``config`` without the nodes whose interpolations cannot be resolved."""
    kept: dict[Any, Any] = {}
    for key in config:
        with suppress(OmegaConfBaseException):
            node = config[key]
            kept[key] = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return OmegaConf.create(kept)


@contextmanager
def recorded(tracker: Tracker, results: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Close the records with the status of how the block ends.

    Args:
        tracker: The run's tracker.
        results: Returns the arguments of `Tracker.finish`, whatever the status.
    """
    status: Status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        try:
            tracker.finish(status, **results())
        except OSError as error:
            if status == "FINISHED":
                raise
            log.warning("that the run is %s could not be recorded: %s", status, error)  # the cause follows


def public(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values without secrets, for files, checkpoints and MLflow."""
    shown: dict[str, Any] = mask_secrets(OmegaConf.to_container(config, resolve=True))
    return {key: value for key, value in shown.items() if key not in COMMAND_NODES}
