"""What there is to send of a folder with records, and what a logger has received of it.

Both are files in ``tracking/`` of the folder, so that another process can send what this one could not.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pspexp.tracking.run_folder import read_json
from pspexp.utils.files import write_text_atomic

TRACKING = "tracking"
ID_TAG = "pspexp.id"  # a tag by which a logger can find a run that it has opened, if the id got lost


@dataclass(frozen=True)
class Manifest:
    """What a folder's loggers are to receive, besides its ``metrics.jsonl``.

    Attributes:
        name: The run's name.
        params: The configuration, flattened, without secrets.
        tags: Model, data set and so on.
        note: Path of a Markdown file, the run's description.
        files: Patterns of files, relative to the folder.
        late_files: Patterns of files that are sent after the run is closed.
        status: How the run ended; None while it lasts.
        tracking: The configuration of the loggers, without secrets.
    """

    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    note: str = f"{TRACKING}/note.md"
    files: tuple[str, ...] = ()
    late_files: tuple[str, ...] = ()
    status: str | None = None
    tracking: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write ``tracking/manifest.json``."""
        write_text_atomic(folder / TRACKING / "manifest.json", json.dumps(asdict(self), indent=1) + "\n")


def manifest_folders(place: Path) -> Iterator[Path]:
    """The folders with a manifest in a folder, itself included."""
    for file in place.rglob(f"{TRACKING}/manifest.json"):
        yield file.parents[1]


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None if it has none that can be read."""
    content = read_json(folder / TRACKING / "manifest.json")
    content |= {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
    try:
        return Manifest(**content)
    except TypeError:
        return None


@dataclass
class Delivered:
    """What a logger has received.

    Attributes:
        place: Where the logger records, for messages.
        run_id: The run's id there.
        records: Number of records of ``metrics.jsonl``.
        last_step: Step of the last of them.
        files: Time of modification in nanoseconds and size of each file, by its path.
        note: The description.
        status: How the run ended, if the logger knows that.
        repeated: First and last step of each range that was recorded again after a resume.
    """

    place: str = ""
    run_id: str | None = None
    records: int = 0
    last_step: int = 0
    files: dict[str, list[int]] = field(default_factory=dict)
    note: str | None = None
    status: str | None = None
    repeated: list[list[int]] = field(default_factory=list)

    def save(self, folder: Path, logger: str) -> None:
        """Write ``tracking/loggers/<logger>.json``; after a power failure, the previous one may be there."""
        write_text_atomic(delivered_file(folder, logger), json.dumps(vars(self)) + "\n", durable=False)


def read_delivered(folder: Path, logger: str) -> Delivered:
    """What a logger has received of a folder: nothing if that is unknown."""
    content = read_json(delivered_file(folder, logger))
    try:
        return Delivered(**content)
    except TypeError:
        return Delivered()


def forget_delivered(folder: Path) -> None:
    """Let the folder's records belong to new runs of its loggers."""
    own = folder / TRACKING
    for file in (own / "manifest.json", own / "note.md", *(own / "loggers").glob("*.json")):
        file.unlink(missing_ok=True)


def delivered_file(folder: Path, logger: str) -> Path:
    """The file that says what a logger has received."""
    return folder / TRACKING / "loggers" / f"{quote(logger, safe='')}.json"


def run_ids(folder: Path) -> dict[str, str]:
    """The id of a folder's run in each logger that has opened it, by the logger's name."""
    found = {}
    for file in sorted((folder / TRACKING / "loggers").glob("*.json")):
        if run_id := read_json(file).get("run_id"):
            found[unquote(file.stem)] = str(run_id)
    return found
