"""Progress for people: a bar on a terminal, plain log lines elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from types import TracebackType
from typing import ClassVar

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

logger = logging.getLogger(__name__)


class Progress:
    """How far a loop is, with loss, images per second and the time left.

    On a terminal (standard error) it is a bar at the foot of the screen; logging goes on above it, and a
    `Progress` inside another one adds a bar. Elsewhere it logs a line every `log_every` and one at the end.

    Args:
        total: steps (or images) of the whole loop.
        description: such as ``train`` or ``val``.
        start: steps done before this process began (a resumed run); they do not count for the speed.
        log_every: steps between plain lines.
        unit: of `total`, for the plain lines.
        silent: show nothing: another process does.
    """

    _open: ClassVar[list["Progress"]] = []
    _bars: ClassVar[Bars | None] = None

    def __init__(
        self,
        total: int,
        description: str,
        *,
        start: int = 0,
        log_every: int = 50,
        unit: str = "step",
        silent: bool = False,
    ) -> None:
        self._silent = silent
        self._total, self._description, self._unit = total, description, unit
        self._start, self._log_every = start, max(log_every, 1)
        self._done = self._logged = start
        self._facts: dict[str, str] = {}
        self._began_s = 0.0
        self._task: TaskID | None = None
        self._exit = ExitStack()

    def __enter__(self) -> "Progress":
        if self._silent:
            return self
        self._began_s = time.monotonic()
        if Progress._bars is None and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            Progress._bars = self._exit.enter_context(_live_bars())
            self._exit.callback(setattr, Progress, "_bars", None)
        if Progress._bars is not None:
            self._task = Progress._bars.add_task(self._description, total=self._total, completed=self._done, facts="")
        Progress._open.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._silent:
            return
        Progress._open.remove(self)
        if self._task is not None and Progress._bars is not None and Progress._open:
            Progress._bars.remove_task(self._task)  # an inner bar has said its part
        self._exit.close()

    def advance(
        self,
        step: int,
        *,
        loss: float | None = None,
        images_per_second: float | None = None,
        epoch: int | None = None,
    ) -> None:
        """Tells that `step` are done, those before a resume included; facts not given stay as they were."""
        self._done = step
        if epoch is not None:
            self._facts["epoch"] = f"epoch {epoch}"
        if loss is not None:
            self._facts["loss"] = f"loss {loss:.4f}"
        if images_per_second is not None:
            self._facts["speed"] = f"{images_per_second:.1f} images/s"
        self._show()

    def add(self, count: int = 1) -> None:
        """Tells that `count` more are done."""
        self.advance(min(self._done + count, self._total))

    def _show(self) -> None:
        if self._silent:
            return
        left_s = self._seconds_left()
        facts = [*self._facts.values(), "" if left_s is None else f"ETA {timedelta(seconds=round(left_s))}"]
        if self._task is not None and Progress._bars is not None:
            Progress._bars.update(self._task, completed=self._done, facts="  ".join(filter(None, facts)))
        elif self._done - self._logged >= self._log_every or self._done >= self._total > self._logged:
            self._logged = self._done
            percent = 100 * self._done // max(self._total, 1)
            head = f"{self._description}  {self._unit} {self._done}/{self._total} ({percent} %)"
            logger.info("%s", "  ".join(filter(None, [head, *facts])))

    def _seconds_left(self) -> float | None:
        done = self._done - self._start
        if done <= 0:
            return None
        return (time.monotonic() - self._began_s) / done * max(self._total - self._done, 0)


@contextmanager
def _live_bars() -> Iterator[Bars]:
    """Bars on standard error, and log handlers that write above them for as long as they live."""
    console = Console(stderr=True, force_terminal=True)
    bars = Bars(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[facts]}"),
        console=console,
        expand=True,
        refresh_per_second=4,
        redirect_stdout=sys.stdout.isatty(),  # else prints meant for a file would land on the screen
    )
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        # File handlers are stream handlers too, but their stream is no terminal.
        if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "isatty", bool)()
    ]
    streams = [handler.stream for handler in handlers]
    for handler in handlers:
        # They keep the stream they were made with: rich's own redirection of sys.stdout does not reach it.
        handler.setStream(FileProxy(console, handler.stream))
    try:
        with bars:
            yield bars
    finally:
        for handler, stream in zip(handlers, streams, strict=True):
            handler.setStream(stream)
