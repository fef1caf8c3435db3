"""The command line: parse, compose and check, choose the run folder, run the job, report how it ended."""

import argparse
import logging
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from hydra.errors import CompactHydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from pspexp import __version__
from pspexp.config import completion, first_line
from pspexp.config import compose as composition
from pspexp.config.command_line import is_non_main, needs_resolving, parse_arguments, sets
from pspexp.config.help import help_text
from pspexp.config.modes import MODES
from pspexp.config.options import conf_dir
from pspexp.config.reference import Reference
from pspexp.config.resolve import expand_home, resolve
from pspexp.errors import EXIT_USER_ERROR, Interrupted, JobFailed, UserError, summarize
from pspexp.launchers.base import Launcher
from pspexp.utils.console_handler import escape_unencodable, fitted
from pspexp.utils.imports import import_torch
from pspexp.utils.openmp import shorten_spinning
from pspexp.utils.text import quoted

# Modules that import torch are imported inside functions: that takes seconds, and --help does not need them.

log = logging.getLogger(__name__)
traceback_log = logging.getLogger("pspexp.traceback")  # written only to a job's log file

# How long a process other than the main one waits before it reports a problem with the command. If all processes find
# the same problem, the main process reports it, and the others are terminated with it.
REPORT_DELAY_S = 5
NOTHING_GIVEN = """Nothing to run; choose a configuration, e.g. pspexp experiment=quickstart
pspexp --help lists all options."""


def main() -> None:
    """Run the command line; exits with the codes listed in the README."""
    escape_unencodable()
    shorten_spinning()
    if not {"", str(Path.cwd())}.intersection(sys.path):
        sys.path.append(str(Path.cwd()))  # for the user's own targets, as with `python -m`
    try:
        code = run_command(sys.argv)
        sys.stdout.flush()
    except UserError as error:
        if is_non_main(sys.argv[1:]):
            time.sleep(REPORT_DELAY_S)
        if "mode=check" in sys.argv[1:]:  # which has not begun: its report on the environment may explain the error
            show_environment()
        print(fitted(str(error), sys.stderr), file=sys.stderr)
        if "HYDRA_FULL_ERROR" in os.environ:
            traceback.print_exception(error)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:  # the reader has exited (`| head -1`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    if code:
        sys.exit(code)


def run_command(command: Sequence[str]) -> int:
    """Run a command line, program included; returns the exit code.

    Raises:
        UserError: Lists every problem with the command.
    """
    if "--version" in command:
        print(f"pspexp {__version__}")
        return 0
    if not command[1:]:
        raise UserError(NOTHING_GIVEN)
    arguments = parse_arguments(command[1:])
    if arguments.shell_completion and "COMP_LINE" in os.environ:
        return complete(arguments, os.environ["COMP_LINE"])
    if arguments.hydra_help or arguments.shell_completion:
        return run_hydra(arguments)
    folders = [arguments.config_dir] if arguments.config_dir else []
    name = arguments.config_name or "config"
    if arguments.help:
        reference = Reference(arguments.overrides, folders, name, sweep=arguments.multirun, resolve=arguments.resolve)
        print(help_text(reference, arguments.topics), end="")
        return 0
    is_shown = not (arguments.info or arguments.cfg or arguments.multirun or is_non_main(arguments.overrides))
    if first_line.uses_earlier_run(arguments.overrides):
        say(first_line.of_earlier_run(arguments.overrides) if is_shown else None)
        import_torch()
        arguments.overrides += composition.saved_choices(arguments.overrides, folders)
        is_shown = False
    if arguments.info or (arguments.cfg and not needs_resolving(arguments)):
        return run_hydra(arguments)
    config = composition.compose_checked(
        arguments.overrides,
        sweep=arguments.multirun,
        folders=folders,
        name=name,
        on_composed=lambda config, is_valid: begin(config if is_shown and is_valid else None),
    )
    if arguments.multirun or config.hydra.mode == RunMode.MULTIRUN:
        return run_sweep(arguments, config)
    job = resolve(composition.without_hydra(config), arguments.overrides)
    if arguments.cfg:
        print(OmegaConf.to_yaml(job), end="")
        return 0
    return run_single(job, config, arguments.overrides, command)


def begin(config: DictConfig | None) -> None:
    """Print the first line of a training, and import torch; a sweep's jobs have their own lines."""
    if config is not None and config.hydra.mode != RunMode.MULTIRUN:
        is_main = not is_non_main([f"launcher={config.hydra.runtime.choices.launcher}"])  # an experiment may choose it
        say(first_line.of_training(config) if is_main else None)
    import_torch()


def say(line: str | None) -> None:
    """Print a line at once, if there is one."""
    if line is not None:
        print(fitted(line, sys.stdout), flush=True)


