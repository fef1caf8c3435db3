"""Measure speed and memory: the pyramid head, whole networks, the loader, and what the framework costs.

    python tools/bench.py --size 97 --repeats 3                         # everything, small
    python tools/bench.py step inference --batch 2,4,8 --device cuda --precision bf16 --channels-last

  head       the pyramid head alone, concatenated against factorised, same weights
  step       a training step of several networks: forward, loss, backward, SGD
  inference  the same networks from images to class ids
  variants   a training step of one network in several number formats, memory orders and compilations
  loader     the training loader alone, by number of workers
  overhead   a step of pspexp's trainer against one of a bare loop over the same parts
  startup    from the command to its first output and to its first training step
  logging    one record of metrics and one of an evaluation

What is compared takes turns, in an order that rotates, so that whatever else the machine does meets all alike.
Times are wall time, with the device waited for before and after; ratio is the baseline's median over a row's own.
"""

import argparse
import gc
import importlib.metadata
import json
import logging
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    closing,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import cache, partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import pspexp
from pspexp.config.build import TrainingComponents, build_training, init_distributed
from pspexp.data.labels import VOC_COLOURS
from pspexp.data.loader import Batch, TrainLoader
from pspexp.data.transforms import normalize
from pspexp.engine.distributed import ProcessInfo
from pspexp.errors import UserError
from pspexp.jobs import job as run
from pspexp.metrics import ConfusionMatrix
from pspexp.models.pyramid import HEADS
from pspexp.tracking.tracker import Tracker

CLASSES, IGNORE = 21, 255
PSPNETS = ("pspnet18", "pspnet50", "pspnet50_mmseg", "pspnet101")
FACTORISED = "_factorised"
TORCHVISION = ("fcn_resnet50", "deeplabv3_resnet50")
SMP = "smp_pspnet_resnet50"
NETWORKS = (*PSPNETS, *(name + FACTORISED for name in PSPNETS), *TORCHVISION, SMP)
NOTES = {
    **dict.fromkeys(TORCHVISION, "torchvision's; computes its auxiliary head in inference too"),
    SMP: "another, far smaller network: encoder depth 3, no dilated stages, no auxiliary head",
}
SMALL = ("pspnet18", 97, 4)  # network, crop and batch for `overhead`: where the network takes little, the rest shows
SKIPPED_ROUNDS = 3  # of `overhead`, at the start of a training
PHOTOGRAPHS = 60
EPOCHS_READ = 3
CACHE_MIB = 1024
RECORDS = 20  # in a row, for one time of one record

Words = list[str]
"""Of pspexp's command line."""


# ---------------------------------------------------------------- results


@dataclass
class Row:
    """What was measured of one thing.

    Attributes:
        times: seconds; of ``images`` images, where it is about images.
        workers: processes that share the work.
        flops: of what was timed.
        peak: floating-point operations per second of a large matrix product in the same format.
        memory_mib, reserved_mib: at the peak.
        failure: why there are no times.
    """

    times: list[float] = field(default_factory=list)
    images: int | None = None
    workers: int | None = None
    flops: int | None = None
    peak: float | None = None
    memory_mib: float | None = None
    reserved_mib: float | None = None
    note: str = ""
    failure: str = ""

    @property
    def best_flops(self) -> float:
        """Floating-point operations per second, at the best of the times."""
        return max(((self.flops or 0) / seconds for seconds in self.times), default=0.0)

    def as_dict(self, baseline: "Row | None") -> dict[str, Any]:
        """For JSON, with what follows from the times."""
        content: dict[str, Any] = {"times_s": self.times, "note": self.note, "failure": self.failure}
        content |= {"flops": self.flops, "memory_mib": self.memory_mib, "reserved_mib": self.reserved_mib}
        if not self.times:
            return content
        median = statistics.median(self.times)
        content |= {"median_s": median, "quartiles_s": quartiles(self.times)}
        if baseline and baseline.times:
            content["ratio"] = statistics.median(baseline.times) / median
        if self.images:
            content["images_per_s"] = self.images / median
        if self.images and self.workers is not None:
            content["images_per_s_per_worker"] = self.images / median / max(self.workers, 1)
        if self.flops and self.peak:
            content["share_of_peak"] = self.flops / median / self.peak
        return content


