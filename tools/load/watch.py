"""Records what a training and its workers hold, once per epoch."""

import json
import os
import time
from pathlib import Path
from typing import Any

from pspexp.engine.hooks import Hook, TrainingLoop

OPEN_S = 60.0  # for MLflow to open the run


class Watch(Hook):
    """Append memory, open files, threads and zombies to a file after each epoch, before its validation.

    Args:
        file: The file, with a JSON object per line.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.has_waited = False

    def on_step_end(self, trainer: TrainingLoop) -> None:
        """Measure at the end of an epoch."""
        if trainer.state.step % trainer.components.loader.steps_per_epoch:
            return
        deadline = time.monotonic() + OPEN_S
        while not self.has_waited and not trainer.tracker.ids and time.monotonic() < deadline:
            time.sleep(0.1)  # what the loggers import is no growth
        self.has_waited = True
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"epoch": trainer.epoch, **held(os.getpid())}) + "\n")


def held(pid: int) -> dict[str, Any]:
    """What a process and its children hold.

    Memory is the proportional set size: each page that a worker shares with others counts as the part of it.
    """
    found = [one for one in children(pid) if state(one) != "Z"]
    return {
        "main_mib": pss_mib(pid),
        "worker_mib": [pss_mib(one) for one in found],
        "files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "worker_files": [len(list(Path(f"/proc/{one}/fd").iterdir())) for one in found],
        "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
        "zombies": len(children(pid)) - len(found),
    }


def pss_mib(pid: int) -> float:
    """The proportional set size of a process, without files, whose share depends on who else has mapped them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss_Anon:"))


def children(pid: int) -> list[int]:
    """The child processes of a process, whichever thread has started them, zombies included."""
    return sorted(int(one) for file in Path(f"/proc/{pid}/task").glob("*/children") for one in file.read_text().split())


def state(pid: int) -> str:
    """A letter: ``Z`` for a zombie; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def in_session(leader: int) -> list[int]:
    """The processes, except zombies, in the session that a process has begun: its descendants, wherever they are."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            kind, _, _, session = file.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # ended meanwhile
            continue
        if int(session) == leader and kind != "Z":
            found.append(int(file.parent.name))
    return found
