"""Finding and reading annotation files."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TypeVar

from PIL import Image
from pydantic import BaseModel, ValidationError
from rich.progress import track

from pspexp.data.images import BROKEN_IMAGE, any_size, orientation
from pspexp.data.preparation.annotations.items import Found, Options
from pspexp.data.preparation.annotations.shapes import Size
from pspexp.data.preparation.convert import in_parallel
from pspexp.errors import UserError
from pspexp.utils.arguments import describe
from pspexp.utils.text import first_line, shorten

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
_SHOWN = 20


def files_below(folder: Path, ending: str) -> list[Path]:
    """The files in a folder, at any depth, with this ending in any case, except hidden ones.

    Raises:
        UserError: There is no such folder, or it contains no such file.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that contains the *{ending} files")
    files = [
        path
        for path in folder.rglob("*")
        if path.name.lower().endswith(ending) and not any(part[0] == "." for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise UserError(f"{folder}: contains no *{ending} files; give the folder that contains them")
    return sorted(files)


def relative_name(path: Path, folder: Path, ending: str) -> str:
    """The path of a file in a folder, without its ending."""
    return path.relative_to(folder).as_posix()[: -len(ending)]


def image_name(file_name: str) -> str:
    """The name of an image file in an annotation, without its suffix."""
    path = PurePosixPath(file_name.replace("\\", "/"))
    return str(path.with_suffix("")) if path.suffix.lower() in image_suffixes() else str(path)


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of all image formats that Pillow knows."""
    return frozenset(Image.registered_extensions())


def image_size(path: Path) -> Size:
    """Width and height of an image, with its EXIF orientation applied.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with any_size():
            image = Image.open(path)
        with image:
            return image.size if orientation(image) < 5 else (image.height, image.width)
    except BROKEN_IMAGE as error:
        raise UserError(f"{path}: its size cannot be read ({first_line(error)}); replace it") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file; raises UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from error


def read_json(path: Path, model: type[M], what: str) -> M:
    """Read a JSON file.

    Args:
        path: The file.
        model: Its structure.
        what: What it is, for messages.

    Raises:
        UserError: Lists where it does not have that structure.
    """
    try:
        return model.model_validate_json(read_bytes(path).removeprefix(b"\xef\xbb\xbf"))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        if problems[0]["type"] == "json_invalid":
            raise UserError(f"{path}: not valid JSON ({problems[0]['ctx']['error']}); export it again") from error
        shown = [(problem, ".".join(map(str, problem["loc"]))) for problem in problems[:_SHOWN]]
        lines = [
            f"{path}: not {what}: {shorten(describe(problem, key) if key else 'no object', 300)}"
            for problem, key in shown
        ]
        more = [f"{path}: and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise UserError(*lines, *more) from error


def read_all(read: Callable[[T], Found], files: Sequence[T], options: Options) -> Found:
    """The content of all files, with the names of the classes sorted."""
    total, names = Found(), set()
    progress = in_parallel(read, files, options.num_workers)
    for found in track(
        progress, "Reading annotations", total=len(files), disable=not options.show_progress, transient=True
    ):
        total.items += found.items
        total.problems += found.problems
        total.ignored += found.ignored
        names.update(found.names)
    total.names = sorted(names)
    return total
