"""Device sharing between concurrent jobs."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from pspexp.errors import UserError
from pspexp.sweep import devices
from pspexp.sweep.devices import core_groups, device_share, exclusive_share, groups, jobs_at_once

LIMIT_S = 60


@pytest.fixture(autouse=True)
def _isolated_lock_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def config(device: str, nproc: int = 1, jobs_per_device: int = 1, **node: object) -> DictConfig:
    return OmegaConf.create(
        {
            "device": {"type": device, **node},
            "launcher": {"nproc_per_node": nproc},
            "sweep": {"jobs_per_device": jobs_per_device, "cores_per_job": None},
        }
    )


@pytest.fixture
def four_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with four cards of a vendor unknown to torch."""

    def visible_cards(kind: str, plugin: str | None, variable: str | None) -> tuple[str, list[str]]:
        return variable or f"{kind.upper()}_VISIBLE_DEVICES", ["4", "5", "6", "7"]

    monkeypatch.setattr(devices, "visible_cards", visible_cards)
    monkeypatch.delenv("ACME_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("four_cards")
def test_concurrent_jobs_see_different_cards() -> None:
    seen = []
    with device_share(config("acme", 2), None):
        seen.append(os.environ["ACME_VISIBLE_DEVICES"])
        with device_share(config("acme", 2), None):
            seen.append(os.environ["ACME_VISIBLE_DEVICES"])
    assert seen == ["4,5", "6,7"]
    assert "ACME_VISIBLE_DEVICES" not in os.environ
    with device_share(config("acme", visible_devices="ACME_CARDS"), None):  # free again
        assert os.environ.pop("ACME_CARDS") == "4"


@pytest.mark.usefixtures("four_cards")
def test_single_job_or_explicit_index_is_not_restricted() -> None:
    for job, at_once in ((config("acme"), 1), (config("acme", index=2), None)):
        with device_share(job, at_once):
            assert "ACME_VISIBLE_DEVICES" not in os.environ


def test_job_waits_until_a_share_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    second, order = threading.Event(), []

    def record_message(message: str, *values: object) -> None:
        order.append(message % values)
        second.set()

    def acquire_second() -> None:
        with exclusive_share("core", ["0"]) as share:
            order.append(f"second got {share}")

    monkeypatch.setattr(devices.log, "info", record_message)
    thread = threading.Thread(target=acquire_second)
    with exclusive_share("core", ["0"]) as share:
        thread.start()
        assert second.wait(LIMIT_S)
        order.append(f"first had {share}")
    thread.join(LIMIT_S)
    assert order == ["waiting: every core is in use (0)", "first had 0", "second got 0"]


def test_jobs_may_share_a_card() -> None:
    with exclusive_share("card", ["0"], 2) as first, exclusive_share("card", ["0"], 2) as second:
        assert (first, second) == ("0", "0")


def test_overlapping_shares_are_never_held_together() -> None:
    with exclusive_share("card", ["0,1"]), exclusive_share("card", ["0", "1", "2"]) as single:
        assert single == "2"


@pytest.mark.usefixtures("four_cards")
def test_more_processes_than_cards_are_refused() -> None:
    with (
        pytest.raises(UserError, match=r"launcher\.nproc_per_node=5: only 4 cards are visible"),
        device_share(config("acme", 5), None),
    ):
        pass


def test_leftover_cards_are_not_used() -> None:
    assert groups(["0", "1", "2", "3", "4"], 2) == ["0,1", "2,3"]
    assert groups(["0"], 2) == []


@contextmanager
def affinity(cores: set[int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], set[int]]]:
    """Simulate a process that may use these cores; yields a function that returns the current ones."""
    now = [cores]
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: now[-1], raising=False)
        patch.setattr(os, "sched_setaffinity", lambda _, wanted: now.append(set(wanted)), raising=False)
        yield lambda: now[-1]


def test_cpu_jobs_get_exclusive_cores_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    with affinity({0, 1, 2, 3, 8}, monkeypatch) as mine:
        with device_share(config("cpu"), 2):
            assert (mine(), os.environ["OMP_NUM_THREADS"]) == ({0, 1}, "2")
        assert (mine(), os.environ["OMP_NUM_THREADS"]) == ({0, 1, 2, 3, 8}, "8")
        with exclusive_share("core", ["0,1", "2,3"]), device_share(config("cpu"), 2):
            assert mine() == {2, 3}
        assert core_groups(None, None) == []  # unknown number of jobs: all share all cores
        assert core_groups(5, None) == ["0,1,2,3,8"]
        with pytest.raises(UserError, match=r"sweep\.cores_per_job=6: only 5 cores are available"):
            core_groups(6, None)


def test_number_of_concurrent_jobs() -> None:
    basic = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}
    assert jobs_at_once(OmegaConf.create(basic)) == 1
    assert jobs_at_once(OmegaConf.create({"_target_": "cluster.Launcher", "gpus_per_node": 2})) is None
    pytest.importorskip("joblib")
    assert jobs_at_once(OmegaConf.create({"_target_": "joblib.Launcher", "n_jobs": 3})) == 3
