"""Files that fuzzing has found (tools/fuzz): each was neither read nor refused with a UserError in one line."""

import bz2
import gzip
import io
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.io import savemat
from scipy.sparse import csc_matrix

import pspexp
from pspexp.config.trust import refuse_untrusted
from pspexp.data.band_files import read_bands
from pspexp.data.file_split import read_label
from pspexp.data.images import read_image
from pspexp.data.label_decoder import LabelDecoder
from pspexp.data.preparation import members
from pspexp.data.preparation.archive import extract
from pspexp.data.preparation.mat import read_mat
from pspexp.data.splits import find_samples
from pspexp.errors import UserError
from pspexp.models.checkpoint_file import FORMAT, load_checkpoint_file
from pspexp.models.weights import load_weights
from pspexp.utils import files


def assert_refused_in_a_line(file: Path, reader: Callable[..., object], *arguments: Any) -> str:
    """The message, which must be short lines that name the file, without characters that terminals obey."""
    with pytest.raises(UserError) as refused:
        reader(*arguments)
    for line in refused.value.problems:
        assert len(line) < 1300
        assert not [character for character in line if ord(character) < 32]
    assert file.name in str(refused.value)
    return str(refused.value)


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
    with pytest.raises(UserError, match="can be read safely"):
        load_checkpoint_file(tmp_path / "a.pt")


def test_a_damaged_checkpoint_is_described_briefly(tmp_path: Path) -> None:
    """Python quotes both names of a zip's member."""
    content = with_pickle(b"N.").replace(b"archive/data.pkl", b"archive/\x1b[1m\nxpkl", 1)
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("\x1b[1m\n" + "x" * 5000, "")
    for one in (content, file.getvalue()):
        (tmp_path / "a.pt").write_bytes(one)
        assert_refused_in_a_line(tmp_path / "a.pt", load_checkpoint_file, tmp_path / "a.pt")


def tarred(*contents: tuple[str, bytes], mode: str = "w") -> bytes:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode=mode, format=tarfile.GNU_FORMAT) as archive:  # type: ignore[call-overload]
        for name, content in contents:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def with_size(archive: bytes, number: int, field: bytes) -> bytes:
    """An archive of empty files in which one claims another size."""
    content = bytearray(archive)
    block = memoryview(content)[512 * number : 512 * number + 512]
    block[124:136] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(content)


EMPTY_FILES = tarred(("d/a", b""), ("d/b", b""), ("d/c", b""))
HUGE, BEFORE = b"\x80" + b"\xff" * 11, b"\xff" * 10 + b"\xfe\0"  # in tar's own binary form


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (with_size(EMPTY_FILES, 1, HUGE), "damaged"),
        (bz2.compress(with_size(EMPTY_FILES, 1, HUGE)), "unpacks to more than 1,073,741,824 bytes"),
        (gzip.compress(with_size(EMPTY_FILES, 1, HUGE)), "unpacks to more than 1,073,741,824 bytes"),
        (with_size(EMPTY_FILES, 2, BEFORE), "damaged"),  # without end: the next file is the one before
        (gzip.compress(with_size(EMPTY_FILES, 2, BEFORE)), "damaged"),
        (tarred(("d/\n\x1b[1m", b"")), "control character in its name"),
        (tarred((f"/{'n' * 5000}", b"")), "absolute path"),
        (tarred(*[(f"/{number}{'n' * 5000}", b"") for number in range(25)]), "absolute path"),
    ],
)
def test_hostile_tars_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    message = assert_refused_in_a_line(tmp_path / "a.tar", extract, tmp_path / "a.tar", tmp_path / "out")
    assert reason in message
    assert not (tmp_path / "out").exists()


def test_a_name_in_a_compressed_tar_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "_MAX_READ", 1 << 20)
    (tmp_path / "a.tgz").write_bytes(tarred(("d/a", b""), ("d/" + "n" * (1 << 20), b""), mode="w:gz"))
    message = assert_refused_in_a_line(tmp_path / "a.tgz", extract, tmp_path / "a.tgz", tmp_path / "out")
    assert "a header of 1,049,088 bytes" in message


@pytest.mark.parametrize("line", ["a" + " " * 60_000 + "b", "1 " * 30_000 + "x", "a" + ",;" * 30_000 + "b"])
def test_long_lines_of_a_list_take_no_time(tmp_path: Path, line: str) -> None:
    """They once took a minute each, and a hundred times that if ten times as long."""
    start = time.process_time()
    samples, (problem,) = find_samples([line], {"a": tmp_path / "a"}, {"a": tmp_path / "a"}, tmp_path, tmp_path / "l")
    assert not samples
    assert len(problem) < 1000
    assert time.process_time() - start < 1


