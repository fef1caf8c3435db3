"""The command line."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from tools.bench.works import FACTORISED, NETWORKS, PSPNETS, SMP, TORCHVISION, Setting

Overrides = list[str]
"""Overrides for pspexp's command line."""


class Options(argparse.Namespace):
    """The command line; see `parse`."""

    benches: list[str]
    size: int
    batch: list[int]
    models: list[str]
    baseline: str | None
    against: str | None
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
        """The options that determine how a network runs."""
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
        """The same as pspexp overrides, as far as pspexp has these settings."""
        precision = "tf32" if self.tf32 and self.precision == "fp32" else self.precision
        order = str(self.channels_last).lower()
        return [f"device={self.device}", f"precision={precision}", f"channels_last={order}", "tracking=none"]


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    return text.split(",")


def make_parser(description: str | None, benchmarks: Sequence[str]) -> argparse.ArgumentParser:
    """All arguments; `parse` checks what depends on several of them."""
    parser = argparse.ArgumentParser(
        "python -m tools.bench", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("benches", nargs="*", metavar="BENCHMARK", help=f"{', '.join(benchmarks)} (default: all)")
    add("--size", type=int, default=513, help="side of the square images in pixels (default 513)")
    add("--batch", type=integers, default=[2], metavar="N,N", help="batch sizes, one table each (default 2)")
    add("--models", type=names, metavar="NAME,NAME", help=f"for step and inference: {', '.join(NETWORKS)}")
    add("--baseline", metavar="NAME", help="for step and inference (default: the first of --models)")
    add("--against", metavar="NAME", help="a network to measure first, as the baseline; e.g. semseg-form")
    add(
        "--network",
        choices=PSPNETS,
        default="pspnet50",
        help="for head, variants, compile, overhead, evaluation and predict (default pspnet50)",
    )
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (default cpu)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 uses autocast (default fp32)")
    add("--channels-last", action="store_true", help="use the channels-last memory format for networks and images")
    modes = ("default", "reduce-overhead")
    add("--compile", nargs="?", const="default", choices=modes, help="torch.compile for head, step, inference, compile")
    add("--tf32", action="store_true", help="allow TF32 for float32 products on CUDA (default: off)")
    add("--threads", type=int, help="CPU threads of torch (default: torch's choice)")
    add("--repeats", type=int, default=10, help="measurements per row (default 10)")
    add("--warmup", type=int, default=2, help="untimed runs first (default 2; at least 4 if compiled)")
    add("--sample-seconds", type=float, default=0.2, help="minimum length of a measurement (default 0.2)")
    add("--matmul", type=int, help="matrix size for the peak (default 4096 on CPUs, else 8192)")
    add("--no-memory", action="store_true", help="on CPUs: skip memory, which needs one more process per row")
    add("--workers", type=integers, default=[0, 1, 2], metavar="N,N", help="numbers of loader workers (default 0,1,2)")
    add("--dataset-root", type=Path, help="folder that contains VOC2007, for loader (default: generated)")
    add("--json", type=Path, metavar="FILE", help="write the results to FILE, updated after each table")
    add("--probe", help=argparse.SUPPRESS)  # see `tools.bench.timing.probed`
    return parser


def parse(arguments: Sequence[str], description: str | None, benchmarks: Sequence[str]) -> Options:
    """The command line, checked."""
    parser = make_parser(description, benchmarks)
    options = parser.parse_intermixed_args(list(arguments), namespace=Options())
    default = [options.network, options.network + FACTORISED, *TORCHVISION, SMP]
    options.benches, options.models = options.benches or list(benchmarks), options.models or default
    if options.against is not None:
        options.models = [options.against, *(name for name in options.models if name != options.against)]
        options.baseline = options.against
    for given, known in ((options.benches, tuple(benchmarks)), (options.models, NETWORKS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"{', '.join(unknown)}: choose from {', '.join(known)}")
    options.baseline = options.baseline or options.models[0]
    if options.baseline not in options.models:
        parser.error(f"--baseline {options.baseline}: must be one of {', '.join(options.models)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: not available here; use --device cpu")
    if min(options.batch) < 2 and {"head", "step", "variants", "compile", "overhead"} & set(options.benches):
        parser.error(f"--batch {min(options.batch)}: training normalises over a batch and needs at least 2 images")
    return options
