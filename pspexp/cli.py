"""The command line: examine the words, choose the run folder, let Hydra compose, launch, tell how it ended."""

import logging
import os
import signal
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from pspexp.config import compose as composition
from pspexp.config.overrides import quoted
from pspexp.errors import EXIT_USER_ERROR, Interrupted, JobFailed, UserError, summarize
from pspexp.launchers import base as launch

if TYPE_CHECKING:
    from pspexp.sweep.sweep import Sweep

# What imports torch is imported in functions here: it takes seconds, and --help needs none of it.

log = logging.getLogger(__name__)
traceback_log = logging.getLogger("pspexp.traceback")  # of a job's log file alone

ASKS_HYDRA = ("help", "hydra_help", "version", "shell_completion")
STAMP = "%Y-%m-%d_%H-%M-%S"
# How long a process beside the first one keeps what is wrong to itself. If all find the same, the first one tells,
# and the others are ended with it.
LEADER_TELLS_S = 5
# A job that leaves no run folder: no log file, and Hydra makes no folder of its own.
LEAVES_NOTHING = ["hydra/job_logging=stdout", "hydra.run.dir=."]
LEAVES_NO_LOG = ["hydra/job_logging=plain"]  # of a job that is no run, but writes files
FOLLOWS = ["hydra/job_logging=follower", "hydra.run.dir=."]  # another process makes the folder and tells how it goes


def main() -> None:
    """Run the command line; exits with the codes of the README."""
    typed[:] = sys.argv
    try:
        try:
            command = examine(sys.argv[1:])
            sys.argv[1:] = command.words
            if code := code_of(command):
                sys.exit(code)
        except UserError as error:
            if follows(sys.argv[1:]):
                time.sleep(LEADER_TELLS_S)
            sys.exit(complain(error))
    except KeyboardInterrupt:
        sys.exit(130)


started: list[bool] = []  # filled when the task begins; Hydra's exit code does not tell
typed: list[str] = []  # the command, before anything is added; empty in a process that a sweep's launcher started


def code_of(command: "Command") -> int:
    """Run a command; returns the exit code."""
    if command.sweep is None:
        return task_code()
    from pspexp.sweep.run_sweep import run_sweep

    return run_sweep(*command.sweep, task_code)


def task_code() -> int:
    """Let Hydra run the task, once or for each job of a sweep; returns the exit code."""
    try:
        task()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as end:
        # 1 before the task began is Hydra's word for wrong input; from within it comes as an error of its own.
        return EXIT_USER_ERROR if end.code == 1 and not started else int(end.code or 0)
    return 0


@dataclass(frozen=True)
class Command:
    """The words to hand to Hydra, and of a sweep what it is and its configuration with first values."""

    words: list[str]
    sweep: "tuple[Sweep, DictConfig] | None" = None


def examine(words: Sequence[str]) -> Command:
    """Check the command line and add the run folder where none is given.

    Raises:
        UserError: with every problem that was found.
    """
    arguments = get_args_parser().parse_args(list(words))
    if any(getattr(arguments, name, None) for name in ASKS_HYDRA):
        return Command(list(words))
    import_torch()
    folders = [arguments.config_dir] if arguments.config_dir else []
    chosen = composition.saved_choices(arguments.overrides, folders)
    words, arguments.overrides = [*words, *chosen], [*arguments.overrides, *chosen]
    if arguments.cfg or arguments.info:
        return show(words, arguments, folders)
    config = composition.compose_checked(arguments.overrides, sweep=arguments.multirun, folders=folders)
    if arguments.multirun or config.hydra.mode == RunMode.MULTIRUN:
        return sweep_command(words, arguments.overrides, config)
    job = composition.finish(composition.without_hydra(config), arguments.overrides)
    if job.mode == "check":
        return Command([*words, *LEAVES_NOTHING])
    if job.mode == "compare":
        return Command([*words, *LEAVES_NO_LOG, *new_folder_word(job, arguments.overrides)])
    launcher = built_launcher(job)
    if not launcher.is_main_process:
        return Command([*words, *FOLLOWS])
    return Command([*words, *new_folder_word(job, arguments.overrides, lambda: resumed_folder(job, launcher))])


