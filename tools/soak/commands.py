"""Runs commands that are ended at planned moments."""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
ENDED = (-signal.SIGKILL, -signal.SIGALRM)  # exit codes of a process that was killed, at once or after a delay
TIMEOUT_S = 600
# The smallest training that exercises checkpoints, figures, records and MLflow: a few seconds.
TINY = (
    "dataset=shapes", "dataset.num_train=8", "dataset.num_val=4", "dataset.image_size=48", "model=pspnet18",
    "model._target_=tests.small_network.pspnet", "model.pyramid_channels=4", "model.head_channels=8",
    "model.aux_channels=4", "crop_size=33", "inference=whole", "loader.batch_size=2", "loader.num_workers=0",
    "trainer.epochs=6", "trainer.validate_every=2", "trainer.log_every=1", "checkpoint.every_steps=3",
)  # fmt: skip


@dataclass
class Result:
    """How a command ended."""

    code: int
    output: str
    seconds: float

    @property
    def was_killed(self) -> bool:
        """Whether it was ended at the planned moment."""
        return self.code in ENDED


def pspexp(*overrides: str) -> list[str]:
    """The command line of a job."""
    return [sys.executable, "-m", "pspexp", *overrides]


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a command in ``home``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "SOAK_"))}
    paths = [str(CHECKOUT / "tools" / "soak" / "site"), str(CHECKOUT)]
    return {
        **kept, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true",
        "TORCH_CPP_LOG_LEVEL": "ERROR", "SOAK_ROOT": str(home), "PSPEXP_CACHE": str(home / ".cache"), **more,
    }  # fmt: skip


def run(home: Path, command: Sequence[str], *, kill: str = "", log: Path | None = None) -> Result:
    """Run a command in ``home``.

    Args:
        home: The working folder; changes to files below it are counted.
        command: The command.
        kill: When to end it, see `tools.soak.site.sitecustomize`.
        log: A file for the changes.
    """
    more = ({"SOAK_KILL": kill} if kill else {}) | ({"SOAK_LOG": str(log)} if log else {})
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:  # not a pipe, which a process that is left would hold open
        process = subprocess.Popen(
            command, cwd=home, env=environment(home, **more), start_new_session=True, stdout=output,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output.write(b"\n(timed out)")
        code = process.wait()
        output.seek(0)
        return Result(code, output.read().decode(errors="replace"), time.perf_counter() - start)


def moments(changes: Sequence[str], number: int, chance: random.Random) -> list[str]:
    """Seeded moments at which to end a command, spread over the kinds of files that it changes.

    Args:
        changes: What an undisturbed run changed, in order.
        number: How many moments.
        chance: The source of randomness.

    Returns:
        Plans for ``SOAK_KILL``: half of them at the beginning of a change, the others up to 30 ms later.
    """
    kinds: dict[str, list[int]] = {}
    for index, change in enumerate(changes, start=1):
        kinds.setdefault(kind(change), []).append(index)
    names = sorted(kinds)
    chance.shuffle(names)
    chosen = [chance.choice(kinds[names[index % len(names)]]) for index in range(number)]
    return [f"{index}:{chance.choice([0, chance.uniform(0.05, 30)]):.2f}" for index in chosen]


def kind(change: str) -> str:
    """What a change is about: its type, and the file without what varies."""
    event, _, path = change.partition(" ")
    parts = [re.sub(r"[0-9a-f]{32}|uploading\..*|\d+", "*", part) for part in path.split("/") if part]
    return f"{event} {'/'.join(parts[-2:])}" if parts else event
