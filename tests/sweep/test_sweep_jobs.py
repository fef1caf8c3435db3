"""A job that has to wait for a free device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from pspexp.errors import UserError
from pspexp.jobs.job import Job
from pspexp.sweep import jobs
from pspexp.sweep.job_record import JobRecord, load
from pspexp.sweep.sweep import Sweep

WAITED_S, COMPUTED_S = 100, 5
JobThatWaits = Callable[[Callable[[], Any]], float | None]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobThatWaits:
    """Run a job on a simulated clock; takes a function to call while the job waits."""
    clock = SimpleNamespace(now=0)
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def compute(*_: object, **__: object) -> tuple[float, None]:
        clock.now += COMPUTED_S
        return 0.5, None

    monkeypatch.setattr(jobs, "run_in_processes", compute)

    def run(meanwhile: Callable[[], Any]) -> float | None:
        @contextmanager
        def wait(*_: object) -> Iterator[None]:
            clock.now += WAITED_S
            meanwhile()
            yield

        monkeypatch.setattr(jobs, "device_share", wait)
        config = OmegaConf.create({"mode": "train", "sweep": {"fail_fast": True}})
        record = JobRecord("s", 0, "seed=1", {"seed": 1})
        basic = OmegaConf.create({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"})
        sweep = Sweep(tmp_path, "s", {"seed": "1,2"}, {})
        return jobs.run_and_record(sweep, record, Job(config, tmp_path / "0", []), None, basic)

    return run


def test_waiting_does_not_count_as_run_time(job: JobThatWaits, tmp_path: Path) -> None:
    assert job(lambda: None) == 0.5
    record = load(tmp_path / "0")
    assert record is not None
    assert (record.state, record.seconds) == ("FINISHED", COMPUTED_S)


@pytest.mark.parametrize(("mark", "reason"), [(jobs.STOPPED_MARK, "was stopped"), (jobs.FAILED_MARK, "fail_fast=true")])
def test_job_does_not_start_if_the_sweep_ended_while_it_waited(
    job: JobThatWaits, tmp_path: Path, mark: str, reason: str
) -> None:
    with pytest.raises(jobs.NotStarted, match=reason):
        job((tmp_path / mark).touch)
    record = load(tmp_path / "0")
    assert record is not None
    assert record.state == "NOT STARTED"


def test_finished_job_is_the_same_job_although_its_class_weights_were_counted(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("loss:\n  class_weights: [1.5, 0.5]\n  gamma: 2\n")
    sweep, before = Sweep(tmp_path, "s", {"seed": "1,2"}, {}), JobRecord("s", 0, "seed=1", {"seed": 1}, "FINISHED")
    jobs.refuse_another(sweep, before, tmp_path, OmegaConf.create({"loss": {"class_weights": "auto", "gamma": 2}}))
    with pytest.raises(UserError, match=r"loss\.gamma"):
        jobs.refuse_another(sweep, before, tmp_path, OmegaConf.create({"loss": {"class_weights": "auto", "gamma": 3}}))