def complete(arguments: argparse.Namespace, line: str) -> int:
    """Print what the last word of ``line`` may become; nothing, not even a message, if the line has mistakes."""
    with redirect_stderr(StringIO()), suppress(Exception, SystemExit):
        *before, word = [*shlex.split(line)[1:], *[""] * line.endswith(" ")]
        found = completion.flags(before, word)
        if not found:
            given = parse_arguments(before)
            arguments.config_dir = given.config_dir
            found = completion.values(word, given.overrides, [given.config_dir] if given.config_dir else [])
        if not found:
            return run_hydra(arguments)
        print("\n".join(found))
    return 0


def run_hydra(arguments: argparse.Namespace) -> int:
    """Let Hydra print what was requested, or run the jobs of a sweep; returns the exit code."""
    try:
        _run_hydra(arguments, get_args_parser(), sweep_job, conf_dir(), "config")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as end:
        return EXIT_USER_ERROR if end.code == 1 else int(end.code or 0)  # Hydra exits with 1 for wrong input
    return 0


def run_single(job: DictConfig, config: DictConfig, overrides: list[str], command: Sequence[str]) -> int:
    """Run one job through Hydra, which provides its folder and logging; returns the exit code.

    Args:
        job: The job's configuration, complete and checked.
        config: The configuration as composed, node ``hydra`` included.
        overrides: All overrides.
        command: The command line.
    """
    from pspexp.config.build import build
    from pspexp.jobs import job_folder

    mode = MODES[job.mode]
    launcher: Launcher | None = build(job.launcher) if mode.is_run else None
    is_main = launcher is None or launcher.is_main_process
    folder, is_new = Path(), False
    if mode.needs_folder and is_main:
        given = config.hydra.run.dir if sets(overrides, "hydra.run.dir") else None
        is_new = given is None or not Path(given).exists()
        folder = job_folder.given_folder(given) if given is not None else job_folder.choose_folder(job, launcher)
    OmegaConf.update(config, "hydra.run.dir", str(folder))
    if not (mode.is_run and is_main):
        log_without_file(config, "plain" if is_main else "non_main")

    def task(_: DictConfig) -> int:
        from pspexp.jobs.job import launch

        settings = HydraConfig.get()
        try:
            launch(job, Path(settings.runtime.output_dir), list(settings.overrides.task), command)
        except BrokenPipeError:
            raise
        except Exception as error:
            return report(error, is_main=is_main)
        return 0

    callbacks = Callbacks(config)
    callbacks.on_run_start(config=config, config_name="config")
    context = HydraContext(config_loader=None, callbacks=callbacks)  # type: ignore[arg-type] # only callbacks are used
    result = run_job(task, config, job_dir_key="hydra.run.dir", job_subdir_key=None, hydra_context=context)
    callbacks.on_run_end(config=config, config_name="config", job_return=result)
    code: int = result.return_value
    if code == EXIT_USER_ERROR and is_new:
        job_folder.remove_unused(folder, Path(job.output_root))
    return code


def log_without_file(config: DictConfig, option: str) -> None:
    """Replace the logging with another option of ``conf/hydra/job_logging``."""
    settings = OmegaConf.load(Path(conf_dir(), "hydra", "job_logging", f"{option}.yaml"))
    OmegaConf.update(config, "hydra.job_logging", settings, merge=False)


def run_sweep(arguments: argparse.Namespace, config: DictConfig) -> int:
    """Begin a sweep or resume it; returns the exit code.

    Raises:
        UserError: The sweep cannot be run.
    """
    from pspexp.jobs.job_folder import new_folder
    from pspexp.sweep.run_sweep import refuse_several_processes, run_sweep
    from pspexp.sweep.sweep import SWEEP_FILE, begin_or_resume

    refuse_several_processes(config)
    expand_home(config)
    if not config.hydra.sweep.dir:
        raise UserError("hydra.sweep.dir: is empty; give a folder, or remove it")
    folder = Path(config.hydra.sweep.dir).expanduser().absolute()
    if not sets(arguments.overrides, "hydra.sweep.dir") and not (folder / SWEEP_FILE).is_file():
        folder = new_folder(folder)
    try:
        sweep = begin_or_resume(folder, arguments.overrides, config)
    except UserError:
        with suppress(OSError):  # not empty: it existed before
            folder.rmdir()
        raise
    arguments.overrides.append(f"hydra.sweep.dir={quoted(folder)}")
    return run_sweep(sweep, config, lambda: run_hydra(arguments))


def show_environment() -> None:
    """Print versions and devices, without a configuration."""
    with suppress(Exception):  # torch may be what is broken
        from pspexp.jobs.check.environment import show

        show()


def sweep_job(config: DictConfig) -> float | None:
    """Run one job of a sweep, called by Hydra; returns the objective of the sweep."""
    from pspexp.sweep import jobs

    settings: Any = HydraConfig.get()
    try:
        return jobs.run_job(config, settings)
    except Exception as error:
        code = report(error)
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
            return  # it compares nothing, and the overview reports the failure
    # For the sweeper; of this type of error, Hydra prints only the message.
    raise CompactHydraException(f"job {settings.job.num}: {summarize(error)}")


def report(error: Exception, *, is_main: bool = True) -> int:
    """Log how a job ended; returns the exit code."""
    if isinstance(error, UserError):
        if is_main or not error.shared:
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
