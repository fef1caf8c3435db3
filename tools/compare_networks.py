"""Train several networks with one recipe for the same time each, and show what they reach.

    python -m tools.compare_networks --minutes 8 --seeds 1,2,3 -- dataset.root=data/camvid
    python -m tools.compare_networks --minutes 30 --seeds 1122 -- dataset.root=data/camvid

Everything after "--" is an override of every training. The epochs of a network follow from its speed, which is
measured first, twice, in turns with the others. Finished trainings are kept: the same command continues where it was
stopped, and other networks, seeds or times add to the table. Another recipe, or other overrides, need another folder.
Train on an otherwise idle machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pspexp.utils.tables import markdown_table

SMP = ("model=smp", "model.encoder=tu-tf_efficientnet_lite0", "model.backbone_weights=pip")
NETWORKS: dict[str, tuple[str, ...]] = {
    "pspnet_decoder": (),
    "pspnet_lite0": ("model=pspnet_lite0", "model.output_stride=16"),
    "smp Unet": (*SMP, "model.arch=Unet"),
    "smp FPN": (*SMP, "model.arch=FPN"),
    "smp DeepLabV3Plus": (*SMP, "model.arch=DeepLabV3Plus"),
}
CALIBRATION_STEPS = 40
RESULTS, SECONDS, RECIPE = "summary.json", "seconds.json", "recipe.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trainings that are missing, then print the table; returns the exit code."""
    options = parse(arguments)
    keep_recipe(options.folder / RECIPE, options.overrides)
    networks = {name: NETWORKS[name] for name in options.networks}
    speeds = calibrate(networks, options)
    failed = []
    for seed in options.seeds:
        for name, overrides in networks.items():
            folder = options.folder / f"{options.minutes:g}_minutes" / f"{name.replace(' ', '_')}_seed_{seed}"
            epochs = epochs_within(60 * options.minutes, speeds[name])
            command = [*overrides, f"seed={seed}", f"trainer.epochs={epochs}", f"trainer.validate_every={epochs}"]
            if not is_finished(folder) and train([*command, *options.overrides], folder):
                failed.append(f"{name}, seed {seed}")
    print(table(options.folder))
    for one in failed:
        print(f"failed: {one}; its run.log says why", file=sys.stderr)
    return int(bool(failed))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=8, help="time for each training, start and validation included"
    )
    parser.add_argument("--seeds", type=lambda text: text.split(","), default=["1122"], help="separated by commas")
    parser.add_argument(
        "--networks", type=lambda text: text.split(","), default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}"
    )
    parser.add_argument("--experiment", default="camvid_lite_cpu", help="the recipe")
    parser.add_argument("--folder", type=Path, default=Path("outputs/compare_networks"), help="for all runs")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args(arguments)
    if unknown := sorted({*options.networks} - {*NETWORKS}):
        parser.error(f"--networks: unknown: {', '.join(unknown)}; choose from {', '.join(NETWORKS)}")
    options.overrides = [f"experiment={options.experiment}", "tracking=none", *options.overrides]
    return options


def keep_recipe(file: Path, overrides: list[str]) -> None:
    """Note the overrides of all trainings in their folder; exits if its trainings had others."""
    if file.is_file() and (known := json.loads(file.read_text())) != overrides:
        print(
            f"--folder {file.parent}: holds trainings with {' '.join(known)}, not {' '.join(overrides)}; "
            "give another --folder",
            file=sys.stderr,
        )
        raise SystemExit(2)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(overrides) + "\n")


