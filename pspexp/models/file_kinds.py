"""Says what a file is that cannot be read as a checkpoint, and what to do about it."""

import re
import zipfile
from pathlib import Path

from pspexp.utils.text import first_line, first_names

# What the first bytes of a file say about it.
KINDS = (
    (b"version https://git-lfs", "a Git LFS pointer", "run git lfs pull to fetch the file itself"),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"\x89HDF", "an HDF5 file", "convert it to a state dict of this network in PyTorch"),
)
WEB_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")
GLOBAL = re.compile(r"GLOBAL ([\w.]+)|[Uu]nsupported class ([\w.]+)")
SAVE = "torch.save(network.state_dict(), 'weights.pth')"


def is_safetensors(file: Path) -> bool:
    """Whether a file begins as safetensors files do, whatever its name: with a length and a JSON object."""
    with file.open("rb") as stream:
        head = stream.read(9)
    return head[8:] == b"{" and 0 < int.from_bytes(head[:8], "little") < 2**32


def describe_unreadable(file: Path, error: Exception) -> str:
    """What is wrong with a file that cannot be read, and how to get one that it reads.

    Args:
        file: The file.
        error: The error that reading it raised.
    """
    with file.open("rb") as stream:
        head = stream.read(512)
    if not head:
        return "is an empty file; copy or download it again"
    for start, kind, fix in KINDS:
        if head.startswith(start):
            return f"is {kind}, not a checkpoint; {fix}"
    if head.lstrip().lower().startswith(WEB_PAGES):
        return "is a web page, not a checkpoint; download the file that the page links to, logged in if necessary"
    if is_safetensors(file):
        return f"is a damaged safetensors file ({first_line(error)}); copy or download it again"
    try:
        if zipfile.is_zipfile(file):
            return _describe_zip(file, error)
    except Exception as damage:  # of many classes: zip, zlib, unicode, ...
        return f"is damaged ({first_line(damage)}); copy or download it again"
    if head.startswith(b"PK"):
        return "is incomplete; copy or download it again"
    return _describe_pickle(head, error)


def _describe_zip(file: Path, error: Exception) -> str:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            return f"is a TorchScript network, not a checkpoint; save its weights: {SAVE}"
        pickled = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if not pickled:
            return f"is a zip archive ({first_names(names)}), not a checkpoint; unpack it and give the checkpoint in it"
        return _describe_pickle(archive.read(pickled[0]), error)


def _describe_pickle(content: bytes, error: Exception) -> str:
    reason = first_line(error).split(". ")[0]  # torch goes on to advise reading it unsafely
    if match := GLOBAL.search(str(error)):
        name = match[1] or match[2]
        what = "a whole pickled network" if b"torch.nn.modules" in content else "a pickled object"
        return f"holds {what} ({name}), not only weights, and cannot be read safely; save the weights: {SAVE}"
    return f"not a checkpoint that can be read safely ({reason})"
