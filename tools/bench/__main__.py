"""Measure speed and memory of the pyramid head, whole networks, the loader, and the framework's overhead.

    python -m tools.bench --size 97 --repeats 3                         # everything, small
    python -m tools.bench step inference --batch 2,4,8 --device cuda --precision bf16 --channels-last

  head       the pyramid head alone, concat vs. factorised, with the same weights
  step       a training step of several networks: forward, loss, backward, SGD
  inference  the same networks from images to class ids
  variants   a training step of one network in several precisions, memory formats and compilation modes
  compile    how long torch.compile takes to start, and after how many runs it breaks even
  loader     the training loader alone, by number of workers
  overhead   a step of pspexp's trainer vs. a bare loop over the same components
  evaluation a validation, from image files to metrics, vs. the bare forward passes
  predict    mode=predict, from image files to masks and overlays, vs. the bare network
  startup    time from a command to its first output, to its first training step, or to its end for one image
  logging    time of one record of metrics and of one of an evaluation
  outage     a training step while the MLflow server answers, hangs or is down

Repeats are interleaved in rotating order, so that other load on the machine affects all rows alike. Times are wall
times with the device synchronised before and after; "ratio" is the baseline's median divided by the row's.
"""

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import (
    contextmanager,
    suppress,
)
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pspexp.errors import UserError
from pspexp.utils.console_handler import escape_unencodable
from tools.bench.compilation import bench_compile
from tools.bench.evaluation import bench_evaluation
from tools.bench.head import bench_head
from tools.bench.loader import bench_loader
from tools.bench.networks import bench_networks, bench_variants
from tools.bench.options import Options, parse
from tools.bench.outage import bench_outage
from tools.bench.overhead import bench_overhead
from tools.bench.prediction import bench_prediction
from tools.bench.records import bench_logging
from tools.bench.results import Table, show
from tools.bench.startup import bench_startup
from tools.bench.timing import probe

BENCHES: dict[str, Callable[[Options], Iterator[Table]]] = {
    "head": bench_head,
    "step": partial(bench_networks, "step"),
    "inference": partial(bench_networks, "inference"),
    "variants": bench_variants,
    "compile": bench_compile,
    "loader": bench_loader,
    "overhead": bench_overhead,
    "evaluation": bench_evaluation,
    "predict": bench_prediction,
    "startup": bench_startup,
    "logging": bench_logging,
    "outage": bench_outage,
}


def machine(options: Options) -> dict[str, Any]:
    """The machine that the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    facts: dict[str, Any] = {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
    }
    if options.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {"gpu": properties.name, "gpu_gib": round(properties.total_memory / 2**30)}
        facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    return facts


def versions() -> dict[str, str | None]:
    """Versions of Python and the packages; None for those that are not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("pspexp", "torch", "torchvision", "timm", "segmentation-models-pytorch"):
        found[package] = None
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@contextmanager
def torch_set(options: Options) -> Iterator[None]:
    """Set torch's threads and TF32 as the options say, and restore them afterwards."""
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_num_threads(options.threads or before[0])
    options.setting(2).allow_tf32()
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
        cudnn.allow_tf32 = before[2]


def measure(options: Options, record: dict[str, Any]) -> None:
    """Run the benchmarks; print and save each table as soon as it is complete."""
    for bench in options.benches:
        for table in BENCHES[bench](options):
            content = table.as_dict()
            record["results"].setdefault(bench, {})[table.key] = content
            show(bench, table.key, content)
            sys.stdout.flush()
            if options.json:
                options.json.write_text(json.dumps(record, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    escape_unencodable()
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments, __doc__, list(BENCHES))
    if options.probe:
        print(probe(options.probe))
        return 0
    with torch_set(options):
        record: dict[str, Any] = {
            "command": f"python -m tools.bench {shlex.join(arguments)}".strip(),
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "machine": machine(options),
            "versions": versions(),
            "results": {},
        }
        for title in ("command", "date", "machine", "versions"):
            facts = record[title]
            text = facts if isinstance(facts, str) else ", ".join(f"{name} {value}" for name, value in facts.items())
            print(f"{title}: {text}")
        try:
            measure(options, record)
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
