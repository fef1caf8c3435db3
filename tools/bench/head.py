"""The pyramid head alone, concat vs. factorised, with the same weights."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from pspexp.models.pyramid import HEADS
from tools.bench.options import Options
from tools.bench.results import Table
from tools.bench.timing import compare
from tools.bench.works import HEAD_MODES, Setting, pyramid


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
    """The difference between the outputs of the two heads, in float32."""
    setting = replace(setting, precision="fp32", tf32=False)
    setting.allow_tf32()
    outputs = []
    for head in HEADS:
        module, features = pyramid(head, setting)
        with torch.no_grad():
            outputs.append(module(features))
    first, second = outputs
    relative = (first - second).abs().max() / first.abs().max()
    return {"largest difference between outputs, relative to the largest output": float(relative)}
