"""``mode=sync``: send what loggers have not received, since their place was unavailable or the run was killed."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pspexp.config.trust import refuse_untrusted
from pspexp.errors import JobFailed, UserError, as_yaml, setting
from pspexp.jobs.records import build_loggers
from pspexp.tracking import runs
from pspexp.tracking.delivery import Delivery, Unreachable
from pspexp.tracking.logger import Logger
from pspexp.tracking.manifest import Manifest, manifest_folders, read_manifest
from pspexp.tracking.secrets import is_masked
from pspexp.utils.text import count, first_names
from pspexp.utils.trees import flatten

log = logging.getLogger(__name__)


def sync(config: DictConfig, folder: Path) -> None:
    """Send the records of all runs in ``config.sync.runs``, those of sweeps included.

    Args:
        config: The command's configuration.
        folder: Not used.

    Raises:
        UserError: A path does not exist, or holds no run.
        JobFailed: A logger could not be reached, or could not be built.
    """
    failed: list[str] = []
    places = list(named_folders(config))
    skipped = 0
    for place, named in places:
        with ExitStack() as stack:
            try:
                for lock in (runs.LAUNCHER_LOCK, runs.WRITER_LOCK):
                    stack.enter_context(runs.run_dir_lock(place, lock))
            except UserError as error:
                skipped += 1
                log.warning("skipped: %s", error)
            else:
                failed += sync_folder(place, config, named=named)
    if failed:
        head = "not everything could be sent; where the cause can be fixed, repeat the command then:"
        raise JobFailed("\n".join([head, *failed]))
    text = f"{count(len(places) - skipped, 'run')}: all records have been received"
    log.info("%s", f"{text}; {skipped} skipped" if skipped else text)


def named_folders(config: DictConfig) -> Iterator[tuple[Path, bool]]:
    """Each folder with a run, and whether it was named itself."""
    given = config.sync.runs if OmegaConf.is_list(config.sync.runs) else [config.sync.runs]
    paths = [Path(str(path)).expanduser() for path in given] or [Path(config.output_root)]
    problems: list[str] = []
    found: dict[Path, bool] = {}
    for path in paths:
        inside = sorted(manifest_folders(path))
        if not inside:
            what = "holds no run" if path.is_dir() else "no such folder"
            problems.append(f"{setting('sync.runs', path)}: {what} (looked for {path.absolute()})")
        found |= {one: bool(given) and one == path for one in inside}
    if problems:
        raise UserError(*problems)
    yield from found.items()


def sync_folder(folder: Path, config: DictConfig, *, named: bool) -> list[str]:
    """Send the records of one run; returns a line for each logger that has not received everything."""
    manifest = read_manifest(folder)
    if manifest is None:
        return [f"{folder}: tracking/manifest.json cannot be read"]
    manifest = replace(manifest, status=manifest.status or "KILLED")  # nobody holds its lock
    node, problems = tracking_node(manifest, config, named=named)
    if problems:
        return [f"{folder}: {problem}" for problem in problems]
    try:
        refuse_untrusted({"tracking": node}, str(folder), own=True, today=config)
    except UserError as error:
        return [*error.problems]
    loggers = build_loggers(OmegaConf.create(node), folder)
    expected = {*(["mlflow"] if "tracking_uri" in node else []), *node.get("loggers", {})}
    failed = [f"{folder}: logger {name} cannot be built (see above)" for name in sorted(expected - {*loggers})]
    for name, logger in loggers.items():
        failed += send(folder, name, logger, manifest, moved=config.tracking.get("tracking_uri") is not None)
    return failed


def send(folder: Path, name: str, logger: Logger, manifest: Manifest, *, moved: bool) -> list[str]:
    """Send to one logger.

    Args:
        folder: The run folder.
        name: The logger's name.
        logger: The logger.
        manifest: That of the run.
        moved: Whether the user says where to send it, which may be another place than before.

    Returns:
        What went wrong.
    """
    delivery = Delivery(name, logger, folder)
    before = delivery.received
    if before.place not in ("", str(logger)) and name == "mlflow" and not moved:
        key = setting("tracking.tracking_uri")
        return [f"{folder}: was recorded by {before.place}, but {logger} is configured here; give {key}"]
    if delivery.is_complete(manifest):
        return []
    files = len(before.files)
    try:
        delivery.deliver(manifest)
    except Unreachable as error:
        with suppress(Exception):  # records may arrive where files cannot
            delivery.close(manifest)
        return [f"{folder}: {delivery}: {error}"]
    files = len(delivery.received.files) - files
    log.info("%s: %s and %s sent to %s", folder, count(delivery.sent_records, "record"), count(files, "file"), delivery)
    if delivery.rejected:
        return [f"{folder}: {delivery} rejected: {first_names(sorted(delivery.rejected))}"]
    return []


def tracking_node(manifest: Manifest, config: DictConfig, *, named: bool) -> tuple[dict[str, Any], Sequence[str]]:
    """The node ``tracking`` by which a run is sent, and what is wrong with it.

    It is the run's own, with the URI and the loggers of the command line, if there are any. A run that was recorded
    without MLflow is sent there if it was named.
    """
    here: Any = OmegaConf.to_container(config.tracking, resolve=True)
    node: dict[str, Any] = dict(manifest.tracking) or here
    if named and "tracking_uri" not in node and "tracking_uri" in here:
        node = {**here, "loggers": node.get("loggers", {})}
    if "tracking_uri" in node and here.get("tracking_uri") is not None:
        node["tracking_uri"] = here["tracking_uri"]
    node["loggers"] = merged(node.get("loggers") or {}, here.get("loggers") or {})
    lost = [key for key, value in flatten(node).items() if is_masked(value)]
    problems = [
        f"tracking.{key}={as_yaml(flatten(node)[key])}: is a secret, which no record contains; give it on the command "
        f"line ({'+' if key.startswith('loggers.') else ''}tracking.{key}=…)"
        for key in lost
    ]
    return node, problems


def merged(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded loggers, with the arguments given here."""
    return {name: {**(node or {}), **given.get(name, {})} for name, node in recorded.items() if node is not None}
