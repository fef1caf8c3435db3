"""Convert VOC label images: colour or palette PNG to index PNG (8-bit grey), or back with --to-color.

Boundary pixels become 255. If any pixel has a colour that is no class, all such colours are listed with pixels
and files, nothing is written and the exit code is 2.
"""

import argparse
import signal
import sys
from pathlib import Path

from pspexp.data.preparation.convert import convert_folder
from pspexp.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input_dir", type=Path, required=True, help="folder of label PNGs")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the converted PNGs")
    parser.add_argument("--to-color", action="store_true", help="index PNG to palette PNG in VOC's colours")
    parser.add_argument("--num_classes", type=int, default=21, help="classes, background included (default 21)")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that hold other labels")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an orderly exit removes what is unfinished
    try:
        done = convert_folder(
            args.input_dir,
            args.output_dir,
            to_colour=args.to_color,
            num_classes=args.num_classes,
            overwrite=args.overwrite,
            num_workers=args.workers,
            show_progress=sys.stdout.isatty(),
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run it again", file=sys.stderr)
        return 130
    print(f"{args.output_dir}: {done.written} labels written, {done.kept} were there already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
