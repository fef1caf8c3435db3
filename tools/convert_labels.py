"""Convert annotations to label PNGs: pixel = index of the class, 255 = ignored.

labelme: folder of JSON files. coco: instances JSON file (needs pip install 'pspexp[labels]'). cvat: XML file or folder
of "CVAT for images 1.1", or folder of "Segmentation mask 1.1". yolo: folder of segmentation .txt files, with --images.
cityscapes: folder of *_gtFine_polygons.json; labelIds, or trainIds with --train_ids. palette: folder of index PNGs; the
results are palette PNGs in VOC's colours.

If anything is wrong, all problems are listed, nothing is written, and the exit code is 2.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pspexp.data.preparation.annotations.classes import read_names
from pspexp.data.preparation.annotations.convert import FORMATS, Converted, convert_annotations
from pspexp.data.preparation.annotations.items import OVERLAPS, Options
from pspexp.utils.text import count
from pspexp.utils.tool import run_tool

_SHOWN_WARNINGS = 20


def main() -> int:
    return run_tool(run)


def run() -> None:
    args = _parser().parse_args()
    options = Options(
        class_names=None if args.class_names is None else read_names(args.class_names),
        background=not args.no_background,
        overlap=args.overlap,
        palette=args.palette,
        images=args.images,
        train_ids=args.train_ids,
        overwrite=args.overwrite,
        num_workers=args.workers,
        show_progress=sys.stdout.isatty(),
    )
    done = convert_annotations(args.format, args.source, args.output_dir, options)
    show(done, args.output_dir)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=FORMATS, help="format of the annotations")
    parser.add_argument("source", type=Path, help="file or folder of the annotations")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the PNGs and classes.txt")
    parser.add_argument(
        "--class_names",
        help="order of the classes: a,b,c or a file with one per line (default: background, then the names found, "
        "sorted; yolo and segmentation masks: in their own order)",
    )
    parser.add_argument(
        "--no-background",
        action="store_true",
        help="index 0 is the first class, and pixels without a label become 255 (default: background has index 0)",
    )
    parser.add_argument(
        "--overlap",
        choices=OVERLAPS,
        default="file",
        help="what is on top: the later shape (file, default; cvat: first the higher z_order), the smaller one (area), "
        "the higher index (class)",
    )
    parser.add_argument("--palette", action="store_true", help="write palette PNGs in VOC's colours")
    parser.add_argument("--images", type=Path, help="yolo: folder of the images, for their sizes")
    parser.add_argument("--train_ids", action="store_true", help="cityscapes: trainIds instead of labelIds")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files that have other contents")
    parser.add_argument("--workers", type=int, help="number of processes (default: one per core)")
    return parser


def show(done: Converted, output_dir: Path) -> None:
    for warning in done.warnings[:_SHOWN_WARNINGS]:
        print(f"warning: {warning}", file=sys.stderr)
    if len(done.warnings) > _SHOWN_WARNINGS:
        print(f"warning: and {len(done.warnings) - _SHOWN_WARNINGS} more images", file=sys.stderr)
    table = Table(title=f"{output_dir}: images and pixels of each class")
    for column in ("index", "class", "images", "pixels"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for row in done.rows():
        table.add_row(*map(Text, row))
    console = Console()
    Console(width=None if console.is_terminal else 100).print(table)  # without a terminal, rows are not wrapped
    print(
        f"{output_dir}: {count(done.written, 'label')} written, {done.kept} already existed, "
        f"{count(done.ignored, 'shape')} ignored"
    )


if __name__ == "__main__":
    sys.exit(main())
