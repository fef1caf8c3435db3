"""Checks a MATLAB file before scipy reads it: damaged files of version 5 crash scipy, or fill the memory."""

import math
import struct
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from pspexp.utils.files import max_unpacked, unpacks_to

_MATRIX, _COMPRESSED = 14, 15  # kinds of elements
_DATA = (*range(1, 8), 9, 12, 13, 16, 17, 18)  # those of numbers and text
_CELL, _STRUCT, _OBJECT, _CHAR, _SPARSE, _FUNCTION, _OPAQUE = 1, 2, 3, 4, 5, 16, 17  # classes of matrices
_NUMERIC = range(6, 16)
_IS_COMPLEX = 1 << 11  # among a matrix's flags
_MAX_DIMENSIONS = 32
_MAX_DEPTH, _MAX_ELEMENTS = 50, 20_000  # label maps come with a few hundred elements, at most four deep


def check_elements(path: Path, variables: Collection[bytes]) -> None:
    """Raise ValueError if scipy would crash or run out of memory or time in reading these variables.

    After a header of 128 bytes, which ends with version and byte order, each element begins with its kind and length
    in bytes, or with both in four bytes if it is short (MATLAB's MAT-File Format, 1-9). Versions 4, with a zero among
    the first bytes, and 7.3, which is HDF5, have no such elements. What the header says is understood as scipy does.
    """
    data = path.read_bytes()
    order, major = ("<" if data[126:128] == b"IM" else ">"), data[125:126] if data[126:127] == b"I" else data[124:125]
    if major != b"\1" or 0 in data[:4]:
        return
    check, place = _Check(memoryview(data), order, variables, max_unpacked(path)), 128
    while place < len(data):
        place = check.variable(place)


class _Header(NamedTuple):
    kind: int
    is_complex: bool
    size: int
    name: bytes


class _Check:
    """Goes through a file's elements in scipy's order, which depends on what is in them, not on matrices' lengths."""

    def __init__(self, file: memoryview, order: str, variables: Collection[bytes], max_bytes: int) -> None:
        self._file, self._order, self._variables, self._max_bytes = file, order, variables, max_bytes
        self._data, self._place = file, 0
        self._num_elements, self._num_bytes = 0, 0

    def variable(self, start: int) -> int:
        """Check the variable at a place in the file; returns the place of the next one."""
        self._data, self._place = self._file, start
        kind, length = self._tag()
        end = start + 8 + length
        if kind == _COMPRESSED:
            self._data, self._place = self._decompress(self._file[start + 8 : end]), 0
            kind, _ = self._tag()
        if kind != _MATRIX:
            raise ValueError(f"an element of kind {kind} instead of a matrix")
        header = self._header()
        if header.name in self._variables:  # scipy skips the others
            self._content(header, 0)
        return end

    def _decompress(self, content: memoryview) -> memoryview:
        data = zlib.decompressobj().decompress(content, self._max_bytes - self._num_bytes + 1)
        self._num_bytes += len(data)
        if self._num_bytes > self._max_bytes:
            raise ValueError(unpacks_to(f"more than {self._max_bytes:,}"))
        return memoryview(data)

    def _matrix(self, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise ValueError(f"more than {_MAX_DEPTH} matrices within each other")
        kind, length = self._tag()
        if kind != _MATRIX:
            raise ValueError(f"an element of kind {kind} instead of a matrix")
        if length:  # else it is empty
            self._content(self._header(), depth)

    def _header(self) -> _Header:
        self._take(8)  # scipy ignores what it says
        flags, _ = struct.unpack(f"{self._order}II", self._take(8))
        sizes = (0, 0) if flags & 0xFF == _OPAQUE else self._integers()
        if len(sizes) < 2 or min(sizes) < 0:
            raise ValueError("a matrix with less than two dimensions, or a negative one")
        return _Header(flags & 0xFF, bool(flags & _IS_COMPLEX), math.prod(sizes), bytes(self._element()))

    def _content(self, header: _Header, depth: int) -> None:
        """Check what follows a matrix's header."""
        if header.kind in _NUMERIC or header.kind == _SPARSE:
            for _ in range((3 if header.kind == _SPARSE else 1) + header.is_complex):
                self._element()
        elif header.kind == _CHAR:
            if not self._element():  # scipy makes spaces
                self._count(header.size)
        elif header.kind in (_CELL, _STRUCT, _OBJECT, _FUNCTION):
            for _ in range(self._num_inner(header)):
                self._matrix(depth + 1)
        else:
            raise ValueError(f"a matrix of unknown class {header.kind}")

    def _num_inner(self, header: _Header) -> int:
        """Number of matrices in a cell array, struct, object or function."""
        if header.kind == _FUNCTION:
            return 1
        self._count(header.size)
        if header.kind == _CELL:
            return header.size
        if header.kind == _OBJECT:
            self._element()  # its class
        lengths = self._integers()
        if len(lengths) != 1 or lengths[0] < 1:
            raise ValueError("a struct whose names have no length")
        num_fields = len(self._element()) // lengths[0]
        self._count(num_fields)
        return header.size * num_fields

    def _integers(self) -> tuple[int, ...]:
        content = self._element()
        if len(content) > 4 * _MAX_DIMENSIONS:
            raise ValueError(f"a matrix of more than {_MAX_DIMENSIONS} dimensions")
        return struct.unpack(f"{self._order}{len(content) // 4}i", content[: len(content) // 4 * 4])

    def _element(self) -> memoryview:
        """The content of the next element, of numbers or text."""
        kind, length = self._tag()
        if num_short := kind >> 16:
            kind, content = kind & 0xFFFF, self._data[self._place - 4 :][: min(num_short, 4)]
        else:
            content = self._take(length)
            self._place += -length % 8
        if kind not in _DATA:
            raise ValueError(f"an element of unknown kind {kind}")
        return content

    def _tag(self) -> tuple[int, int]:
        """Kind and length of the next element."""
        self._count(1)
        kind, length = struct.unpack(f"{self._order}II", self._take(8))
        return kind, length

    def _take(self, size: int) -> memoryview:
        start, self._place = self._place, self._place + size
        if self._place > len(self._data):
            raise ValueError("an element beyond the end")
        return self._data[start : self._place]

    def _count(self, number: int) -> None:
        """Note that scipy will make this many objects."""
        self._num_elements += number
        if self._num_elements > _MAX_ELEMENTS:
            raise ValueError(f"more than {_MAX_ELEMENTS:,} elements")
