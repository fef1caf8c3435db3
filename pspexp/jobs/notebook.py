"""Training and testing from Python, as in a notebook."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from pspexp.config import schema
from pspexp.config.build import build
from pspexp.config.compose import compose
from pspexp.errors import UserError
from pspexp.jobs.job import launch
from pspexp.jobs.job_folder import choose_folder
from pspexp.tracking.run_folder import read_summary

Config = DictConfig | Sequence[str]
"""A configuration from `pspexp.compose`, or overrides such as ``["optimizer=sgd"]``."""


class Result(NamedTuple):
    """How a job ended.

    Attributes:
        mean_iou: The best mean IoU of a training, or that of a test.
        folder: The run folder, with tables, figures and checkpoints.
        summary: The content of its ``summary.json``.
    """

    mean_iou: float | None
    folder: Path
    summary: dict[str, Any]


def train(config: Config = ()) -> Result:
    """Train, as ``mode=train`` does; log lines go to Python's logging and the run folder's ``run.log``.

    Args:
        config: The configuration, or overrides.

    Raises:
        UserError: The configuration is invalid; lists every problem.
        Interrupted: The training was stopped, and saved.
    """
    return run(config, "train")


def test(config: Config) -> Result:
    """Test a trained network, as ``mode=test`` does: ``pspexp.test(["checkpoint.path=outputs/…"])``.

    Args:
        config: The configuration, or overrides.

    Raises:
        UserError: The configuration is invalid; lists every problem.
        Interrupted: The test was stopped.
    """
    return run(config, "test")


def run(config: Config, mode: str) -> Result:
    """Run a job of this mode."""
    overrides: list[str] = []
    if not isinstance(config, DictConfig):
        overrides = [f"mode={mode}", *config]
        config = compose(overrides)
    if config.mode != mode:
        raise UserError(f"mode={config.mode}: pspexp.{mode} needs a configuration composed with mode={mode}")
    plain: Any = OmegaConf.to_container(config)
    schema.check(plain)  # it may have been changed since it was composed
    folder = choose_folder(config, build(config.launcher))
    with logged_to(folder / "run.log"):
        mean_iou = launch(config, folder, overrides)
    return Result(mean_iou, folder, read_summary(folder))


@contextmanager
def logged_to(file: Path) -> Iterator[None]:
    """Write this package's log to a file, and to the terminal if logging is not configured."""
    logger = logging.getLogger("pspexp")
    handlers: list[logging.Handler] = [logging.FileHandler(file, encoding="utf-8")]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    if not logging.getLogger().hasHandlers():
        handlers.append(logging.StreamHandler())
    level = logger.level
    logger.setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
