"""Whatever is in split lists, archives, checkpoints and image files: a result or a UserError, nothing else."""

import bz2
import io
import struct
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save as save_safetensors

from pspexp.data.file_split import read_label
from pspexp.data.folder import FolderDataset
from pspexp.data.images import read_image
from pspexp.data.label_decoder import LabelDecoder
from pspexp.data.preparation.archive import extract
from pspexp.data.preparation.label_maps import augment_voc
from pspexp.data.preparation.prepare import prepare
from pspexp.data.splits import read_lines, text_lines
from pspexp.data.voc import VocDataset
from pspexp.errors import UserError
from pspexp.models.checkpoint_file import load_checkpoint_file

QUICK = settings(max_examples=120, deadline=None, derandomize=True, database=None)
IDS = ("0", "1", "2", "3", "a b", "sub/4", "é")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1")


@pytest.fixture(scope="module")
def voc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in VOC's layout whose list ``train.txt`` the tests write."""
    root = tmp_path_factory.mktemp("lists") / "VOC2012"
    for name in IDS:
        for folder, suffix, mode in (("JPEGImages", ".jpg", "RGB"), ("SegmentationClass", ".png", "L")):
            file = root / folder / f"{name}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, (2, 2)).save(file)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("0\n")
    (root / "sbd" / "SegmentationClassAug").mkdir(parents=True)
    return root


def entries() -> st.SearchStrategy[str]:
    """Lines of a list: ids, files, pairs of them, with and without mistakes."""
    image = st.sampled_from([f"JPEGImages/{name}.jpg" for name in IDS])
    mask = st.sampled_from([f"SegmentationClass/{name}.png" for name in IDS])
    name = st.sampled_from([*IDS, unicodedata.normalize("NFD", "é"), "9", ".", "..", "/", "../../x", "~", "*", "{id}"])
    suffix = st.sampled_from(["", ".jpg", ".png", " 1", " -1", ",1,0", "\t", "\u3000", "\u2028", "\x00", "\x1a"])
    column = st.sampled_from([" ", "\t", ",", ";", " ; ", '" "', "\\"])
    pair = st.tuples(st.one_of(image, name), column, st.one_of(mask, name)).map("".join)
    comment = st.text(max_size=8).map("#{}".format)
    return st.one_of(st.tuples(name, suffix).map("".join), image, pair, comment, st.text(max_size=20), st.just(""))


def contents() -> st.SearchStrategy[bytes]:
    """The bytes of a list."""

    def encoded(lines: list[str], end: str, encoding: str, last: str) -> bytes:
        return (end.join(lines) + last).encode(encoding, "surrogatepass" if "utf" in encoding else "replace")

    texts = st.builds(
        encoded,
        st.lists(entries(), max_size=8),
        st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\x0b", "\x85"]),
        st.sampled_from(ENCODINGS),
        st.sampled_from(["", "\n", "\ufeff", "\x1a"]),
    )
    cut = st.builds(lambda content, end: content[: len(content) - end], texts, st.integers(0, 3))
    return st.one_of(texts, cut, st.binary(max_size=60))


def open_voc(root: Path) -> int:
    arguments = {"train_split": "train", "val_split": "val", "test_split": "val"}
    numbers = {"mean": [0.5] * 3, "std": [0.2] * 3, "ignore_index": 255, "num_classes": 2}
    return len(VocDataset(root=str(root), class_names=["a", "b"], **arguments, **numbers).open("train"))  # type: ignore[arg-type]


def open_folder(root: Path) -> int:
    arguments = {"train_split": "train", "val_split": "val", "test_split": "val", "on_error": "skip"}
    numbers = {"mean": [0.5] * 3, "std": [0.2] * 3, "ignore_index": 255, "num_classes": 2}
    patterns = {"images": "JPEGImages/{id}.jpg", "masks": "SegmentationClass/{id}.png"}
    lists = "ImageSets/Segmentation/{split}.txt"
    dataset = FolderDataset(root=str(root), class_names=["a", "b"], splits=lists, **patterns, **arguments, **numbers)  # type: ignore[arg-type]
    return len(dataset.open("train"))


