"""The overview of a sweep."""

import logging
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from pspexp.sweep import overview
from pspexp.sweep.job_record import JobRecord, load, name_of, save
from pspexp.sweep.run_sweep import run_sweep
from pspexp.sweep.sweep import Sweep
from pspexp.utils.files import write_text_atomic

LR, SIZE = "optimizer.lr", "loader.batch_size"


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Three jobs: the second is the best, the third ran out of memory; and a job of another sweep in a subfolder."""
    sweep = Sweep(tmp_path, "sweep-1a2b", {LR: "1e-3,1e-4", SIZE: "2"}, {})
    error = "RuntimeError: [enforce fail at alloc_cpu.cpp:114] can't allocate memory"
    metric = "best/mean_iou"
    ends = [("FINISHED", 0.25, None), ("FINISHED", 0.5, None), ("FAILED", None, error)]
    for number, (state, result, message) in enumerate(ends):
        values = {LR: 10.0**-number, SIZE: 2}
        record = JobRecord("sweep-1a2b", number, name_of(values, number), values, state, metric, result, 61, message)  # type: ignore[arg-type]
        save(tmp_path / str(number), record)
    save(tmp_path / "other" / "0", JobRecord("other-3c4d", 7, "seed=7", {"seed": 7}, "FINISHED"))
    return sweep


@pytest.fixture
def config() -> DictConfig:
    return OmegaConf.create({"tracking": {"_target_": "pspexp.tracking.other_loggers"}})


def test_table_ranks_jobs_and_explains_failures(
    sweep: Sweep, config: DictConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not overview.report_sweep(sweep, config, stopped=False)
    output = capsys.readouterr().out
    assert "job 2: RuntimeError: [enforce fail at alloc_cpu.cpp:114] can't allocate memory; see " in output
    assert "sweep.retry_failed=true" in output
    assert "0:01:01" in output
    assert "seed=7" not in output
    assert [line.split("│")[1].strip() for line in output.splitlines() if "* " in line] == ["1"]
    assert f"best: job 1 (lr=0.1,batch_size=2), mean IoU 50.00 %, in {sweep.folder / '1'}\n" in output
    assert "Best: lr=0.1,batch_size=2, mean IoU 50.00 %" in (sweep.folder / "sweep.md").read_text()
    rows = (sweep.folder / "sweep.csv").read_text().splitlines()
    assert rows[0] == f"job,{LR},{SIZE},status,best/mean_iou,seconds,folder,mlflow_run_id,error"
    assert rows[2] == "1,0.1,2,FINISHED,0.5,61,1,,"
    ranking = [line for line in (sweep.folder / "sweep.md").read_text().splitlines() if line.startswith("| ")]
    assert ranking[2].startswith("| 1 | **lr=0.1,batch_size=2** | **50.00** | FINISHED |")
    assert ranking[4].startswith("| 3 | lr=0.01,batch_size=2 | – | FAILED |")
    assert (sweep.folder / "plots" / "parallel_coordinates.png").stat().st_size > 1000


@pytest.mark.parametrize("results", [[None, None], [0.5]])
def test_no_job_is_marked_as_best(
    results: list[float | None], tmp_path: Path, config: DictConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a result, or without another job."""
    for number, result in enumerate(results):
        save(
            tmp_path / str(number), JobRecord("s", number, f"seed={number}", {"seed": number}, "FINISHED", None, result)
        )
    overview.report_sweep(Sweep(tmp_path, "s", {"seed": "0,1"}, {}), config, stopped=False)
    output = capsys.readouterr().out
    assert "FINISHED" in output
    assert "best:" not in output
    assert "* " not in output


def test_sweep_messages_are_not_in_the_last_jobs_log(sweep: Sweep, caplog: pytest.LogCaptureFixture) -> None:
    """Hydra's basic launcher leaves the last job's log open."""
    root, log = logging.getLogger(), sweep.folder / "2" / "run.log"
    before = root.handlers[:]

    def run_jobs() -> int:
        root.addHandler(logging.FileHandler(log))
        logging.getLogger("pspexp").warning("of the job")
        return 0

    unusable = OmegaConf.create({"tracking": {"_target_": "pspexp.tracking.mlflow_loggers", "experiment_name": ""}})
    unusable.hydra = {"launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}}
    assert run_sweep(sweep, unusable, run_jobs) == 1
    assert "logger mlflow disabled" in caplog.text
    assert log.read_text() == "of the job\n"
    assert root.handlers == before


def test_unreadable_record_affects_only_its_own_row(
    sweep: Sweep, config: DictConfig, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (sweep.folder / "0" / "job.json").write_text('{"stat": "FINISHED"}')
    (sweep.folder / "1" / "summary.json").write_text("{")
    assert not overview.report_sweep(sweep, config, stopped=False)
    assert f"{sweep.folder / '0' / 'job.json'}: cannot be read (JobRecord.__init__() got an unexpected" in caplog.text
    rows = (sweep.folder / "sweep.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["job", "1", "2"]
    assert "│   1 │ 0.1  │ 2          │ FINISHED │" in capsys.readouterr().out


def test_mlflow_is_not_mentioned_without_tracking(
    sweep: Sweep, config: DictConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    overview.report_sweep(sweep, config, stopped=False)
    assert "MLflow" not in capsys.readouterr().out


def test_suggested_override_is_quoted(tmp_path: Path, config: DictConfig, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my sweep, the first"
    save(folder / "0", JobRecord("s", 0, "seed=1", {"seed": 1}, "KILLED"))
    overview.report_sweep(Sweep(folder, "s", {"seed": "1,2"}, {}), config, stopped=True)
    assert f"""'hydra.sweep.dir='"'"'{folder}'"'"''""" in capsys.readouterr().out


def test_state_of_a_killed_job_is_read_from_its_run(tmp_path: Path) -> None:
    running = JobRecord("s", 0, "seed=1", {"seed": 1}, metric="best/mean_iou")
    save(tmp_path, running)
    assert load(tmp_path).state == "KILLED"  # type: ignore[union-attr]
    write_text_atomic(tmp_path / "summary.json", '{"status": "FINISHED", "best": {"best/mean_iou": 0.5}}')
    found = load(tmp_path, holds_lock=True)
    assert found is not None
    assert (found.state, found.result) == ("FINISHED", 0.5)


def test_keys_with_equal_suffixes_get_longer_names() -> None:
    assert name_of({LR: 0.0001, SIZE: 8}, 0) == "lr=0.0001,batch_size=8"
    assert name_of({"model": "pspnet50", "loss.weight": 1, "optimizer.weight": 2}, 0) == (
        "model=pspnet50,loss.weight=1,optimizer.weight=2"
    )
    assert name_of({}, 3) == "job 3"
