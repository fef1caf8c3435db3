"""A job that had to wait until another one has given its card free."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from pspexp.jobs.job import Job
from pspexp.sweep import jobs
from pspexp.sweep.record import Record, load
from pspexp.sweep.sweep import Sweep

WAITED_S, COMPUTED_S = 100, 5
JobThatWaits = Callable[[Callable[[], Any]], float | None]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobThatWaits:
    """Does a job on a clock of its own; takes what happens while it waits."""
    clock = SimpleNamespace(now=0)
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def compute(*_: object) -> tuple[float, None]:
        clock.now += COMPUTED_S
        return 0.5, None

    monkeypatch.setattr(jobs, "in_processes_of_its_own", compute)

    def do(meanwhile: Callable[[], Any]) -> float | None:
        @contextmanager
        def wait(*_: object) -> Iterator[None]:
            clock.now += WAITED_S
            meanwhile()
            yield

        monkeypatch.setattr(jobs, "own_share", wait)
        config = OmegaConf.create({"mode": "train", "sweep": {"fail_fast": True}})
        record = Record("s", 0, "seed=1", {"seed": 1})
        basic = OmegaConf.create({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"})
        sweep = Sweep(tmp_path, "s", {"seed": "1,2"}, {})
        return jobs.keep(sweep, record, Job(config, tmp_path / "0", []), None, basic)

    return do


def test_its_time_is_that_of_its_work(job: JobThatWaits, tmp_path: Path) -> None:
    assert job(lambda: None) == 0.5
    record = load(tmp_path / "0")
    assert record is not None
    assert (record.state, record.seconds) == ("FINISHED", COMPUTED_S)


@pytest.mark.parametrize(("mark", "why"), [(jobs.STOPPED_MARK, "was stopped"), (jobs.FAILED_MARK, "fail_fast=true")])
def test_it_does_not_begin_when_the_sweep_has_ended_meanwhile(
    job: JobThatWaits, tmp_path: Path, mark: str, why: str
) -> None:
    with pytest.raises(jobs.NotStarted, match=why):
        job((tmp_path / mark).touch)
    record = load(tmp_path / "0")
    assert record is not None
    assert record.state == "NOT STARTED"