@dataclass
class Table:
    """Things that were measured in turns.

    Attributes:
        key: what tells it from the other tables of its benchmark.
        baseline: the row that the others are compared with.
        facts: what else is to be told, by name.
    """

    key: str
    rows: dict[str, Row]
    baseline: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        baseline = self.rows.get(self.baseline or "")
        rows = {name: row.as_dict(baseline) for name, row in self.rows.items()}
        return {"baseline": self.baseline, "facts": self.facts, "rows": rows}


COLUMNS: dict[str, Callable[[dict[str, Any]], float | str | None]] = {
    "median ms": lambda row: 1e3 * row["median_s"],
    "quartiles": lambda row: "–".join(number(1e3 * value) for value in row["quartiles_s"]),
    "ratio": lambda row: f"{row['ratio']:.3f}",
    "images/s": lambda row: row["images_per_s"],
    "per worker": lambda row: row["images_per_s_per_worker"],
    "GFLOP": lambda row: row["flops"] and row["flops"] / 1e9,
    "% of peak": lambda row: f"{100 * row['share_of_peak']:.1f}",
    "MiB": lambda row: row["memory_mib"],
    "MiB reserved": lambda row: row["reserved_mib"],
}


def cell(row: dict[str, Any], column: str) -> str:
    """A cell of the printed table; empty where the row has no such value."""
    try:
        value = COLUMNS[column](row)
    except KeyError:
        return ""
    return value if isinstance(value, str) else number(value)


def show(bench: str, key: str, table: dict[str, Any]) -> None:
    """Print a table (of `Table.as_dict`), without columns that would be empty."""
    rows = table["rows"]
    columns = [column for column in COLUMNS if any(cell(row, column) for row in rows.values())]
    lines = [["", *columns]]
    lines += [[name, *(cell(row, column) for column in columns)] for name, row in rows.items()]
    widths = [max(map(len, texts)) for texts in zip(*lines, strict=True)]
    print(f"\n{bench}: {key}")
    for name, *texts in lines:
        cells = "  ".join(text.rjust(width) for text, width in zip(texts, widths[1:], strict=True))
        failure = rows[name]["failure"] if name in rows else ""
        print(f"  {name.ljust(widths[0])}  {failure or cells}".rstrip())
    for name, value in table["facts"].items():
        print(f"  {name}: {number(value) if isinstance(value, float) else value}")
    for name, row in rows.items():
        if row["note"]:
            print(f"  {name}: {row['note']}")


