import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pspexp.errors import UserError
from pspexp.metrics import Report
from pspexp.tracking import MLflowLogger, mlflow_loggers
from pspexp.tracking.local import LocalTracker
from pspexp.tracking.logger import Record
from pspexp.tracking.manifest import Delivered
from pspexp.tracking.mlflow_client import download_file, resolve_uri, sqlite_file
from pspexp.tracking.mlflow_limits import Names
from pspexp.tracking.run_folder import read_records, read_summary
from pspexp.tracking.secrets import mask_logins
from pspexp.tracking.tracker import Tracker
from tests.end_to_end.conftest import wait_until


@pytest.fixture(autouse=True)
def no_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def output_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for the whole module: creating one takes seconds."""
    return tmp_path_factory.mktemp("outputs")


def begin(folder: Path, output_root: Path, *, resume: bool = False, **config: Any) -> Tracker:
    tracker = Tracker(LocalTracker(folder), mlflow_loggers("trials", str(output_root)))
    tracker.start(
        name=folder.name,
        config={"seed": 1, **config},
        config_text="seed: 1\n",
        overrides=["seed=1"],
        tags={"mode": "train", "model": "pspnet18"},
        resume=resume,
    )
    return tracker


def run_id(tracker: Tracker) -> str:
    return tracker.ids["mlflow"]


def client(output_root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{output_root}/mlflow.db")


def artifacts(client: Any, run_id: str, folder: str | None = None) -> set[str]:
    found = client.list_artifacts(run_id, folder)
    files = {item.path for item in found if not item.is_dir}
    return files.union(*(artifacts(client, run_id, item.path) for item in found if item.is_dir))


def test_mlflow_run_holds_what_was_recorded(tmp_path: Path, output_root: Path, report: Report) -> None:
    tracker = begin(tmp_path, output_root, optimizer={"lr": 0.1}, long="x" * 7000)
    (tmp_path / "checkpoints").mkdir()
    for name in ("best.pt", "last.pt"):
        (tmp_path / "checkpoints" / name).write_bytes(name.encode())
    tracker.metrics({"train/loss": 2.0}, step=5, epoch=1)
    tracker.report("val", report, step=10, epoch=2, extra={"val/loss": 1.5})
    tracker.finish("FINISHED")

    mlflow = client(output_root)
    run = mlflow.get_run(run_id(tracker))
    assert run.info.status == "FINISHED"
    assert run.info.run_name == tmp_path.name
    assert run.data.params["optimizer.lr"] == "0.1"
    assert len(run.data.params["long"]) == 6000
    assert run.data.params["long"].endswith("(complete in config.yaml)")
    assert run.data.metrics["train/loss"] == 2.0
    assert run.data.metrics["val/mean_iou"] == report.mean_iou
    assert run.data.metrics["val/iou/sky"] == 0.5
    assert {"mode", "model", "git_commit"} <= set(run.data.tags)
    assert "mean IoU" in run.data.tags["mlflow.note.content"]
    assert mlflow.get_metric_history(run_id(tracker), "val/loss")[0].step == 10
    assert artifacts(mlflow, run_id(tracker)) == {
        "config.yaml",
        "overrides.txt",
        "summary.json",
        "tables/val_iou.csv",
        "plots/confusion_matrix.png",
        "plots/train_loss.png",
        "plots/val_loss.png",
        "checkpoints/best.pt",
    }
    assert (output_root / "mlartifacts").is_dir()
    best = download_file(run_id(tracker), "checkpoints/best.pt", None, str(output_root))
    assert best.samefile(tmp_path / "checkpoints" / "best.pt")  # stored once


def test_resume_continues_the_same_mlflow_run(tmp_path: Path, output_root: Path) -> None:
    first = begin(tmp_path, output_root, changed="before")
    first.metrics({"train/loss": 2.0}, step=5, epoch=1)
    first.finish("KILLED")
    mlflow = client(output_root)
    assert mlflow.get_run(run_id(first)).info.status == "KILLED"

    second = begin(tmp_path, output_root, resume=True, changed="after", new="param")
    assert run_id(second) == run_id(first)
    wait_until(lambda: mlflow.get_run(run_id(second)).info.status == "RUNNING")
    second.metrics({"train/loss": 1.0}, step=10, epoch=2)
    second.finish("FINISHED")
    run = mlflow.get_run(run_id(second))
    assert run.info.status == "FINISHED"
    assert (run.data.params["changed"], run.data.params["new"]) == ("before", "param")
    assert [metric.step for metric in mlflow.get_metric_history(run_id(second), "train/loss")] == [5, 10]


def test_resume_of_a_missing_mlflow_run_starts_a_new_one(
    tmp_path: Path, output_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Delivered(run_id="0" * 32, records=7, note="old").save(tmp_path, "mlflow")
    tracker = begin(tmp_path, output_root, resume=True)
    wait_until(lambda: read_summary(tmp_path)["mlflow_run_id"] not in (None, "0" * 32))
    assert read_summary(tmp_path)["mlflow_run_id"] == run_id(tracker)
    assert "starting a new one" in caplog.text


def test_each_record_is_one_call(tmp_path: Path, output_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = MLflowLogger("trials", str(output_root))
    run = logger.open(run_id=None, name="x", params={}, tags={})
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    calls: list[str] = []
    real = SqlAlchemyStore.log_batch

    def log_batch(self: Any, run_id: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(run_id)
        return real(self, run_id, *args, **kwargs)

    monkeypatch.setattr(SqlAlchemyStore, "log_batch", log_batch)
    logger.metrics({f"train/{i}": float(i) for i in range(50)}, step=5, time_s=1.0)
    assert calls == [run]
    logger.records([Record({f"train/{i}": float(i) for i in range(10)}, step, 1.0) for step in range(100)])
    assert calls == [run] * 2
    assert len(client(output_root).get_run(run).data.metrics) == 50


def test_repeated_records_are_stored_once(tmp_path: Path, output_root: Path) -> None:
    logger = MLflowLogger("trials", str(output_root))
    run = logger.open(run_id=None, name="x", params={}, tags={"pspexp.id": "abc"})
    records = [Record({"train/loss": 1 / step}, step, 1000.0 + step) for step in (1, 2, 3)]
    logger.records(records[:2])
    again = MLflowLogger("trials", str(output_root))
    assert again.open(run_id=None, name="x", params={}, tags={"pspexp.id": "abc"}) == run  # its id got lost
    again.records(records)
    history = client(output_root).get_metric_history(run, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_refused_value_does_not_take_others_with_it(output_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = MLflowLogger("trials", str(output_root))
    run = logger.open(run_id=None, name="x", params={}, tags={})
    monkeypatch.setattr(logger, "_names", lambda name: name)
    with pytest.raises(ValueError, match=r"^a\*b of step 2: MlflowException"):
        logger.records([Record({"a": 1.0, "a*b": 2.0, "c": 3.0}, step, 1.0) for step in (2, 3)])
    assert client(output_root).get_run(run).data.metrics == {"a": 1.0, "c": 3.0}


def test_names_that_mlflow_refuses_are_replaced(tmp_path: Path, output_root: Path) -> None:
    tracker = begin(tmp_path, output_root, **{"a[0]": 1})
    awkward = ["val/iou/a+b", "val/iou/a#b", "val/iou/..", "val/iou//x", "val/iou/[é]: 100 %", "val/iou/" + "n" * 300]
    tracker.metrics({name: float(i) for i, name in enumerate(awkward)}, step=1, epoch=1)
    tracker.finish("FINISHED")
    run = client(output_root).get_run(run_id(tracker))
    assert sorted(run.data.metrics.values()) == [0, 1, 2, 3, 4, 5]
    assert {"val/iou/a_b", "val/iou/a_b_2", "val/iou/_"} < set(run.data.metrics)
    assert run.data.params["a_0_"] == "1"
    assert set(read_records(tmp_path)[0]) > set(awkward)  # the folder keeps the real names


@pytest.mark.parametrize(
    ("log_checkpoints", "logged"),
    [("best", {"best.pt"}), ("last", {"last.pt"}), ("none", set()), ("all", {"best.pt", "last.pt"})],
)
def test_log_checkpoints(tmp_path: Path, output_root: Path, log_checkpoints: Any, logged: set[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    paths = ["checkpoints/best.pt", "checkpoints/last.pt"]
    for path in paths:
        (tmp_path / path).write_bytes(b"weights")
    logger = MLflowLogger("trials", str(output_root), None, log_checkpoints)
    run = logger.open(run_id=None, name="x", params={}, tags={})
    logger.files(tmp_path, paths)
    assert artifacts(client(output_root), run) == {f"checkpoints/{name}" for name in logged}


def test_long_note_is_truncated_at_a_line_break(tmp_path: Path, output_root: Path) -> None:
    logger = MLflowLogger("trials", str(output_root))
    run = logger.open(run_id=None, name="x", params={}, tags={})
    logger.note("\n".join(f"| row {i:04d} |" for i in range(1000)))
    note = client(output_root).get_run(run).data.tags["mlflow.note.content"]
    assert 4900 < len(note) <= 5000
    assert note.endswith(" |")


def test_unreachable_server_delays_a_run_only_by_seconds(
    tmp_path: Path, report: Report, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as closed:  # bound but not listening, so that no other process takes the port
        closed.bind(("127.0.0.1", 0))
        uri = f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}"
        tracker = Tracker(LocalTracker(tmp_path), mlflow_loggers("x", str(tmp_path), tracking_uri=uri))
        environment = dict(os.environ)
        began = time.monotonic()
        with caplog.at_level(logging.WARNING):
            tracker.start(name="x", config={}, config_text="", overrides=[], tags={})
            tracker.metrics({"train/loss": 2.0}, step=5, epoch=1)
            tracker.report("val", report, step=10, epoch=2)
            tracker.finish("FINISHED")
        assert time.monotonic() - began < 20
    away, missing = [r.getMessage() for r in caplog.records if r.name == "pspexp.tracking.senders"]
    assert away.startswith("logger mlflow (MLflow at http://***@127.0.0.1:")
    assert "is unavailable; records remain in" in away
    assert f"\n  python -m pspexp mode=sync sync.runs={tmp_path}" in missing
    assert "secret" not in caplog.text.replace(uri, "")
    assert read_summary(tmp_path)["status"] == "FINISHED"
    assert len(read_records(tmp_path)) == 2
    changed = {key for key in os.environ if os.environ[key] != environment.get(key)}
    assert not any(key.startswith("MLFLOW_HTTP") for key in changed)


class FakeMonitor:
    """Replaces MLflow's monitor, which needs psutil and samples every ten seconds."""

    def __init__(self, run_id: str, **arguments: Any) -> None:
        self.run_id, self.arguments, self.calls = run_id, arguments, list[str]()
        self.server_answers = threading.Event()
        monitors.append(self)

    def start(self) -> None:
        self.calls.append("start")

    def finish(self) -> None:
        self.calls.append("finish")
        assert self.server_answers.wait(60)


