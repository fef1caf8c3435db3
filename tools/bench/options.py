"""The command line."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from tools.bench.works import FACTORISED, NETWORKS, PSPNETS, SMP, TORCHVISION, Setting

Overrides = list[str]
"""Of pspexp's command line."""


class Options(argparse.Namespace):
    """The command line; see `parse`."""

    benches: list[str]
    size: int
    batch: list[int]
    models: list[str]
    baseline: str | None
    network: str
    device: str
    precision: str
    channels_last: bool
    compile: str | None
    tf32: bool
    threads: int | None
    repeats: int
    warmup: int
    sample_seconds: float
    matmul: int | None
    no_memory: bool
    workers: list[int]
    dataset_root: Path | None
    json: Path | None
    probe: str | None

    def setting(self, batch: int) -> "Setting":
        """What the options say about how a network runs."""
        return Setting(
            device=self.device,
            size=self.size,
            batch=batch,
            network=self.network,
            precision=self.precision,
            channels_last=self.channels_last,
            compile=self.compile,
            tf32=self.tf32,
        )

    def overrides(self) -> Overrides:
        """The same as overrides of pspexp, as far as it has such settings."""
        precision = "tf32" if self.tf32 and self.precision == "fp32" else self.precision
        order = str(self.channels_last).lower()
        return [f"device={self.device}", f"precision={precision}", f"channels_last={order}", "tracking=none"]


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    return text.split(",")


def parse(arguments: Sequence[str], description: str | None, benchmarks: Sequence[str]) -> Options:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        "python -m tools.bench", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("benches", nargs="*", metavar="BENCHMARK", help=f"{', '.join(benchmarks)} (default: all)")
    add("--size", type=int, default=513, help="side of the images in pixels (default 513)")
    add("--batch", type=integers, default=[2], metavar="N,N", help="batch sizes, a table for each (default 2)")
    add("--models", type=names, metavar="NAME,NAME", help=f"of step and inference, from {', '.join(NETWORKS)}")
    add("--baseline", metavar="NAME", help="of step and inference (default: the first of --models)")
    add("--network", choices=PSPNETS, default="pspnet50", help="of head, variants and overhead (default pspnet50)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(default cpu)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast (default fp32)")
    add("--channels-last", action="store_true", help="memory order of networks and images")
    modes = ("default", "reduce-overhead")
    add("--compile", nargs="?", const="default", choices=modes, help="torch.compile, in head, step and inference")
    add("--tf32", action="store_true", help="let CUDA compute float32 products in TF32 (default: off)")
    add("--threads", type=int, help="of torch on the CPU (default: torch's own choice)")
    add("--repeats", type=int, default=10, help="times of each row (default 10)")
    add("--warmup", type=int, default=2, help="untimed runs before (default 2; compiled: 4 at least)")
    add("--sample-seconds", type=float, default=0.2, help="quick work is repeated so long for one time (default 0.2)")
    add("--matmul", type=int, help="side of the peak's matrices (default 4096 on CPUs, else 8192)")
    add("--no-memory", action="store_true", help="on CPUs: do not measure memory, which takes a process a row")
    add("--workers", type=integers, default=[0, 1, 2], metavar="N,N", help="of the loader (default 0,1,2)")
    add("--dataset-root", type=Path, help="folder of VOC2007 for the loader (default: generated photographs)")
    add("--json", type=Path, metavar="FILE", help="write everything there, after each table anew")
    add("--probe", help=argparse.SUPPRESS)  # see `peak_resident`
    options = parser.parse_intermixed_args(list(arguments), namespace=Options())
    default = [options.network, options.network + FACTORISED, *TORCHVISION, SMP]
    options.benches, options.models = options.benches or list(benchmarks), options.models or default
    for given, known in ((options.benches, tuple(benchmarks)), (options.models, NETWORKS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"{', '.join(unknown)}: choose from {', '.join(known)}")
    options.baseline = options.baseline or options.models[0]
    if options.baseline not in options.models:
        parser.error(f"--baseline {options.baseline}: must be one of {', '.join(options.models)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: not available here")
    if min(options.batch) < 2 and {"head", "step", "variants", "overhead"} & set(options.benches):
        parser.error(f"--batch {min(options.batch)}: training normalises over a batch and needs 2 images at least")
    return options
