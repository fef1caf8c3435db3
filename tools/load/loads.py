"""The loads, and what is measured under each."""

import json
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tools.load import generate
from tools.load.measure import Measure, Used, run
from tools.soak.commands import TINY, pspexp

IMAGES, CLASSES = 10_000, 200
EPOCHS, WARM_EPOCHS = 20, 5
RUNS, OWN_RUNS = 1_000, 10
POINTS, FEW_POINTS = 100_000, 100
JOBS, FEW_JOBS = 200, 20
NETWORK = tuple(one for one in TINY if not one.startswith(("dataset", "trainer.", "checkpoint.")))
SHORT = ("trainer.epochs=1", "trainer.log_every=1")


def images(folder: Path) -> Iterator[Measure]:
    """Many images, many classes."""
    used, steps = {}, {}
    for name, number, classes in (("few", 100, 5), ("classes", 100, CLASSES), ("images", IMAGES, CLASSES)):
        home = folder / name
        generate.draw_images(home / "data", number, classes)
        overrides = ("trainer.max_steps=40", "loader.max_eval_images=20", "tracking=none", "hydra.run.dir=run")
        used[name] = run(home, on_folder(*SHORT, *overrides))
        steps[name] = statistics.median(record["train/step_time"] for record in records(home / "run")[5:-1])
    for load, name, base, slower in (
        (f"{CLASSES} classes", "classes", "few", 4),
        (f"{IMAGES:,} images", "images", "classes", 1.3),
    ):
        yield Measure(load, "training of 40 steps", used[name].cpu_s, "s", 90, used[base].cpu_s, 2)
        yield Measure(load, "its peak memory", used[name].peak_mib, "MiB", 2000, used[base].peak_mib, 1.3)
        yield Measure(load, "one step (wall time)", 1000 * steps[name], "ms", 500, 1000 * steps[base], slower)


def on_folder(*overrides: str) -> list[str]:
    """A training on the images in ``data``."""
    return pspexp(*NETWORK, "dataset=folder", "dataset.root=data", *overrides)


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The records of training steps."""
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [record for record in found if "train/loss" in record]


def epochs(folder: Path) -> Iterator[Measure]:
    """A training of many epochs with two workers: nothing grows after the first epochs."""
    generate.draw_images(folder / "data", IMAGES, CLASSES)
    watched = folder / "watched.jsonl"
    run(
        folder,
        on_folder(
            *watch(watched),
            "loader.batch_size=128",
            "crop_size=17",
            "loader.max_eval_images=20",
            "tracking.experiment=e",
        ),
    )
    yield from growth(watched, f"{EPOCHS} epochs, {IMAGES:,} images, 2 workers")


def watch(file: Path) -> tuple[str, ...]:
    """Overrides of a training of `EPOCHS` epochs that is watched."""
    return (
        f"trainer.epochs={EPOCHS}", "trainer.validate_every=2", "trainer.log_every=5", "loader.num_workers=2",
        "+hooks.watch._target_=tools.load.watch.Watch", f"+hooks.watch.file={file}",
    )  # fmt: skip


def growth(watched: Path, load: str) -> Iterator[Measure]:
    """The largest values after `WARM_EPOCHS` epochs, compared with those up to then."""
    samples = [json.loads(line) for line in watched.read_text().splitlines()]
    if len(samples) != EPOCHS or any(len(sample["worker_mib"]) != len(samples[0]["worker_mib"]) for sample in samples):
        raise RuntimeError(f"{watched}: {EPOCHS} epochs with as many workers were expected")
    peaks: list[dict[str, float]] = []
    for part in (samples[:WARM_EPOCHS], samples[WARM_EPOCHS:]):
        single = {key: max(sample[key] for sample in part) for key in ("main_mib", "files", "threads")}
        several = {key: max(max(sample[key], default=0) for sample in part) for key in ("worker_mib", "worker_files")}
        peaks.append({**single, **several})
    before, after = peaks
    yield Measure(load, "memory of the main process", after["main_mib"], "MiB", 2000, before["main_mib"], 1.05)
    yield Measure(load, "memory of the largest worker", after["worker_mib"], "MiB", 500, before["worker_mib"], 1.05)
    yield Measure(load, "open files of the main process", after["files"], "", 200, before["files"], 1)
    yield Measure(load, "open files of a worker", after["worker_files"], "", 200, before["worker_files"], 1)
    yield Measure(load, "threads of the main process", after["threads"], "", 100, before["threads"], 1)
    yield Measure(load, "zombies", max(sample["zombies"] for sample in samples), "", 0)


def mlflow_runs(folder: Path) -> Iterator[Measure]:
    """Many runs in MLflow's store."""
    run(folder, pspexp(*TINY, *SHORT, "tracking.experiment=source", "hydra.run.dir=source"))
    few, many = folder / "outputs" / "mlflow.db", folder / "many.db"
    run_id = json.loads((folder / "source" / "summary.json").read_text())["mlflow_run_id"]
    generate.copy_mlflow_run(few, run_id, OWN_RUNS, "own")
    shutil.copy(few, many)
    generate.copy_mlflow_run(many, run_id, RUNS, "others")
    load = f"{RUNS:,} runs in MLflow"

    def both(name: str, *command: str) -> tuple[Used, Used]:
        one, other = (
            run(folder, pspexp(*command, f"hydra.run.dir={name}_{store.stem}"), store) for store in (few, many)
        )
        return one, other

    base, used = both("train", *TINY, *SHORT, "tracking.experiment=new")
    yield Measure(load, "training of 4 steps in a new experiment", used.cpu_s, "s", 60, base.cpu_s, 1.2)
    base, used = both("compare", "mode=compare", "compare.experiment=own")
    yield Measure(load, f"mode=compare of an experiment with {OWN_RUNS}", used.cpu_s, "s", 30, base.cpu_s, 1.2)
    used = run(folder, pspexp("mode=compare", "compare.experiment=others", "hydra.run.dir=all"), many)
    yield Measure(load, "mode=compare of all", used.cpu_s, "s", 120)
    yield Measure(load, "its peak memory", used.peak_mib, "MiB", 1500)