def show(words: list[str], arguments: Namespace, folders: Sequence[str]) -> Command:
    """Show the configuration; Hydra does, but for what it does not know: what a checkpoint or an earlier run brings.

    Raises:
        UserError: the words do not go together, or with ``--cfg job --resolve``: something is wrong with them.
    """
    if arguments.multirun:
        raise UserError(f"--multirun: does not go with --{'cfg' if arguments.cfg else 'info'}; leave one of them out")
    from_a_run = names(arguments.overrides, "rerun") or "mode=test" in arguments.overrides
    if arguments.cfg != "job" or arguments.package or not (arguments.resolve or from_a_run):
        return Command(words)
    config = composition.compose_checked(arguments.overrides, folders=folders)
    print(OmegaConf.to_yaml(composition.finish(composition.without_hydra(config), arguments.overrides)), end="")
    sys.exit()


def new_folder_word(
    config: DictConfig, words: Sequence[str], resumed: Callable[[], Path | None] = lambda: None
) -> list[str]:
    """The word that makes the run folder the resumed or a new one; none if the user has chosen a folder."""
    if names(words, "hydra.run.dir"):
        return []
    folder = resumed() or new_folder(runs_folder(config) / datetime.now().strftime(STAMP))
    return [f"hydra.run.dir={quoted(folder)}"]


def sweep_command(words: Sequence[str], arguments: Sequence[str], config: DictConfig) -> Command:
    """The command of a sweep, which begins here or goes on.

    Raises:
        UserError: it cannot.
    """
    from pspexp.sweep import sweep as study

    refuse_placed_sweep(config)
    composition.expand_home(config)
    if not config.hydra.sweep.dir:
        raise UserError("hydra.sweep.dir: is empty; give a folder, or leave it out")
    folder = Path(config.hydra.sweep.dir).expanduser().absolute()
    if not names(arguments, "hydra.sweep.dir") and not (folder / study.FILE).is_file():
        folder = new_folder(folder)
    return Command([*words, f"hydra.sweep.dir={quoted(folder)}"], (study.begin(folder, arguments, config), config))


def names(words: Sequence[str], key: str) -> bool:
    """Whether one of the words sets ``key``."""
    return any(word.lstrip("+").startswith(f"{key}=") for word in words)


def import_torch() -> None:
    """Import torch, which imports the device plugins that are installed.

    Raises:
        UserError: one of them fails.
    """
    try:
        import torch  # noqa: F401
    except RuntimeError as error:
        if "TORCH_DEVICE_BACKEND_AUTOLOAD" not in str(error):
            raise
        cause = error.__cause__ or error
        raise UserError(
            f"torch: {str(error).splitlines()[0]} ({type(cause).__name__}: {cause}); repair or uninstall this plugin, "
            "or set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to do without it"
        ) from error


def built_launcher(config: DictConfig) -> launch.Launcher:
    """What starts the processes of a job.

    Raises:
        UserError: it cannot be used here.
    """
    from pspexp.config.build import build

    launcher: launch.Launcher = build(config.launcher)
    return launcher


def refuse_placed_sweep(config: DictConfig) -> None:
    """Raise UserError if every one of several processes would begin a sweep of its own."""
    if get_object(config.launcher._target_).externally_launched or config.launcher.get("nnodes", 1) != 1:
        raise UserError(
            f"launcher={config.hydra.runtime.choices.launcher}: a sweep cannot be started in several places; "
            "start it once, with launcher=ddp on one machine for several processes a job"
        )


def follows(words: Sequence[str]) -> bool:
    """Whether another process, started with the same words, is likely to tell what is wrong with them."""
    number = {"launcher=torchrun": "RANK", "launcher=slurm": "SLURM_PROCID"}
    return any(os.environ.get(number[word], "0") != "0" for word in words if word in number)