def number(value: float | None) -> str:
    """Four significant digits or more."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 999.95 else f"{value:.4g}"


def quartiles(times: Sequence[float]) -> list[float]:
    """The first and the third."""
    if len(times) == 1:
        return [times[0], times[0]]
    first, _, third = statistics.quantiles(times, n=4, method="inclusive")
    return [first, third]


# ---------------------------------------------------------------- options


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

    def words(self) -> Words:
        """The same for pspexp, as far as it has words for it."""
        precision = "tf32" if self.tf32 and self.precision == "fp32" else self.precision
        order = str(self.channels_last).lower()
        return [f"device={self.device}", f"precision={precision}", f"channels_last={order}", "tracking=none"]


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    return text.split(",")


def parse(arguments: Sequence[str]) -> Options:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("benches", nargs="*", metavar="BENCHMARK", help=f"{', '.join(BENCHES)} (default: all)")
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
    options.benches, options.models = options.benches or list(BENCHES), options.models or default
    for given, known in ((options.benches, tuple(BENCHES)), (options.models, NETWORKS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"{', '.join(unknown)}: choose from {', '.join(known)}")
    options.baseline = options.baseline or options.models[0]
    if options.baseline not in options.models:
        parser.error(f"--baseline {options.baseline}: must be one of {', '.join(options.models)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: not usable here")
    if min(options.batch) < 2 and {"head", "step", "variants", "overhead"} & set(options.benches):
        parser.error(f"--batch {min(options.batch)}: training normalises over a batch and needs 2 images at least")
    return options


# ---------------------------------------------------------------- networks


class UnavailableError(Exception):
    """Something cannot be measured here; says why."""


@dataclass(frozen=True)
class Setting:
    """How a network runs.

    Attributes:
        size, batch: of the images.
        network: of which the head is, in `head`.
        precision: ``fp32`` or ``bf16``.
        compile: a mode of ``torch.compile``, or None.
        tf32: whether float32 products may be computed in TF32.
    """

    device: str
    size: int
    batch: int
    network: str
    precision: str = "fp32"
    channels_last: bool = False
    compile: str | None = None
    tf32: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def placed(self, thing: Any) -> Any:
        """A tensor or module on the device in the memory order."""
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        return thing.to(self.device, memory_format=order)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, compiled if wanted."""
        if self.compile is None:
            return function
        # Not dynamic: another batch size is another comparison.
        compiled: Callable[..., Any] = torch.compile(function, mode=self.compile, dynamic=False)
        return compiled

    def begin(self) -> None:
        """Make ready for one run: with CUDA graphs, earlier results may be overwritten."""
        if self.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    @property
    def product(self) -> str:
        """What its speed is compared with."""
        return f"matrix product in {'tf32' if self.tf32 and self.precision == 'fp32' else self.precision}"

    def allow_tf32(self) -> None:
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32

    def describe(self) -> str:
        words = [self.precision, f"tf32 {'on' if self.tf32 else 'off'}" if self.device == "cuda" else ""]
        words += ["channels-last" if self.channels_last else "contiguous"]
        words += [f"compiled ({self.compile})" if self.compile else "not compiled"]
        return ", ".join(filter(None, words))


@dataclass
class Work:
    """Something to measure: ``run`` does it once as it is set, ``eager`` uncompiled."""

    run: Callable[[], object]
    eager: Callable[[], object]
    note: str = ""


@cache
def pspnet_node(name: str) -> dict[str, Any]:
    """The configuration of pspexp's network; `FACTORISED` at the end of its name chooses the head."""
    base = name.removesuffix(FACTORISED)
    head = "concat" if name == base else "factorised"
    config = pspexp.compose([f"model={base}", f"model.head={head}", "dataset=shapes"])
    return {**config.model, "num_classes": CLASSES}


def pspnet(name: str) -> Any:
    """pspexp's network."""
    return pspexp.build(pspnet_node(name))


def network(name: str, size: int) -> tuple[nn.Module, int, str]:
    """A network with fresh weights, the size of image it gets, and what is to be said about it."""
    torch.manual_seed(0)
    note = NOTES.get(name, "")
    if name in TORCHVISION:
        from torchvision.models import segmentation

        make = getattr(segmentation, name)
        return make(weights=None, weights_backbone=None, aux_loss=True, num_classes=CLASSES), size, note
    if name == SMP:
        try:
            smp: Any = importlib.import_module("segmentation_models_pytorch")
        except ImportError:
            raise UnavailableError("segmentation-models-pytorch is not installed") from None
        allowed = math.ceil(size / 8) * 8  # it refuses others
        note += f"; images of {allowed}×{allowed}" if allowed != size else ""
        return smp.PSPNet(encoder_name="resnet50", encoder_weights=None, classes=CLASSES), allowed, note
    return pspnet(name), size, note


def logits(outputs: Any) -> dict[str, Tensor]:
    """What a network returns, as ``{"out", "aux"}``, in float32."""
    named = outputs if isinstance(outputs, Mapping) else {"out": outputs}
    return {name: output.float() for name, output in named.items()}


def random_images(setting: Setting, size: int) -> Tensor:
    images: Tensor = setting.externally_launched(torch.randn(setting.batch, 3, size, size))
    return images


def random_labels(batch: int, size: int, device: str) -> Tensor:
    """Class ids, some ignored."""
    labels = torch.randint(0, CLASSES + 1, (batch, size, size), device=device)
    return labels.masked_fill_(labels == CLASSES, IGNORE)


