"""Time from a command to its first output, its first training step, or its end."""

import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

from PIL import Image

from tools.bench.options import Options, Overrides
from tools.bench.results import Row, Table
from tools.bench.timing import environment, take_turns


def bench_startup(options: Options) -> Iterator[Table]:
    """How long the first output and the first step take."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = folder / "known.db"
        first_step(folder / "warmup", known, options.device)
        trained = f"checkpoint.path={folder / 'warmup' / 'run'}"
        test = "mode=test", trained, "loader.max_eval_images=1"
        image = folder / "image.png"
        Image.new("RGB", (96, 96)).save(image)
        predict = "mode=predict", trained, f"predict.input={image}"
        new = (folder / f"{index}.db" for index in count())
        runs = (folder / f"run{index}" for index in count())
        samplers: dict[str, Callable[[], float]] = {
            "--help": partial(first_output, folder),
            "quickstart's first step": lambda: first_step(next(runs), known, options.device),
            "the same, new MLflow database": lambda: first_step(next(runs), next(new), options.device),
            "mode=test of one image": lambda: whole(next(runs), known, options.device, *test),
            "the same, tracking=none": lambda: whole(next(runs), known, options.device, *test, "tracking=none"),
            "mode=predict of one image": lambda: whole(next(runs), known, options.device, *predict),
        }
        rows = {label: Row() for label in samplers}
        take_turns(samplers, rows, min(options.repeats, 5))
    yield Table("wall time from the start of the command", rows)


def command(*arguments: str) -> Overrides:
    return [sys.executable, "-m", "pspexp", *arguments]


def first_output(folder: Path) -> float:
    """Seconds that ``--help`` takes."""
    start = time.perf_counter()
    subprocess.run(command("--help"), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def whole(folder: Path, database: Path, device: str, *overrides: str) -> float:
    """Seconds that a command takes."""
    arguments = command(*overrides, f"device={device}", f"output_root={folder}", f"hydra.run.dir={folder / 'run'}")
    env = {**environment(), "MLFLOW_TRACKING_URI": f"sqlite:///{database}"}
    start = time.perf_counter()
    subprocess.run(
        arguments, cwd=folder.parent, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - start


def first_step(folder: Path, database: Path, device: str) -> float:
    """Seconds until the first step is recorded."""
    folder.mkdir()
    arguments = command(
        "experiment=quickstart",
        f"device={device}",
        "trainer.max_steps=1",
        "trainer.log_every=1",
        "loader.max_eval_images=1",
        f"output_root={folder}",
        f"hydra.run.dir={folder / 'run'}",
    )
    env = {**environment(), "MLFLOW_TRACKING_URI": f"sqlite:///{database}"}
    records = folder / "run" / "metrics.jsonl"
    with (folder / "output").open("w") as output:
        start = time.perf_counter()
        process = subprocess.Popen(arguments, cwd=folder, env=env, stdout=output, stderr=output)
        while not (records.is_file() and "\n" in records.read_text()) and process.poll() is None:
            time.sleep(0.005)
        seconds = time.perf_counter() - start
        code = process.wait()
    if code or not records.is_file():
        raise RuntimeError(f"{shlex.join(arguments)} ended with {code}: {(folder / 'output').read_text()[-2000:]}")
    return seconds