def calibrate(networks: dict[str, tuple[str, ...]], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds per epoch of each network, and those beside the epochs; measured once and kept in a file."""
    file = options.folder / "speeds.json"
    known: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.is_file() else {}
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for repeat in range(2):
        for name, overrides in networks.items():
            if name not in known:
                folder = options.folder / "speeds" / f"{name.replace(' ', '_')}_{repeat}"
                found[name].append(measure([*overrides, *options.overrides], folder))
    known |= {
        name: {key: statistics.mean(one[key] for one in measured) for key in measured[0]}
        for name, measured in found.items()
    }
    file.write_text(json.dumps(known, indent=1) + "\n")
    return known


def measure(overrides: list[str], folder: Path) -> dict[str, float]:
    """Train for a few steps; returns the seconds of an epoch, and of start, validation and end together."""
    if code := train([*overrides, f"trainer.max_steps={CALIBRATION_STEPS}"], folder):
        raise SystemExit(code)
    total_s = seconds(folder)
    per_step_s = statistics.median(one["train/step_time"] + one["train/data_time"] for one in records(folder))
    return {
        "epoch_s": per_step_s * steps_per_epoch(folder),
        "other_s": max(total_s - per_step_s * CALIBRATION_STEPS, 0.0),
    }


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of training steps in a run folder."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "train/step_time" in record]


def steps_per_epoch(folder: Path) -> int:
    """Steps in an epoch of the run in a folder, as its log says."""
    line = next(one for one in (folder / "run.log").read_text().splitlines() if "steps per epoch" in one)
    return int(line.split(" steps per epoch")[0].split()[-1])


def epochs_within(seconds: float, speed: dict[str, float]) -> int:
    """The number of epochs that fit into the time; at least one."""
    return max(1, int((seconds - speed["other_s"]) / speed["epoch_s"]))


def is_finished(folder: Path) -> bool:
    """Whether the run in a folder is complete."""
    file = folder / RESULTS
    return file.is_file() and json.loads(file.read_text()).get("status") == "FINISHED"


def train(overrides: list[str], folder: Path) -> int:
    """Begin or resume a training; returns its exit code. Its time is noted in the folder."""
    if is_finished(folder):
        return 0
    start = time.perf_counter()
    resume = ["checkpoint.resume=auto"] if (folder / "checkpoints" / "last.pt").is_file() else []
    command = [sys.executable, "-m", "pspexp", *overrides, *resume, f"hydra.run.dir={folder}"]
    code = subprocess.run(command, check=False).returncode
    if folder.is_dir():
        (folder / SECONDS).write_text(json.dumps(seconds(folder) + time.perf_counter() - start))
    return code


def seconds(folder: Path) -> float:
    """What `train` has noted in a run folder; 0 at first."""
    file = folder / SECONDS
    return float(json.loads(file.read_text())) if file.is_file() else 0.0


def num_weights(folder: Path) -> int:
    """The number of parameters and buffers in the best checkpoint of a run."""
    state = torch.load(folder / "checkpoints" / "best.pt", weights_only=True, map_location="cpu")["model"]
    return sum(value.numel() for value in state.values())


def table(folder: Path) -> str:
    """A Markdown table of the finished runs, one row for each network and time."""
    names = {name.replace(" ", "_"): name for name in NETWORKS}
    groups: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for run in sorted(folder.glob("*_minutes/*")):
        if is_finished(run):
            groups[run.parent.name.replace("_", " "), names[run.name.rpartition("_seed_")[0]]].append(run)
    rows = []
    for (minutes, name), runs in groups.items():
        scores = [100 * json.loads((run / RESULTS).read_text())["best"]["best/mean_iou"] for run in runs]
        spent = statistics.mean(map(seconds, runs)) / 60
        each = ", ".join(f"{score:.2f}" for score in scores)
        size = f"{num_weights(runs[0]) / 1e6:.1f} M"
        rows.append((minutes, name, size, f"{statistics.mean(scores):.2f}", each, f"{spent:.1f}"))
    rows.sort(key=lambda row: (row[0], -float(row[3])))
    header = ("time", "network", "weights", "mean IoU %", "by seed", "minutes")
    return "\n".join(markdown_table(header, rows, right_aligned=(2, 3, 5)))


if __name__ == "__main__":
    sys.exit(main())
