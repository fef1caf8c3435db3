"""Command lines in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import default_signals

CHECKOUT = Path(__file__).parents[2]
LIMIT_S = 120  # for whatever is waited for; a busy machine starts processes slowly

Process = subprocess.Popen[str]
Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Types a command line, with additions to the environment, in ``tmp_path``; what is left at the end is killed."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MLFLOW_"))}
    begun: list[Process] = []

    def type_in(*words: str, command: Sequence[str] = (sys.executable, "-m", "pspexp"), **environment: str) -> Process:
        quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # torch 2.11 warns of something of its own when a process group ends
        own = {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", **quiet, **environment}
        process = subprocess.Popen(
            [*command, *words],
            cwd=tmp_path,
            env=plain | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=default_signals,
        )
        begun.append(process)
        return process

    yield type_in
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def ends(processes: Sequence[Process], limit_s: float = LIMIT_S) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, outputs and errors of processes, when all have ended."""
    said = [process.communicate(timeout=limit_s) for process in processes]
    return [process.returncode for process in processes], [out for out, _ in said], [error for _, error in said]


def until(condition: Callable[[], Any], *processes: Process) -> Any:
    """What ``condition`` returns once that is true; fails if a process ends first, or after `LIMIT_S`."""
    deadline = time.monotonic() + LIMIT_S
    while not (found := condition()):
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "takes too long"
        time.sleep(0.05)  # between two looks; the condition ends the wait
    return found


def children(pid: int) -> list[int]:
    """The processes that were started by ``pid`` to work, in the order of their start."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue
        if parent == pid and b"spawn_main" in command:
            found.append(int(stat.parent.name))
    return sorted(found)
