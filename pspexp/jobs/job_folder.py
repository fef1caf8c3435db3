"""The folder of a job: a new one, or that of the run to resume."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pspexp.config.modes import MODES
from pspexp.errors import UserError, as_yaml, setting
from pspexp.launchers.base import Launcher
from pspexp.utils.trees import flatten

TIME_FORMAT = "%Y-%m-%d_%H-%M-%S"
LEFTOVERS = ("run.log", ".lock", ".writing.lock")  # of a run that was refused before it had any records


def choose_folder(config: DictConfig, launcher: Launcher | None) -> Path:
    """The run folder to resume in, the folder of a checkpoint's results, or a new folder.

    Raises:
        UserError: A folder cannot be created.
    """
    if folder := output_folder(config):
        return folder
    resumed: Path | None = resumed_folder(config, launcher) if launcher else None
    return resumed or new_folder(parent_folder(config) / datetime.now().strftime(TIME_FORMAT))


def output_folder(config: DictConfig) -> Path | None:
    """Where a mode such as predict writes; None for a mode with folders of its own.

    By default this is a folder in the run folder of the checkpoint, or, for a checkpoint elsewhere, in the output root.
    It does not depend on the time, so that repeating a command can continue.

    Raises:
        UserError: The folder cannot be created or written.
    """
    name = MODES[config.mode].output
    if name is None:
        return None
    from pspexp.tracking import runs

    checkpoint, given = Path(config.checkpoint.path), config[config.mode].output
    run = runs.run_folder(checkpoint)
    elsewhere = Path(config.output_root, config.mode, checkpoint.stem)
    folder = Path(given) if given is not None else run / name if run else elsewhere
    return writable(folder, f"{config.mode}.output={folder}")


def given_folder(folder: str) -> Path:
    """The folder of ``hydra.run.dir``.

    Raises:
        UserError: It cannot be created or written.
    """
    return writable(Path(folder), setting("hydra.run.dir", folder))


def writable(folder: Path, name: str) -> Path:
    """``folder``, created if it is missing; raises UserError, with ``name``, if it cannot be created or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{name}: cannot write there ({error.strerror}); choose another folder") from error
    return folder


def resumed_folder(config: DictConfig, launcher: Launcher) -> Path | None:
    """The run folder in which ``checkpoint.resume`` continues, or None for a new one.

    A run whose processes were restarted externally is always resumed.
    """
    resume = config.checkpoint.resume or ("auto" if launcher.is_restart else None)
    if config.mode != "train" or resume is None:
        return None
    # Slow to import, and most commands need none of it here.
    from pspexp.config.resume import extends, resume_conflicts, state_folder
    from pspexp.engine import checkpoint
    from pspexp.jobs.records import public
    from pspexp.tracking import runs

    if resume != "auto":
        return state_folder(resume, config.output_root, config.tracking.get("tracking_uri"))
    now = public(config)

    def same(file: Path) -> bool:
        try:
            state = checkpoint.read(file)
            # A rerun is resumed in its own folder, not in that of the run it repeats.
            own = state["config"].get("rerun") == now["rerun"]
            return own and not resume_conflicts(state, now, launcher.world_size)
        except UserError:  # unreadable, or in another format: not this run
            return False

    def finished_but_extended(folder: Path) -> bool:
        return extends(recorded_config(folder), flatten(now))

    return runs.latest_unfinished(parent_folder(config), same, finished_but_extended)


def nothing_to_resume(config: DictConfig, folder: Path, world_size: int) -> list[str]:
    """What to say if ``checkpoint.resume=auto`` finds no run: that a new one begins, and which run is nearest.

    Args:
        config: The configuration of the new run.
        folder: Its folder.
        world_size: Its number of processes.
    """
    from pspexp.config.resume import unequal  # as above
    from pspexp.jobs.records import public
    from pspexp.tracking import runs

    parent = parent_folder(config)
    if folder.absolute().parent != parent.absolute():  # hydra.run.dir is given, or it is the job of a sweep
        return [f"nothing to resume: {folder} holds no checkpoints/last.pt; a new run begins"]
    now = flatten(public(config))
    found = [(unequal(recorded_config(one), now), one) for one in runs.unfinished(parent) if one.name != folder.name]
    lines = [f"nothing to resume: no unfinished run with this configuration under {parent}; a new run begins"]
    if found:
        changed, nearest = min(found, key=lambda one: len(one[0]))  # of several, the latest
        why = describe_changes(changed) if changed else refusal(nearest, config, world_size)
        lines.append(f"nearest: {nearest} {why}")
    return lines


def describe_changes(changed: Sequence[tuple[str, Any, Any]]) -> str:
    """How an unfinished run differs from this one, in at most three keys."""
    shown = [f"{key}: {as_yaml(then)} there, {as_yaml(now)} here" for key, then, now in changed[:3]]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return f"differs in {'; '.join(shown)}{more}"


def refusal(folder: Path, config: DictConfig, world_size: int) -> str:
    """Why an unfinished run with the same settings is not resumed."""
    from pspexp.config.resume import resume_conflicts  # as above
    from pspexp.engine import checkpoint
    from pspexp.jobs.records import public

    try:
        conflicts = resume_conflicts(checkpoint.read(folder / "checkpoints" / "last.pt"), public(config), world_size)
    except UserError as error:
        conflicts = list(error.problems)
    return f"has this configuration, but {conflicts[0] if conflicts else 'repeats another run (rerun)'}"


def recorded_config(folder: Path) -> dict[str, Any]:
    """The flat configuration that a run folder records; empty if it cannot be read."""
    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        return flatten(found)
    except Exception:  # the system's, PyYAML's or OmegaConf's
        return {}


def parent_folder(config: DictConfig) -> Path:
    """The folder that holds the runs of an experiment, or of a data set without one, or the output of another mode."""
    if not MODES[config.mode].is_run:
        return Path(config.output_root, config.mode)
    name: str = config.choices.get("experiment") or config.choices["dataset"]
    return Path(config.output_root) / name


def new_folder(stem: Path) -> Path:
    """Create ``stem``, or ``stem-2`` and so on; no other process gets the same folder."""
    folder, number = stem, 1
    while True:
        try:
            folder.mkdir(parents=True)  # fails if another process was faster
            return folder
        except FileExistsError:
            number += 1
            folder = stem.with_name(f"{stem.name}-{number}")
        except OSError as error:
            raise UserError(f"output_root: cannot create {folder} ({error}); choose another folder") from error


def remove_unused(folder: Path, output_root: Path) -> None:
    """Remove the folder of a run that was refused before it had any records, with its logs and locks.

    Folders in ``output_root`` that become empty are removed, too.
    """
    files = list(folder.iterdir()) if folder.is_dir() else []
    if not files or any(file.name not in LEFTOVERS for file in files):
        return
    for file in files:
        file.unlink()
    with suppress(OSError):  # not empty
        folder.rmdir()
        for parent in folder.absolute().parents:
            if parent.is_relative_to(output_root.absolute()):
                parent.rmdir()
