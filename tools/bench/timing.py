"""Interleaved timing, and peak memory."""

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
    """Mean seconds per run, over ``runs`` consecutive runs."""
    setting.allow_tf32()
    synchronize(setting.device)
    start = time.perf_counter()
    for _ in range(runs):
        work.run()
    synchronize(setting.device)
    return (time.perf_counter() - start) / runs


def take_turns(samplers: Mapping[str, Callable[[], float]], rows: Mapping[str, Row], repeats: int) -> None:
    """Measure each row ``repeats`` times, in rounds; the row that comes first rotates."""
    left = dict(samplers)
    for turn in range(repeats):
        order = list(left)
        for at in range(len(order)):
            name = order[(at + turn) % len(order)]
            try:
                rows[name].times.append(left[name]())
            except torch.cuda.OutOfMemoryError:
                rows[name].times, rows[name].failure = [], "out of memory"
            if rows[name].failure:  # not above: there, the exception still holds memory
                del left[name]
                release()


def release() -> None:
    """Release unused device memory."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def compare(
    kind: str, candidates: Mapping[str, tuple[str, Setting]], key: str, baseline: str, options: Options
) -> Table:
    """A table of one kind of `WORKS`, with a row for each of ``candidates`` (name and setting)."""
    if any(setting.compile for _, setting in candidates.values()):
        torch.compiler.reset()  # the recompilation limit is per code object, which the rows share
    rows: dict[str, Row] = {}
    samplers: dict[str, Callable[[], float]] = {}
    products: dict[str, Row] = {}
    for label, (name, setting) in candidates.items():
        if setting.product not in products:  # first: else cuBLAS's workspace counts as the network's memory
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
        about = "peak allocation, including weights and optimizer"
        if rows_with_memory[0].reserved_mib is None:
            about = "peak resident size of two runs in a separate process, minus the size before the first"
        facts["MiB"] = about
    return Table(key, rows, baseline, facts)


def prepare(kind: str, name: str, setting: Setting, options: Options) -> tuple[Row, Callable[[], float] | None]:
    """A row with everything but times, and the function that measures one; None if preparation failed."""
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
        elif not options.no_memory and setting.compile is None:  # compilation would count
            row.memory_mib = probed("memory", kind, name, setting)
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
    """A large square matrix product in a setting's format; its shortest time gives the machine's peak."""
    side = options.matmul or (8192 if setting.device == "cuda" else 4096)
    left, right = (torch.randn(side, side, device=setting.device, dtype=setting.dtype) for _ in range(2))
    work = Work(lambda: left @ right, lambda: None)
    sample(work, setting)
    return Row(flops=2 * side**3), partial(sample, work, setting, runs_for(work, setting, options))


def runs_for(work: Work, setting: Setting, options: Options) -> int:
    """The number of consecutive runs per measurement."""
    return max(1, math.ceil(options.sample_seconds / sample(work, setting)))


def allocated(device: str) -> tuple[int, int]:
    """Bytes allocated and reserved on the device."""
    return (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) if device == "cuda" else (0, 0)


def cuda_peak(work: Work, before: tuple[int, int]) -> tuple[float, float]:
    """Peak MiB allocated and reserved during a run, minus those ``before`` the work was built.

    Memory held by CUDA graphs is only in the second value.
    """
    release()  # what only the warm-up needed
    torch.cuda.reset_peak_memory_stats()
    work.run()
    torch.cuda.synchronize()
    after = torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved()
    return (after[0] - before[0]) / 2**20, (after[1] - before[1]) / 2**20


def probed(what: str, kind: str, name: str, setting: Setting, **variables: str) -> float | None:
    """What one of `PROBES` measures in a separate process, with environment variables; None if it failed."""
    asked = {"what": what, "kind": kind, "name": name, "threads": torch.get_num_threads(), "setting": asdict(setting)}
    command = [sys.executable, "-m", "tools.bench", "--probe", json.dumps(asked)]
    done = subprocess.run(command, env=environment() | variables, stdout=subprocess.PIPE, text=True, check=False)
    return None if done.returncode else float(done.stdout.split()[-1])


def probe(asked: str) -> float:
    """The measurement that `probed` asks for, in this process."""
    request = json.loads(asked)
    torch.set_num_threads(request["threads"])
    setting = Setting(**request["setting"])
    return PROBES[request["what"]](WORKS[request["kind"]](request["name"], setting), setting)


def peak_resident(work: Work, setting: Setting) -> float:
    """Peak resident MiB of two runs, minus those before the first."""
    with suppress(OSError):  # resets the peak, if the system supports it
        Path("/proc/self/clear_refs").write_text("5")
    before, _ = resident_mib()
    for _ in range(2):
        work.run()
    return resident_mib()[1] - before


def first_runs(work: Work, setting: Setting) -> float:
    """Seconds of the first two runs: the second records CUDA graphs."""
    return sample(work, setting) + sample(work, setting)


PROBES: dict[str, Callable[[Work, Setting], float]] = {"memory": peak_resident, "first runs": first_runs}


def resident_mib() -> tuple[float, float]:
    """Resident MiB of this process, now and at its peak."""
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
    """Environment variables of a process that runs this pspexp from any folder."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
