"""Labels that come in another form, or in several folders, as the PNGs that a data set reads."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from rich.progress import track

from pspexp.data.file_split import read_label, undeclared_values
from pspexp.data.label_decoder import LabelDecoder
from pspexp.data.labels import VOC_COLOURS
from pspexp.data.preparation.convert import compare, in_parallel, listed_files
from pspexp.data.preparation.downloads import SBD_LABELS
from pspexp.data.preparation.mat import check_scipy, read_mat
from pspexp.data.splits import read_lines, text_lines
from pspexp.data.voc import IMAGES, LABELS, SPLITS
from pspexp.errors import UserError
from pspexp.utils.files import atomic_write, write_text_atomic
from pspexp.utils.text import count, first_names

AUG_LABELS, AUG_SPLIT = "SegmentationClassAug", "trainaug"
MAT_LABELS, MASKS = "annotations", "masks"
_SHOWN = 20


class Converted(NamedTuple):
    """Numbers of label files that were written, and that existed already with the same labels."""

    written: int
    kept: int


class _Result(NamedTuple):
    path: Path
    state: str  # "new", or "same" as or "different" from the file in the output folder
    error: str  # why it could not be converted


def augment_voc(
    voc: Path,
    sbd: Path,
    decoder: LabelDecoder,
    *,
    overwrite: bool = False,
    num_workers: int | None = None,
    show_progress: bool = False,
) -> Converted:
    """Make ``SegmentationClassAug`` and ``trainaug.txt`` from the labels of VOC 2012 and those of SBD.

    Names in VOC's ``train.txt`` and ``val.txt`` get VOC's own labels, in which boundaries are void. The list contains
    the names of SBD and of VOC's ``train.txt``, without those of ``val.txt``.

    Args:
        voc: The folder that contains ``JPEGImages``.
        sbd: The folder that contains the labels of SBD, in one of `SBD_LABELS`.
        decoder: What the values mean; others are refused.
        overwrite: Whether to replace existing files with other contents.
        num_workers: Number of processes; None means one per core.
        show_progress: Whether to show a progress bar.

    Raises:
        UserError: Lists missing files, unreadable labels, other values, and existing files with other contents.
    """
    folder = next(sbd / name for name in SBD_LABELS if (sbd / name).is_dir())
    output_dir, list_file = voc / AUG_LABELS, voc / SPLITS / f"{AUG_SPLIT}.txt"
    wanted, sources = _augmented(voc, sbd, folder)
    before = _names(list_file)
    if before and set(before) != set(wanted) and not overwrite:
        raise UserError(f"{list_file}: differs from the names in VOC's and SBD's lists; remove it or use --overwrite")
    done = _convert_all(
        {} if folder.resolve() == output_dir.resolve() else sources,  # labels made elsewhere may only lack the list
        output_dir,
        decoder,
        to_colour=True,
        overwrite=overwrite,
        num_workers=num_workers,
        show_progress=show_progress,
    )
    if set(before) != set(wanted):  # last: if the list is there, so are all labels
        write_text_atomic(list_file, "".join(f"{name}\n" for name in wanted))
    return done


def _augmented(voc: Path, sbd: Path, folder: Path) -> tuple[list[str], dict[str, Path]]:
    """The names of ``trainaug.txt``, and the label of each of them and of ``val.txt``; all must exist."""
    train, val = (read_lines(voc / SPLITS / f"{split}.txt", "split", split) for split in ("train", "val"))
    theirs, ours = _by_name(folder, ".mat", ".png"), _by_name(voc / LABELS, ".png")
    images = _by_name(voc / IMAGES, ".jpg")
    listed = [*_names(sbd / "train.txt"), *_names(sbd / "val.txt")] or list(theirs)
    wanted, own = sorted({*train, *listed} - {*val}), {*train, *val}
    problems = [
        *_missing("image", [*wanted, *val], images, voc / IMAGES),
        *_missing("label", sorted(own), ours, voc / LABELS),
        *_missing("label", sorted({*listed} - own), theirs, folder),
    ]
    if problems:
        raise UserError(*problems)
    return wanted, {name: ours[name] if name in own else theirs[name] for name in [*wanted, *val]}


def convert_cocostuff10k(
    root: Path,
    decoder: LabelDecoder,
    *,
    overwrite: bool = False,
    num_workers: int | None = None,
    show_progress: bool = False,
) -> Converted:
    """Make ``masks``, 8-bit grey PNGs with the values of COCO-Stuff 10k, from ``annotations``.

    Args:
        root: The data set's folder.
        decoder: What the values mean; others are refused.
        overwrite: Whether to replace existing files with other contents.
        num_workers: Number of processes; None means one per core.
        show_progress: Whether to show a progress bar.

    Raises:
        UserError: Lists unreadable labels, other values, and existing files with other contents.
    """
    sources = _by_name(root / MAT_LABELS, ".mat")
    if not sources:
        raise UserError(f"{root / MAT_LABELS}: contains no .mat files; unpack cocostuff-10k-v1.1.zip there")
    return _convert_all(
        sources,
        root / MASKS,
        decoder,
        to_colour=False,
        overwrite=overwrite,
        num_workers=num_workers,
        show_progress=show_progress,
    )


def _convert_all(
    sources: Mapping[str, Path],
    output_dir: Path,
    decoder: LabelDecoder,
    *,
    to_colour: bool,
    overwrite: bool,
    num_workers: int | None,
    show_progress: bool,
) -> Converted:
    """Write ``<name>.png`` for each source. What an interrupted call has written is kept by the next one."""
    if any(path.suffix.lower() == ".mat" for path in sources.values()):
        check_scipy()
    files = [path for _, path in sorted(sources.items())]
    work = partial(_convert, output_dir=output_dir, decoder=decoder, to_colour=to_colour, overwrite=overwrite)
    try:
        output_dir.mkdir(exist_ok=True)
        pool = in_parallel(work, files, num_workers)
        results = list(track(pool, "Converting labels", total=len(files), disable=not show_progress, transient=True))
    except OSError as error:
        raise UserError(f"{output_dir}: cannot be written ({error}); choose another disk") from error
    errors = [result.error for result in results if result.error]
    problems = errors[:_SHOWN] + ([f"and {len(errors) - _SHOWN} more such files"] if len(errors) > _SHOWN else [])
    different = [f"{result.path.stem}.png" for result in results if result.state == "different"]
    if different and not overwrite:
        problems.append(
            f"{output_dir}: contains other labels for {listed_files(different)}; remove them or use --overwrite"
        )
    if problems:
        raise UserError(*problems)
    kept = sum(result.state == "same" for result in results)
    return Converted(len(results) - kept, kept)


def _convert(path: Path, *, output_dir: Path, decoder: LabelDecoder, to_colour: bool, overwrite: bool) -> _Result:
    try:
        if path.suffix.lower() == ".mat":
            labels = read_mat(path)
            decoded = decoder.decode(Image.fromarray(labels))
        else:
            decoded = read_label(path, decoder)
            labels = decoded.ids
        if decoded.has_undeclared:
            raise UserError(undeclared_values(path, decoded, decoder))
    except UserError as error:
        return _Result(path, "new", str(error))
    image, target = Image.fromarray(labels), output_dir / f"{path.stem}.png"
    if to_colour:
        image.putpalette(VOC_COLOURS.tobytes())
    state = compare(image, target) if target.exists() else "new"
    if state == "new" or (state == "different" and overwrite):
        with atomic_write(target) as file:
            image.save(file, "PNG")
    return _Result(path, state, "")


def _names(path: Path) -> list[str]:
    """The names in a list, or none if there is no such file; raises UserError if it cannot be read."""
    if not path.is_file():
        return []
    try:
        return " ".join(text_lines(path)).split()
    except UserError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _by_name(folder: Path, *suffixes: str) -> dict[str, Path]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != ".")
    return {path.stem: path for path in reversed(files)}  # of a.mat and a.png, a.mat


def _missing(what: str, names: Iterable[str], files: Mapping[str, Path], folder: Path) -> list[str]:
    missing = [name for name in names if name not in files]
    return [f"{folder}: {count(len(missing), what)} missing: {first_names(missing)}"] if missing else []
