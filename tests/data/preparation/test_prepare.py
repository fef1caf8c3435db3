"""Preparing a data set: malicious archives write nothing, interrupted work resumes, all faults are reported."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pspexp.data.labels import VOC_COLOURS
from pspexp.data.preparation.archive import extract
from pspexp.data.preparation.prepare import prepare
from pspexp.errors import UserError

TOOL = Path(__file__).parents[3] / "tools/prepare_voc.py"
LABEL = np.array([[0, 1, 20, 255], [0, 15, 15, 0]], np.uint8)


def make_tree(folder: Path) -> Path:
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "Annotations"):
        (folder / name).mkdir(parents=True)
    for name in ("a", "b", "c"):
        Image.new("RGB", (4, 2)).save(folder / f"JPEGImages/{name}.jpg")
        label = Image.fromarray(LABEL)
        label.putpalette(VOC_COLOURS.tobytes())
        label.save(folder / f"SegmentationClass/{name}.png")
        (folder / f"Annotations/{name}.xml").write_text("<annotation/>")
    for split, names in {"train": "a\nb\n", "val": "c\n", "trainval": "a\nb\nc\n"}.items():
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text(names)
    return folder


def make_tar(tmp_path: Path, name: str = "voc.tar", mode: str = "w") -> Path:
    make_tree(tmp_path / "src/VOCdevkit/VOC2007")
    with tarfile.open(tmp_path / name, mode) as tar:  # type: ignore[call-overload]
        tar.add(tmp_path / "src/VOCdevkit", "VOCdevkit")
    return tmp_path / name


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.parametrize(("name", "mode"), [("voc.tar", "w"), ("voc.tgz", "w:gz"), ("voc.tar.xz", "w:xz")])
def test_tar_becomes_a_checked_data_set(tmp_path: Path, name: str, mode: str) -> None:
    (data,) = prepare(make_tar(tmp_path, name, mode), tmp_path / "out", num_workers=1)
    assert data.folder == tmp_path / "out/VOCdevkit/VOC2007"
    assert np.asarray(Image.open(data.folder / "SegmentationClassGray/a.png")).tolist() == LABEL.tolist()
    assert data.written == 3
    assert data.splits == {"train": ["a", "b"], "trainval": ["a", "b", "c"], "val": ["c"]}
    rows = {row[0]: row[1:] for row in data.rows()}
    assert rows["person"] == ["2", "4", "3", "6", "1", "2"]
    assert rows["bus"] == ["0"] * 6
    assert rows["ignored"] == ["2", "2", "3", "3", "1", "1"]
    assert rows["all"] == ["2", "16", "3", "24", "1", "8"]


def test_folder_is_prepared_in_place(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "VOCdevkit/VOC2007")
    for source in (tmp_path, tmp_path / "VOCdevkit", tree):
        (data,) = prepare(source, tmp_path / "unused", num_workers=1)
        assert data.folder.samefile(tree)
    assert not (tmp_path / "unused").exists()


def test_folders_use_their_own_class_names(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "mine")
    assert prepare(tree, tmp_path, num_workers=1)[0].class_names[1] == "class 1"
    (tree / "classes.txt").write_text("\n".join(f"thing {index}" for index in range(21)))
    assert prepare(tree, tmp_path, num_workers=1)[0].class_names[1] == "thing 1"


def test_second_run_continues_where_the_first_stopped(tmp_path: Path) -> None:
    archive, out = make_tar(tmp_path), tmp_path / "out"
    prepare(archive, out, num_workers=1)
    folder = out / "VOCdevkit/VOC2007"
    everything = files_in(out)
    (folder / "JPEGImages/b.jpg").unlink()
    (out / ".voc.tar.123.partial").write_text("half a image, from a killed run")
    (folder / "SegmentationClassGray/c.png").unlink()
    kept = {path: (folder / path).stat().st_mtime_ns for path in files_in(folder)}
    (data,) = prepare(archive, out, num_workers=1)
    assert data.written == 1
    assert files_in(out) == everything
    assert all((folder / path).stat().st_mtime_ns == stamp for path, stamp in kept.items())


def test_different_files_are_replaced_only_with_overwrite(tmp_path: Path) -> None:
    archive, out = make_tar(tmp_path), tmp_path / "out"
    note = out / "VOCdevkit/VOC2007/Annotations/a.xml"
    note.parent.mkdir(parents=True)
    note.write_text("<my work  />")
    with pytest.raises(UserError, match=r"1 existing file with other contents.*Annotations/a\.xml.*--overwrite"):
        prepare(archive, out, num_workers=1)
    assert note.read_text() == "<my work  />"
    prepare(archive, out, num_workers=1, overwrite=True)
    assert note.read_text() == "<annotation/>"


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = 4 if kind == tarfile.REGTYPE else 0
    return info


MALICIOUS: list[tuple[str, tarfile.TarInfo]] = [
    ("absolute", member("/tmp/pspexp-evil")),
    ("absolute", member("//tmp/pspexp-evil")),
    ("absolute", member("C:/evil")),
    (r"'\.\.'", member("../evil")),
    (r"'\.\.'", member("VOCdevkit/../../evil")),
    ("backslash", member("VOCdevkit\\..\\..\\evil")),
    ("outside the archive", member("VOCdevkit/link", tarfile.SYMTYPE, "../../evil")),
    ("outside the archive", member("VOCdevkit/link", tarfile.SYMTYPE, "/etc/passwd")),
    ("outside the archive", member("VOCdevkit/link", tarfile.LNKTYPE, "../evil")),
    ("outside the archive", member("VOCdevkit/link", tarfile.LNKTYPE, "/etc/passwd")),
    ("not a file in this archive", member("VOCdevkit/link", tarfile.SYMTYPE, "..")),
    ("not a file in this archive", member("VOCdevkit/link", tarfile.SYMTYPE, "absent")),
    ("chain of more than 10 links", member("VOCdevkit/link", tarfile.SYMTYPE, "link")),
    ("special file", member("VOCdevkit/null", tarfile.CHRTYPE)),
    ("special file", member("VOCdevkit/disk", tarfile.BLKTYPE)),
    ("special file", member("VOCdevkit/pipe", tarfile.FIFOTYPE)),
    ("twice", member("VOCdevkit/good")),
    ("twice", member("./VOCdevkit//good")),
    ("without a name", member("./")),
]


@pytest.mark.parametrize("without_data_filter", [False, True])
@pytest.mark.parametrize(("reason", "evil"), MALICIOUS, ids=[f"{r}-{e.name}-{e.linkname}" for r, e in MALICIOUS])
def test_unsafe_members_prevent_unpacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, evil: tarfile.TarInfo, without_data_filter: bool
) -> None:
    if without_data_filter:  # like early patch releases of Python 3.10 and 3.11
        monkeypatch.delattr(tarfile, "data_filter")
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.addfile(member("VOCdevkit/good"), io.BytesIO(b"good"))
        tar.addfile(evil, io.BytesIO(b"evil"))
        if "absolute" in reason:
            tar.addfile(member("../second"), io.BytesIO(b"evil"))
    with pytest.raises(UserError, match="nothing was unpacked") as caught:
        extract(tmp_path / "evil.tar", tmp_path / "out")
    assert len(caught.value.problems) == (3 if "absolute" in reason else 2)
    if without_data_filter:
        caught.match(reason)
    assert files_in(tmp_path) == ["evil.tar"]
    assert not Path("/tmp/pspexp-evil").exists()


def test_links_cannot_redirect_later_members(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.addfile(member("VOCdevkit/link", tarfile.SYMTYPE, str(tmp_path / "outside")))
        tar.addfile(member("VOCdevkit/link/evil"), io.BytesIO(b"evil"))
    with pytest.raises(UserError, match="nothing was unpacked"):
        extract(tmp_path / "evil.tar", tmp_path / "out")
    assert files_in(tmp_path) == ["evil.tar"]


def test_internal_links_become_plain_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = member("d/real")
        info.mode = 0o6777
        tar.addfile(info, io.BytesIO(b"good"))
        tar.addfile(member("d/soft", tarfile.SYMTYPE, "../d/real"))
        tar.addfile(member("d/hard", tarfile.LNKTYPE, "d/real"))
        tar.addfile(member("d/chain", tarfile.SYMTYPE, "soft"))
        tar.addfile(member("d/._real"), io.BytesIO(b"mac!"))
    extract(tmp_path / "a.tar", tmp_path / "out")
    assert files_in(tmp_path / "out") == ["d/chain", "d/hard", "d/real", "d/soft"]
    for path in (tmp_path / "out/d").iterdir():
        assert not path.is_symlink()
        assert path.read_bytes() == b"good"
        assert path.stat().st_nlink == 1
        assert path.stat().st_mode & 0o7111 == 0


def test_archive_larger_than_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=7))
    with tarfile.open(tmp_path / "big.tar", "w") as tar:
        tar.addfile(member("a"), io.BytesIO(b"good"))
        tar.addfile(member("b"), io.BytesIO(b"good"))
    with pytest.raises(UserError, match="needs 8 bytes, but only 7 are free"):
        extract(tmp_path / "big.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["voc.tar", "voc.tgz"])
def test_damaged_archive_leaves_only_complete_files(tmp_path: Path, name: str) -> None:
    archive = make_tar(tmp_path, name, "w:gz" if name.endswith("gz") else "w")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(UserError, match=r"voc\.t|missing"):
        prepare(archive, tmp_path / "out", num_workers=1)
    for path in files_in(tmp_path / "out") if (tmp_path / "out").exists() else []:
        assert (tmp_path / "out" / path).read_bytes() == (tmp_path / "src" / path).read_bytes()


def test_files_other_than_archives_are_refused(tmp_path: Path) -> None:
    (tmp_path / "voc.zip").write_bytes(b"PK\3\4 no tar")
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name, match in {
        "voc.zip": "damaged, or not a tar",
        "empty.tar": "damaged, or not a tar",
        "absent.tar": "no such file",
        "folder": "contains no data set",
    }.items():
        with pytest.raises(UserError, match=match):
            prepare(tmp_path / name, tmp_path / "out")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.addfile(member("readme"), io.BytesIO(b"good"))
    with pytest.raises(UserError, match="contains no data set"):
        prepare(tmp_path / "other.tar", tmp_path / "out")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no splits": (lambda t: [p.unlink() for p in (t / "ImageSets/Segmentation").iterdir()], "no split files"),
    "empty split": (lambda t: (t / "ImageSets/Segmentation/val.txt").write_text("\n"), "is empty"),
    "overlap": (
        lambda t: (t / "ImageSets/Segmentation/val.txt").write_text("c\na"),
        "1 sample in both train and val",
    ),
    "trainval": (
        lambda t: (t / "ImageSets/Segmentation/trainval.txt").write_text("a\nb"),
        "trainval is not the union of train and val: c",
    ),
    "no image": (lambda t: (t / "JPEGImages/b.jpg").unlink(), "split train: .*1 image missing: b"),
    "no label": (lambda t: (t / "SegmentationClass/c.png").unlink(), "split val: .*1 label missing: c"),
    "size": (
        lambda t: Image.new("RGB", (3, 2)).save(t / "JPEGImages/a.jpg"),
        r"a\.png: 4×2 pixels, but its image has 3×2",
    ),
    "broken": (lambda t: (t / "JPEGImages/a.jpg").write_text("x"), r"a\.jpg: not a readable image"),
    "colour": (
        lambda t: Image.new("RGB", (4, 2), (9, 9, 9)).save(t / "SegmentationClass/a.png"),
        r"colour \(9, 9, 9\) is not a class: 8 pixels",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_problems_with_the_folders_are_named(tmp_path: Path, fault: str) -> None:
    tree = make_tree(tmp_path / "VOC2007")
    damage, match = FAULTS[fault]
    damage(tree)
    with pytest.raises(UserError, match=match):
        prepare(tree, tmp_path, num_workers=1)
    assert not (tree / "SegmentationClassGray").exists()


def test_test_split_may_lack_labels(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "VOC2012")
    (tree / "ImageSets/Segmentation/test.txt").write_text("d\n")
    Image.new("RGB", (4, 2)).save(tree / "JPEGImages/d.jpg")
    (data,) = prepare(tree, tmp_path, num_workers=1)
    assert data.splits["test"] == ["d"]
    assert data.rows()[-1][1:3] == ["0", "0"]


def test_command_line(tmp_path: Path) -> None:
    archive = make_tar(tmp_path)
    env = {**os.environ, "PYTHONPATH": str(TOOL.parents[1])}

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(TOOL), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False, cwd=tmp_path)

    done = run(archive)
    assert (done.returncode, done.stderr) == (0, "")
    assert "aeroplane" in done.stdout
    assert "3 labels converted, 0 kept" in done.stdout
    assert (tmp_path / "data/VOCdevkit/VOC2007/SegmentationClassGray/a.png").is_file()
    wrong = run("absent.tar")
    assert wrong.returncode == 2
    assert "no such file" in wrong.stderr


@pytest.mark.parametrize("file", ["JPEGImages/b.jpg", "SegmentationClass/b.png"])
def test_truncated_files_are_named(tmp_path: Path, file: str) -> None:
    tree = make_tree(tmp_path / "VOC2007")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tree / "JPEGImages/b.jpg")
    Image.new("L", (64, 64)).save(tree / "SegmentationClass/b.png")
    content = (tree / file).read_bytes()
    (tree / file).write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(UserError, match=r"b\.(jpg|png): not a readable image \(.*truncated") as caught:
        prepare(tree, tmp_path, num_workers=1)
    assert len(caught.value.problems) == 1
    assert not (tree / "SegmentationClassGray").exists()


def test_turned_images_fit_labels_of_the_image_as_shown_and_as_stored(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "VOC2007")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (2, 4)).save(tree / "JPEGImages/a.jpg", exif=exif)
    Image.new("RGB", (4, 2)).save(tree / "JPEGImages/b.jpg", exif=exif)
    assert prepare(tree, tmp_path, num_workers=1)[0].written == 3


def test_labels_in_other_formats_are_prepared(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "VOC2007")
    label = tree / "SegmentationClass/b.png"
    Image.open(label).save(label.with_suffix(".tif"))
    label.unlink()
    assert prepare(tree, tmp_path, num_workers=1)[0].written == 3
    assert (tree / "SegmentationClassGray/b.png").is_file()