def resumed_folder(config: DictConfig, launcher: launch.Launcher) -> Path | None:
    """The run folder in which ``checkpoint.resume`` goes on, or None for a new one.

    Where the processes were started again by what had started them, the run goes on unasked.
    """
    wanted = config.checkpoint.resume or ("auto" if launcher.is_restart else None)
    if config.mode != "train" or wanted is None:
        return None
    # Slow to import, and most commands need none of it here.
    from pspexp.config.resume import resume_conflicts
    from pspexp.engine import checkpoint
    from pspexp.jobs.records import public
    from pspexp.tracking import runs

    if wanted != "auto":
        return runs.run_folder(runs.find_checkpoint(wanted, "last.pt"))
    now = public(config)

    def same(file: Path) -> bool:
        try:
            state = checkpoint.read(file)
            # A rerun goes on with itself, not with the run it repeats.
            mine = state["config"].get("rerun") == now["rerun"]
            return mine and not resume_conflicts(state, now, launcher.world_size)
        except UserError:  # unreadable, or of another format: not this run
            return False

    return runs.latest_unfinished(runs_folder(config), same)


def runs_folder(config: DictConfig) -> Path:
    """Where the runs of an experiment lie, or of a dataset without one; and the comparisons of runs."""
    if config.mode == "compare":
        return Path(config.output_root) / "compare"
    name: str = config.choices.get("experiment") or config.choices["dataset"]
    return Path(config.output_root) / name


def new_folder(stem: Path) -> Path:
    """Make ``stem``, or ``stem-2`` and so on, of this process alone."""
    folder, number = stem, 1
    while True:
        try:
            folder.mkdir(parents=True)  # fails where another process was faster
            return folder
        except FileExistsError:
            number += 1
            folder = stem.with_name(f"{stem.name}-{number}")
        except OSError as error:
            raise UserError(f"output_root: no folder can be made at {folder} ({error})") from error


@hydra.main(config_path=composition.conf_dir(), config_name="config", version_base="1.3")
def task(config: DictConfig) -> float | None:
    """One job: of the command, or of a sweep over many. Returns the best mean IoU for a sweeper to compare."""
    started.append(True)
    settings = HydraConfig.get()
    swept = settings.mode == RunMode.MULTIRUN
    try:
        if swept:
            from pspexp.sweep import jobs

            return jobs.do(config, settings)
        overrides = list(settings.overrides.task)
        job = composition.finish(composition.with_choices(config, settings.runtime.choices), overrides)
        from pspexp.jobs.job import launch as launch_job

        return launch_job(job, Path(settings.runtime.output_dir), overrides, typed)
    except Exception as error:
        code = report(error)
        if not swept:
            sys.exit(code)
        end_of_job(error, code, settings)
        return None


def end_of_job(error: Exception, code: int, settings: HydraConf) -> None:
    """Tell the sweep that a job did not finish."""
    from pspexp.sweep.devices import is_basic

    if isinstance(error, Interrupted):
        if is_basic(settings.launcher):
            sys.exit(code)  # ends the sweep; in another launcher's process it would be taken for a crash
    else:
        traceback_log.error("job %s failed", settings.job.num, exc_info=error)
        if settings.sweeper._target_.endswith(".BasicSweeper"):
            return  # it compares nothing, and the overview tells
    # An optimiser has to know. Of this kind of error Hydra prints the message alone.
    raise CompactHydraException(f"job {settings.job.num}: {summarize(error)}")


def report(error: Exception) -> int:
    """Log how a job ended; returns the exit code."""
    if isinstance(error, UserError):
        if not (error.shared and is_follower()):
            log.error("%s", error, exc_info="HYDRA_FULL_ERROR" in os.environ)
        return EXIT_USER_ERROR
    if isinstance(error, JobFailed):
        log.error("%s", error)
        return 1
    if isinstance(error, Interrupted):
        log.warning("%s", error)
        return 128 + error.signal_number
    log.exception("The job failed: %s", error)
    return 1


def is_follower() -> bool:
    """Whether another process of the job tells what all find."""
    return bool(HydraConfig.get().runtime.choices["hydra/job_logging"] == "follower")


def complain(error: UserError) -> int:
    """Tell what is wrong with the command; returns the exit code."""
    print(error, file=sys.stderr)
    if "HYDRA_FULL_ERROR" in os.environ:
        traceback.print_exception(error)
    return EXIT_USER_ERROR
