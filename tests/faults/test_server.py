"""Outages of a real MLflow server: nothing that a run records is lost, repeated or out of order."""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from tests.end_to_end.conftest import Start, wait_for, wait_until
from tests.faults.servers import MLflowServer, postgresql, postgresql_programs

GATE = '''
"""A hook that lets a training wait at every fourth step until the test opens a gate."""

import time
from pathlib import Path

from pspexp.engine.hooks import Hook


class Gate(Hook):
    def on_log(self, trainer, metrics):
        step = trainer.state.step
        while step % 4 == 1 and step > 1 and not Path(f"gate.{step}").exists():
            time.sleep(0.01)
'''
COMMAND = (
    *TINY[:-1],
    "trainer.epochs=9",
    "trainer.validate_every=9",
    "+hooks.gate._target_=gate.Gate",
    "tracking.experiment=trials",
    "tracking.wait_s=60",
    "hydra.run.dir=run",
)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """A server that is not running yet."""
    with ExitStack() as stack:
        store = ""
        if request.param == "postgresql":
            if postgresql_programs() is None:
                pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
            store = stack.enter_context(postgresql(tmp_path_factory.mktemp("postgresql")))
        found = MLflowServer(tmp_path_factory.mktemp("server"), store)
        stack.callback(found.kill)
        yield found


def records(folder: Path) -> list[dict[str, Any]]:
    """The local records."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def history(uri: str) -> dict[str, list[tuple[int, float, int]]]:
    """Step, value and time of each metric in the latest run on the server; empty if there is none."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("trials")
    found = client.search_runs([experiment.experiment_id], max_results=1) if experiment else []
    return {
        name: [(one.step, one.value, one.timestamp) for one in client.get_metric_history(found[0].info.run_id, name)]
        for name in (found[0].data.metrics if found else ())
    }


def expected(folder: Path) -> dict[str, list[tuple[int, float, int]]]:
    """The local records in the form of `history`."""
    found: dict[str, list[tuple[int, float, int]]] = {}
    for record in records(folder):
        for name, value in record.items():
            if name not in ("step", "epoch", "time"):
                found.setdefault(name, []).append((record["step"], value, int(1000 * record["time"])))
    return found


@pytest.mark.slow
def test_records_follow_in_order_after_each_outage(server: MLflowServer, tmp_path: Path, start: Start) -> None:
    (tmp_path / "gate.py").write_text(GATE)
    training = start(*COMMAND, f"tracking.tracking_uri={server.uri}", PYTHONPATH=f"{Path(__file__).parents[2]}:.")

    def open_gate(step: int) -> None:
        """Let the training go on, up to the next gate."""
        (tmp_path / f"gate.{step}").touch()
        wait_until(lambda: len(records(tmp_path / "run")) >= step + 4, training)

    def all_received() -> bool:
        return history(server.uri)["train/loss"] == expected(tmp_path / "run")["train/loss"]

    # Away at the start: the training does not wait for it.
    wait_until(lambda: len(records(tmp_path / "run")) == 5, training)
    server.start()
    wait_until(lambda: history(server.uri), training)
    wait_until(all_received, training)
    # It hangs.
    server.send(signal.SIGSTOP)
    open_gate(5)
    server.send(signal.SIGCONT)
    wait_until(all_received, training)
    # It dies, and is still away when the run ends, which waits for it.
    server.kill()
    open_gate(9)
    (tmp_path / "gate.13").touch()
    (tmp_path / "gate.17").touch()
    wait_until(lambda: "waiting for logger mlflow" in (tmp_path / "run" / "run.log").read_text(), training)
    server.start()
    codes, _, errors = wait_for([training])
    assert codes == [0], errors
    assert history(server.uri) == expected(tmp_path / "run")
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count(" is unavailable") == log.count(" is back after ")
    assert "mode=sync" not in log
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["mlflow_run_id"]
