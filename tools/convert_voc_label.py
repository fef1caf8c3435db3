"""Convert VOC label images: colour or palette images to index PNGs (8-bit grey), or back with --to-color.

Boundary pixels become 255. If any pixel has a colour without a class, all such colours are listed with their number of
pixels and files, nothing is written, and the exit code is 2.
"""

import argparse
import sys
from pathlib import Path

from pspexp.data.preparation.convert import convert_folder
from pspexp.utils.tool import run_tool


def main() -> int:
    return run_tool(run)


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input_dir", type=Path, required=True, help="folder of labels: PNG, TIFF, BMP or GIF")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the converted PNGs")
    parser.add_argument("--to-color", action="store_true", help="convert index PNGs to palette PNGs with VOC's colours")
    parser.add_argument("--num_classes", type=int, default=21, help="number of classes with background (default 21)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files that contain other labels")
    parser.add_argument("--workers", type=int, help="number of processes (default: one per core)")
    args = parser.parse_args()
    done = convert_folder(
        args.input_dir,
        args.output_dir,
        to_colour=args.to_color,
        num_classes=args.num_classes,
        overwrite=args.overwrite,
        num_workers=args.workers,
        show_progress=sys.stdout.isatty(),
    )
    print(f"{args.output_dir}: {done.written} labels written, {done.kept} already existed")


if __name__ == "__main__":
    sys.exit(main())
