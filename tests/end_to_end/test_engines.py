"""Sweeps with Hydra's launcher and sweeper plugins: each plugin that an extra installs is run for real."""

from importlib.metadata import distributions
from pathlib import Path

import pytest

from pspexp.config.overrides import ENGINES
from tests.conftest import TINY
from tests.end_to_end.conftest import Start, wait_for
from tests.end_to_end.test_sweeps import column

LAUNCHERS = {
    "joblib": ("hydra.launcher.n_jobs=2",),
    "submitit_local": ("hydra.launcher.timeout_min=5",),
    "ray": ("+hydra.launcher.ray.init.num_cpus=2",),
}
LONG_S = 400  # several jobs at once on a busy machine


def launcher_overrides(name: str) -> list[str]:
    """Return the overrides that select a launcher; skip the test if its plugin is not installed."""
    package, extra = ENGINES.get(f"hydra/launcher/{name}", ("hydra-core", ""))
    if package not in {distribution.name for distribution in distributions()}:
        pytest.skip(f"needs the extra '{extra}'")
    return [f"hydra/launcher={name}", *LAUNCHERS[name]]


def save_times(sweep: Path) -> dict[str, int]:
    """Return the modification time of each job's last checkpoint."""
    return {file.parts[-3]: file.stat().st_mtime_ns for file in sweep.glob("*/checkpoints/last.pt")}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_only_the_failed_job_is_retried(name: str, start: Start, tmp_path: Path) -> None:
    grid = ("optimizer.lr=1e-3,1e-4", "trainer.max_steps=2", "hydra.sweep.dir=sweep")
    overrides = ("-m", *TINY, *grid, *launcher_overrides(name))
    sweep = tmp_path / "sweep"
    (sweep / "0").mkdir(parents=True)
    (sweep / "0" / "checkpoints").touch()  # job 0 needs a folder here
    codes, _, errors = wait_for([start(*overrides)], LONG_S)
    assert codes == [1], errors
    assert column(sweep, "status") == ["FAILED", "FINISHED"]
    assert "checkpoints" in (sweep / "0" / "run.log").read_text()

    before = save_times(sweep)
    assert list(before) == ["1"]
    (sweep / "0" / "checkpoints").unlink()
    codes, _, errors = wait_for([start(*overrides, "sweep.retry_failed=true")], LONG_S)
    assert codes == [0], errors
    assert column(sweep, "status") == ["FINISHED"] * 2
    after = save_times(sweep)
    assert after.pop("0")
    assert after == before
    assert column(sweep, "optimizer.lr") == ["0.001", "0.0001"]


@pytest.mark.slow
def test_search_is_continued_with_more_trials(start: Start, tmp_path: Path) -> None:
    """Two trials in parallel, then another: the first two are kept and not run again."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra 'optuna'")
    overrides = ("+sweep=optuna", "hydra.sweeper.n_jobs=2", *launcher_overrides("joblib"), *TINY, "trainer.max_steps=2")
    sweep = tmp_path / "sweep"

    def search(n_trials: int) -> list[str]:
        process = start(*overrides, f"hydra.sweeper.n_trials={n_trials}", "hydra.sweep.dir=sweep")
        codes, _, errors = wait_for([process], LONG_S)
        assert codes == [0], errors
        return column(sweep, "optimizer.lr")

    first, before = search(2), save_times(sweep)
    assert all(1e-5 <= float(lr) <= 1e-3 for lr in first)
    assert search(3)[:2] == first
    assert len(set(column(sweep, "optimizer.lr"))) == len(save_times(sweep)) == 3
    assert {job: save_times(sweep)[job] for job in before} == before
    assert "best_value" in (sweep / "optimization_results.yaml").read_text()
