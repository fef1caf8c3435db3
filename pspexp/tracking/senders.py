"""Threads that bring a run's records to its loggers, so that training never waits for them."""

import logging
import math
import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

from pspexp.errors import setting
from pspexp.tracking.delivery import Delivery, Unreachable
from pspexp.tracking.logger import Logger
from pspexp.tracking.manifest import Manifest, run_ids
from pspexp.utils.text import count, duration, quoted

HEAD_START_S = 5.0  # of the run before the loggers open it, unless there is something to deliver: imports take time
FIRST_RETRY_S, MAX_RETRY_S, LAST_RETRY_S = 1.0, 30.0, 0.5
SLOW_S, REPEAT_S = 2.0, 15.0  # a longer wait is announced, and again as long as it lasts
POLL_S = 0.05
# How long the end of a run waits for one call, and for that which sends a file. For the one that opens the run, a
# logger may have an attribute ``open_wait_s`` of its own.
CALL_S, UPLOAD_S = 10.0, 600.0

log = logging.getLogger(__name__)


class Sender(Thread):
    """Delivers to one logger, and tries again while it is unavailable.

    Args:
        delivery: What to deliver.
        manifest: Of the run.
    """

    def __init__(self, delivery: Delivery, manifest: Manifest) -> None:
        super().__init__(name=str(delivery), daemon=True)
        self.delivery, self.manifest = delivery, manifest
        self.has_records = self.crashed = False
        self.away_since: float | None = None
        self._sent_before, self._wait_s, self._retry_s = 0, 0.0, FIRST_RETRY_S
        self._woken, self._ending = Event(), Event()

    def run(self) -> None:
        """Deliver until the run has ended and everything has arrived, or the time to wait for it is over."""
        self._woken.wait(HEAD_START_S)
        while True:
            self._woken.clear()  # first: what is new from now on wakes it again
            ending = self._ending.is_set()
            try:
                self._attempt()
            except BaseException:  # such as SystemExit in a logger
                self.crashed = True
                raise
            if ending and (self.away_since is None or time.monotonic() - self.away_since >= self._wait_s):
                with suppress(Exception):  # records may arrive where files cannot
                    self.delivery.close(self.manifest)
                return
            if ending:
                time.sleep(LAST_RETRY_S)
            elif self.away_since is None:
                self._woken.wait()
            else:
                self._ending.wait(self._retry_s)

    def wake(self) -> None:
        """There is something new, and the records are final up to their last line."""
        self.has_records = True
        self._woken.set()

    def end(self, manifest: Manifest, wait_s: float) -> None:
        """The run has ended; an outage is waited for until it has lasted ``wait_s`` seconds."""
        self.manifest, self._wait_s = manifest, wait_s
        self._ending.set()
        self.wake()

    def describe(self) -> str:
        """The logger, and what is being sent to it."""
        file = self.delivery.sent_file
        return f"{self.delivery}" + (f" to receive {file}" if file else "")

    def is_hopeless(self, ended_s: float) -> bool:
        """Whether the end of a run, at a time of the monotonic clock, has waited long enough."""
        idle_s = time.monotonic() - max(ended_s, self.delivery.last_progress)
        if self.away_since is not None and self.delivery.last_progress <= self.away_since:  # else it is back
            return idle_s > self._wait_s + CALL_S  # the attempt that ends the wait may take as long as a call
        return idle_s > max(self._wait_s, self._call_s())

    def _call_s(self) -> float:
        if not self.delivery.is_open:
            return float(getattr(self.delivery.logger, "open_wait_s", CALL_S))
        return UPLOAD_S if self.delivery.sent_file else CALL_S

    def _attempt(self) -> None:
        delivery, began = self.delivery, time.monotonic()
        try:
            delivery.deliver(self.manifest, records=self.has_records)
        except Exception as error:  # not only Unreachable: whatever fails here must not fail the run
            if self.away_since is None:
                self.away_since, self._sent_before = max(began, delivery.last_progress), delivery.sent_records
                reason = error if isinstance(error, Unreachable) else repr(error)
                log.warning(
                    "%s is unavailable; records remain in %s and are sent when it is back: %s",
                    delivery, delivery.folder, reason,
                )  # fmt: skip
            else:
                self._retry_s = min(2 * self._retry_s, MAX_RETRY_S)
            return
        if self.away_since is not None:
            away_s = time.monotonic() - self.away_since
            sent = count(delivery.sent_records - self._sent_before, "record")
            log.info("%s is back after %s; %s sent", delivery, duration(away_s), sent)
            self.away_since, self._retry_s = None, FIRST_RETRY_S


class Senders:
    """The senders of a run, one for each logger.

    Args:
        loggers: By name.
        folder: The folder with the records.
    """

    def __init__(self, loggers: Mapping[str, Logger], folder: Path) -> None:
        self._loggers, self._folder = dict(loggers), folder
        self._senders: list[Sender] = []

    @property
    def names(self) -> set[str]:
        """The names of the loggers."""
        return {*self._loggers}

    @property
    def ids(self) -> dict[str, str]:
        """The run's id in each logger that has opened it, by the logger's name."""
        own = {sender.delivery.name: sender.delivery.received.run_id for sender in self._senders}
        return run_ids(self._folder) | {name: run_id for name, run_id in own.items() if run_id is not None}

    def start(self, manifest: Manifest) -> None:
        """Begin to deliver."""
        self._senders = [
            Sender(Delivery(name, logger, self._folder), manifest) for name, logger in self._loggers.items()
        ]
        for sender in self._senders:
            sender.start()

    def rewind(self, kept: int, last_step: int) -> None:
        """See `Delivery.rewind`."""
        for sender in self._senders:
            sender.delivery.rewind(kept, last_step)

    def wake(self) -> None:
        """There is something new to deliver."""
        for sender in self._senders:
            sender.wake()

    def finish(self, manifest: Manifest, wait_s: float, limit_s: float = math.inf) -> list[Delivery]:
        """Deliver the rest.

        Args:
            manifest: How the run ended.
            wait_s: How long an outage may have lasted until it is no longer waited for.
            limit_s: After this time, nothing is waited for.

        Returns:
            The deliveries that are not complete.
        """
        for sender in self._senders:
            sender.end(manifest, wait_s)
        ended, announce_s = time.monotonic(), SLOW_S
        while waiting := [one for one in self._senders if one.is_alive() and not one.is_hopeless(ended)]:
            waited_s = time.monotonic() - ended
            if waited_s > limit_s:
                break
            if waited_s > announce_s:
                log.info("still sending to %s", ", ".join(one.describe() for one in waiting))
                announce_s = waited_s + REPEAT_S
            waiting[0].join(POLL_S)
        return [one.delivery for one in self._senders if one.is_alive() or one.away_since is not None or one.crashed]


def warn_missing(delivery: Delivery) -> None:
    """Say how to send later what a logger has not received."""
    key = shlex.quote(setting("sync.runs", quoted(delivery.folder)))
    log.warning("%s has not received everything; send the rest with\n  python -m pspexp mode=sync %s", delivery, key)
