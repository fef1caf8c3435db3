"""The records of a job: how they begin, what they say about it, and how they end, whatever comes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pspexp.config.build import Components, build
from pspexp.config.from_run import config_changes
from pspexp.data.dataset import Split
from pspexp.errors import Interrupted, UserError
from pspexp.tracking import LocalTracker, Logger, SilentTracker, Status, Tracker, provenance, repeat, runs
from pspexp.tracking.local import read_summary
from pspexp.tracking.secrets import without_secrets, words_without_secrets
from pspexp.utils.trees import flatten

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What one run is to do.

    Attributes:
        config: complete and checked.
        folder: the run folder; another process's word counts where several started by themselves.
        overrides: the words typed.
        command: the whole command, without secrets.
        again: an earlier attempt was ended, or failed; go on with what it has saved, and with its records.
        tags: for MLflow, beside those of every run.
    """

    config: DictConfig
    folder: Path
    overrides: list[str]
    command: str = ""
    is_restart: bool = False
    tags: dict[str, str] = field(default_factory=dict)


def own_state(folder: Path) -> Path:
    """The training state that a run folder holds, if it does."""
    return folder / "checkpoints" / "last.pt"


def start_tracker(job: Request, parts: Components, splits: dict[str, Split], *, resume: bool) -> Tracker:
    """A tracker that has begun: the run folder first, then the views the configuration asks for.

    Only the first process records. A rerun tells what is not as it was.

    Args:
        splits: the data, by what each split is used for.

    Raises:
        UserError: the folder holds another run's states.
    """
    if not resume and parts.world.broadcast_from_main(own_state(job.folder).is_file):
        raise UserError(
            f"hydra.run.dir={job.folder}: holds a run that would be overwritten; "
            "go on with checkpoint.resume=auto, or choose another folder",
            shared=True,
        )
    if not parts.world.is_main_process:
        return SilentTracker(job.folder)
    attempt = provenance.attempt(
        command=job.command,
        device=parts.device.describe(),
        plugin=job.config.device.get("plugin"),
        processes=parts.world.size,
        data={name: {"images": len(split), "fingerprint": split.fingerprint()} for name, split in splits.items()},
        weights={} if resume or job.config.mode == "test" else provenance.weights_hashes(job.config.model),
    )
    tell_differences(job, attempt)
    views = build(job.config.tracking)
    tracker = open_tracker(job, parts.device.type, views, resume=resume or job.is_restart, attempt=attempt)
    if job.is_restart and not resume:  # the first attempt had not come to a save
        tracker.rewind(0, keep_evaluation=False)
    return tracker


def tell_differences(job: Request, attempt: dict[str, Any]) -> None:
    """Log how a rerun differs from the run it repeats: in configuration, code, versions, machine or data."""
    config = job.config
    if config.rerun is None:
        return

    def find(file: str) -> Path:
        return runs.find_file(config.rerun, file, config.output_root, config.tracking.get("tracking_uri"))

    try:
        then: Any = OmegaConf.to_container(OmegaConf.load(find("config.yaml")))
    except (UserError, OSError) as error:  # it could be read a moment ago; this run does not need it any more
        log.warning("rerun: what differs is not known: %s", error)
        return
    now = public(config)
    attempts, unknown = repeat.read_attempts(find)
    unasked, asked = config_changes(flatten(then), flatten(now), job.overrides)
    differences = [*([unknown] if unknown else []), *unasked, *repeat.differences(attempts, attempt, find)]
    for line in differences:
        log.warning("rerun: %s", line)
    for line in asked:
        log.info("rerun: as typed, %s", line)
    if not differences:
        log.info("rerun of %s: code, versions, machine and data are as they were", config.rerun)


def open_tracker(
    job: Request, device_type: str, views: Sequence[Logger], *, resume: bool, attempt: dict[str, Any] | None = None
) -> Tracker:
    """Begin the records of a job, or go on with those in its folder.

    Args:
        attempt: what is to be recorded about code, machine and data; None if nothing is run.
    """
    config, shown = job.config, public(job.config)
    tracker = Tracker(LocalTracker(job.folder), views)
    tracker.start(
        name=config.run_name or job.folder.name,
        # The name is shown as such; among the parameters it would be one more that differs in every comparison.
        config={key: value for key, value in shown.items() if key != "run_name"},
        config_text=OmegaConf.to_yaml(OmegaConf.create(shown)),
        overrides=words_without_secrets(job.overrides),
        tags={
            "mode": config.mode,
            "model": config.choices.model,
            "dataset": config.choices.dataset,
            "device": device_type,
            **job.tags,
        },
        resume=resume,
        attempt=attempt,
        rerun_of=config.rerun,
    )
    return tracker


def close_abandoned(job: Request, status: Status) -> None:
    """End the records of a job whose processes could not do it themselves."""
    if read_summary(job.folder).get("status") == "RUNNING":
        open_tracker(job, job.config.choices.device, build(job.config.tracking), resume=True).finish(status)


def record_failure(job: Request) -> None:
    """Leave records of a job that failed before it had any: what was asked for, and that it failed."""
    status = read_summary(job.folder).get("status")
    if status in ("FAILED", "FINISHED"):  # not KILLED: that was an earlier attempt
        return
    job = replace(job, config=resolvable(job.config))
    try:
        views = build(job.config.tracking)
    except Exception:  # it may be what is wrong
        views = []
    open_tracker(job, job.config.choices.device, views, resume=status is not None).finish("FAILED")


def resolvable(config: DictConfig) -> DictConfig:
    """``config`` as far as it can be resolved: without the nodes that refer to what does not exist."""
    kept: dict[Any, Any] = {}
    for key in config:
        with suppress(OmegaConfBaseException):
            node = config[key]
            kept[key] = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return OmegaConf.create(kept)


@contextmanager
def recorded(tracker: Tracker, results: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Close the run's records with the status that its end deserves."""
    status: Status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        tracker.finish(status, **results())


def public(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values without secrets, for files, checkpoints and MLflow."""
    shown: dict[str, Any] = without_secrets(OmegaConf.to_container(config, resolve=True))
    return {key: value for key, value in shown.items() if key not in ("compare", "sweep")}  # these describe no run
