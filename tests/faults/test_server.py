"""Outages of a real MLflow server: nothing that a run records is lost, repeated or out of order."""

import json
import logging
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pspexp.tracking import mlflow_loggers
from pspexp.tracking.local import LocalTracker
from pspexp.tracking.tracker import Tracker
from tests.conftest import TINY, Cli
from tests.end_to_end.conftest import Start, wait_for, wait_until
from tests.faults.servers import Answer, MLflowServer, Proxy, passed_on, postgresql, postgresql_programs

pytestmark = pytest.mark.slow  # starting a server takes about ten seconds

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


# What is between pspexp and the server does not depend on the server's database.
one_store = pytest.mark.parametrize("server", ["sqlite"], indirect=True)


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
    wait_until(lambda: "still sending to logger mlflow" in (tmp_path / "run" / "run.log").read_text(), training)
    server.start()
    codes, _, errors = wait_for([training])
    assert codes == [0], errors
    assert history(server.uri) == expected(tmp_path / "run")
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count(" is unavailable") == log.count(" is back after ")
    assert "mode=sync" not in log
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["mlflow_run_id"]


@pytest.fixture
def proxy(server: MLflowServer) -> Iterator[Proxy]:
    """A proxy in front of the running server."""
    if not server.process:
        server.start()
    with Proxy(server) as found:
        yield found
        found.shutdown()


@pytest.fixture
def tracker(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    """A run that is recorded through the proxy; an outage that lasts at its end is waited for only for a moment."""
    monkeypatch.setattr("pspexp.tracking.senders.MAX_RETRY_S", 0.5)
    keys = {"experiment": "trials", "output_root": str(tmp_path), "tracking_uri": proxy.uri}
    found = Tracker(LocalTracker(tmp_path / "run"), mlflow_loggers(**keys), wait_s=1)
    config = {"tracking": {"_target_": "pspexp.tracking.mlflow_loggers", **keys}}
    found.start(name="run", config=config, config_text="", overrides=[], tags={})
    return found


def record(tracker: Tracker, first: int, last: int) -> None:
    """Twenty values at each step."""
    for step in range(first, last):
        tracker.metrics({"train/loss": 1 / step, **{f"train/{n}": float(step) for n in range(19)}}, step=step, epoch=1)


def always(status: int, code: str) -> Answer:
    """The same error, whatever is asked."""
    return lambda path, body: (status, {"error_code": code, "message": "go away"})


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (500, "INTERNAL_ERROR"),
        (429, "REQUEST_LIMIT_EXCEEDED"),
        (401, "UNAUTHENTICATED"),
        (403, "PERMISSION_DENIED"),
    ],
)
@one_store
def test_errors_of_the_server_are_an_outage(
    proxy: Proxy, tracker: Tracker, caplog: pytest.LogCaptureFixture, status: int, code: str
) -> None:
    caplog.set_level(logging.INFO)
    record(tracker, 1, 5)
    wait_until(lambda: len(history(proxy.uri).get("train/loss", ())) == 4)
    proxy.answer = always(status, code)
    record(tracker, 5, 10)
    wait_until(lambda: "is unavailable" in caplog.text)
    record(tracker, 10, 15)
    proxy.answer = passed_on
    wait_until(lambda: "is back after" in caplog.text)
    record(tracker, 15, 20)
    tracker.finish("FINISHED")
    assert history(proxy.uri) == expected(tracker.folder)
    assert caplog.text.count("is unavailable") == caplog.text.count("is back after") == 1
    assert f"{status}" in caplog.text or code in caplog.text


@one_store
def test_refused_value_is_named_and_the_others_arrive(
    proxy: Proxy, tracker: Tracker, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: str, body: bytes) -> tuple[int, dict[str, str]] | None:
        refused = path.endswith("log-batch") and b'"train/7"' in body
        return (400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "no sevens"}) if refused else None

    proxy.answer = refuse
    record(tracker, 1, 5)
    tracker.finish("FINISHED")
    local = expected(tracker.folder)
    assert len(local.pop("train/7")) == 4
    assert history(proxy.uri) == local
    (warning,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert re.search(r"rejected a record, which remains in .*/run only: .*train/7 of step 1: .*no sevens", warning)


@one_store
def test_server_with_a_full_disk_is_an_outage(
    server: MLflowServer, proxy: Proxy, tracker: Tracker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    record(tracker, 1, 5)
    wait_until(lambda: len(history(proxy.uri).get("train/loss", ())) == 4)
    server.limit_files(1)
    record(tracker, 5, 10)
    wait_until(lambda: "is unavailable" in caplog.text)
    server.limit_files(-1)
    wait_until(lambda: "is back after" in caplog.text)
    tracker.finish("FINISHED")
    assert history(proxy.uri) == expected(tracker.folder)


@one_store
def test_sync_sends_what_an_expired_login_has_kept_back(
    proxy: Proxy, tracker: Tracker, cli: Cli, caplog: pytest.LogCaptureFixture
) -> None:
    record(tracker, 1, 5)
    wait_until(lambda: len(history(proxy.uri).get("train/loss", ())) == 4)
    proxy.answer = always(401, "UNAUTHENTICATED")
    record(tracker, 5, 10)
    tracker.finish("FINISHED")
    (command,) = re.findall(r"python -m pspexp (mode=sync sync\.runs=\S+)", caplog.text)
    proxy.answer = passed_on
    assert cli(*command.split()) == 0
    assert history(proxy.uri) == expected(tracker.folder)
