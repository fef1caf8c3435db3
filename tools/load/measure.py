"""Runs commands and measures what they use."""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.soak.commands import CHECKOUT


@dataclass(frozen=True)
class Used:
    """What a command used.

    Attributes:
        cpu_s: Seconds of CPU time, those of its child processes included. Unlike wall time, other load on the machine
            hardly changes it.
        peak_mib: Largest resident size of one of its processes.
    """

    cpu_s: float
    peak_mib: float


@dataclass(frozen=True)
class Measure:
    """A measured value, and its bounds.

    Attributes:
        load: The load.
        what: What was measured.
        value: The value.
        unit: Its unit.
        limit: The largest value that is acceptable.
        base: The same without the load; None if there is no such thing.
        ratio: The largest acceptable quotient of the two.
    """

    load: str
    what: str
    value: float
    unit: str
    limit: float
    base: float | None = None
    ratio: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the value is within its bounds."""
        return self.value <= self.limit and (self.base is None or self.value <= (self.ratio or 1) * self.base)

    def cells(self) -> list[str]:
        """A row of the table."""
        base, times, ratio = "", "", ""
        if self.base is not None:
            base, times = self._with_unit(self.base), f"{self.value / self.base:.2f}"
            ratio = f", {number(self.ratio or 1)}×"
        bound = f"{self._with_unit(self.limit)}{ratio}"
        end = "" if self.holds else " **broken**"
        return [self.load, self.what, self._with_unit(self.value), base, times, bound + end]

    def _with_unit(self, value: float) -> str:
        return f"{number(value)} {self.unit}".rstrip()


def number(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def run(home: Path, command: Sequence[str], store: Path | None = None) -> Used:
    """Run a command in ``home``.

    Args:
        home: The working folder; the output is kept there.
        command: The command.
        store: MLflow's database, if it is not the one in ``outputs``.

    Raises:
        RuntimeError: The command has failed.
    """
    home.mkdir(parents=True, exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment = {
        **inherited, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true",
        "TORCH_CPP_LOG_LEVEL": "ERROR", "PSPEXP_CACHE": str(home / ".cache"),
    }  # fmt: skip
    if store is not None:
        environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{store}"
    log = home / "output.log"
    with log.open("wb") as output:
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code} after {time.monotonic() - started:.0f} s; see {log}")
    return Used(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