def training_step(name: str, setting: Setting) -> Work:
    """Forward, cross-entropy (0.6 main + 0.4 auxiliary), backward, SGD with momentum."""
    model, size, note = network(name, setting.size)
    model = setting.externally_launched(model.train())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    images, labels = random_images(setting, size), random_labels(setting.batch, size, setting.device)

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        with setting.autocast():
            outputs = logits(model(images))
        main, *auxiliary = [
            F.cross_entropy(outputs[key], labels, ignore_index=IGNORE) for key in ("out", "aux") if key in outputs
        ]
        return 0.6 * main + 0.4 * auxiliary[0] if auxiliary else main

    def step(forward: Callable[..., Tensor]) -> None:
        setting.begin()
        forward(images, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Work(partial(step, setting.compiled(loss_of)), partial(step, loss_of), note)


def inference(name: str, setting: Setting) -> Work:
    """From images to class ids at their size."""
    model, size, note = network(name, setting.size)
    model = setting.externally_launched(model.eval())
    images = random_images(setting, size)

    def predict(images: Tensor) -> Tensor:
        with setting.autocast():
            return logits(model(images))["out"].argmax(1)

    @torch.inference_mode()
    def once(forward: Callable[..., Tensor]) -> Tensor:
        setting.begin()
        return forward(images)

    return Work(partial(once, setting.compiled(predict)), partial(once, predict), note)


def pyramid(head: str, setting: Setting) -> tuple[nn.Module, Tensor]:
    """A pyramid head and random features for it. All heads have the same weights."""
    torch.manual_seed(0)
    model = pspnet(setting.network)
    channels, side = model.backbone.feature_info.channels()[-1], math.ceil(setting.size / 8)
    module, features = model.pyramid, torch.randn(setting.batch, channels, side, side, dtype=setting.dtype)
    if head != "concat":
        other = pspnet(setting.network + FACTORISED)
        other.pyramid.load_state_dict(module.state_dict())
        module = other.pyramid
    return setting.externally_launched(module), setting.externally_launched(features)


def head_work(mode: str, head: str, setting: Setting) -> Work:
    """The pyramid head alone.

    Args:
        mode: ``eval``, ``forward`` (training mode) or ``forward+backward`` (to weights and features).
    """
    module, features = pyramid(head, setting)
    module.train(mode != "eval")
    inputs = [features.requires_grad_(mode == "forward+backward"), *module.parameters()]
    gradients: list[Tensor] = []

    def forward(features: Tensor) -> Tensor:
        with setting.autocast():
            out: Tensor = module(features)
            return out

    def once(forward: Callable[..., Tensor]) -> None:
        setting.begin()
        with torch.set_grad_enabled(mode != "eval"):
            out = forward(features)
        if mode == "forward+backward":
            gradients[:] = gradients or [torch.randn_like(out)]
            out.backward(gradients[0])  # type: ignore[no-untyped-call]
            for tensor in inputs:
                tensor.grad = None

    return Work(partial(once, setting.compiled(forward)), partial(once, forward))


HEAD_MODES = ("forward", "forward+backward", "eval")
WORKS: dict[str, Callable[[str, Setting], Work]] = {
    "step": training_step,
    "inference": inference,
    **{f"head {mode}": partial(head_work, mode) for mode in HEAD_MODES},
}


# ---------------------------------------------------------------- measuring


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
    words = [sys.executable, str(Path(__file__).resolve()), "--probe", asked]
    done = subprocess.run(words, env=environment(), stdout=subprocess.PIPE, text=True, check=False)
    return None if done.returncode else float(done.stdout.split()[-1])


def peak_resident(asked: str) -> float:
    """MiB of memory at the peak of two runs, beyond what the process had before the first."""
    words = json.loads(asked)
    torch.set_num_threads(words["threads"])
    work = WORKS[words["kind"]](words["name"], Setting(**words["setting"]))
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
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


# ---------------------------------------------------------------- benchmarks of networks


def bench_head(options: Options) -> Iterator[Table]:
    """The pyramid head in training and in evaluation."""
    for batch in options.batch:
        setting = options.setting(batch)
        difference = head_difference(setting)
        for mode in HEAD_MODES:
            candidates = {head: (head, setting) for head in HEADS}
            table = compare(f"head {mode}", candidates, f"{mode}, batch {batch}", "concat", options)
            side = math.ceil(setting.size / 8)
            table.facts |= {"features": f"{side}×{side}, of {options.network}", **difference}
            yield table


def head_difference(setting: Setting) -> dict[str, float]:
    """How far apart the two heads' outputs are, in float32."""
    setting = replace(setting, precision="fp32", tf32=False)
    setting.allow_tf32()
    outputs = []
    for head in HEADS:
        module, features = pyramid(head, setting)
        with torch.no_grad():
            outputs.append(module(features))
    first, second = outputs
    relative = (first - second).abs().max() / first.abs().max()
    return {"largest difference of the outputs, relative to the largest output": float(relative)}


def bench_networks(kind: str, options: Options) -> Iterator[Table]:
    """A kind of `WORKS` for all networks."""
    for batch in options.batch:
        candidates = {name: (name, options.setting(batch)) for name in options.models}
        key = f"{options.size}×{options.size}, batch {batch}"
        yield compare(kind, candidates, key, options.baseline or options.models[0], options)


def bench_variants(options: Options) -> Iterator[Table]:
    """A training step in all the ways that the device knows."""
    name = options.network + FACTORISED
    for batch in options.batch:
        fp32 = replace(options.setting(batch), precision="fp32", channels_last=False, compile=None, tf32=False)
        bf16 = replace(fp32, precision="bf16")
        last = replace(bf16, channels_last=True)
        variants = {
            "fp32": fp32,
            "fp32 channels-last": replace(fp32, channels_last=True),
            "fp32 compile": replace(fp32, compile="default"),
            "fp32 tf32": replace(fp32, tf32=True),
            "bf16": bf16,
            "bf16 channels-last": last,
            "bf16 channels-last compile": replace(last, compile="default"),
            "bf16 channels-last compile reduce-overhead": replace(last, compile="reduce-overhead"),
        }
        cuda_only = () if options.device == "cuda" else ("fp32 tf32", "bf16 channels-last compile reduce-overhead")
        candidates = {label: (name, setting) for label, setting in variants.items() if label not in cuda_only}
        yield compare("step", candidates, f"{name}, {options.size}×{options.size}, batch {batch}", "fp32", options)


# ---------------------------------------------------------------- the loader


def bench_loader(options: Options) -> Iterator[Table]:
    """The training loader without a network."""
    with tempfile.TemporaryDirectory() as folder:
        root = options.dataset_root or photographs(Path(folder))
        words = ["model=pspnet18", "dataset=voc2007", f"dataset.root='{root}'", f"crop_size={options.size}"]
        config = pspexp.compose([*words, *options.words()])
        training = build_training(config, *init_distributed(config, ProcessInfo()), start_weights=True).training
        rows, samplers = {"decoding alone": Row(images=1)}, {"decoding alone": partial(decoding, training)}
        caches = {"": [], ", cached": [f"loader.cache_mib={CACHE_MIB}"]}
        for workers in options.workers:
            for label, cached in caches.items():
                name = f"{workers} workers{label}"
                config = pspexp.compose([*words, *options.words(), f"loader.num_workers={workers}", *cached])
                rows |= {f"{name}, first epoch": Row(workers=workers), f"{name}, later": Row(workers=workers)}
                samplers[f"{name}, later"] = partial(
                    reading, config, rows[f"{name}, first epoch"], rows[f"{name}, later"]
                )
        take_turns(samplers, rows, options.repeats)
        sizes = [path.stat().st_size / 1024 for path in Path(root).rglob("*.jpg")]
        facts = {"photographs": f"{len(training)}, files of {statistics.mean(sizes):.0f} KiB in the mean"}
        facts["first epoch"] = "includes the start of the workers"
        yield Table(f"crop {options.size}", rows, facts=facts)


def decoding(training: Any) -> float:
    """Seconds to read one photograph and its label."""
    start = time.perf_counter()
    for index in range(len(training)):
        training[index]
    return (time.perf_counter() - start) / len(training)


def reading(config: DictConfig, first: Row, later: Row) -> float:
    """Mean seconds of the epochs after the first, whose own are noted in its row. Starts afresh: nothing is cached."""
    data: TrainLoader = build_training(config, *init_distributed(config, ProcessInfo()), start_weights=True).data
    first.images = later.images = data.steps_per_epoch * data.images_per_step
    ends = [time.perf_counter()]
    for step, _ in enumerate(data.batches(0, EPOCHS_READ * data.steps_per_epoch), start=1):
        if step % data.steps_per_epoch == 0:
            ends.append(time.perf_counter())
    epochs = [end - start for start, end in pairwise(ends)]
    first.times.append(epochs[0])
    return statistics.mean(epochs[1:])


def photographs(folder: Path) -> Path:
    """A data set in VOC's layout: JPEGs as large as its, smooth at every scale, and palette labels."""
    tree, rng = folder / "VOC2007", np.random.default_rng(0)
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tree / part).mkdir(parents=True)
    for index in range(PHOTOGRAPHS):
        picture = np.full((375, 500, 3), 128.0)
        for cells, contrast in ((4, 45), (16, 25), (64, 15), (256, 25)):
            noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8)).resize((500, 375))
            picture += (np.asarray(noise) / 128.0 - 1) * contrast
        file = tree / "JPEGImages" / f"{index:03}.jpg"
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, quality=92)
        label = Image.new("P", (500, 375))
        label.putpalette(VOC_COLOURS.tobytes())
        for class_id in rng.integers(1, CLASSES, 3).tolist():
            left, top = rng.integers(0, 250, 2).tolist()
            ImageDraw.Draw(label).ellipse((left, top, left + 240, top + 120), class_id, IGNORE, 3)
        label.save(tree / "SegmentationClass" / f"{index:03}.png")
    for split in ("train", "val"):
        lines = "".join(f"{index:03}\n" for index in range(PHOTOGRAPHS))
        (tree / "ImageSets/Segmentation" / f"{split}.txt").write_text(lines)
    return folder


