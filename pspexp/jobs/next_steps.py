"""The last lines of a command: the result, where everything is, and the commands that go on from there."""

import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from pspexp.config.resume import ENDLESS_SCHEDULERS, ON_EXTEND, length_key
from pspexp.errors import setting
from pspexp.jobs.records import Request, public, training_state_file
from pspexp.metrics import percent
from pspexp.tracking.mlflow_client import resolve_uri, sqlite_file, sqlite_uri
from pspexp.tracking.runs import run_folder
from pspexp.tracking.secrets import mask_logins
from pspexp.utils.files import shown_path
from pspexp.utils.text import count, quoted
from pspexp.utils.trees import flatten


def is_sweep_job(job: Request) -> bool:
    """Whether the job is one of a sweep, whose overview says what its jobs have in common."""
    return "sweep" in job.tags


def after_training(job: Request, best: Mapping[str, float], step: int, last_step: int, total_steps: int) -> list[str]:
    """The last lines of a training.

    Args:
        job: What was trained.
        best: Metrics of the best validation; empty if there was none.
        step: Steps done.
        last_step: The step after which it was to stop.
        total_steps: The steps of its schedule.
    """
    place = shown_path(job.folder)
    result = "no validation: best.pt holds the latest weights"
    if "best/mean_iou" in best:
        result = f"best mean IoU {percent(best['best/mean_iou'])} % (epoch {best['best/epoch']:.0f})"
    lines = [
        f"{result}; results in {place}",
        *mlflow_lines(job.config),
        "test the network:",
        command(job, "mode=test", setting("checkpoint.path", quoted(place))),
        *predict_lines(job, place),
    ]
    if training_state_file(job.folder).is_file() and step >= last_step:
        lines += extend_lines(job, step < total_steps)
    return lines


def after_test(job: Request, mean_iou: float, num_images: int) -> list[str]:
    """The last lines of a test.

    Args:
        job: What was tested.
        mean_iou: The result.
        num_images: Number of images tested on.
    """
    known = "tested " if math.isnan(mean_iou) else f"mean IoU {percent(mean_iou)} % "
    checkpoint = Path(job.config.checkpoint.path)
    trained = run_folder(checkpoint) if checkpoint.name == "best.pt" else None
    return [
        f"{known}on {count(num_images, 'image')}; results in {shown_path(job.folder)}",
        *mlflow_lines(job.config),
        *(predict_lines(job, shown_path(trained)) if trained else []),
    ]


def how_to_resume(job: Request) -> str:
    """How an interrupted training is resumed, as the end of a message."""
    if is_sweep_job(job):
        return "re-run the sweep's command to resume"
    resume = setting("checkpoint.resume", quoted(shown_path(job.folder)))
    if is_externally_launched(job):
        return f"resume with the same launcher and {shlex.quote(resume)}"
    return f"resume with\n{command(job, resume)}"


def mlflow_lines(config: DictConfig) -> Iterator[str]:
    """How to see in MLflow what a configuration records there, if it does."""
    tracking = config.get("tracking") or {}
    if not str(tracking.get("_target_")).endswith("mlflow_loggers"):
        return
    uri = resolve_uri(tracking.get("tracking_uri"), config.output_root)
    if uri.startswith(("http://", "https://", "databricks")):
        yield f"also in MLflow: {mask_logins(uri)}"
        return
    if (database := sqlite_file(uri)) is not None:
        uri = sqlite_uri(Path(shown_path(database)))
    yield 'view it in MLflow (choose "Model training" there, if offered):'
    yield f"  mlflow ui --backend-store-uri {shlex.quote(mask_logins(uri))}"


def predict_lines(job: Request, place: str) -> list[str]:
    """How to apply the network in a run folder."""
    trained = setting("checkpoint.path", quoted(place))
    return [
        f"predict the validation images, or an image or folder of yours with {setting('predict.input')}:",
        command(job, "mode=predict", trained, setting("predict.input", "split:val"), records=False),
    ]


def extend_lines(job: Request, has_rest: bool) -> list[str]:
    """How to continue a training that is complete.

    Args:
        job: The training.
        has_rest: Whether ``trainer.max_steps`` stopped it before the end of its schedule.
    """
    if is_externally_launched(job):
        return []
    config, resume = job.config, setting("checkpoint.resume", quoted(shown_path(job.folder)))
    if has_rest:
        return ["train to the end of the schedule:", command(job, resume, setting("trainer.max_steps", None))]
    key = length_key(flatten(public(config)))
    longer = [setting(key, 2 * config.trainer[key.partition(".")[2]])]
    if config.trainer.max_steps is not None:
        longer.append(setting("trainer.max_steps", None))
    if config.scheduler._target_ not in ENDLESS_SCHEDULERS:
        if "on_extend" not in config.scheduler:
            return []  # it cannot be extended
        longer += [setting(ON_EXTEND, "stretch")] if config.scheduler.on_extend is None else []
    return ["train twice as long:", command(job, resume, *longer)]


def command(job: Request, *overrides: str, records: bool = True) -> str:
    """A command on a line of its own, for a shell, with what the job's own command says about its program.

    Args:
        job: The job.
        overrides: The overrides.
        records: Whether the command records a run, which belongs where this one is.
    """
    module = "python -m pspexp"
    program = module if job.command.startswith(module) else "pspexp"
    resumes = any(text.startswith("checkpoint.resume=") for text in overrides)  # in the same folder
    kept = [text for text in job.overrides if text.startswith("output_root=")] if records and not resumes else []
    return f"  {program} {shlex.join([*overrides, *kept])}"


def is_externally_launched(job: Request) -> bool:
    """Whether something else starts the processes of the job, or they are on several machines."""
    launcher: Any = job.config.launcher
    return bool(get_object(launcher._target_).externally_launched or launcher.get("nnodes", 1) != 1)
