"""Label maps in MATLAB files: those of SBD and of COCO-Stuff 10k."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pspexp.data.labels import Labels
from pspexp.errors import UserError
from pspexp.utils.text import one_line

_MATRIX, _COMPRESSED = 14, 15  # kinds of elements
_MAX_BYTES = 1 << 28  # of a decompressed element
_OLD_NAMES = 172  # version 1.0 of COCO-Stuff 10k lists the label "unlabeled", too; version 1.1 lists 182


def check_scipy() -> None:
    """Raise UserError unless scipy, which reads MATLAB files, is installed."""
    try:
        import scipy.io  # noqa: F401 - MLflow's scikit-learn brings it along; its smaller variant does not
    except ImportError as error:
        raise UserError("scipy: is not installed, but reads the .mat labels; run: pip install scipy") from error


def read_mat(path: Path) -> Labels:
    """The label map in a MATLAB file: ``GTcls.Segmentation`` (SBD) or ``S`` (COCO-Stuff 10k).

    Returns:
        uint8 ``[H, W]``, with values as in the file.

    Raises:
        UserError: The file cannot be read, or contains no such map.
    """
    from scipy.io import loadmat

    try:
        _check_kinds(path.read_bytes())
        content = loadmat(str(path), variable_names=["GTcls", "S", "names"])
    except Exception as error:  # damaged files raise errors of many classes
        raise UserError(f"{path}: not a readable MATLAB file ({one_line(error) or type(error).__name__})") from error
    if "S" in content and np.size(content.get("names")) == _OLD_NAMES:
        raise UserError(
            f"{path}: labels of COCO-Stuff 10k v1.0, in which the classes have other numbers; "
            "download cocostuff-10k-v1.1.zip"
        )
    labels = _label_map(content)
    if labels is None:
        raise UserError(f"{path}: contains no label map (GTcls.Segmentation or S); download the file again")
    if not np.array_equal(labels, labels.astype(np.uint8)):
        raise UserError(f"{path}: label values that are not whole numbers from 0 to 255; download the file again")
    return np.ascontiguousarray(labels, np.uint8)


def _check_kinds(data: bytes) -> None:
    """Raise ValueError if an element in a file of version 5 is of a kind that there is not: scipy would crash.

    After a header of 128 bytes, which ends with version and byte order, each element begins with its kind and length
    in bytes, or with both in four bytes if it is short (MATLAB's MAT-File Format, 1-9). Versions 4, with a zero among
    the first bytes, and 7.3, which is HDF5, have no such elements. What the header says is understood as scipy does.
    """
    order, major = ("<" if data[126:128] == b"IM" else ">"), data[125:126] if data[126:127] == b"I" else data[124:125]
    parts = [data[128:]] if major == b"\1" and 0 not in data[:4] else []
    while parts:
        part, place = parts.pop(), 0
        while place + 8 <= len(part):
            kind, length = struct.unpack_from(f"{order}II", part, place)
            is_short = kind >> 16
            kind &= 0xFFFF
            if kind > _COMPRESSED + 3:
                raise ValueError(f"an element of kind {kind}")
            content = part[place + 8 : place + 8 + length]
            if kind == _MATRIX and not is_short:
                parts.append(content)
            elif kind == _COMPRESSED and not is_short:
                parts.append(zlib.decompressobj().decompress(content, _MAX_BYTES))
            place += 8 if is_short else 8 + (length if kind == _COMPRESSED else -(-length // 8) * 8)


def _label_map(content: Any) -> Any:
    """The array in the file's contents, or None."""
    try:
        labels = content["GTcls"]["Segmentation"].flat[0] if "GTcls" in content else content["S"]
    except (KeyError, ValueError, IndexError):  # no such variable, no such field, or an empty one
        return None
    is_map = isinstance(labels, np.ndarray) and labels.ndim == 2 and labels.size and labels.dtype.kind in "uif"
    return labels if is_map else None