def test_messages_contain_no_control_characters(tmp_path: Path) -> None:
    """Terminals obey them."""
    problem = find_samples(["\x1b[2J\x07"], {"a": tmp_path}, {"a": tmp_path}, tmp_path, tmp_path / "list")[1][0]
    assert "\\x1b[2J\\x07" in str(UserError(problem))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(kind: int, *chunks: bytes) -> bytes:
    """A PNG of one pixel with these chunks behind it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, kind, 0, 0, 0))
    pixel = chunk(b"IDAT", zlib.compress(bytes(5)))
    return b"\x89PNG\r\n\x1a\n" + header + pixel + b"".join(chunks) + chunk(b"IEND", b"")


NO_PROFILE = png(0, chunk(b"iCCP", b"name\0"))  # IndexError in Pillow
NO_PALETTE = png(3)  # AssertionError in Pillow


@pytest.mark.parametrize("content", [NO_PROFILE, NO_PALETTE], ids=["profile", "palette"])
@pytest.mark.parametrize("num_bands", [1, 3, 4])
def test_damaged_images_are_read_or_refused(tmp_path: Path, content: bytes, num_bands: int) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for reader, arguments in ((read_bands, (num_bands,)), (read_label, (LabelDecoder([[0], [1]], [255]),))):
        with suppress(UserError):
            reader(tmp_path / "a.png", *arguments)  # type: ignore[operator]


SHARED: dict[str, Any] = {"a": 1}  # to be read in 2**30 places
for _ in range(30):
    SHARED = {"a": SHARED, "b": SHARED}
NETWORK = {"backbone.weight": torch.ones(2, 3, 1, 1), "backbone.bias": torch.ones(2)}


@pytest.mark.parametrize(
    "content",
    [
        {**NETWORK, "backbone.weight": torch.ones(2, 3, 1, 1).to_sparse()},
        {**NETWORK, "backbone.weight": torch.ones(2, 3, 1, 1, device="meta")},
        {1: torch.ones(1)},
        {b"backbone.bias": torch.ones(1)},
        {f"\x1b{number}" * 999: 0 for number in range(99)},
        {"format": FORMAT},
        {"format": FORMAT, "model": None},
        {"format": FORMAT, "model": 3},
        {"format": FORMAT, "model": NETWORK, "ema": torch.ones(2)},
        {"format": FORMAT, "model": NETWORK, "config": 3},
        {"format": FORMAT, "model": NETWORK, "config": {"choices": 3}},
        {"format": FORMAT, "model": NETWORK, "config": {"model": {"a": torch.ones(1)}}},
        {"format": FORMAT, "model": NETWORK, "config": {"choices": SHARED}},
        {"format": FORMAT, "model": NETWORK, "training": 3},
        {"format": torch.ones(99, 99), "model": NETWORK},
    ],
)
def test_checkpoints_of_other_content_are_refused(tmp_path: Path, content: dict[Any, Any]) -> None:
    torch.save(content, tmp_path / "a.pt")
    network = torch.nn.ModuleDict({"backbone": torch.nn.Conv2d(3, 2, 1)})
    assert_refused_in_a_line(tmp_path / "a.pt", load_weights, network, tmp_path / "a.pt")


@pytest.mark.parametrize("content", [{}, {"config": {}}, {"config": {"choices": {}, "dataset": None}}])
def test_a_checkpoint_without_configuration_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save({"format": FORMAT, "model": NETWORK, **content}, tmp_path / "a.pt")
    command = ["mode=predict", "predict.input=.", f"checkpoint.path={tmp_path}/a.pt"]
    with pytest.raises(UserError, match=r"a\.pt: is damaged"):
        pspexp.compose(command)


def test_a_target_in_the_place_of_a_list_is_refused() -> None:
    saved = {"inference": {"scales": {"_target_": "os.system"}}}
    with pytest.raises(UserError, match=r"inference\.scales\._target_=os\.system"):
        refuse_untrusted(saved, "a.pt", own=False, today=OmegaConf.create({"inference": {"scales": [1.0]}}))


def test_a_checkpoint_that_is_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch unpacks compressed weights."""
    monkeypatch.setattr(files, "ANY_RATIO_BELOW", 1 << 16)
    torch.save({"a": torch.zeros(1 << 18)}, whole := io.BytesIO())
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UserError, match=r"a\.pt: .*unpacks to 1,.* bytes, more than 100 times its size"):
        load_checkpoint_file(tmp_path / "a.pt")


def mat(content: dict[str, Any], compress: bool = False) -> bytes:
    savemat(file := io.BytesIO(), content, do_compression=compress)
    return file.getvalue()


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(class_: int, *content: bytes, size: tuple[int, ...] = (1, 1), name: bytes = b"") -> bytes:
    """A matrix in a MATLAB file."""
    header = (
        element(6, struct.pack("<II", class_, 0)) + element(5, struct.pack(f"<{len(size)}i", *size)) + element(1, name)
    )
    return element(14, header + b"".join(content))


def packed(content: bytes) -> bytes:
    data = zlib.compress(content)
    return struct.pack("<II", 15, len(data)) + data  # without padding


