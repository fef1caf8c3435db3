"""Threads that bring a run's records to its loggers, so that training never waits for them."""

import logging
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Thread

from pspexp.errors import setting
from pspexp.tracking.delivery import Delivery, Unreachable
from pspexp.tracking.logger import Logger
from pspexp.tracking.manifest import Manifest, run_ids
from pspexp.utils.text import count, duration, quoted

OPEN_WAIT_S = 5.0  # how long a run waits until its loggers have opened it: the id is then on the disk from the start
FIRST_RETRY_S, MAX_RETRY_S, LAST_RETRY_S = 1.0, 30.0, 0.5
SLOW_S = 2.0  # a longer wait is announced
HANGS_S = 600.0  # at the end of a run, for a logger without timeouts of its own

log = logging.getLogger(__name__)


class Sender(Thread):
    """Delivers to one logger, and tries again while it is out of reach.

    Args:
        delivery: What to deliver.
        manifest: Of the run.
    """

    def __init__(self, delivery: Delivery, manifest: Manifest) -> None:
        super().__init__(name=str(delivery), daemon=True)
        self.delivery, self.manifest = delivery, manifest
        self.has_records = False
        self.attempted = Event()
        self.away_since: float | None = None
        self._sent_before, self._wait_s, self._retry_s = 0, 0.0, FIRST_RETRY_S
        self._woken, self._ending = Event(), Event()

    def run(self) -> None:
        """Deliver until the run has ended and everything has arrived, or the time to wait for it is over."""
        while True:
            ending = self._ending.is_set()
            self._woken.clear()
            self._attempt()
            self.attempted.set()
            if ending and (self.away_since is None or time.monotonic() - self.away_since >= self._wait_s):
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

    def _attempt(self) -> None:
        delivery = self.delivery
        try:
            delivery.deliver(self.manifest, records=self.has_records)
        except Exception as error:  # not only Unreachable: whatever fails here must not fail the run
            if self.away_since is None:
                self.away_since, self._sent_before = time.monotonic(), delivery.sent_records
                reason = error if isinstance(error, Unreachable) else repr(error)
                log.warning(
                    "%s is out of reach; records stay in %s and are sent when it is back: %s",
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
        """Begin to deliver; waits for a moment until the loggers have opened the run."""
        self._senders = [
            Sender(Delivery(name, logger, self._folder), manifest) for name, logger in self._loggers.items()
        ]
        for sender in self._senders:
            sender.start()
        deadline = time.monotonic() + OPEN_WAIT_S
        for sender in self._senders:
            sender.attempted.wait(max(deadline - time.monotonic(), 0))

    def rewind(self, kept: int, last_step: int) -> None:
        """See `Delivery.rewind`."""
        for sender in self._senders:
            sender.delivery.rewind(kept, last_step)

    def wake(self) -> None:
        """There is something new to deliver."""
        for sender in self._senders:
            sender.wake()

    def finish(self, manifest: Manifest, wait_s: float, limit_s: float = HANGS_S) -> list[Delivery]:
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
        deadline = time.monotonic() + limit_s
        for sender in self._senders:
            sender.join(min(SLOW_S, limit_s))
            if sender.is_alive() and limit_s > SLOW_S:
                log.info("waiting for %s", sender.delivery)
                sender.join(max(deadline - time.monotonic(), 0))
        return [one.delivery for one in self._senders if one.is_alive() or one.away_since is not None]


def warn_missing(delivery: Delivery) -> None:
    """Say how to send later what a logger has not received."""
    key = shlex.quote(setting("sync.runs", quoted(delivery.folder)))
    log.warning("%s has not received everything; send the rest with\npython -m pspexp mode=sync %s", delivery, key)