def points(folder: Path) -> Iterator[Measure]:
    """Many points in the records of a run."""
    settings = (*TINY, "tracking=none", "trainer.log_every=1", "trainer.validate_every=1000000")
    whole = (*settings, f"trainer.epochs={POINTS // 4 + 1}")
    run(folder, pspexp(*whole, "trainer.max_steps=4", "hydra.run.dir=few"))
    shutil.copytree(folder / "few", folder / "many")
    numbers = {"few": FEW_POINTS, "many": POINTS}
    for name, number in numbers.items():
        generate.write_records(folder / name, number)
        generate.set_step(folder / name, number)
        shutil.copytree(folder / name, folder / f"other_{name}")

    def both(command: Callable[[str], list[str]]) -> tuple[Used, Used]:
        few, many = (run(folder, command(name)) for name in numbers)
        return few, many

    load = f"{POINTS:,} points in a run"
    base, used = both(lambda name: pspexp("mode=compare", f"compare.runs=[{name},other_{name}]"))
    yield Measure(load, "mode=compare of two such runs", used.cpu_s, "s", 30, base.cpu_s, 2)
    base, used = both(lambda name: pspexp("mode=sync", f"sync.runs={name}", "tracking.experiment=synced"))
    per_thousand = 1000 * (used.cpu_s - base.cpu_s) / (POINTS - FEW_POINTS)
    yield Measure(load, "mode=sync to MLflow, for 1,000 points", per_thousand, "s", 3)
    base, used = both(
        lambda name: pspexp(
            *whole, "checkpoint.resume=auto", f"hydra.run.dir={name}", f"trainer.max_steps={numbers[name] + 4}"
        )
    )
    yield Measure(load, "resuming, 4 steps, a validation", used.cpu_s, "s", 60, base.cpu_s, 2.5)
    yield Measure(load, "its peak memory", used.peak_mib, "MiB", 2000, base.peak_mib, 1.3)


def sweep_jobs(folder: Path) -> Iterator[Measure]:
    """Many jobs in a sweep: all of them are finished, the command is run again."""
    home = folder / "few"

    def command(jobs: int) -> list[str]:
        settings = ("tracking.experiment=sweep", "hydra.sweep.dir=sweep")
        return pspexp("-m", *TINY, *SHORT, *settings, f"seed=range(0,{jobs})")

    run(home, command(1))
    for number in range(1, FEW_JOBS):
        generate.copy_job(home / "sweep", number)
    shutil.copytree(home, folder / "many")
    for number in range(FEW_JOBS, JOBS):
        generate.copy_job(folder / "many" / "sweep", number)
    homes = ((home, FEW_JOBS), (folder / "many", JOBS))
    ratio, load = JOBS / FEW_JOBS, f"{JOBS} jobs in a sweep (with {FEW_JOBS})"
    base, used = (run(place, command(jobs)) for place, jobs in homes)
    yield Measure(load, "resuming it: every job is finished", used.cpu_s, "s", 300, base.cpu_s, ratio)
    yield Measure(load, "its peak memory", used.peak_mib, "MiB", 2000, base.peak_mib, 1.3)
    base, used = (run(place, pspexp("mode=compare", "compare.runs=sweep")) for place, _ in homes)
    yield Measure(load, "mode=compare of the jobs", used.cpu_s, "s", 60, base.cpu_s, ratio)


LOADS: dict[str, Callable[[Path], Iterator[Measure]]] = {
    "images": images,
    "epochs": epochs,
    "runs": mlflow_runs,
    "points": points,
    "jobs": sweep_jobs,
}


def measure(names: Sequence[str], folder: Path) -> Iterator[Measure]:
    """Generate loads in a folder and measure them; what they leave is deleted."""
    for name in names:
        place = folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        yield from LOADS[name](place)
        shutil.rmtree(place)
