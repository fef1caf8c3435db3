"""The command line: parse, compose and check, choose the run folder, run the job, report how it ended."""

import argparse
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from hydra.errors import CompactHydraException
from hydra.types import HydraContext, RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from pspexp import __version__
from pspexp.config import compose as composition
from pspexp.config.help import help_text
from pspexp.config.modes import MODES, uses_checkpoint
from pspexp.config.options import conf_dir
from pspexp.config.overrides import readable_overrides
from pspexp.config.resolve import expand_home, resolve
from pspexp.errors import EXIT_USER_ERROR, Interrupted, JobFailed, UserError, summarize
from pspexp.launchers.base import Launcher
from pspexp.utils.console_handler import escape_unencodable
from pspexp.utils.text import quoted
from pspexp.utils.user_cache import cache_folder

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
        print(error, file=sys.stderr)
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
    if arguments.hydra_help or arguments.shell_completion:
        return run_hydra(arguments)
    folders = [arguments.config_dir] if arguments.config_dir else []
    name = arguments.config_name or "config"
    if arguments.help:
        print(
            help_text(arguments.overrides, folders, name, sweep=arguments.multirun, resolve=arguments.resolve), end=""
        )
        return 0
    import_torch()
    arguments.overrides += composition.saved_choices(arguments.overrides, folders)
    if arguments.info or (arguments.cfg and not needs_resolving(arguments)):
        return run_hydra(arguments)
    config = composition.compose_checked(arguments.overrides, sweep=arguments.multirun, folders=folders, name=name)
    if arguments.multirun or config.hydra.mode == RunMode.MULTIRUN:
        return run_sweep(arguments, config)
    job = resolve(composition.without_hydra(config), arguments.overrides)
    if arguments.cfg:
        print(OmegaConf.to_yaml(job), end="")
        return 0
    return run_single(job, config, arguments.overrides, command)


def parse_arguments(command: Sequence[str]) -> argparse.Namespace:
    """Parse the command line like Hydra; flags may stand between overrides.

    Raises:
        UserError: Flags are unknown or contradict each other.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        arguments, unknown = parser.parse_known_intermixed_args(list(command))
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}; see --hydra-help") from error
    if flags := [text for text in unknown if text.startswith("-")]:
        raise UserError(*composition.unknown_flags(flags, command))
    if arguments.config_path:
        raise UserError("--config-path: cannot be changed; add a folder of options with --config-dir")
    if arguments.config_dir and not Path(arguments.config_dir).is_dir():
        raise UserError(f"--config-dir={arguments.config_dir}: no such folder; give the one that contains your options")
    if arguments.resolve and not (arguments.cfg or arguments.help):
        raise UserError("--resolve: has no effect without --cfg; add --cfg job, or remove it")
    chosen = [name for name in ("multirun", "run", "cfg", "info") if getattr(arguments, name)]
    if len(chosen) > 1:
        raise UserError(f"--{chosen[0]}: cannot be combined with --{chosen[1]}; remove one of them")
    arguments.overrides = readable_overrides(arguments.overrides)
    return arguments


def needs_resolving(arguments: argparse.Namespace) -> bool:
    """Whether ``--cfg`` must show values that Hydra does not know: resolved ones, or those of a checkpoint or run."""
    modes = [text.removeprefix("mode=") for text in arguments.overrides if text.startswith("mode=")]
    from_a_run = any(sets(arguments.overrides, key) for key in ("rerun", "checkpoint.resume"))
    from_a_run = from_a_run or any(map(uses_checkpoint, modes))
    return arguments.cfg == "job" and not arguments.package and (arguments.resolve or from_a_run)


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
    from pspexp.jobs import job_folder

    mode = MODES[job.mode]
    launcher = built_launcher(job) if mode.is_run else None
    is_main = launcher is None or launcher.is_main_process
    folder, is_new = Path(), False
    if mode.needs_folder and is_main:
        given = config.hydra.run.dir if sets(overrides, "hydra.run.dir") else None
        is_new = given is None or not Path(given).exists()
        folder = job_folder.given_folder(given) if given is not None else job_folder.choose_folder(job, launcher)
    OmegaConf.update(config, "hydra.run.dir", str(folder))
    if not (mode.is_run and is_main):
        logging_file = "plain" if is_main else "non_main"
        settings = OmegaConf.load(Path(conf_dir(), "hydra", "job_logging", f"{logging_file}.yaml"))
        OmegaConf.update(config, "hydra.job_logging", settings, merge=False)

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


def run_sweep(arguments: argparse.Namespace, config: DictConfig) -> int:
    """Begin a sweep or resume it; returns the exit code.

    Raises:
        UserError: The sweep cannot be run.
    """
    from pspexp.jobs.job_folder import new_folder
    from pspexp.sweep.run_sweep import run_sweep
    from pspexp.sweep.sweep import SWEEP_FILE, begin_or_resume

    refuse_externally_launched_sweep(config)
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


def sets(overrides: Sequence[str], key: str) -> bool:
    """Whether one of the overrides sets ``key``."""
    return any(text.lstrip("+").startswith(f"{key}=") for text in overrides)


def import_torch() -> None:
    """Import torch, which imports the device plugins that are installed.

    What torch compiles is kept in the user's cache: its own choice, made when it is imported, is a temporary folder.

    Raises:
        UserError: A plugin fails to import.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder("compiled")))
    try:
        import torch  # noqa: F401
    except RuntimeError as error:
        if "TORCH_DEVICE_BACKEND_AUTOLOAD" not in str(error):
            raise
        cause = error.__cause__ or error
        raise UserError(
            f"torch: {str(error).splitlines()[0]} ({type(cause).__name__}: {cause}); repair or uninstall this plugin, "
            "or set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to disable it"
        ) from error


def show_environment() -> None:
    """Print versions and devices, without a configuration."""
    with suppress(Exception):  # torch may be what is broken
        from pspexp.jobs.check.environment import show

        show()


def built_launcher(config: DictConfig) -> Launcher:
    """The launcher of a job.

    Raises:
        UserError: The launcher cannot be used here.
    """
    from pspexp.config.build import build

    launcher: Launcher = build(config.launcher)
    return launcher


def refuse_externally_launched_sweep(config: DictConfig) -> None:
    """Raise UserError if each of several processes would begin a sweep of its own."""
    if get_object(config.launcher._target_).externally_launched or config.launcher.get("nnodes", 1) != 1:
        raise UserError(
            f"launcher={config.hydra.runtime.choices.launcher}: a sweep cannot be started by several processes; "
            "start it once, with launcher=ddp on one machine for several processes per job"
        )


def is_non_main(overrides: Sequence[str]) -> bool:
    """Whether this is probably not the main process of several that were started with the same command."""
    variables = {"launcher=torchrun": "RANK", "launcher=slurm": "SLURM_PROCID"}
    return any(os.environ.get(variables[text], "0") != "0" for text in overrides if text in variables)


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