# ---------------------------------------------------------------- the framework


def bare_loop(config: DictConfig) -> Generator[None, None, None]:
    """What a script without a framework does with the same parts; stops after each step."""
    parts = build_training(config, *init_distributed(config, ProcessInfo()), start_weights=True)
    parts.model.train()
    for batch in parts.data.batches(0, config.trainer.max_steps):
        bare_step(parts, batch)
        yield


def bare_step(parts: TrainingComponents, batch: Batch) -> None:
    """A function, so that no tensor of it is left while the trainer has its turn."""
    device = parts.device.torch
    images = normalize(batch.images.to(device, non_blocking=True), parts.source.mean, parts.source.std)
    labels = batch.labels.to(device, non_blocking=True).long()
    parts.optimizer.zero_grad(set_to_none=True)
    with parts.precision.autocast(parts.device):
        outputs = parts.model(images)
    loss = parts.loss(outputs, labels)
    loss.backward()
    parts.optimizer.step()
    parts.scheduler.step()


class Alongside:
    """A stop signal that never stops: between steps of the trainer, which asks it there, the bare loop does its own.

    Args:
        loop: the bare loop.
        rounds: how often the two take turns.
        steps: of each, in a turn.

    Attributes:
        bare, ours: mean seconds of a step, by turn.
    """

    def __init__(self, loop: Iterator[None], device: str, rounds: int, steps: int) -> None:
        self._loop, self._device, self._rounds, self._steps = loop, device, rounds, steps
        self._asked, self._left = 0, 0.0
        self.bare: list[float] = []
        self.ours: list[float] = []

    def __call__(self) -> int | None:
        at, self._asked = self._asked, self._asked + 1
        if at % self._steps or len(self.ours) == self._rounds:  # validation asks too
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
    """A step of pspexp against one of the bare loop."""
    cases = {(options.network, options.size, batch): options.repeats for batch in options.batch}
    cases[SMALL] = 5 * options.repeats
    for (name, size, batch), repeats in cases.items():
        words = [f"model={name}", f"crop_size={size}", f"loader.batch_size={batch}", *options.words()]
        yield overhead(f"{name}, crop {size}, batch {batch}", words, repeats, options.device)


