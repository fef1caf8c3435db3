"""A step of the trainer vs. a bare loop over the same components."""

import statistics
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import (
    closing,
)
from pathlib import Path

from omegaconf import DictConfig

import pspexp
from pspexp.config.build import build_training, init_distributed
from pspexp.data.loader import Batch
from pspexp.data.transforms import normalize
from pspexp.engine.components import TrainingComponents
from pspexp.engine.distributed import ProcessInfo
from pspexp.jobs.job import Job
from pspexp.losses import mean_loss
from tools.bench.options import Options, Overrides
from tools.bench.records import quiet
from tools.bench.results import Row, Table, number, quartiles
from tools.bench.timing import synchronize

SMALL = ("pspnet18", 97, 4)  # network, crop and batch of a second table: with a small network, overhead shows


SKIPPED_ROUNDS = 3  # turns at the start of a training that do not count


def bare_loop(config: DictConfig) -> Generator[None, None, None]:
    """Train the same components as a script without a framework would; yields after each step."""
    parts, _ = build_training(config, *init_distributed(config, ProcessInfo()), start_weights=True)
    parts.model.train()
    for batch in parts.loader.batches(0, config.trainer.max_steps):
        bare_step(parts, batch)
        yield


def bare_step(parts: TrainingComponents, batch: Batch) -> None:
    """A separate function, so that its tensors are freed before the trainer's turn."""
    device = parts.device.torch
    info = parts.dataset.info
    images = normalize(batch.images.to(device, non_blocking=True), info.mean, info.std)
    labels = batch.labels.to(device, non_blocking=True).long()
    parts.optimizer.zero_grad(set_to_none=True)
    with parts.precision.autocast(parts.device):
        outputs = parts.model(images)
    mean_loss(parts.loss, outputs, labels).backward()  # type: ignore[no-untyped-call]
    parts.optimizer.step()
    parts.scheduler.step()


class Alongside:
    """A stop signal that never requests a stop: when the trainer polls it between steps, the bare loop takes its turn.

    Args:
        loop: the bare loop.
        device: of both.
        rounds: number of turns that each takes.
        steps: steps per turn.

    Attributes:
        bare, ours: mean seconds per step, one value per turn.
    """

    def __init__(self, loop: Iterator[None], device: str, rounds: int, steps: int) -> None:
        self._loop, self._device, self._rounds, self._steps = loop, device, rounds, steps
        self._asked, self._left = 0, 0.0
        self.bare: list[float] = []
        self.ours: list[float] = []

    def __call__(self) -> int | None:
        at, self._asked = self._asked, self._asked + 1
        if at % self._steps or len(self.ours) == self._rounds:  # validation polls, too
            return None
        arrived = self._now()
        if at:
            self.ours.append((arrived - self._left) / self._steps)
        if len(self.bare) < self._rounds:
            for _ in range(self._steps):
                next(self._loop)
            self.bare.append((self._now() - arrived) / self._steps)
        self._left = self._now()
        return None

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()


def bench_overhead(options: Options) -> Iterator[Table]:
    """A step of pspexp's trainer vs. one of the bare loop."""
    cases = {(options.network, options.size, batch): options.repeats for batch in options.batch}
    cases[SMALL] = 5 * options.repeats
    for (name, size, batch), repeats in cases.items():
        overrides = [f"model={name}", f"crop_size={size}", f"loader.batch_size={batch}", *options.overrides()]
        yield overhead(f"{name}, crop {size}, batch {batch}", overrides, repeats, options.device)


def overhead(key: str, overrides: Overrides, repeats: int, device: str) -> Table:
    """One training on generated shapes, interleaved with the bare loop."""
    overrides = [*overrides, "dataset=shapes", "loader.num_workers=0", "loader.max_eval_images=1"]
    rounds = SKIPPED_ROUNDS + repeats
    # An asynchronous device is synchronised only after each turn: else the trainer could not run ahead of it.
    steps = 1 if device == "cpu" else pspexp.compose(overrides).trainer.log_every
    # One extra step, since the last one ends with a validation.
    overrides += [f"trainer.max_steps={rounds * steps + 1}", "trainer.epochs=1000", "trainer.validate_every=1000"]
    config = pspexp.compose(overrides)
    with tempfile.TemporaryDirectory() as folder, closing(bare_loop(config)) as loop:
        pair = Alongside(loop, device, rounds, steps)
        with quiet(Path(folder)):
            Job(config, Path(folder) / "run", overrides)(ProcessInfo(), pair)
    bare, ours = pair.bare[SKIPPED_ROUNDS:], pair.ours[SKIPPED_ROUNDS:]
    rows = {"bare loop": Row(bare, batch := config.loader.batch_size), "pspexp": Row(ours, batch)}
    more = statistics.median(ours) - statistics.median(bare)
    pairs = [ours_s - bare_s for ours_s, bare_s in zip(ours, bare, strict=True)]
    facts = {
        "difference of the medians (pspexp - bare loop), ms": 1e3 * more,
        "the same, %": 100 * more / statistics.median(bare),
        "median difference of adjacent turns, ms": 1e3 * statistics.median(pairs),
        "quartiles of this difference, ms": " to ".join(number(1e3 * value) for value in quartiles(pairs)),
        "steps per turn": steps,
        "data": "generated shapes, no workers; each loop loads its own",
    }
    return Table(key, rows, "bare loop", facts)
