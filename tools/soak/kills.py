"""Commands that are killed at planned moments, and run again until they finish."""

import json
import os
import random
import shutil
import signal
import tarfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tools.soak.commands import TINY, moments, pspexp, run
from tools.soak.readable import unreadable

ORPHANS_END_S = 60  # how long the other processes of a killed command may take to notice
TRAIN = ("tracking.experiment=soak", "checkpoint.resume=auto", "hydra.run.dir=run")


@dataclass(frozen=True)
class Scenario:
    """A command that is killed and run again.

    Attributes:
        name: For the table.
        command: The command line; run again unchanged.
        differences: Returns how the results in a folder differ from those of the undisturbed command in another.
        prepare: Makes the command's input in a folder.
        leaves_processes: Whether the command has processes of its own, which must end after it.
    """

    name: str
    command: Sequence[str]
    differences: Callable[[Path, Path], list[str]]
    prepare: Callable[[Path], None] = field(default=lambda home: None)
    leaves_processes: bool = False


@dataclass
class Outcome:
    """What kills did."""

    tried: int = 0
    lost: list[str] = field(default_factory=list)


def soak(scenario: Scenario, kills: int, seed: int, folder: Path, say: Callable[[str], None] = print) -> Outcome:
    """Kill a command that often.

    Args:
        scenario: The command.
        kills: How many times.
        seed: Of the moments.
        folder: For the runs; those without a finding are deleted.
        say: Called with a line for each command that has finished.
    """
    chance, outcome = random.Random(f"{scenario.name} {seed}"), Outcome()
    source, reference, log = folder / "source", folder / "reference", folder / "changes.log"
    source.mkdir(parents=True)
    scenario.prepare(source)
    shutil.copytree(source, reference)
    undisturbed = run(reference, scenario.command, log=log)
    assert undisturbed.code == 0, undisturbed.output
    plans = moments(log.read_text().splitlines(), 2 * kills, chance)
    number = 0
    while outcome.tried < kills:
        number += 1
        home = folder / f"run_{number}"
        shutil.copytree(source, home)
        used, found = until_finished(scenario, home, plans, kills - outcome.tried, undisturbed.seconds, chance)
        outcome.tried += len(used)
        found += [f"not as undisturbed: {line}" for line in scenario.differences(home, reference)]
        outcome.lost += [f"{home.name}, killed at {', '.join(used)}: {line}" for line in found]
        say(f"{scenario.name}: {outcome.tried} of {kills} kills, {len(outcome.lost)} findings")
        if not found:
            shutil.rmtree(home)
    return outcome


def until_finished(
    scenario: Scenario, home: Path, plans: list[str], kills: int, seconds: float, chance: random.Random
) -> tuple[list[str], list[str]]:
    """Run a command again and again; returns when it was killed, and what was wrong."""
    used: list[str] = []
    found: list[str] = []
    while True:
        by_time = f"0:{1000 * chance.uniform(0.3, 1) * seconds:.0f}"
        plan = "" if len(used) >= kills else by_time if len(used) % 3 == 2 else chance.choice(plans)
        result = run(home, scenario.command, kill=plan)
        if scenario.leaves_processes and (left := wait_for_orphans(home)):
            found.append(f"processes are left: {left}")
        found += unreadable(home)
        if not result.was_killed:
            if result.code:
                found.append(f"exit code {result.code}: {result.output[-2000:]}")
            return used, found
        used.append(plan)


