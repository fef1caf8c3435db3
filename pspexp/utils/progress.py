"""Progress of a loop: a bar on a terminal, plain log lines elsewhere."""

import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import ClassVar, TypeVar

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

T = TypeVar("T")

MIN_FOR_ETA = 2  # steps: the first one is slow
FIRST_LINE_S, MAX_SILENCE_S = 5.0, 30.0  # without a plain line, although none is due by the number of steps
SLOW_S = 2.0  # a loop that takes longer shows its progress

log = logging.getLogger(__name__)


class Progress:
    """Shows how far a loop is, with loss, images per second and the time left.

    If standard error is a terminal, this is a bar at the bottom of the screen, below the log; a `Progress` inside
    another one adds a bar. Elsewhere, a line is logged every ``log_every`` steps and at the end; if these take long,
    also early, for the first estimate of the time left, and every half minute.

    Args:
        total: Steps (or images) of the whole loop.
        description: Such as ``train`` or ``val``.
        start: Steps done before this process started (in a resumed run); they do not count for the time left.
        log_every: Steps between plain lines.
        unit: Unit of ``total``, for the plain lines.
        silent: Show nothing; another process does.
        delay_s: Show nothing of a loop that ends within this time, and no bar once it has ended.
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
        delay_s: float = 0.0,
    ) -> None:
        self._silent, self._delay_s = silent, delay_s
        self._total, self._description, self._unit = total, description, unit
        self._start, self._log_every = start, math.inf if delay_s else max(log_every, 1)
        self._done = self._logged = start
        self._facts: dict[str, str] = {}
        self._began_s = self._line_s = 0.0
        self._is_shown = False
        self._task: TaskID | None = None
        self._exit = ExitStack()

    def __enter__(self) -> "Progress":
        self._began_s = self._line_s = time.monotonic()
        if not self._silent and not self._delay_s:
            self._begin()
        return self

    def _begin(self) -> None:
        self._is_shown = True
        if Progress._bars is None and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            Progress._bars = self._exit.enter_context(_live_bars(transient=self._delay_s > 0))
            self._exit.callback(setattr, Progress, "_bars", None)
        if Progress._bars is not None:
            self._task = Progress._bars.add_task(self._description, total=self._total, completed=self._done, facts="")
        Progress._open.append(self)

    def __exit__(self, *_: object) -> None:
        if not self._is_shown:
            return
        Progress._open.remove(self)
        if self._task is not None and Progress._bars is not None and Progress._open:
            Progress._bars.remove_task(self._task)  # only the outermost bar remains on the screen
        self._exit.close()

    def advance(
        self, step: int, *, loss: float | None = None, images_per_second: float | None = None, epoch: int | None = None
    ) -> None:
        """Set the number of steps done, those before a resume included; values that are None stay unchanged."""
        self._done = step
        if epoch is not None:
            self._facts["epoch"] = f"epoch {epoch}"
        if loss is not None:
            self._facts["loss"] = f"loss {loss:.4f}"
        if images_per_second is not None:
            self._facts["speed"] = f"{images_per_second:.1f} images/s"
        self._show()

    def add(self, count: int = 1) -> None:
        """Add to the number of steps done; if they are images, their mean speed is shown, too."""
        done = min(self._done + count, self._total)
        elapsed_s = time.monotonic() - self._began_s
        speed = (done - self._start) / elapsed_s if self._unit == "image" and elapsed_s else None
        self.advance(done, images_per_second=speed)

    def _show(self) -> None:
        if self._silent or (not self._is_shown and time.monotonic() - self._began_s < self._delay_s):
            return
        if not self._is_shown:
            self._begin()
        left_s = self._seconds_left()
        facts = [*self._facts.values(), "" if left_s is None else f"ETA {timedelta(seconds=round(left_s))}"]
        if self._task is not None and Progress._bars is not None:
            Progress._bars.update(self._task, completed=self._done, facts="  ".join(filter(None, facts)))
        elif self._line_is_due():
            self._logged, self._line_s = self._done, time.monotonic()
            percent = 100 * self._done // max(self._total, 1)
            head = f"{self._description}  {self._unit} {self._done}/{self._total} ({percent} %)"
            log.info("%s", "  ".join(filter(None, [head, *facts])))

    def _line_is_due(self) -> bool:
        if self._done == self._logged:
            return False
        is_first = self._logged == self._start
        silence_s = (self._delay_s or FIRST_LINE_S) if is_first else MAX_SILENCE_S
        return (
            self._done - self._logged >= self._log_every
            or self._done >= self._total
            or time.monotonic() - self._line_s >= silence_s
        )

    def _seconds_left(self) -> float | None:
        done = self._done - self._start
        if done < MIN_FOR_ETA:
            return None
        return (time.monotonic() - self._began_s) / done * max(self._total - self._done, 0)


def slow_loop(items: Iterable[T], total: int, description: str, unit: str = "image") -> Iterator[T]:
    """The items, with a `Progress` if they take longer than two seconds.

    Args:
        items: What is iterated over.
        total: Their number.
        description: What is done, such as ``counting labelled pixels``.
        unit: What the items are.
    """
    with Progress(total, description, unit=unit, delay_s=SLOW_S) as progress:
        for item in items:
            yield item
            progress.add()


@contextmanager
def _live_bars(*, transient: bool) -> Iterator[Bars]:
    """Bars on standard error; in the meantime, log handlers write above them."""
    # Without soft wrap, log lines would be broken within paths.
    console = Console(stderr=True, force_terminal=True, soft_wrap=True)
    bars = Bars(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[facts]}"),
        console=console,
        expand=True,
        transient=transient,
        refresh_per_second=4,
        redirect_stdout=sys.stdout.isatty(),  # else output meant for a file would appear on the screen
    )
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        # File handlers are stream handlers, too, but their stream is no terminal.
        if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "isatty", bool)()
    ]
    streams = [handler.stream for handler in handlers]
    for handler in handlers:
        # They keep the stream that they were created with, which rich's redirection of sys.stdout does not change.
        handler.setStream(FileProxy(console, handler.stream))
    try:
        with bars:
            yield bars
    finally:
        for handler, stream in zip(handlers, streams, strict=True):
            handler.setStream(stream)
