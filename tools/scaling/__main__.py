"""Print the tables of docs/scaling.md: a model of training on many cards, and the bookkeeping of one of N processes.

python -m tools.scaling           # a few minutes on an otherwise idle machine
"""

import argparse
import sys
from collections.abc import Sequence

from pspexp.utils.tables import markdown_table
from tools.scaling import bookkeeping
from tools.scaling.model import Cluster, Training, table

MIB = 2**20
# PSPNet-50 on ADE20K, as published (150 classes, 100 epochs, 16 images a step). The steps are those of an H100 with
# bf16 and channels-last (docs/benchmarks.md); gradients are float32.
ADE20K = Training(
    step_s={2: 0.0279, 4: 0.0357, 16: 0.0747},
    backward_share=0.6,
    gradient_bytes=49.1e6 * 4,
    last_bytes=25 * MIB,  # a bucket of DistributedDataParallel
    num_norms=62,
    num_images=20210,
    image_bytes=62e3,
    epochs=100,
)
CARDS = (1, 8, 64, 512)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=ADE20K.num_images, help="images of the data set")
    parser.add_argument("--steps", type=int, default=30, help="steps of each simulated training")
    options = parser.parse_args(arguments)
    print("\n".join(table(ADE20K, Cluster(), CARDS, sorted(ADE20K.step_s))), end="\n\n")
    rows, shared = [], True
    for size in CARDS:
        found = bookkeeping.training(size, options.images, options.steps)
        order_ms, complete = bookkeeping.sampling(size, options.images, 2)
        shared &= complete
        rows.append((f"{size}", f"{found['step ms']:.1f}", f"{found['total s']:.1f}", f"{order_ms:.1f}"))
    header = ("processes", "step ms", f"start, {options.steps} steps, validation: s", "order of an epoch: ms")
    print("\n".join(markdown_table(header, rows, right_aligned=range(4))), end="\n\n")
    print(f"each epoch is shared without overlap or gap: {'yes' if shared else 'NO'}")
    seconds, size_mib = bookkeeping.checkpoint(num_classes=150)
    print(f"checkpoint: {size_mib:.0f} MiB in {seconds:.2f} s")
    for name, num_bytes in (("gradients", int(ADE20K.gradient_bytes)), ("25 MiB", 25 * MIB), ("4 KiB", 4096)):
        print(f"all-reduce of {name}, two processes, gloo: {1e3 * bookkeeping.exchange_s(num_bytes):.2f} ms")
    return int(not shared)


if __name__ == "__main__":
    sys.exit(main())
