"""Helpers that run commands in separate processes."""

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
TIMEOUT_S = 120  # for each wait; starting processes is slow on a busy machine

Process = subprocess.Popen[str]
Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start commands in ``tmp_path`` with extra environment variables; kill leftover processes afterwards."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MLFLOW_"))}
    started: list[Process] = []

    def run(*overrides: str, command: Sequence[str] = (sys.executable, "-m", "pspexp"), **environment: str) -> Process:
        quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # torch 2.11 logs a warning whenever a process group is destroyed
        defaults = {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", **quiet, **environment}
        process = subprocess.Popen(
            [*command, *overrides],
            cwd=tmp_path,
            env=inherited | defaults,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=default_signals,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def wait_for(processes: Sequence[Process], timeout_s: float = TIMEOUT_S) -> tuple[list[int], list[str], list[str]]:
    """Wait for processes to end; return their exit codes, stdout and stderr."""
    outputs = [process.communicate(timeout=timeout_s) for process in processes]
    return [process.returncode for process in processes], [out for out, _ in outputs], [error for _, error in outputs]


def wait_until(condition: Callable[[], Any], *processes: Process) -> Any:
    """Return the value of ``condition`` once it is true; fail if a process ends first, or after `TIMEOUT_S`."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)
    return found


def children(pid: int) -> list[int]:
    """Return the worker processes started by ``pid``, in start order."""
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
