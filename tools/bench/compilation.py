"""How long ``torch.compile`` takes to start, and after how many runs that breaks even."""

import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pspexp.utils.text import count
from tools.bench.options import Options
from tools.bench.results import Table
from tools.bench.timing import compare, probed
from tools.bench.works import FACTORISED


def bench_compile(options: Options) -> Iterator[Table]:
    """Training and inference with and without compilation, in the configured precision and memory format."""
    name = options.network + FACTORISED
    for batch in options.batch:
        compiled = replace(options.setting(batch), compile=options.compile or "default")
        settings = {"eager": replace(compiled, compile=None), "compiled": compiled}
        for kind in ("step", "inference"):
            key = f"{kind} of {name}, {options.size}×{options.size}, batch {batch}"
            table = compare(kind, {row: (name, one) for row, one in settings.items()}, key, "eager", options)
            table.facts["setting"] = compiled.describe()
            with tempfile.TemporaryDirectory() as cache:
                order = ("eager", "compiled", "compiled")
                first = [
                    probed("first runs", kind, name, settings[row], TORCHINDUCTOR_CACHE_DIR=cache) for row in order
                ]
            table.facts |= starts(first, *(statistics.median(row.times or [math.nan]) for row in table.rows.values()))
            yield table


def starts(first: Sequence[float | None], eager: float, compiled: float) -> dict[str, str]:
    """What compilation costs and when it breaks even, for a table.

    Args:
        first: Seconds of the first runs: eager, compiled, and compiled with what the compiler has cached.
        eager, compiled: Seconds of a later run; NaN if it could not be measured.
    """
    found: dict[str, str] = {}
    for label, seconds in zip(("eager", "compiled", "compiled, from the cache"), first, strict=True):
        found[f"first runs, {label}"] = "failed" if seconds is None else f"{seconds:.1f} s"
        if label != "eager" and seconds is not None and first[0] is not None and not math.isnan(eager - compiled):
            runs = break_even(seconds - first[0], eager - compiled)
            found[f"break-even, {label}"] = "never" if runs is None else count(runs, "run")
    return found


def break_even(cost: float, gain: float) -> int | None:
    """The number of runs after which a longer start has paid; None if it never does.

    Args:
        cost: Seconds by which the start is longer.
        gain: Seconds by which each further run is shorter.
    """
    return math.ceil(max(cost, 0) / gain) if gain > 0 else None
