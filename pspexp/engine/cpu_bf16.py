"""Whether bfloat16 speeds up a CPU: only some processors multiply it in hardware, and torch computes it on all."""

import json
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch.nn import functional as F

from pspexp.utils.files import write_text_atomic
from pspexp.utils.user_cache import cache_folder

# Names of the instructions, as torch and Linux spell them: Intel and AMD; Arm.
INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "sve_bf16", "svebf16", "bf16")
CACHE = "bf16.json"
REPEATS = 5


@cache
def bf16_on_this_cpu() -> tuple[bool, str]:
    """Whether bfloat16 is faster than float32 on this CPU, and why, in a few words.

    The processor's instructions decide. Whether a convolution gains from them is measured once, and remembered for this
    machine, since a library without kernels for them would be slower.
    """
    found = next((name for name in INSTRUCTIONS if name in _capabilities()), None)
    if found is None:
        return False, "this CPU does not multiply bfloat16 in hardware"
    if remembered(f"{platform.node()}, torch {torch.__version__}, {found}", measure_gain) < 1:
        return False, f"this CPU has {found}, but a convolution in bfloat16 is slower"
    return True, f"this CPU has {found}"


def _capabilities() -> set[str]:
    """The names of the processor's instructions, in lower case."""
    with suppress(AttributeError, RuntimeError):  # an older torch
        return {name.lower() for name, value in torch.cpu.get_capabilities().items() if value is True}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.partition(":")[2].split())
    return set()


def measure_gain() -> float:
    """How many times as fast one convolution is in bfloat16 as in float32; takes some milliseconds."""
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        images = torch.zeros(2, 128, 48, 48, dtype=dtype).to(memory_format=torch.channels_last)
        weight = torch.zeros(128, 128, 3, 3, dtype=dtype)

        def run(images: torch.Tensor = images, weight: torch.Tensor = weight) -> float:
            began = time.perf_counter()
            F.conv2d(images, weight, padding=1)
            return time.perf_counter() - began

        with torch.inference_mode():
            times[dtype] = min(run() for _ in range(REPEATS))
    return times[torch.float32] / times[torch.bfloat16]


def remembered(key: str, measure: Callable[[], float]) -> float:
    """A measurement of this machine: the one in the user's cache, or a new one. Processes measure one after another."""
    file = cache_folder(CACHE)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock", timeout=60):
            known: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
            if not isinstance(known.get(key), float):
                known[key] = round(measure(), 3)
                write_text_atomic(file, json.dumps(known, indent=1) + "\n", durable=False)
            return float(known[key])
    except (OSError, ValueError, AttributeError, TimeoutError):  # no place to keep it, or the file is damaged
        return measure()
