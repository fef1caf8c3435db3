"""Loggers: where a run is recorded besides its folder. MLflow's is built in; a user adds others by configuration."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

from pspexp.errors import UserError
from pspexp.tracking.secrets import mask_logins
from pspexp.utils.text import one_line

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Logger(Protocol):
    """Records runs in another place than the run folder: a tracking server, a table, a chat room.

    Any class with these methods can be added on the command line, ``+tracking.loggers.NAME._target_=module.Class``;
    its constructor's arguments follow as ``+tracking.loggers.NAME.argument=value``. Only the main process builds and
    calls it. Any method may raise: the logger is then disabled with one warning, and neither the run nor other loggers
    are affected. Calls are synchronous, so a slow method slows down training.
    """

    def open(self, *, run_id: str | None, name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
        """Begin to record a run. Called once, before anything else.

        Args:
            run_id: What this method returned earlier if the run is resumed; None for a new run.
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
        """Record files. Called again for files that have changed, and with files that have not.

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


class LoggerGroup:
    """Named loggers, called one after another. One that raises is disabled with a warning.

    Args:
        loggers: By name.
        folder: Where the local records are, for the warning.
        ids: The ids of the run in these loggers if it is resumed.
    """

    def __init__(self, loggers: Mapping[str, Logger], folder: Path, ids: Mapping[str, str] | None = None) -> None:
        self.active = dict(loggers)
        self.ids = dict(ids or {})
        self._folder = folder

    def open(self, name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Open the run in each logger; `ids` holds what they return."""
        for key in list(self.active):
            with self._isolated(key) as logger:
                self.ids[key] = str(logger.open(run_id=self.ids.get(key), name=name, params=params, tags=tags))

    def files(self, *patterns: str) -> None:
        """Record the files of the run folder that match any of the glob patterns."""
        found = sorted(path for pattern in patterns for path in self._folder.glob(pattern))
        if paths := [path.relative_to(self._folder).as_posix() for path in found]:
            self.each(lambda logger: logger.files(self._folder, paths))

    def each(self, call: Callable[[Logger], None]) -> None:
        """Call each logger."""
        for key in list(self.active):
            with self._isolated(key) as logger:
                call(logger)

    @contextmanager
    def _isolated(self, key: str) -> Iterator[Logger]:
        try:
            yield self.active[key]
        except Exception as error:
            del self.active[key]
            warn_disabled(key, error, self._folder)


def warn_disabled(name: str, error: Exception, folder: Path) -> None:
    """Warn that a logger is disabled."""
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
    log.warning("%s", mask_logins(f"logger {name} disabled; local records continue in {folder}: {reason}"))
