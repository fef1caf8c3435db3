"""Prepare a data set of the field from its official downloads: unpack archives safely (or use unpacked folders in
place), convert the labels that need it, check that images and labels pair up, and count the images of each split.

It can be interrupted and run again. Wrong input exits with code 2 and lists every problem.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import pspexp
from pspexp.config.overrides import quoted
from pspexp.data.preparation import counts
from pspexp.data.preparation.downloads import DOWNLOADS, unpack
from pspexp.data.preparation.label_maps import augment_voc, convert_cocostuff10k
from pspexp.data.preparation.prepare import prepare
from pspexp.utils.tool import run_tool


def main() -> int:
    return run_tool(parse_and_run, hint="run the command again to continue")


def parse_and_run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=DOWNLOADS, metavar="NAME", help=f"the data set: {', '.join(DOWNLOADS)}")
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="SOURCE", help="its archives (zip, tar, tgz), or unpacked folders"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("data"), help="where to unpack archives (default data)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files that have other contents")
    parser.add_argument("--workers", type=int, help="number of processes (default: one per core)")
    args = parser.parse_args()
    run(args.name, args.sources, args.output_dir, args.overwrite, args.workers)


def run(name: str, sources: list[Path], output_dir: Path, overwrite: bool, num_workers: int | None) -> None:
    show_progress = sys.stdout.isatty()
    root, *others = unpack(name, sources, output_dir, overwrite=overwrite, show_progress=show_progress)
    overrides = [f"dataset={name}", f"dataset.root={quoted(root)}"]
    config = pspexp.compose(overrides).dataset
    dataset: Any = pspexp.build(config)
    options: dict[str, Any] = {
        "overwrite": overwrite,
        "num_workers": num_workers,
        "show_progress": show_progress,
    }
    done = None
    if name == "voc2012_aug":
        done = augment_voc(root, others[0], dataset.decoder, **options)
    elif name == "cocostuff10k":
        done = convert_cocostuff10k(root, dataset.decoder, **options)
    elif name in ("voc2007", "voc2012"):
        (prepared,) = prepare(root, output_dir, **options)
        print(f"labels: {prepared.written} converted, {len(prepared.pixels) - prepared.written} kept")
    if done:
        print(f"labels: {done.written} converted, {done.kept} kept")
    numbers = counts.count_samples(dataset)
    print(*counts.describe(numbers, DOWNLOADS[name].images), sep="\n")
    if "masks" in config:
        for line in counts.labels_without_image(root, config.images, config.masks):
            print(line)
    print(f"{root}: ready; train with:")
    print(shlex.join(["python", "-m", "pspexp", *overrides]))


if __name__ == "__main__":
    sys.exit(main())