@QUICK
@given(content=contents())
@example(content=b"")
@example(content=b"\xff\xfe")
@example(content=b"\xff\xfe0")
@example(content="0\r\n1\r\n".encode("utf-16"))
@pytest.mark.parametrize("open_list", [open_voc, open_folder])
def test_any_split_list_is_read_or_refused(voc_folder: Path, content: bytes, open_list: Callable[[Path], int]) -> None:
    (voc_folder / "ImageSets" / "Segmentation" / "train.txt").write_bytes(content)
    with suppress(UserError):
        assert open_list(voc_folder) <= len(IDS)


@QUICK
@given(
    names=st.lists(st.sampled_from(IDS), min_size=1, max_size=6),
    end=st.sampled_from(["\n", "\r\n", "\r", "\n \n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    suffix=st.sampled_from(["", " ", "\t", ".jpg"]),
)
def test_a_correct_list_means_the_same_in_every_form(
    voc_folder: Path, names: list[str], end: str, encoding: str, suffix: str
) -> None:
    path = voc_folder / "ImageSets" / "Segmentation" / "train.txt"
    lines = [f"JPEGImages/{name}{suffix}" if suffix == ".jpg" else f"{name}{suffix}" for name in names]
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode(encoding))
    if len({*names}) < len(names):
        with pytest.raises(UserError, match="more than once"):
            open_voc(voc_folder)
    else:
        assert open_voc(voc_folder) == len(names)
        assert len(read_lines(path, "split", "train")) == len(names)


@settings(QUICK, max_examples=60)
@given(content=contents())
@example(content="0\n".encode("utf-16"))
@example(content=b"\x80\n")
def test_preparation_reads_or_refuses_any_list(voc_folder: Path, content: bytes) -> None:
    lists = voc_folder / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_bytes(content)
    with suppress(UserError):
        prepare(voc_folder.parent / "VOC2012", voc_folder.parent / "out", num_workers=1)
    (lists / "train.txt").write_text("1\n2\n")
    (voc_folder / "sbd" / "train.txt").write_bytes(content)
    with suppress(UserError):
        augment_voc(voc_folder, voc_folder / "sbd", LabelDecoder([[0], [1]], [255]), num_workers=1)


@QUICK
@given(content=contents())
def test_lines_are_complete(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    path.write_bytes(content)
    with suppress(UserError):
        lines = text_lines(path)
        assert all(line and line == line.strip() and "\n" not in line and "\0" not in line for line in lines)
        path.write_text("\r\n".join(lines), encoding="utf-16")
        assert text_lines(path) == lines or any("\ufeff" in line for line in lines)


def changed(originals: list[bytes]) -> st.SearchStrategy[bytes]:
    """Files with some bytes changed or inserted, or cut off, and random bytes."""

    @st.composite
    def change(draw: st.DrawFn) -> bytes:
        content = bytearray(draw(st.sampled_from(originals)))
        for _ in range(draw(st.integers(1, 3))):
            place = draw(st.integers(0, max(len(content) - 1, 0)))
            match draw(st.integers(0, 5)):
                case 0:
                    del content[place:]
                case 1:
                    content[place:place] = draw(st.binary(min_size=1, max_size=4))
                case _:
                    content[place : place + 1] = bytes(
                        [draw(st.one_of(st.sampled_from([0, 255]), st.integers(0, 255)))]
                    )
        return bytes(content)

    return st.one_of(change(), change(), change(), st.binary(max_size=100))


def zipped(compression: int, names: tuple[str, ...] = ("a/b.txt", "é/ü.txt")) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name in names:
            archive.writestr(name, name * 30)
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, names[0])
    return file.getvalue()


def tarred(mode: str, form: int = tarfile.PAX_FORMAT, names: tuple[str, ...] = ("a/b.txt", "é/ü.txt")) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{mode}", format=form) as archive:  # type: ignore[call-overload]
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name.encode()) * 30
            archive.addfile(info, io.BytesIO(name.encode() * 30))
        for kind, target in ((tarfile.SYMTYPE, names[0]), (tarfile.LNKTYPE, names[1])):
            link = tarfile.TarInfo(f"link {target[0]}")
            link.type, link.linkname = kind, target
            archive.addfile(link)
    return file.getvalue()


