"""Loggers: where a run is recorded besides its folder. MLflow's is built in; a user adds others by configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Logger(Protocol):
    """Records runs in another place than the run folder: a tracking server, a table, a chat room.

    Any class with these methods can be added on the command line, ``+tracking.loggers.NAME._target_=module.Class``;
    its constructor's arguments follow as ``+tracking.loggers.NAME.argument=value``. Only the main process builds it,
    and calls it in a thread of its own, so a slow method does not slow down training.

    Each method receives what the run folder records, in order. If it raises an ``OSError``, such as
    ``ConnectionError`` or ``TimeoutError``, the place counts as unavailable: the call is repeated later, by the run
    itself and, once the run has ended, by ``mode=sync``. What it refuses with any other exception is skipped with a
    warning. Neither affects the run or other loggers. After a crash, the last call may be repeated.
    """

    def open(self, *, run_id: str | None, name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
        """Begin to record a run. Called before anything else; repeated later if it raises.

        Args:
            run_id: What this method returned earlier if the run is resumed or sent later; None for a new run.
            name: The run's name.
            params: The configuration, flattened (``optimizer.lr``), without secrets.
            tags: Model, data set, device, commit and so on.

        Returns:
            The run's id in this logger, kept in ``summary.json``.
        """
        ...

    def metrics(self, values: Mapping[str, float], *, step: int, time_s: float) -> None:
        """Record finite values.

        Args:
            values: By name, such as ``train/loss``.
            step: Optimizer steps done.
            time_s: Time of the measurement, in seconds since 1970.
        """
        ...

    def files(self, folder: Path, paths: Sequence[str]) -> None:
        """Record files that are new or have changed.

        Args:
            folder: The run folder.
            paths: Relative to it, with forward slashes.
        """
        ...

    def note(self, markdown: str) -> None:
        """Replace the run's description by an overview of its latest evaluation."""
        ...

    def close(self, status: Status) -> None:
        """End the run. After ``FAILED``, `files` may still be called with the checkpoints."""
        ...


@dataclass(frozen=True)
class Record:
    """A record of metrics.

    A logger that takes many of them in one call has a method ``records(list[Record])`` beside `Logger.metrics`.

    Attributes:
        values: Finite values by name.
        step: Optimizer steps done.
        time_s: Time of the measurement, in seconds since 1970.
    """

    values: Mapping[str, float]
    step: int
    time_s: float