MAT_HEADER = mat({})
CELL, STRUCT, CHAR, UINT8 = 1, 2, 4, 9  # classes of matrices
LABELS = {"GTcls": {"Segmentation": np.full((8, 9), 7, np.uint8)}}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("kind", [0, 8, 10, 14, 15, 19, 0x1002])
def test_a_mat_file_with_an_unknown_kind_of_element_is_refused(tmp_path: Path, kind: int, compress: bool) -> None:
    """SciPy reads a table beyond its end, or finds nothing in it, and the process crashes."""
    pixels = struct.pack("<II", 2, 72) + b"\7"
    content = mat(LABELS)
    assert content.count(pixels) == 1
    content = content.replace(pixels, struct.pack("<II", kind, 72) + b"\7")
    if compress:
        content = content[:128] + packed(content[128:])
    (tmp_path / "a.mat").write_bytes(content)
    message = assert_refused_in_a_line(tmp_path / "a.mat", read_mat, tmp_path / "a.mat")
    assert f"an element of unknown kind {kind}" in message


def nested(depth: int) -> bytes:
    """An array in a cell in a cell and so on."""
    content = matrix(UINT8, element(2, b"\7"))
    for _ in range(depth):
        content = matrix(CELL, content)
    return matrix(CELL, content, name=b"S")


def unending(depth: int) -> bytes:
    """Cells that go on in the next one, beyond their own ends."""
    return matrix(CELL, name=b"S") + matrix(CELL) * depth


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (nested(60), "more than 50 matrices within each other"),
        (unending(30_000), "more than 50 matrices within each other"),
        (packed(bytes(1 << 20)), "an element of kind 0 instead of a matrix"),
        (packed(packed(matrix(UINT8, element(2, b"\7"), name=b"S"))), "an element of kind 15 instead of a matrix"),
        (matrix(CELL, element(14, b"") * 100_000, size=(1, 100_000), name=b"S"), "more than 20,000 elements"),
        (matrix(CELL, size=(1 << 15, 1 << 15), name=b"S"), "more than 20,000 elements"),
        (matrix(CHAR, element(1, b""), size=(1 << 15, 1 << 15), name=b"S"), "more than 20,000 elements"),
        (matrix(STRUCT, element(5, bytes(4)), element(1, b"a"), name=b"S"), "names have no length"),
        (matrix(UINT8, element(2, b"\7"), size=(1, -1), name=b"S"), "less than two dimensions, or a negative one"),
        (matrix(CHAR, element(1, b"a"), size=(), name=b"S"), "less than two dimensions, or a negative one"),
        (matrix(UINT8, name=b"S"), "an element beyond the end"),
        (matrix(77, name=b"S"), "unknown class 77"),
    ],
    ids=range(12),
)
def test_hostile_mat_files_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    """SciPy crashes in some, and others take much memory or time."""
    (tmp_path / "a.mat").write_bytes(MAT_HEADER + content)
    start = time.process_time()
    assert reason in assert_refused_in_a_line(tmp_path / "a.mat", read_mat, tmp_path / "a.mat")
    assert time.process_time() - start < 1


@pytest.mark.parametrize("content", [b"", b"MATLAB", MAT_HEADER[:127], MAT_HEADER, MAT_HEADER + b"\x0e"])
def test_truncated_mat_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mat").write_bytes(content)
    assert_refused_in_a_line(tmp_path / "a.mat", read_mat, tmp_path / "a.mat")


def test_a_mat_file_that_is_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts are counted together, and one after the other is in memory."""
    monkeypatch.setattr(files, "ANY_RATIO_BELOW", 16 << 20)
    part = packed(matrix(UINT8, element(2, bytes(4 << 20)), name=b"other"))
    (tmp_path / "a.mat").write_bytes(MAT_HEADER + part * 5)
    tracemalloc.start()
    message = assert_refused_in_a_line(tmp_path / "a.mat", read_mat, tmp_path / "a.mat")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "unpacks to more than 16,777,216 bytes, more than 100 times its size" in message
    assert peak < 13 << 20


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    "more",
    [
        {"deep": {"a": {"b": {"c": {"d": np.array([[1.5, 2j]])}}}}},
        {"cells": np.array([["text", np.ones(3)], [np.array([[], [1]], object), {"a": "é"}]], object)},
        {"sparse": csc_matrix(np.eye(5)), "empty": np.zeros((0, 0)), "flag": np.array([True])},
        {"number": 3, "bytes": np.array([1], np.int8), "many": np.ones((2, 3, 4, 5), np.float32)},
        {"structs": np.array([[(1, "a"), (2, "b")]], [("x", object), ("y", object)])},
    ],
)
def test_valid_mat_files_are_read(tmp_path: Path, more: dict[str, Any], compress: bool) -> None:
    content = {"GTcls": {**more, **LABELS["GTcls"]}, "other": np.ones((100, 100)), **more}
    (tmp_path / "a.mat").write_bytes(mat(content, compress))
    assert (read_mat(tmp_path / "a.mat") == 7).all()


def test_too_little_memory_is_not_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "a.mat").write_bytes(mat(LABELS))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", Mock(side_effect=MemoryError))
    monkeypatch.setattr("scipy.io.loadmat", Mock(side_effect=MemoryError))
    for reader, file in ((read_image, "a.png"), (read_mat, "a.mat")):
        with pytest.raises(MemoryError):
            reader(tmp_path / file)  # type: ignore[operator]
