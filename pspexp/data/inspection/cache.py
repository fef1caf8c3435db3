"""Facts about files, kept between commands in the user's cache folder, by path, size and time of modification.

Only facts that no setting changes are kept, so that the cache never has to be emptied. It is a convenience: a damaged
or unreadable file counts as empty, and one that cannot be written is not written.
"""

import gzip
import hashlib
import json
import logging
import os
import zlib
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pspexp.data.inspection.facts import Header, Stat
from pspexp.utils.files import atomic_write
from pspexp.utils.user_cache import cache_folder

VERSION = 2  # of the facts; others are ignored
MAX_FILES = 50  # data sets; the oldest files are removed
Facts = TypeVar("Facts", bound=Header)

log = logging.getLogger(__name__)


class FactsCache:
    """The facts about the files below a folder, in one file.

    Args:
        root: The folder.
        folder: Where the file is; None: `cache_folder`.
    """

    def __init__(self, root: Path, folder: Path | None = None) -> None:
        self._root = str(root.absolute())
        digest = hashlib.sha256(os.fsencode(self._root)).hexdigest()[:12]
        self.file: Path | None = None
        with suppress(RuntimeError):  # there is no home folder
            self.file = (folder or cache_folder("inspection")) / f"{digest}.json.gz"
        self._entries = self._read()
        self._has_changed = False

    def get(self, kind: type[Facts], path: Path, stat: Stat) -> Facts | None:
        """The facts about a file; None if they are unknown, or the file has changed."""
        entry = self._entries.get(self._key(kind, path))
        try:
            if not entry or tuple(entry[:2]) != stat:
                return None
            make: Any = kind
            known: Facts = make(
                **{name: tuple(item) if isinstance(item, list) else item for name, item in entry[2].items()}
            )
            return known
        except (TypeError, AttributeError, KeyError, IndexError):  # the file is not one of ours
            return None

    def put(self, path: Path, stat: Stat, facts: Header) -> None:
        """Remember the facts about a file."""
        default = type(facts)()
        known = {name: value for name, value in asdict(facts).items() if value != getattr(default, name)}
        self._entries[self._key(type(facts), path)] = [*stat, known]
        self._has_changed = True

    def save(self) -> None:
        """Write the file, if there is anything new in it."""
        if not self._has_changed or self.file is None:
            return
        own = self.file.with_name(f"{self.file.name}.{os.getpid()}")  # another process may be writing, too
        try:
            with atomic_write(own) as file:
                text = json.dumps({"version": VERSION, "root": self._root, "entries": self._entries})
                file.write(gzip.compress(text.encode(), compresslevel=1))
            own.replace(self.file)
            files = sorted(self.file.parent.glob("*.json.gz"), key=lambda one: one.stat().st_mtime)
            for old in files[:-MAX_FILES]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.debug("%s: facts about files are not kept: %s", self.file, error)
            with suppress(OSError):
                own.unlink()

    def _read(self) -> dict[str, list[Any]]:
        try:
            content = json.loads(gzip.decompress(self.file.read_bytes())) if self.file else {}
            valid = content["version"] == VERSION and content["root"] == self._root
            entries = content["entries"] if valid else {}
            return entries if isinstance(entries, dict) else {}
        except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error):
            return {}

    def _key(self, kind: type[Header], path: Path) -> str:
        return f"{kind.__name__}/{os.path.relpath(path, self._root)}"