monitors: list[FakeMonitor] = []


@pytest.fixture
def monitor_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("monitor")
    module.SystemMetricsMonitor = FakeMonitor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow.system_metrics.system_metrics_monitor", module)
    monitors.clear()


@pytest.mark.usefixtures("monitor_module")
def test_system_metrics_stop_at_close_even_if_the_server_hangs(
    tmp_path: Path, output_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pspexp.tracking.mlflow.STOP_S", 0.05)
    logger = MLflowLogger("trials", str(output_root), system_metrics=True)
    run = logger.open(run_id=None, name="x", params={}, tags={})
    (monitor,) = monitors
    expected = {"resume_logging": True, "tracking_uri": f"sqlite:///{output_root}/mlflow.db"}
    assert (monitor.run_id, monitor.arguments, monitor.calls) == (run, expected, ["start"])
    began = time.monotonic()
    logger.close("FINISHED")
    assert time.monotonic() - began < 30
    assert monitor.calls == ["start", "finish"]
    monitor.server_answers.set()
    assert client(output_root).get_run(run).info.status == "FINISHED"


def test_system_metrics_without_psutil_are_skipped_with_advice(
    output_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.system_metrics.system_metrics_monitor", None)
    logger = MLflowLogger("trials", str(output_root), system_metrics=True)
    run = logger.open(run_id=None, name="x", params={}, tags={})
    logger.close("FINISHED")
    assert client(output_root).get_run(run).info.status == "FINISHED"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("tracking.system_metrics=true: not recorded (")
    assert "pspexp[system-metrics]" in warning


def test_system_metrics_with_mlflows_own_monitor(output_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    logger = MLflowLogger("trials", str(output_root), system_metrics=True)
    run = logger.open(run_id=None, name="x", params={}, tags={})
    mlflow, deadline = client(output_root), time.monotonic() + 60
    while not (found := mlflow.get_run(run).data.metrics) and time.monotonic() < deadline:
        time.sleep(0.1)
    logger.close("FINISHED")
    assert "system/cpu_utilization_percentage" in found
    assert not any(thread.name == "SystemMetricsMonitor" for thread in threading.enumerate())


@pytest.mark.slow
def test_database_is_created_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that is killed meanwhile, nothing is left that MLflow could not go on with."""
    logger = MLflowLogger("x", str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(Path, "hardlink_to", lambda *_: 1 / 0)
        with pytest.raises(ConnectionError):
            logger.open(run_id=None, name="x", params={}, tags={})
    assert not (tmp_path / "mlflow.db").exists()
    assert list(tmp_path.glob("mlflow.db.new.*"))
    found = MLflowLogger("x", str(tmp_path)).open(run_id=None, name="x", params={}, tags={})
    assert client(tmp_path).get_run(found).info.status == "RUNNING"
    assert {file.name for file in tmp_path.iterdir()} == {"mlflow.db", "mlflow.db.lock"}


@pytest.mark.slow
def test_concurrent_processes_share_a_new_database_quietly(tmp_path: Path) -> None:
    script = (
        "import logging, sys; logging.basicConfig(level=logging.INFO); early = logging.getLogger('early'); "
        "logging.getLogger().addHandler(logging.FileHandler(sys.argv[2])); "
        "from pspexp.tracking import MLflowLogger; "
        "MLflowLogger('x', sys.argv[1]).open(run_id=None, name='x', params={}, tags={}); "
        "early.info('still here')"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), str(tmp_path / name)],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for name in ("a.log", "b.log")
    ]
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert all("still here" in text and len(text.splitlines()) <= 3 for text in outputs), outputs
    assert [(tmp_path / name).read_text() for name in ("a.log", "b.log")] == ["still here\n"] * 2
    mlflow = client(tmp_path)
    experiment = mlflow.get_experiment_by_name("x")
    assert len(mlflow.search_runs([experiment.experiment_id])) == 2


def test_download_names_what_is_missing(tmp_path: Path, output_root: Path) -> None:
    with pytest.raises(UserError, match="no MLflow records"):
        download_file("0" * 32, "checkpoints/best.pt", None, str(tmp_path))
    assert not (tmp_path / "mlflow.db").exists()
    begin(tmp_path / "run", output_root)
    with pytest.raises(UserError, match=r"runs:/0+: no checkpoints/best.pt"):
        download_file("0" * 32, "checkpoints/best.pt", None, str(output_root))


def test_local_artifact_is_not_copied(tmp_path: Path, output_root: Path) -> None:
    tracker = begin(tmp_path, output_root)
    tracker.finish("FINISHED")
    folder = client(output_root).get_run(run_id(tracker)).info.artifact_uri.removeprefix("file://")
    assert download_file(run_id(tracker), "config.yaml", None, str(output_root)) == Path(folder, "config.yaml")


def test_downloaded_copies_are_deleted_at_exit(
    tmp_path: Path, output_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that proxies artifacts, so that they have no local path."""
    ids = []
    for name in ("a", "b"):
        tracker = begin(tmp_path / name, output_root)
        tracker.finish("FINISHED")
        ids.append(run_id(tracker))
    script = (
        "import sys; from types import SimpleNamespace as Run; from mlflow import MlflowClient; "
        "from pspexp.tracking.mlflow_client import download_file; "
        "MlflowClient.get_run = lambda *_: Run(info=Run(artifact_uri='mlflow-artifacts:/1')); "
        "print(*(download_file(run, 'config.yaml', None, sys.argv[1]) for run in sys.argv[2:]))"
    )
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    command = [sys.executable, "-c", script, str(output_root), *ids]
    stdout = subprocess.run(command, text=True, capture_output=True, check=True, timeout=120).stdout
    copies = [Path(path) for path in stdout.split()]
    assert len(set(copies)) == 2
    assert all(copy.is_relative_to(tmp_path / "tmp") for copy in copies)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_resolve_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(None, "outputs") == f"sqlite:///{tmp_path}/outputs/mlflow.db"
    assert resolve_uri("http://host", "outputs") == "http://host"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other")
    assert resolve_uri(None, "outputs") == "http://other"
    assert resolve_uri("http://host", "outputs") == "http://host"


def test_helpers(tmp_path: Path) -> None:
    names = Names()
    assert [names("a+b"), names("a#b"), names("a+b"), names("x/y z.é-1")] == ["a_b", "a_b_2", "a_b", "x/y z.é-1"]
    assert mask_logins("at http://me:secret@host/x") == "at http://***@host/x"
    assert sqlite_file(f"sqlite:///{tmp_path}/a.db?timeout=5") == tmp_path.resolve() / "a.db"
    assert sqlite_file("http://host") is None