ARCHIVES = [
    *(zipped(kind) for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)),
    *(tarred("", form) for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)),
    *(tarred(kind) for kind in ("gz", "bz2", "xz")),
]
# With a name that is not UTF-8, without a name, of an unknown version, and with a null byte in a name.
BAD_NAME = zipped(zipfile.ZIP_STORED).replace("é".encode(), b"\xc3\xc3")
NO_NAME = zipped(zipfile.ZIP_STORED, ("a", "bcd")).replace(b"bcd", b"\0cd")
NEW_VERSION = zipped(zipfile.ZIP_STORED).replace(b"PK\1\2\x14\x03\x14\x00", b"PK\1\2\x14\x03\xff\x00")
NULL = tarred("", names=("a", "é" * 60)).replace("é".encode(), b"\0\0")


def unpacked(content: bytes, folder: Path, into: str = "x/out") -> list[PurePosixPath] | None:
    """The files that were unpacked, None if that was refused; all that is written must be in ``into``."""
    archive, before = folder / "archive.zip", sorted(folder.rglob("*"))
    archive.write_bytes(content)
    try:
        files = extract(archive, folder / into)
    except UserError:
        files = None
    inside = folder / into
    others = [path for path in folder.rglob("*") if inside not in path.parents and path not in inside.parents]
    assert sorted({*others} - {archive, inside}) == [path for path in before if path not in (archive, inside)]
    assert not any(path.is_symlink() for path in inside.rglob("*"))
    assert not [*inside.rglob("*.partial")]
    return files


