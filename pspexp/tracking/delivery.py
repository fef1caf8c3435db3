"""Brings the records of a folder to one logger: in order, each once, and later if the logger cannot be reached now."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock

from pspexp.errors import UserError
from pspexp.tracking.local import set_ids
from pspexp.tracking.logger import Logger, Record
from pspexp.tracking.manifest import Delivered, Manifest, read_delivered
from pspexp.tracking.run_folder import parse_record
from pspexp.tracking.secrets import mask_logins
from pspexp.utils.text import one_line

CHUNK = 100  # records in one call, of a logger that takes several

log = logging.getLogger(__name__)


class Unreachable(Exception):  # noqa: N818 - an outage ends
    """A logger cannot be reached now; nothing that it has not confirmed counts as received."""


class Delivery:
    """What a logger has received of a folder, and what it has not.

    `deliver` may be repeated, also by another process later: it sends what is missing.

    Args:
        name: The logger's name.
        logger: The logger.
        folder: The folder with the records.
    """

    def __init__(self, name: str, logger: Logger, folder: Path) -> None:
        self.name, self.logger, self.folder = name, logger, folder
        self.received = read_delivered(folder, name)
        self.received.place = self.received.place or self.place()
        self.is_open = False
        self.sent_records = 0
        self.rejected: dict[str, int] = {}
        self.last_progress, self.sent_file = time.monotonic(), ""  # the file that is being sent
        self._position = 0  # in metrics.jsonl, after the received records; unknown at first
        self._skip = self.received.records
        self._saved, self._saving = "", Lock()

    def __str__(self) -> str:
        place = self.place()
        return f"logger {self.name}" + (f" ({place})" if place else "")

    def place(self) -> str:
        """Where the logger records, if it says so; not what a class shows of its arguments, which may be secret."""
        described = "__str__" in {name for kind in type(self.logger).__mro__[:-1] for name in vars(kind)}
        try:
            return mask_logins(str(self.logger)) if described else ""
        except Exception:  # it may not know before it is open
            return ""

    def deliver(self, manifest: Manifest, *, records: bool = True) -> None:
        """Send what the logger has not received.

        Args:
            manifest: What it is to receive besides the records.
            records: Whether the records are final up to their last line, see `rewind`.

        Raises:
            Unreachable: The logger cannot be reached; what it has received is known. Or the folder is gone, and its
                disk perhaps with what the logger writes.
        """
        if not self.folder.exists():
            raise Unreachable(f"{self.folder} is missing")
        try:
            self.open(manifest)
            if records:
                self._send_records()
            self._send_note(manifest)
            self._send_files(manifest.files)
            self.close(manifest)
            self._send_files(manifest.late_files)
        except OSError as error:
            raise Unreachable(reason(error)) from error
        finally:
            self._save()

    def open(self, manifest: Manifest) -> None:
        """Open the run if this has not been done yet."""
        if self.is_open:
            return
        received = self.received
        try:
            run_id = self.logger.open(
                run_id=received.run_id, name=manifest.name, params=manifest.params, tags=manifest.tags
            )
        except Exception as error:  # nothing can be sent, so there is nothing to skip
            raise Unreachable(reason(error)) from error
        self.last_progress = time.monotonic()
        if received.run_id not in (None, str(run_id)):  # the logger no longer has that run
            self.received = received = Delivered()
            self._skip = self._position = 0
        received.run_id, received.place, received.status = str(run_id), self.place(), None
        self.is_open = True
        self._save()
        set_ids(self.folder, {self.name: str(run_id)})

    def close(self, manifest: Manifest) -> None:
        """Let the logger know how the run ended, if it has."""
        if self.is_open and manifest.status is not None and self.received.status != manifest.status:
            self._call("the end of the run", lambda: self.logger.close(manifest.status))  # type: ignore[arg-type]
            self.received.status = manifest.status

    def rewind(self, kept: int, last_step: int) -> None:
        """Note that only the first ``kept`` records, up to ``last_step``, remain: a resumed run repeats the others.

        Only before the first `deliver` with ``records``.
        """
        received = self.received
        if received.records > kept:
            if received.last_step > last_step:  # else only a validation is repeated
                received.repeated.append([last_step + 1, received.last_step])
            received.records = self._skip = kept
            self._save()

    def is_complete(self, manifest: Manifest) -> bool:
        """Whether the logger has received everything."""
        return (
            self.received.status == manifest.status
            and not any(True for _ in self._new_records())
            and self._note(manifest) in (None, self.received.note)
            and not self._new_files((*manifest.files, *manifest.late_files))
        )

    def _send_records(self) -> None:
        records = self._new_records()
        several = getattr(self.logger, "records", None)
        several = several if callable(several) else None
        while chunk := list(islice(records, CHUNK if several else 1)):
            found = [record for record, _ in chunk]
            self._call("a record", partial(several, found) if several else partial(self._metrics, *found))
            self.received.records += len(chunk)
            self.received.last_step = chunk[-1][0].step
            self.sent_records += len(chunk)
            self._position = chunk[-1][1]
            self._save()

    def _metrics(self, record: Record) -> None:
        self.logger.metrics(record.values, step=record.step, time_s=record.time_s)

    def _new_records(self) -> Iterator[tuple[Record, int]]:
        """Each record that the logger has not received, and its end in the file; not an unfinished last line."""
        file = self.folder / "metrics.jsonl"
        if not file.exists():
            return
        with file.open("rb") as lines:
            position = lines.seek(self._position)
            for line in lines:
                if not line.endswith(b"\n"):  # more may be written to it
                    return
                position += len(line)
                content = parse_record(line.decode(errors="replace"))
                if content is None or not {"step", "time"} <= content.keys():
                    continue
                record = Record(
                    {key: value for key, value in content.items() if key not in ("step", "epoch", "time")},
                    content["step"],
                    content["time"],
                )
                if self._skip:
                    self._skip, self._position = self._skip - 1, position
                else:
                    yield record, position

    def _send_note(self, manifest: Manifest) -> None:
        text = self._note(manifest)
        if text is not None and text != self.received.note:
            self._call("the description", lambda: self.logger.note(text))
            self.received.note = text

    def _note(self, manifest: Manifest) -> str | None:
        """The description, with the steps that a resumed run recorded again; None if there is nothing to say."""
        file = self.folder / manifest.note
        lines = [file.read_text(encoding="utf-8").rstrip("\n")] if file.exists() else []
        lines += [f"Steps {first}–{last} were recorded again after a resume." for first, last in self.received.repeated]
        return "\n\n".join(lines) if lines else None

    def _send_files(self, patterns: Sequence[str]) -> None:
        for path, version in self._new_files(patterns).items():
            self._call("a file", partial(self.logger.files, self.folder, [path]), f" ({path})")
            self.received.files[path] = version
            self._save()

    def _new_files(self, patterns: Sequence[str]) -> dict[str, list[int]]:
        """The version of each file that is new or has changed, by its path."""
        found = {}
        for file in (path for pattern in patterns for path in sorted(self.folder.glob(pattern))):
            path = file.relative_to(self.folder).as_posix()
            with suppress(FileNotFoundError):  # replaced by the files of a newer evaluation
                state = file.stat()
                if self.received.files.get(path) != (version := [state.st_mtime_ns, state.st_size]):
                    found[path] = version
        return found

    def _call(self, what: str, call: Callable[[], None], which: str = "") -> None:
        """Call the logger. What it refuses is skipped, with one warning: sending it again would not help."""
        self.sent_file = which.strip(" ()") if what == "a file" else ""
        try:
            call()
            self.last_progress = time.monotonic()
        except OSError:
            raise
        except Exception as error:
            self.rejected[what] = self.rejected.get(what, 0) + 1
            if self.rejected[what] == 1:
                text = "%s rejected %s%s, which remains in %s only: %s"
                log.warning(text, self, what, which, self.folder, reason(error))

    def _save(self) -> None:
        with self._saving:  # by the thread that delivers, and by the one that rewinds
            if (content := repr(self.received)) != self._saved and self.folder.exists():
                try:
                    self.received.save(self.folder, self.name)
                    self._saved = content
                except OSError as error:  # the worst that follows: another process sends the same again
                    log.debug("%s: %s", self, error)


def reason(error: Exception) -> str:
    """An error in one line, without passwords."""
    return mask_logins(
        one_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
    )
