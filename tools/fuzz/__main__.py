"""Fuzz a reader of files from elsewhere, guided by coverage: it must read any file, or refuse it with a UserError.

    pip install atheris
    python -m tools.fuzz checkpoint --seconds 450

Each finding is printed once and kept in the folder, as the smallest file that was found for it. A file that hangs or
fills the memory ends the program and is kept, too. The corpus also stays there: the same command continues with it.
"""

import argparse
import logging
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tools.fuzz import changes, readers

# With the modules of Python and Pillow that take files apart in Python.
INSTRUMENTED = ["pspexp", "PIL", "tarfile", "zipfile"]
MAX_BYTES = 1 << 16  # of a file
SLOW_S, HANGS_S, MEMORY_MIB = 3, 60, 2500


class Target(NamedTuple):
    """What reads the bytes of a file in a folder, what it begins with, and what changes them."""

    read: Callable[[Path, bytes], None]
    seeds: Callable[[], list[bytes]]
    change: Callable[[bytes, random.Random, changes.Mutate], bytes]


TARGETS = {
    "checkpoint": Target(readers.read_checkpoint, readers.checkpoints, changes.change_checkpoint),
    "archive": Target(readers.read_archive, readers.archives, changes.change_archive),
    "split": Target(readers.read_split, readers.splits, changes.change_split),
    "label": Target(readers.read_labels, readers.labels, changes.change_label),
}


class Findings:
    """Calls a reader, and keeps a file for each place where that goes wrong."""

    def __init__(self, folder: Path, read: Callable[[Path, bytes], None], work: Path) -> None:
        self.folder, self.read, self.work = folder, read, work

    def __call__(self, data: bytes) -> None:
        start = time.process_time()
        try:
            self.read(self.work, data)
        except Exception as error:
            self.keep(data, error)
        if (seconds := time.process_time() - start) > SLOW_S:
            self.keep(data, TimeoutError(f"takes {seconds:.0f} s"))

    def keep(self, data: bytes, error: Exception) -> None:
        """Keep the file, unless a smaller one is there for the same line of the package."""
        frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
        ours = [frame for frame in frames if "/pspexp/" in frame.filename] or frames
        place = f"{Path(ours[-1].filename).stem}-{ours[-1].lineno}" if ours else ""
        file = self.folder / "-".join(filter(None, ("finding", type(error).__name__, place)))
        if not file.exists():
            print(f"FOUND {file}: {type(error).__name__}: {error}", flush=True)
        if not file.exists() or len(data) < file.stat().st_size:
            file.write_bytes(data)
            file.with_suffix(".txt").write_text("".join(traceback.format_exception(error)), errors="backslashreplace")


def main() -> int:
    """Fuzz one reader; the exit code is libFuzzer's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS, help="the reader")
    parser.add_argument("--seconds", type=int, default=450, help="how long (default 450)")
    parser.add_argument("--folder", type=Path, default=Path("outputs/fuzz"), help="for findings and the corpus")
    options = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("atheris: is not installed; pip install atheris", file=sys.stderr)
        return 2
    folder = options.folder.absolute() / options.target
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    logging.disable()
    with TemporaryDirectory() as work:
        fuzz(TARGETS[options.target], folder, Path(work), options.seconds)
    return 0


def fuzz(target: Target, folder: Path, work: Path, seconds: int) -> None:
    """Call libFuzzer, which ends the process."""
    import atheris

    findings = Findings(folder, target.read, work)
    for name in INSTRUMENTED:
        sys.modules.pop(name, None)  # to be imported again
    with atheris.instrument_imports(include=INSTRUMENTED):
        for number, seed in enumerate(target.seeds()):
            (folder / "corpus" / f"seed-{number:02d}").write_bytes(seed)
            findings(seed)  # imports all that it needs
    if unpickler := sys.modules.get("torch._weights_only_unpickler"):
        atheris.instrument_func(unpickler.Unpickler.load)

    def mutate(part: bytes) -> bytes:
        return bytes(atheris.Mutate(part, len(part) + 64))

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        with suppress(Exception):  # a file that is no container any more
            if rng.random() < 0.7 and len(changed := target.change(data, rng, mutate)) <= max_size:
                return changed
        return bytes(atheris.Mutate(data, max_size))

    limits = (f"-max_total_time={seconds}", f"-timeout={HANGS_S}", f"-rss_limit_mb={MEMORY_MIB}")
    others = (f"-max_len={MAX_BYTES}", f"-artifact_prefix={folder}/", "-print_final_stats=1", "-len_control=0")
    atheris.Setup(["fuzz", *limits, *others, str(folder / "corpus")], findings, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
