"""What starts a sweep's jobs, and what chooses them: each of Hydra's plugins that an extra brings really runs here."""

from importlib.metadata import distributions
from pathlib import Path

import pytest

from pspexp.config.overrides import ENGINES
from tests.conftest import TINY
from tests.end_to_end.conftest import Start, ends
from tests.end_to_end.test_sweeps import column

LAUNCHERS = {
    "basic": (),
    "joblib": ("hydra.launcher.n_jobs=2",),
    "submitit_local": ("hydra.launcher.timeout_min=5",),
    "ray": ("+hydra.launcher.ray.init.num_cpus=2",),
}
LONG_S = 400  # four jobs at once on a busy machine


def launcher_words(name: str) -> list[str]:
    """What chooses a launcher; skips the test where its plugin is not installed."""
    package, extra = ENGINES.get(f"hydra/launcher/{name}", ("hydra-core", ""))
    if package not in {one.name for one in distributions()}:
        pytest.skip(f"needs the extra '{extra}'")
    return [f"hydra/launcher={name}", *LAUNCHERS[name]]


def written(sweep: Path) -> dict[str, int]:
    """When each job's last save was written."""
    return {file.parts[-3]: file.stat().st_mtime_ns for file in sweep.glob("*/checkpoints/last.pt")}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_one_of_four_jobs_fails_and_is_done_when_typed_again(name: str, start: Start, tmp_path: Path) -> None:
    grid = ("optimizer.lr=1e-3,1e-4", "loader.batch_size=2,3", "trainer.max_steps=2", "hydra.sweep.dir=sweep")
    words = ("-m", *TINY, *grid, *launcher_words(name))
    sweep = tmp_path / "sweep"
    (sweep / "2").mkdir(parents=True)
    (sweep / "2" / "checkpoints").touch()  # where job 2 needs a folder
    codes, _, errors = ends([start(*words)], LONG_S)
    assert codes == [1], errors
    assert column(sweep, "status") == ["FINISHED", "FINISHED", "FAILED", "FINISHED"]
    assert "checkpoints" in (sweep / "2" / "run.log").read_text()

    before = written(sweep)
    assert sorted(before) == ["0", "1", "3"]
    (sweep / "2" / "checkpoints").unlink()
    codes, _, errors = ends([start(*words, "sweep.retry_failed=true")], LONG_S)
    assert codes == [0], errors
    assert column(sweep, "status") == ["FINISHED"] * 4
    after = written(sweep)
    assert after.pop("2")
    assert after == before
    pairs = set(zip(column(sweep, "optimizer.lr"), column(sweep, "loader.batch_size"), strict=True))
    assert pairs == {("0.001", "2"), ("0.001", "3"), ("0.0001", "2"), ("0.0001", "3")}


@pytest.mark.slow
def test_a_search_goes_on_where_it_was(start: Start, tmp_path: Path) -> None:
    """Two trials at a time, then the same search for two more: the first two are the same and are not done again."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra 'optuna'")
    words = ("+sweep=optuna", "hydra.sweeper.n_jobs=2", *launcher_words("joblib"), *TINY, "trainer.max_steps=2")
    sweep = tmp_path / "sweep"

    def search(n_trials: int) -> list[str]:
        process = start(*words, f"hydra.sweeper.n_trials={n_trials}", "hydra.sweep.dir=sweep")
        codes, _, errors = ends([process], LONG_S)
        assert codes == [0], errors
        return column(sweep, "optimizer.lr")

    first, before = search(2), written(sweep)
    assert all(1e-5 <= float(lr) <= 1e-3 for lr in first)
    assert search(4)[:2] == first
    assert len(set(column(sweep, "optimizer.lr"))) == len(written(sweep)) == 4
    assert {job: written(sweep)[job] for job in before} == before
    assert "best_value" in (sweep / "optimization_results.yaml").read_text()