def wait_for_orphans(home: Path) -> list[str]:
    """The processes that a command in ``home`` has left, after some time; they are then killed."""
    deadline = time.monotonic() + ORPHANS_END_S
    while (found := processes(home)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return list(found.values())


def processes(home: Path) -> dict[int, str]:
    """The commands of all processes that were started in ``home``."""
    found = {}
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"SOAK_ROOT={home}\0".encode() in environment.read_bytes():
                command = (environment.parent / "cmdline").read_bytes()
                if command:  # else it has ended, and its parent does not know yet
                    found[int(environment.parent.name)] = command.replace(b"\0", b" ").decode()[:100]
    return found


def same_training(home: Path, reference: Path, run_dir: str = "run") -> list[str]:
    """How weights, training state and records differ."""
    found = []
    for name in ("last.pt", "best.pt"):
        states = [torch.load(place / run_dir / "checkpoints" / name, weights_only=True) for place in (home, reference)]
        for state in states:
            state.pop("config")
            state.get("training", {}).pop("timer", None)
        found += [f"{run_dir}/{name}: {key}" for key in different(*states)]
    records = [losses(place / run_dir / "metrics.jsonl") for place in (home, reference)]
    if records[0] != records[1]:
        found.append(f"{run_dir}/metrics.jsonl: {records[0]} instead of {records[1]}")
    status = json.loads((home / run_dir / "summary.json").read_text())["status"]
    return found + ([f"{run_dir}: {status}"] if status != "FINISHED" else []) + missing_in_mlflow(home, run_dir)


def missing_in_mlflow(home: Path, run_dir: str) -> list[str]:
    """Values of a run that MLflow does not have; steps that were repeated may be there twice."""
    from mlflow import MlflowClient

    database = home / "outputs" / "mlflow.db"
    run_id = json.loads((home / run_dir / "summary.json").read_text())["mlflow_run_id"]
    if run_id is None:
        return [f"{run_dir}: not in MLflow"]
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    there = {(one.step, one.value) for one in client.get_metric_history(run_id, "train/loss")}
    here = {(step, value) for step, name, value in losses(home / run_dir / "metrics.jsonl") if name == "train/loss"}
    status = client.get_run(run_id).info.status
    return [f"{run_dir}: not in MLflow: {here - there}"] * (not here <= there) + [f"MLflow says {status}"] * (
        status != "FINISHED"
    )


def losses(file: Path) -> list[tuple[int, str, float]]:
    """Step, name and value of what a run recorded, without times."""
    found = []
    for line in file.read_text().splitlines():
        record = json.loads(line)
        found += [
            (record["step"], key, value)
            for key, value in record.items()
            if key in ("train/loss", "train/lr") or key.startswith(("val/", "best/"))
        ]
    return found


def different(one: Any, other: Any, key: str = "") -> list[str]:
    """The keys of nested values that are not the same, bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [key]
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            found
            for name in one.keys() | other.keys()
            for found in different(one.get(name), other.get(name), f"{key}.{name}")
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            found
            for index, pair in enumerate(zip(one, other, strict=True))
            for found in different(*pair, f"{key}.{index}")
        ]
    return [] if one == other else [key]


def same_files(*patterns: str) -> Callable[[Path, Path], list[str]]:
    """A comparison of all files that match one of the patterns, byte by byte."""

    def differences(home: Path, reference: Path) -> list[str]:
        found = []
        for pattern in patterns:
            here, there = (
                {file.relative_to(place): file for file in place.glob(pattern)} for place in (home, reference)
            )
            if not there:
                found.append(f"{pattern}: nothing to compare")
            for name in sorted(here.keys() | there.keys()):
                if name not in here or name not in there:
                    found.append(f"{name}: {'missing' if name not in here else 'not expected'}")
                elif here[name].read_bytes() != there[name].read_bytes():
                    found.append(f"{name}: other contents")
        return found

    return differences


def trained(home: Path) -> None:
    """A finished run ``run``, and some images."""
    result = run(home, pspexp(*TINY, "tracking=none", "hydra.run.dir=run"))
    assert result.code == 0, result.output
    draw_images(home / "photos", 12)


def draw_images(folder: Path, number: int) -> None:
    """Images of noise."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for index in range(number):
        Image.fromarray(noise.integers(0, 256, (60, 80, 3), np.uint8)).save(folder / f"{index:02d}.png")


def voc_archive(home: Path) -> None:
    """A small data set in the VOC layout, packed; and unpacked, its labels in colours."""
    root, noise = home / "VOCdevkit" / "VOC2007", np.random.default_rng(0)
    names = [f"{index:06d}" for index in range(30)]
    draw_images(root / "JPEGImages", 0)
    (root / "SegmentationClass").mkdir()
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name in names:
        Image.fromarray(noise.integers(0, 256, (60, 80, 3), np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
        label = Image.fromarray(np.kron(noise.integers(0, 3, (6, 8)), np.ones((10, 10))).astype(np.uint8))
        label.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, *[0] * 759])
        label.save(root / "SegmentationClass" / f"{name}.png")
    for split, part in (("train", names[:20]), ("val", names[20:]), ("trainval", names)):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in part))
    with tarfile.open(home / "voc.tar", "w") as tar:
        tar.add(home / "VOCdevkit", "VOCdevkit")


def same_sweep(home: Path, reference: Path) -> list[str]:
    """How the jobs of a sweep differ."""
    return [line for job in ("0", "1", "2") for line in same_training(home, reference, f"sweep/{job}")]


def scenarios() -> dict[str, Scenario]:
    """All scenarios by name."""
    python = pspexp()[:1]
    tools = Path(__file__).parents[1]
    train = pspexp(*TINY, *TRAIN)
    found = [
        Scenario("train", train, same_training),
        Scenario("train, 2 workers", [*train, "loader.num_workers=2"], same_training, leaves_processes=True),
        Scenario(
            "train, launcher=ddp",
            [*train, "launcher=ddp", "launcher.nproc_per_node=2", "loader.batch_size=2"],
            same_training,
            leaves_processes=True,
        ),
        Scenario(
            "sweep, joblib",
            pspexp(
                *TINY,
                "-m",
                "seed=1,2,3",
                "hydra/launcher=joblib",
                "hydra.launcher.n_jobs=2",
                "hydra.sweep.dir=sweep",
                "tracking.experiment=soak",
            ),
            same_sweep,
            leaves_processes=True,
        ),
        Scenario(
            "test",
            pspexp("mode=test", "checkpoint.path=run", "tracking=none", "hydra.run.dir=test"),
            same_files("test/tables/*.csv"),
            trained,
        ),
        Scenario(
            "predict",
            pspexp("mode=predict", "checkpoint.path=run", "predict.input=photos", "predict.output=found"),
            same_files("found/ids/*.png", "found/overlay/*", "found/predictions.csv"),
            trained,
        ),
        Scenario(
            "export",
            pspexp("mode=export", "checkpoint.path=run", "export.output=exported", "export.format=[onnx]"),
            same_files("exported/*.onnx"),
            trained,
        ),
        Scenario(
            "prepare_voc",
            [*python, str(tools / "prepare_voc.py"), "voc.tar", "--output_dir", "data", "--workers", "1"],
            same_files("data/**/*.png", "data/**/*.jpg", "data/**/*.txt"),
            voc_archive,
            leaves_processes=True,
        ),
        Scenario(
            "convert_voc_label",
            [
                *python,
                str(tools / "convert_voc_label.py"),
                "--input_dir",
                "VOCdevkit/VOC2007/SegmentationClass",
                "--output_dir",
                "grey",
                "--workers",
                "1",
            ],
            same_files("grey/*.png"),
            voc_archive,
            leaves_processes=True,
        ),
    ]
    return {one.name: one for one in found}
