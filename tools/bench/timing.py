"""Interleaved timing, and memory."""

import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import (
    suppress,
)
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tools.bench.options import Options
from tools.bench.results import Row, Table
from tools.bench.works import WORKS, Setting, UnavailableError, Work


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def sample(work: Work, setting: Setting, runs: int = 1) -> float:
    """Mean seconds of one run among ``runs`` in a row."""
    setting.allow_tf32()
    synchronize(setting.device)
    start = time.perf_counter()
    for _ in range(runs):
        work.run()
    synchronize(setting.device)
    return (time.perf_counter() - start) / runs


def take_turns(samplers: Mapping[str, Callable[[], float]], rows: Mapping[str, Row], repeats: int) -> None:
    """Take ``repeats`` times of each row, one after another; who comes first changes with every round."""
    left = dict(samplers)
    for turn in range(repeats):
        order = list(left)
        for at in range(len(order)):
            name = order[(at + turn) % len(order)]
            try:
                rows[name].times.append(left[name]())
            except torch.cuda.OutOfMemoryError:
                rows[name].times, rows[name].failure = [], "out of memory"
            if rows[name].failure:  # not above: there, the error keeps the memory
                del left[name]
                release()


def release() -> None:
    """Give unused memory of the device back."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def compare(
    kind: str, candidates: Mapping[str, tuple[str, Setting]], key: str, baseline: str, options: Options
) -> Table:
    """A table of a kind of `WORKS`, with one row for each of ``candidates`` (name and setting)."""
    if any(setting.compile for _, setting in candidates.values()):
        torch.compiler.reset()  # its limit on versions of one function is for all that share its code
    rows: dict[str, Row] = {}
    samplers: dict[str, Callable[[], float]] = {}
    products: dict[str, Row] = {}
    for label, (name, setting) in candidates.items():
        if setting.product not in products:  # before the network, which else seems to need cuBLAS's workspace alone
            products[setting.product], samplers[setting.product] = matrix_product(setting, options)
        rows[label], sampler = prepare(kind, name, setting, options)
        samplers |= {} if sampler is None else {label: sampler}
        release()
    take_turns(samplers, {**rows, **products}, options.repeats)
    facts: dict[str, Any] = {"setting": candidates[baseline][1].describe()} if len(products) == 1 else {}
    for label, (_, setting) in candidates.items():
        rows[label].peak = peak = products[setting.product].best_flops
        facts[f"TFLOP/s of a {setting.product}"] = peak / 1e12
    if rows_with_memory := [row for row in rows.values() if row.memory_mib is not None]:
        about = "allocated at the peak, weights and optimizer included"
        if rows_with_memory[0].reserved_mib is None:
            about = "resident at the peak of two runs in a process of their own, beyond what was before the first"
        facts["MiB"] = about
    return Table(key, rows, baseline, facts)


def prepare(kind: str, name: str, setting: Setting, options: Options) -> tuple[Row, Callable[[], float] | None]:
    """A row with everything but times, and what takes one; None where that failed."""
    row = Row(images=setting.batch)
    before = allocated(setting.device)
    try:
        setting.allow_tf32()
        work = WORKS[kind](name, setting)
        row.note = work.note
        with FlopCounterMode(display=False) as counter:
            work.eager()
        row.flops = counter.get_total_flops()
        for _ in range(max(options.warmup, 4 if setting.compile else 0)):
            work.run()
        if setting.device == "cuda":
            row.memory_mib, row.reserved_mib = cuda_peak(work, before)
        elif not options.no_memory and setting.compile is None:  # compiling would count
            row.memory_mib = probed_memory(kind, name, setting)
        runs = runs_for(work, setting, options)
    except UnavailableError as error:
        row.failure = str(error)
    except torch.cuda.OutOfMemoryError:
        row.failure = "out of memory"
    except RuntimeError as error:
        if setting.compile is None:
            raise
        row.failure = f"torch.compile: {' '.join(str(error).split())[:100]}"
    else:
        return row, partial(sample, work, setting, runs)
    return row, None


def matrix_product(setting: Setting, options: Options) -> tuple[Row, Callable[[], float]]:
    """A large square product in a setting's format, whose best time says what the machine can do."""
    side = options.matmul or (8192 if setting.device == "cuda" else 4096)
    left, right = (torch.randn(side, side, device=setting.device, dtype=setting.dtype) for _ in range(2))
    work = Work(lambda: left @ right, lambda: None)
    sample(work, setting)
    return Row(flops=2 * side**3), partial(sample, work, setting, runs_for(work, setting, options))


def runs_for(work: Work, setting: Setting, options: Options) -> int:
    """How many runs in a row make one time."""
    return max(1, math.ceil(options.sample_seconds / sample(work, setting)))


def allocated(device: str) -> tuple[int, int]:
    """Bytes allocated and reserved on the device."""
    return (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) if device == "cuda" else (0, 0)


def cuda_peak(work: Work, before: tuple[int, int]) -> tuple[float, float]:
    """MiB that a run has allocated at its peak, and reserved, beyond what was ``before`` the work was built.

    What CUDA graphs hold shows in the second only.
    """
    release()  # what warming up took and a run does not need
    torch.cuda.reset_peak_memory_stats()
    work.run()
    torch.cuda.synchronize()
    after = torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved()
    return (after[0] - before[0]) / 2**20, (after[1] - before[1]) / 2**20


def probed_memory(kind: str, name: str, setting: Setting) -> float | None:
    """MiB of `peak_resident` in a process of its own; None if that failed."""
    asked = json.dumps({"kind": kind, "name": name, "threads": torch.get_num_threads(), "setting": asdict(setting)})
    command = [sys.executable, "-m", "tools.bench", "--probe", asked]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=False)
    return None if done.returncode else float(done.stdout.split()[-1])


def peak_resident(asked: str) -> float:
    """MiB of memory at the peak of two runs, beyond what the process had before the first."""
    request = json.loads(asked)
    torch.set_num_threads(request["threads"])
    work = WORKS[request["kind"]](request["name"], Setting(**request["setting"]))
    with suppress(OSError):  # lets the peak begin here, where the system has this
        Path("/proc/self/clear_refs").write_text("5")
    before, _ = resident_mib()
    for _ in range(2):
        work.run()
    return resident_mib()[1] - before


def resident_mib() -> tuple[float, float]:
    """Memory of this process, now and at its peak."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss: on Linux that starts with the peak of the process that started this one.
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        now, peak = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
        return now, peak
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return peak, peak


def environment() -> dict[str, str]:
    """Of a process that runs this pspexp, from whatever folder."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
