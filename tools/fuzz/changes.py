"""Changes of files beyond libFuzzer's: inside of containers whose checksums it would hardly ever match.

Each function takes a file, random numbers, and libFuzzer's own mutation.
"""

import bz2
import gzip
import io
import lzma
import pickletools
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress

from tools.fuzz.readers import ENCODINGS

Mutate = Callable[[bytes], bytes]

TOKENS = (  # of pickles
    *(f"ctorch\n{name}\n".encode() for name in ("FloatTensor", "FloatStorage", "Size", "device", "float16", "Tensor")),
    *(f"ctorch._utils\n_rebuild_{name}\n".encode() for name in ("tensor_v2", "sparse_tensor", "qtensor", "parameter")),
    *(b"cbuiltins\nbytearray\n", b"ccollections\nOrderedDict\n", b"c_codecs\nencode\n", b"cnumpy\ndtype\n"),
    *(
        b"cnumpy.core.multiarray\nscalar\n",
        b"ctorch.nn.parameter\nParameter\n",
        b"cos\nsystem\n",
        b"cnumpy.dtypes\nFloat64DType\n",
    ),
    *(bytes([op]) for op in b")Rb\x81Q}](t\x85\x86\x87sueaN\x88."),
    *(b"K\x07", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"h\x00", b"h\x05", b"G\x7f\xf8\0\0\0\0\0\0"),
    *(b"X%c\0\0\0%b" % (len(text), text) for text in (b"format", b"pspexp/1", b"config", b"model", b"a\nb", b"state")),
)
FIELDS = ((0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155), (386, 96))  # of tar's headers


def change_checkpoint(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    if data.startswith(b"PK"):
        return in_zip(data, rng, lambda content: change_pickle(content, rng) if rng.random() < 0.7 else mutate(content))
    if data[8:9] == b"{":
        length = int.from_bytes(data[:8], "little")
        header = mutate(data[8 : 8 + length])
        return struct.pack("<Q", len(header)) + header + data[8 + length :]
    return change_pickle(data, rng)


def change_pickle(data: bytes, rng: random.Random) -> bytes:
    places = [0]
    with suppress(Exception):
        places += [place for _, _, place in pickletools.genops(data) if place is not None]
    first = rng.randrange(len(places))
    last = min(first + rng.choice((0, 0, 1, 1, 2, 5)), len(places) - 1)
    tokens = [rng.choice(TOKENS) for _ in range(rng.randint(0, 4))]
    if rng.random() < 0.3:  # a part from elsewhere
        start = rng.randrange(len(places))
        tokens.append(data[places[start] : places[min(start + rng.randint(1, 20), len(places) - 1)]])
    return data[: places[first]] + b"".join(tokens) + data[places[last] :]


def in_zip(data: bytes, rng: random.Random, change: Mutate) -> bytes:
    """A zip with one member changed, often a pickle."""
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file := io.BytesIO(), "w") as new:
        names = [name for name in old.namelist() for _ in range(1 + 9 * name.endswith("data.pkl"))]
        chosen = rng.choice(names)
        for info in old.infolist():
            content = change(old.read(info)) if info.filename == chosen else old.read(info)
            new.writestr(info.filename, content, zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED)
    return file.getvalue()


def change_archive(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    if data.startswith(b"PK"):  # bytes of a record of its directory, or of a header
        places = [found.start() for found in re.finditer(b"PK[\1\3\5]", data)]
        place = rng.choice(places or [0]) + 4 + rng.randrange(60)
        return data[:place] + bytes([rng.choice((0, 1, 255, rng.randrange(256)))]) + data[place + 1 :]
    for magic, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7z", lzma)):
        if data.startswith(magic):
            with suppress(Exception):
                return module.compress(change_tar(module.decompress(data)[: 1 << 20], rng, mutate))  # type: ignore[attr-defined]
            return mutate(data)
    return change_tar(data, rng, mutate)


def change_tar(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """A tar with a field of a header changed, or anything, and correct checksums."""
    places = [place for place in range(0, len(data) - 511, 512) if data[place + 257 :].startswith(b"ustar")]
    if not places or rng.random() < 0.2:
        return mutate(data)
    block, content = rng.choice(places), bytearray(data)
    start, length = rng.choice(FIELDS)
    old = bytes(content[block + start : block + start + length])
    kinds = [bytes([rng.choice(b"01234567gxLKSDAMNVX")])]
    texts = [b"../x", b"/x", b"a\n\x1b[1m", b"\xff\xff", b"VOC2012/" * 12, b"0" * 11, b"7" * 11, b"\x80" + b"\xff" * 11]
    new = rng.choice(kinds if length == 1 else [*texts, mutate(old)])
    content[block + start : block + start + length] = new[:length].ljust(length, b"\0")
    if rng.random() < 0.1:  # zeros hardly take space in a compressed file
        content[block + 512 : block + 512] = bytes(rng.choice((512, 1 << 20)))
    for place in places:
        header = content[place : place + 512]
        total = sum(header) - sum(header[148:156]) + 8 * 32
        content[place + 148 : place + 156] = b"%06o\0 " % total
    return bytes(content)


def change_split(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """Parts of a list repeated, or written in another encoding."""
    if rng.random() < 0.2:
        return data.decode("utf-8", "replace").encode(rng.choice(ENCODINGS), "replace")
    start, place = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    part = rng.choice((b" ", b"\t", b",", b"1 ", b"\n", b"\x1b", data[start : start + rng.randint(1, 20)]))
    return data[:place] + part * rng.choice((1, 1, 2, 1000, 20000 // max(len(part), 1))) + data[place:]


def change_label(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """A PNG with one chunk changed, duplicated or removed, and valid checksums."""
    if not data.startswith(b"\x89PNG"):
        return mutate(data)
    chunks, place = [], 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : end]))
        place = end + 4
    if not chunks:
        return mutate(data)
    chosen = rng.randrange(len(chunks))
    kind, content = chunks[chosen]
    if kind == b"IDAT" and rng.random() < 0.5:
        with suppress(zlib.error):
            content = zlib.compress(mutate(zlib.decompress(content)))
    elif rng.random() < 0.2:
        kind = rng.choice((b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"eXIf", b"acTL", b"fcTL", b"gAMA", b"IDAT"))
    else:
        content = mutate(content)
    chunks[chosen : chosen + 1] = [(kind, content)] * rng.choice((0, 1, 1, 1, 1, 2))
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return data[:8] + b"".join(parts)
