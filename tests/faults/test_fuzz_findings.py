"""Files that fuzzing has found (tools/fuzz): each was neither read nor refused with a UserError in one line."""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pspexp.errors import UserError
from pspexp.models.checkpoint_file import load_checkpoint_file


def with_pickle(pickled: bytes) -> bytes:
    """A checkpoint with this pickle in it."""
    torch.save({}, original := io.BytesIO())
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(file := io.BytesIO(), "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, pickled if info.filename.endswith("data.pkl") else old.read(info))
    return file.getvalue()


def text(value: bytes) -> bytes:
    """The opcode of a text in a pickle."""
    return b"X" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def test_numbers_in_a_checkpoint_are_no_addresses(tmp_path: Path) -> None:
    """NumPy reads any address as that of a Python object if a pickle gives a type of numbers a part of objects."""
    objects = b"cnumpy\ndtype\n(" + text(b"O8") + b"\x89\x88tR"
    state = b"(" + number(3) + text(b"<") + b"(" + objects + number(1) + b"\x85tNN" + number(8) * 2 + number(0) + b"t"
    kind = b"cnumpy\ndtype\n(" + text(b"f8") + b"\x89\x88tR" + state + b"b"
    address = struct.pack("P", id(None)).decode("latin-1").encode()
    data = b"c_codecs\nencode\n(" + text(address) + text(b"latin1") + b"tR"
    pickled = b"\x80\x02}" + text(b"best") + b"cnumpy.core.multiarray\nscalar\n(" + kind + data + b"tRs."
    (tmp_path / "a.pt").write_bytes(with_pickle(pickled))
    found = load_checkpoint_file(tmp_path / "a.pt")["best"]
    assert type(found).__name__ == "float64"


@pytest.mark.parametrize("kind", [b"O8", b"V9999999", b"f4,O", b"datetime64[s]"])
def test_only_numbers_of_numpy_are_read(tmp_path: Path, kind: bytes) -> None:
    data = b"c_codecs\nencode\n(" + text(b"12345678") + text(b"latin1") + b"tR"
    made = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n" + text(kind) + b"\x85R" + data + b"tR"
    (tmp_path / "a.pt").write_bytes(with_pickle(b"\x80\x02}" + text(b"best") + made + b"s."))
    with pytest.raises(UserError, match="cannot be read safely|can be read safely"):
        load_checkpoint_file(tmp_path / "a.pt")
