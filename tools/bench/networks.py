"""Training steps and inference of several networks."""

from collections.abc import Iterator
from dataclasses import replace

from tools.bench.options import Options
from tools.bench.results import Table
from tools.bench.timing import compare
from tools.bench.works import FACTORISED


def bench_networks(kind: str, options: Options) -> Iterator[Table]:
    """One kind of `WORKS`, for every network."""
    for batch in options.batch:
        candidates = {name: (name, options.setting(batch)) for name in options.models}
        key = f"{options.size}×{options.size}, batch {batch}"
        yield compare(kind, candidates, key, options.baseline or options.models[0], options)


def bench_variants(options: Options) -> Iterator[Table]:
    """A training step in each precision, memory format and compilation mode that the device supports."""
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