@QUICK
@given(content=changed(ARCHIVES))
@example(content=BAD_NAME)
@example(content=NO_NAME)
@example(content=NEW_VERSION)
@example(content=NULL)
def test_any_archive_is_unpacked_inside_its_folder_or_refused(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        files = unpacked(content, Path(folder))
        inside = Path(folder) / "x" / "out"
        assert files is None or all((inside / file).is_file() for file in files)


@settings(QUICK, max_examples=80)
@given(
    names=st.lists(
        st.lists(
            st.sampled_from(
                ["a", "b", "..", ".", "", "C:", "\\", "/", "~", "..\\x", "\0", "é", "\udcff", "._a", "x" * 300]
            ),
            min_size=1,
            max_size=4,
        ).map("/".join),
        min_size=1,
        max_size=4,
    ),
    targets=st.lists(
        st.sampled_from(["a", "..", "../..", "../../x", "/etc", "b/..", "../b", "a/b/../../..", "\0"]), max_size=2
    ),
    kind=st.sampled_from(["zip", tarfile.SYMTYPE, tarfile.LNKTYPE]),
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_and_links_never_lead_outside(names: list[str], targets: list[str], kind: str | bytes) -> None:
    file = io.BytesIO()
    if isinstance(kind, str):
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                with suppress(UnicodeEncodeError):
                    archive.writestr(name, "x")
            for number, target in enumerate(targets):
                info = zipfile.ZipInfo(f"{names[0]}{number}".encode("ascii", "ignore").decode())
                info.external_attr = 0o120777 << 16
                archive.writestr(info, target)
    else:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name in names:
                info_of_file = tarfile.TarInfo(name)
                info_of_file.size = 1
                tar.addfile(info_of_file, io.BytesIO(b"x"))
            for number, target in enumerate(targets):
                link = tarfile.TarInfo(f"{names[0]}{number}")
                link.type, link.linkname = kind, target
                tar.addfile(link)
    with TemporaryDirectory() as folder:
        unpacked(file.getvalue(), Path(folder))


def test_damaged_data_are_not_blamed_on_the_folder(tmp_path: Path) -> None:
    """bz2 and gzip raise OSError for them, as does a full disk."""
    noise = np.random.default_rng(0).bytes(3000)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        info = tarfile.TarInfo("a")
        info.size = len(noise)
        archive.addfile(info, io.BytesIO(noise))
    content = bytearray(bz2.compress(plain.getvalue()[:512]) + bz2.compress(plain.getvalue()[512:]))
    content[-1000] ^= 255
    (tmp_path / "a.tar.bz2").write_bytes(content)
    with pytest.raises(UserError, match="damaged, or not a tar or zip"):
        extract(tmp_path / "a.tar.bz2", tmp_path / "out")


def saved(value: object, *, new: bool) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


STATE = {"a": torch.arange(5.0), "b": {"c": torch.ones(2, 2, dtype=torch.int64)}, "n": 3, "s": "text"}
CHECKPOINTS = [saved(STATE, new=True), saved(STATE, new=False), save_safetensors({"a": torch.arange(5.0)})]
NO_SUCH_NAME = CHECKPOINTS[0].replace(b"/data.pkl", b"/data\xff\xffkl")
NO_DIRECTORY = CHECKPOINTS[0].replace(b"PK\1\2", b"PK\1\0")
MANY_DISKS = NO_DIRECTORY.replace(b"PK\6\7" + struct.pack("<I", 0), b"PK\6\7" + struct.pack("<I", 9))


@QUICK
@given(content=changed(CHECKPOINTS))
@example(content=NO_SUCH_NAME)
@example(content=NO_DIRECTORY)
@example(content=MANY_DISKS)
@pytest.mark.filterwarnings("ignore")  # torch's about what is in a damaged file
def test_any_checkpoint_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pt"
    path.write_bytes(content)
    with suppress(UserError):
        assert isinstance(load_checkpoint_file(path), dict)


@pytest.mark.parametrize("content", [NO_SUCH_NAME, NO_DIRECTORY, MANY_DISKS])
def test_a_checkpoint_with_a_damaged_directory_is_called_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged \(.+\); copy or download it again"):
        load_checkpoint_file(tmp_path / "a.pt")


def images() -> list[bytes]:
    ids = np.random.default_rng(0).integers(0, 21, (9, 11), np.uint8)
    found = []
    for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16", "I", "F", "CMYK"):
        image = Image.fromarray(ids.astype(np.uint16)) if mode == "I;16" else Image.fromarray(ids).convert(mode)
        for kind in ("PNG", "BMP", "GIF", "JPEG", "WEBP", "PPM", "TGA", "TIFF", "JPEG2000", "AVIF"):
            file = io.BytesIO()
            with suppress(OSError, KeyError, ValueError):  # not a mode or format of this build of Pillow
                image.save(file, kind)
                found.append(file.getvalue())
    return found


@settings(QUICK, max_examples=400)
@given(content=changed(images()))
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's about damaged tags
def test_any_image_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.png"
    path.write_bytes(content)
    for voc_colours in (True, False):
        decoder = LabelDecoder([[number] for number in range(21)], [255], voc_colours=voc_colours)
        with suppress(UserError):
            decoded = read_label(path, decoder, 100_000)
            assert decoded.ids.shape == decoded.undeclared.shape
            assert {*np.unique(decoded.ids).tolist()} <= {*range(21), 255}
            assert (decoded.ids[decoded.undeclared] == 255).all()
    with suppress(UserError):
        assert read_image(path, 100_000).mode == "RGB"


def test_a_damaged_avif_image_is_refused(tmp_path: Path) -> None:
    """Pillow raises RuntimeError for it."""
    pytest.importorskip("PIL._avif")
    Image.effect_noise((16, 16), 50).convert("RGB").save(tmp_path / "a.avif")
    content = bytearray((tmp_path / "a.avif").read_bytes())
    content[content.index(b"mdat") + 8 :] = bytes(len(content) - content.index(b"mdat") - 8)
    (tmp_path / "a.avif").write_bytes(content)
    with pytest.raises(UserError, match="not a readable image"):
        read_image(tmp_path / "a.avif")
    with pytest.raises(UserError, match="not a readable mask"):
        read_label(tmp_path / "a.avif", LabelDecoder([[0], [1]], [255]))