def overhead(key: str, words: Words, repeats: int, device: str) -> Table:
    """One training on drawn shapes, with the bare loop between its steps."""
    words = [*words, "dataset=shapes", "loader.num_workers=0", "loader.max_eval_images=1"]
    rounds = SKIPPED_ROUNDS + repeats
    # A device with a queue is waited for at the end of a turn only, or the trainer could not run ahead of it.
    steps = 1 if device == "cpu" else pspexp.compose(words).trainer.log_every
    # One step more: the last ends in validation.
    words += [f"trainer.max_steps={rounds * steps + 1}", "trainer.epochs=1000", "trainer.validate_every=1000"]
    config = pspexp.compose(words)
    with tempfile.TemporaryDirectory() as folder, closing(bare_loop(config)) as loop:
        pair = Alongside(loop, device, rounds, steps)
        with quiet(Path(folder)):
            run.Job(config, Path(folder) / "run", words)(ProcessInfo(), pair)
    bare, ours = pair.bare[SKIPPED_ROUNDS:], pair.ours[SKIPPED_ROUNDS:]
    rows = {"bare loop": Row(bare, batch := config.loader.batch_size), "pspexp": Row(ours, batch)}
    more = statistics.median(ours) - statistics.median(bare)
    pairs = [ours_s - bare_s for ours_s, bare_s in zip(ours, bare, strict=True)]
    facts = {
        "pspexp's median is longer by ms": 1e3 * more,
        "by %": 100 * more / statistics.median(bare),
        "median difference of neighbouring turns, ms": 1e3 * statistics.median(pairs),
        "its quartiles, ms": " to ".join(number(1e3 * value) for value in quartiles(pairs)),
        "steps in a turn": steps,
        "data": "drawn shapes, no workers; both read their own",
    }
    return Table(key, rows, "bare loop", facts)


@contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """Let logging and what is printed go into a file, as in a run folder."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with (folder / "run.log").open("w", encoding="utf-8") as file:
        root.handlers[:] = [logging.StreamHandler(file)]
        root.setLevel(logging.INFO)
        try:
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)


def bench_startup(options: Options) -> Iterator[Table]:
    """How long the first output and the first step take."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = folder / "known.db"
        first_step(folder / "warmup", known, options.device)
        new = (folder / f"{index}.db" for index in count())
        runs = (folder / f"run{index}" for index in count())
        samplers: dict[str, Callable[[], float]] = {
            "--help": partial(first_output, folder),
            "quickstart's first step": lambda: first_step(next(runs), known, options.device),
            "same, new MLflow database": lambda: first_step(next(runs), next(new), options.device),
        }
        rows = {label: Row() for label in samplers}
        take_turns(samplers, rows, min(options.repeats, 5))
    yield Table("wall time from the start of the command", rows)


def command(*words: str) -> Words:
    return [sys.executable, "-m", "pspexp", *words]


def first_output(folder: Path) -> float:
    """Seconds that ``--help`` takes."""
    start = time.perf_counter()
    subprocess.run(command("--help"), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def first_step(folder: Path, database: Path, device: str) -> float:
    """Seconds to the record of the first step."""
    folder.mkdir()
    words = command(
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
        process = subprocess.Popen(words, cwd=folder, env=env, stdout=output, stderr=output)
        while not (records.is_file() and "\n" in records.read_text()) and process.poll() is None:
            time.sleep(0.005)
        seconds = time.perf_counter() - start
        code = process.wait()
    if code or not records.is_file():
        raise RuntimeError(f"{shlex.join(words)} ended with {code}: {(folder / 'output').read_text()[-2000:]}")
    return seconds


def bench_logging(options: Options) -> Iterator[Table]:
    """What a record costs."""
    with tempfile.TemporaryDirectory() as name, quiet(Path(name)):
        folder = Path(name)
        trackers = {"files only": start_tracker(folder / "files", "tracking=none")}
        uri = f"tracking.tracking_uri=sqlite:///{folder / 'mlflow.db'}"
        both = start_tracker(folder / "mlflow", "tracking=mlflow", uri)
        if both.run_id:  # else it went on without MLflow
            trackers["files and MLflow"] = both
        samplers: dict[str, Callable[[], float]] = {}
        for label, tracker in trackers.items():
            samplers[f"metrics, {label}"] = partial(record_metrics, tracker, count(1))
            samplers[f"report, {label}"] = partial(record_report, tracker, count(1))
        rows = {label: Row() for label in samplers}
        take_turns(samplers, rows, options.repeats)
        for tracker in trackers.values():
            tracker.finish("FINISHED")
    facts = {} if both.run_id else {"MLflow": "could not be started"}
    yield Table(f"one record; {CLASSES} classes", rows, facts=facts)


def start_tracker(folder: Path, *tracking: str) -> Tracker:
    words = ["model=pspnet18", "dataset=shapes", "crop_size=96", "device=cpu", f"output_root={folder}", *tracking]
    config = pspexp.compose(words)
    return run.start_tracker(config, folder / "run", words, pspexp.build(config.device), resume=False)


def record_metrics(tracker: Tracker, steps: Iterator[int]) -> float:
    """Mean seconds of a record of training metrics."""
    values = {"loss": 0.5, "lr": 1e-4, "images_per_second": 10.0, "data_time": 0.01, "step_time": 0.2}
    values = {f"train/{name}": value for name, value in values.items()}
    start = time.perf_counter()
    for _ in range(RECORDS):
        tracker.metrics(values, step=next(steps), epoch=1)
    return (time.perf_counter() - start) / RECORDS


def record_report(tracker: Tracker, epochs: Iterator[int]) -> float:
    """Seconds of a record of an evaluation: metrics, table, figures."""
    epoch = next(epochs)
    matrix = ConfusionMatrix(CLASSES, IGNORE)
    matrix.update(torch.randint(0, CLASSES, (1, 64, 64)), random_labels(1, 64, "cpu"))
    report = matrix.report([f"class {index}" for index in range(CLASSES)])
    start = time.perf_counter()
    tracker.report("val", report, step=epoch, epoch=epoch, extra={"val/loss": 1 / epoch})
    return time.perf_counter() - start


BENCHES: dict[str, Callable[[Options], Iterator[Table]]] = {
    "head": bench_head,
    "step": partial(bench_networks, "step"),
    "inference": partial(bench_networks, "inference"),
    "variants": bench_variants,
    "loader": bench_loader,
    "overhead": bench_overhead,
    "startup": bench_startup,
    "logging": bench_logging,
}


# ---------------------------------------------------------------- the command


def machine(options: Options) -> dict[str, Any]:
    """What the numbers were measured on."""
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
    """Of Python and the packages, None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("pspexp", "torch", "torchvision", "timm", "segmentation-models-pytorch"):
        found[package] = None
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@contextmanager
def torch_set(options: Options) -> Iterator[None]:
    """torch's switches as the options want them, and afterwards as they were."""
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
    """Run the benchmarks; tell, print and save each table when it is there."""
    for bench in options.benches:
        for table in BENCHES[bench](options):
            content = table.as_dict()
            record["results"].setdefault(bench, {})[table.key] = content
            show(bench, table.key, content)
            sys.stdout.flush()
            if options.json:
                options.json.write_text(json.dumps(record, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.probe:
        print(peak_resident(options.probe))
        return 0
    with torch_set(options):
        record: dict[str, Any] = {
            "command": f"python tools/bench.py {shlex.join(arguments)}".strip(),
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
