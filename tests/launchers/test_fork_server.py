"""Processes that a fork server starts inherit from the process that asked for them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pspexp.launchers import fork_server

SCRIPT = """
import multiprocessing, os, signal
import torch
from pspexp.launchers import fork_server
from pspexp.launchers.fork_server import Inheritance


def show(inheritance, queue):
    os.environ["FROM_THE_AGENT"] = "1"
    inheritance.apply()
    names = ("BEFORE", "FIRST", "SECOND", "FROM_THE_AGENT", "OMP_NUM_THREADS")
    handler = signal.getsignal(signal.SIGTERM)
    queue.put((
        {name: os.environ[name] for name in names if name in os.environ}, torch.get_num_threads(),
        sorted(os.sched_getaffinity(0)), handler is signal.SIG_DFL,
    ))


def started(context):
    queue = context.SimpleQueue()
    process = context.Process(target=show, args=(Inheritance.of_this_process(), queue))
    process.start()
    print(queue.get())
    process.join()


if __name__ == "__main__":
    os.environ["BEFORE"] = "1"
    fork_server.start(["preload"])
    context = multiprocessing.get_context("forkserver")
    del os.environ["BEFORE"]
    os.environ |= {"FIRST": "1", "FROM_THE_AGENT": "0", "OMP_NUM_THREADS": "3"}
    started(context)
    del os.environ["FIRST"]
    os.environ |= {"SECOND": "2", "OMP_NUM_THREADS": "1"}
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    started(context)
"""


@pytest.mark.skipif(not fork_server.is_supported(), reason="needs a fork server")
def test_environment_cores_threads_and_signals_are_those_of_the_parent(tmp_path: Path) -> None:
    (tmp_path / "preload.py").write_text("from pspexp.launchers import fork_server\nfork_server.prepare()\n")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
    cores = sorted(os.sched_getaffinity(0))
    assert done.stdout.splitlines() == [
        str(({"FIRST": "1", "FROM_THE_AGENT": "1", "OMP_NUM_THREADS": "3"}, 3, cores, True)),
        str(({"SECOND": "2", "FROM_THE_AGENT": "1", "OMP_NUM_THREADS": "1"}, 1, cores[:1], True)),
    ]
