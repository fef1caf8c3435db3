"""What a sweep varies, and which commands resume it."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hydra.plugins.launcher import Launcher

from pspexp.config import compose as composition
from pspexp.errors import UserError
from pspexp.sweep.numbering import NumberedLauncher
from pspexp.sweep.sweep import SWEEP_FILE, Sweep, begin_or_resume, load_sweep
from pspexp.utils.files import write_text_atomic

OVERRIDES = ("dataset=shapes", "optimizer.lr=1e-3,1e-4", "model=pspnet18,pspnet50")


def begin(folder: Path, *overrides: str) -> Sweep:
    return begin_or_resume(folder, overrides, composition.compose_checked(overrides, sweep=True))


def test_varied_values_are_stored_as_given(tmp_path: Path) -> None:
    sweep = begin(tmp_path / "sweep", *OVERRIDES, "crop_size=33")
    assert sweep.varies == {"optimizer.lr": "1e-3,1e-4", "model": "pspnet18,pspnet50"}
    assert sweep == load_sweep(tmp_path / "sweep")
    assert sweep.id.startswith("sweep-")
    assert begin(tmp_path / "sweep", *OVERRIDES, "crop_size=33").id == sweep.id
    assert begin(tmp_path / "other" / "sweep", *OVERRIDES).id != sweep.id


def test_sweeper_parameters_vary_unless_overridden(tmp_path: Path) -> None:
    overlay = ("dataset=shapes", "+sweep=lr_batch")
    assert begin(tmp_path / "a", *overlay).varies == {"optimizer.lr": "1e-4,5e-5", "loader.batch_size": "4,8"}
    assert begin(tmp_path / "b", *overlay, "optimizer.lr=1e-3").varies == {"loader.batch_size": "4,8"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("dataset=shapes", "optimizer.lr=1e-3", OVERRIDES[2]), "optimizer.lr=one value: was 1e-3,1e-4"),
        ((*OVERRIDES, "seed=1,2"), "seed=1,2: was one value, 1122, which is not among these (sweep in "),
        (
            (*OVERRIDES, "seed=1122,2", "hydra.sweep.subdir=${hydra.job.override_dirname}"),
            "seed=1122,2: was one value, and hydra.sweep.subdir=${hydra.job.override_dirname} would rename the jobs",
        ),
        ((*OVERRIDES, "crop_size=65"), "crop_size=65: was 513"),
        ((*OVERRIDES, "loss=ohem"), "choices.loss=ohem: was cross_entropy"),
        ((*OVERRIDES, "model.pyramid_channels=8"), "model.pyramid_channels=8: was 128"),
        ((*OVERRIDES, "launcher=ddp", "launcher.nproc_per_node=2"), "launcher: 2 processes, was 1"),
        ((*OVERRIDES, "checkpoint.resume=elsewhere"), "checkpoint.resume=elsewhere: was null"),
    ],
)
def test_different_sweep_is_refused_with_its_differences(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    begin(tmp_path / "sweep", *OVERRIDES)
    with pytest.raises(UserError) as refused:
        begin(tmp_path / "sweep", *overrides)
    assert message in str(refused.value)


SEARCH = ("dataset=shapes", "hydra.sweeper._target_=another.Sweeper", "seed=1,2")


@pytest.mark.parametrize("overrides", [(*SEARCH[:2], "seed=1,2,3"), (*SEARCH, "crop_size=33,49")])
def test_search_cannot_get_other_values(overrides: tuple[str, ...], tmp_path: Path) -> None:
    begin(tmp_path / "sweep", *SEARCH)
    with pytest.raises(UserError, match=r": was (1,2|one value) \(sweep in"):
        begin(tmp_path / "sweep", *overrides)


LR_ONLY = ("dataset=shapes", "optimizer.lr=1e-3,1e-4")


def jobs(sweep: Sweep) -> list[tuple[object, ...]]:
    """Return the values of each job, by number."""
    assert sweep.jobs is not None
    return [tuple(job[key] for key in sweep.varies) for job in sweep.jobs]


def test_further_values_get_further_numbers(tmp_path: Path) -> None:
    first = begin(tmp_path / "sweep", *LR_ONLY)
    more = begin(tmp_path / "sweep", "dataset=shapes", "optimizer.lr=1e-5,0.001,1e-4")
    assert jobs(more) == [(1e-3,), (1e-4,), (1e-5,)]
    assert (more.id, more.varies) == (first.id, {"optimizer.lr": "1e-5,0.001,1e-4"})
    assert begin(tmp_path / "sweep", "dataset=shapes", "optimizer.lr=1e-5,0.001,1e-4") == more
    fewer = begin(tmp_path / "sweep", "dataset=shapes", "optimizer.lr=1e-6,1e-4")  # the others stay
    assert jobs(fewer) == [(1e-3,), (1e-4,), (1e-5,), (1e-6,)]
    assert fewer.varies == {"optimizer.lr": "0.001,0.0001,1e-05,1e-06"}
    again = begin(tmp_path / "sweep", *LR_ONLY)
    assert (jobs(again), again.varies) == (jobs(fewer), fewer.varies)
    with pytest.raises(UserError, match="seed=5: was 1122"):
        begin(tmp_path / "sweep", *LR_ONLY, "seed=5")


def test_further_key_keeps_the_jobs_with_its_former_value(tmp_path: Path) -> None:
    begin(tmp_path / "sweep", *LR_ONLY)
    more = begin(tmp_path / "sweep", *LR_ONLY, "seed=1,1122", "model=pspnet18,pspnet50")
    former = [(1e-3, 1122, "pspnet50"), (1e-4, 1122, "pspnet50")]
    assert jobs(more)[:2] == former
    assert sorted(jobs(more), key=str) == sorted(product((1e-3, 1e-4), (1, 1122), ("pspnet18", "pspnet50")), key=str)
    reordered = begin(tmp_path / "sweep", "dataset=shapes", "model=pspnet18,pspnet50", "seed=1,1122", LR_ONLY[1])
    assert jobs(reordered) == jobs(more)


def test_hydra_starts_jobs_under_the_numbers_of_the_folder(tmp_path: Path) -> None:
    started: list[tuple[int, list[str]]] = []

    class Recorder(Launcher):
        def setup(self, **_: object) -> None:
            pass

        def launch(self, job_overrides: Any, initial_job_idx: int) -> list[Any]:
            started.append((initial_job_idx, [job[0].partition("=")[2] for job in job_overrides]))
            return []

    sweep = Sweep(tmp_path, "s", {"seed": ""}, {}, [{"seed": seed} for seed in (5, 3, 4, 1, 2)])
    launcher = NumberedLauncher(Recorder(), sweep, sweep.jobs or [])
    launcher.launch([[f"seed={seed}"] for seed in (1, 2, 3, 5)], initial_job_idx=0)
    assert started == [(0, ["5", "3"]), (3, ["1", "2"])]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("sweep.json", "{", "sweep.json: cannot be read (Expecting property name"),
        ("sweep.json", '{"idd": 1}', "sweep.json: cannot be read (Sweep.__init__() got an unexpected keyword"),
        ("0/job.json", "{}", "contains jobs of a sweep, but no sweep.json; choose another folder"),
    ],
)
def test_folder_without_a_valid_sweep_is_refused(file: str, content: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    write_text_atomic(folder / file, content)
    with pytest.raises(UserError) as refused:
        begin(folder, *OVERRIDES)
    assert message in str(refused.value)
    assert str(folder) in str(refused.value)
    assert (folder / file).read_text() == content


def test_run_folder_is_refused(tmp_path: Path) -> None:
    for name in ("config.yaml", "overrides.txt"):  # either file alone is not a run folder
        write_text_atomic(tmp_path / "run" / name, "")
    with pytest.raises(UserError, match=r"run: contains a run; choose another folder"):
        begin(tmp_path / "run", *OVERRIDES)


def test_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: cannot be written .*; choose another folder"):
        begin(tmp_path / "file", *OVERRIDES)


def test_shared_job_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hydra.sweep.subdir=same: all jobs would share it; .*\$\{hydra.job.num\}"):
        begin(tmp_path / "sweep", *OVERRIDES, "hydra.sweep.subdir=same")
    assert not (tmp_path / "sweep").exists()


def test_overridden_sweep_values_are_refused(tmp_path: Path) -> None:
    for later in ("seed=3", "seed=3,4"):
        with pytest.raises(UserError, match=f"seed=1,2: {later} overrides it; remove one of them"):
            begin(tmp_path / "sweep", "dataset=shapes", "seed=1,2", later)
    assert begin(tmp_path / "sweep", "dataset=shapes", "seed=3", "seed=1,2").varies == {"seed": "1,2"}


def test_settings_that_do_not_affect_results_may_change(tmp_path: Path) -> None:
    first = begin(tmp_path / "sweep", *OVERRIDES)
    changes = (
        "sweep.retry_failed=true",
        "launcher=ddp",
        "tracking=none",
        "loader.num_workers=7",
        "output_root=elsewhere",
    )
    assert begin(tmp_path / "sweep", *OVERRIDES, *changes).id == first.id


def test_passwords_are_not_stored(tmp_path: Path) -> None:
    begin(tmp_path / "sweep", *OVERRIDES, "tracking.tracking_uri='http://user:hunter2@localhost'")
    assert "hunter2" not in (tmp_path / "sweep" / SWEEP_FILE).read_text()
