"""What is in a tar or zip: its members in one form, before anything is unpacked."""

import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from pspexp.errors import UserError
from pspexp.utils.files import max_unpacked, unpacks_to
from pspexp.utils.text import first_line

ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz")  # lower-case endings
_ZIP_MAGIC = (b"PK\3\4", b"PK\5\6")
_ENCRYPTED = 1  # bit of a zip member's flags
_MAX_LINK = 4096  # bytes of a link's target
_MAX_READ = 1 << 26  # bytes that are read at once, such as names in headers; contents are read in smaller parts


class Member(NamedTuple):
    """A file, folder or link in an archive.

    Attributes:
        name: The path as written in the archive.
        kind: What it is; ``special`` is a device or pipe.
        size: Number of bytes of the content.
        link: The path that a link points to: for ``symlink`` relative to its own folder, for ``hardlink`` to the top.
        refused: Why Python's own filter refuses the member; empty in versions without one.
        open: Opens the content of a file.
    """

    name: str
    kind: Literal["file", "folder", "symlink", "hardlink", "special"]
    size: int
    link: str
    refused: str
    open: Callable[[], IO[bytes]]


@contextmanager
def open_archive(path: Path, output_dir: Path) -> Iterator[list[Member]]:
    """The members of a tar or zip, whose contents can be read within the block.

    Args:
        path: The archive.
        output_dir: Folder that it will be unpacked into.

    Raises:
        UserError: A zip is encrypted, or a tar decompresses to more than `max_unpacked`. A damaged archive raises
            errors of many classes, here or while a content is read.
    """
    with path.open("rb") as file:
        is_zip = file.read(4) in _ZIP_MAGIC  # zipfile.is_zipfile is true for a tar that ends with a zip
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            if any(info.flag_bits & _ENCRYPTED for info in archive.infolist()):
                raise UserError(f"{path}: is encrypted; unpack it with another program, and give the folder")
            yield [_zip_member(archive, info) for info in archive.infolist()]
    else:
        with _Tar.open(path) as tar:
            yield [_tar_member(tar, info, output_dir) for info in tar.getmembers()]


class _Tar(tarfile.TarFile):
    """A tar whose members can be listed, for which all of it is decompressed, within bounds of time and memory."""

    def __init__(self, name: Any, mode: Any, fileobj: Any = None, **options: Any) -> None:
        bounded: Any = fileobj and _Bounded(fileobj, Path(name))  # without compression there is no object
        super().__init__(name, mode, bounded, **options)

    def next(self) -> tarfile.TarInfo | None:
        info = super().next()
        if info is not None and info.size < 0:  # the next member would be an earlier one, for ever
            raise tarfile.ReadError(f"a file of {info.size:,} bytes")
        return info


class _Bounded:
    """An archive's decompressed content that cannot be read beyond `max_unpacked`, nor much of it at once."""

    def __init__(self, file: IO[bytes], archive: Path) -> None:
        self._file, self._archive, self._max_size = file, archive, max_unpacked(archive)
        self.tell, self.close = file.tell, file.close

    def seek(self, offset: int) -> int:
        self._check(offset)
        return self._file.seek(offset)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_READ:  # a negative one stands for everything
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        self._check(self._file.tell() + size)
        return self._file.read(size)

    def _check(self, end: int) -> None:
        if end > self._max_size:
            raise UserError(f"{self._archive}: {too_large(f'more than {self._max_size:,}')}")


def too_large(size: str) -> str:
    """What is wrong with an archive that unpacks to ``size`` bytes."""
    return f"{unpacks_to(size)}: this is not an archive of images; download it again"


def _tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo, output_dir: Path) -> Member:
    kind: Literal["file", "folder", "symlink", "hardlink", "special"]
    if info.isreg():
        kind = "file"
    elif info.isdir():
        kind = "folder"
    elif info.issym() or info.islnk():
        kind = "symlink" if info.issym() else "hardlink"
    else:
        kind = "special"
    refused = "null byte" if "\0" in info.name + info.linkname else _refusal(info, output_dir)
    return Member(info.name, kind, info.size, info.linkname, refused, partial(_open_tar, tar, info))


def _open_tar(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(info)
    assert content is not None  # it is a regular file
    return content


def _refusal(info: tarfile.TarInfo, output_dir: Path) -> str:
    """Why Python's own filter refuses a member, in versions that have one (3.12, and late 3.10 and 3.11)."""
    if not hasattr(tarfile, "data_filter"):
        return ""
    try:
        tarfile.data_filter(info, str(output_dir))
    except tarfile.FilterError as error:
        return str(error)
    return ""


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    # The name as it is stored: Python cuts it at a null byte, and replaces the separators of Windows there.
    name, mode, link = info.orig_filename, info.external_attr >> 16, ""
    kind: Literal["file", "folder", "symlink", "special"] = "folder" if info.filename.endswith("/") else "file"
    if stat.S_ISLNK(mode):
        kind, link = "symlink", _link_target(archive, info)
    elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):  # 0: not written on Unix
        kind = "special"
    return Member(
        name, kind, info.file_size, link, "null byte" if "\0" in name else "", partial(_open_zip, archive, info)
    )


def _link_target(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    with _open_zip(archive, info) as content:
        return content.read(_MAX_LINK).decode(errors="surrogateescape")


def _open_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return archive.open(info)
    except NotImplementedError as error:
        raise UserError(
            f"{archive.filename}: {info.filename}: Python cannot decompress it ({first_line(error)}); "
            "unpack the archive with another program, and give the folder"
        ) from error
