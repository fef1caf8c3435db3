"""No process of a sweep survives it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")

SWEEP = """
import subprocess, sys, time
from pspexp.sweep.watchdog import processes_end_with_this_one
with processes_end_with_this_one():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print(child.pid, flush=True)
    if sys.argv[1] == "killed":
        time.sleep(600)
"""


def ended(pid: int) -> bool:
    """Whether a process has ended; a zombie has, too: nobody reaps it in a container without an init process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("end", ["killed", "finished"])
def test_processes_of_a_killed_sweep_end(end: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", SWEEP, end], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    if end == "killed":
        process.kill()
    process.wait()
    process.stdout.close()
    if end == "killed":
        wait_until(lambda: ended(child))
    else:
        assert not ended(child)
        os.kill(child, signal.SIGKILL)
