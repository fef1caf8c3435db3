"""The folder of a job: a new one, or that of the run to resume."""

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile

from omegaconf import DictConfig

from pspexp.config.modes import MODES
from pspexp.errors import UserError
from pspexp.launchers.base import Launcher

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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{config.mode}.output={folder}: cannot write there ({error.strerror}); choose another folder"
        ) from error
    return folder


def resumed_folder(config: DictConfig, launcher: Launcher) -> Path | None:
    """The run folder in which ``checkpoint.resume`` continues, or None for a new one.

    A run whose processes were restarted externally is always resumed.
    """
    resume = config.checkpoint.resume or ("auto" if launcher.is_restart else None)
    if config.mode != "train" or resume is None:
        return None
    # Slow to import, and most commands need none of it here.
    from pspexp.config.resume import resume_conflicts
    from pspexp.engine import checkpoint
    from pspexp.jobs.records import public
    from pspexp.tracking import runs

    if resume != "auto":
        return runs.run_folder(runs.find_checkpoint(resume, "last.pt"))
    now = public(config)

    def same(file: Path) -> bool:
        try:
            state = checkpoint.read(file)
            # A rerun is resumed in its own folder, not in that of the run it repeats.
            own = state["config"].get("rerun") == now["rerun"]
            return own and not resume_conflicts(state, now, launcher.world_size)
        except UserError:  # unreadable, or in another format: not this run
            return False

    return runs.latest_unfinished(parent_folder(config), same)


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
