"""A training step while the MLflow server answers, hangs or is down."""

import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pspexp
from pspexp.engine.distributed import ProcessInfo
from pspexp.jobs.job import Job
from tests.faults.servers import MLflowServer
from tools.bench.options import Options
from tools.bench.overhead import SKIPPED_ROUNDS, SMALL
from tools.bench.records import quiet
from tools.bench.results import Row, Table

STATES = ("answers", "hangs", "is down")
STEPS = 10  # per turn; each is recorded


class Outages:
    """A stop signal that never requests a stop: when the trainer polls it between steps, the server changes its state.

    Args:
        server: The running server.
        rounds: Turns in each state.

    Attributes:
        times: Mean seconds per step, one value per turn, for each of `STATES`.
    """

    def __init__(self, server: MLflowServer, rounds: int) -> None:
        self._server, self._rounds = server, rounds
        self._asked, self._began = 0, 0.0
        self.times: dict[str, list[float]] = {state: [] for state in STATES}

    def __call__(self) -> int | None:
        at, self._asked = self._asked, self._asked + 1
        turn, step = divmod(at, STEPS)
        if step or turn > self._rounds * len(STATES):  # validation polls, too
            return None
        if at:
            self.times[STATES[(turn - 1) % len(STATES)]].append((time.perf_counter() - self._began) / STEPS)
        self._change_to(STATES[turn % len(STATES)])
        self._began = time.perf_counter()
        return None

    def _change_to(self, state: str) -> None:
        if state == "hangs":
            self._server.send(signal.SIGSTOP)
        elif state == "is down":
            self._server.kill()
        elif self._server.process is None:
            self._server.start()


def bench_outage(options: Options) -> Iterator[Table]:
    """One training on generated shapes, with turns in each state of a real server."""
    name, size, batch = SMALL
    rounds = SKIPPED_ROUNDS + options.repeats
    overrides = [
        f"model={name}", f"crop_size={size}", f"loader.batch_size={batch}", "dataset=shapes", "loader.num_workers=0",
        "loader.max_eval_images=1", "trainer.log_every=1", "trainer.epochs=10000", "trainer.validate_every=10000",
        f"trainer.max_steps={rounds * len(STATES) * STEPS + 1}", *options.overrides(),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, closing(server := MLflowServer(Path(folder) / "server")):
        server.start()
        overrides += ["tracking=mlflow", f"tracking.tracking_uri={server.uri}", f"output_root={folder}"]
        outages = Outages(server, rounds)
        with quiet(Path(folder)):
            Job(pspexp.compose(overrides), Path(folder) / "run", overrides)(ProcessInfo(), outages)
    rows = {f"the server {state}": Row(times[SKIPPED_ROUNDS:], batch) for state, times in outages.times.items()}
    medians = {label: statistics.median(row.times) for label, row in rows.items()}
    baseline = next(iter(rows))
    facts = {f"{label}, %": 100 * (value / medians[baseline] - 1) for label, value in medians.items()}
    yield Table(f"{name}, crop {size}, batch {batch}, a record at each step", rows, baseline, facts)
