"""Unpacking zips: as safely as tars, for which test_prepare.py has the same cases."""

import stat
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from pspexp.data.preparation.archive import extract
from pspexp.errors import UserError
from pspexp.utils import files


def zip_member(name: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


LINK, PIPE = stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o666
MALICIOUS: list[tuple[str, zipfile.ZipInfo, str]] = [
    ("absolute", zip_member("/tmp/pspexp-evil"), "evil"),
    ("absolute", zip_member("C:/evil"), "evil"),
    (r"'\.\.'", zip_member("../evil"), "evil"),
    (r"'\.\.'", zip_member("data/../../evil"), "evil"),
    ("backslash", zip_member("data\\..\\..\\evil"), "evil"),
    ("outside the archive", zip_member("data/link", LINK), "../../evil"),
    ("outside the archive", zip_member("data/link", LINK), "/etc/passwd"),
    ("not a file in this archive", zip_member("data/link", LINK), "absent"),
    ("chain of more than 10 links", zip_member("data/link", LINK), "link"),
    ("special file", zip_member("data/pipe", PIPE), ""),
    ("twice", zip_member("data/good"), "evil"),
]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("reason", "evil", "content"), MALICIOUS)
def test_unsafe_zips_are_not_unpacked(tmp_path: Path, reason: str, evil: zipfile.ZipInfo, content: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as packed:
        packed.writestr(zip_member("data/good"), "good")
        packed.writestr(evil, content)
    with pytest.raises(UserError, match="nothing was unpacked") as caught:
        extract(tmp_path / "evil.zip", tmp_path / "out")
    caught.match(reason)
    assert [path.name for path in tmp_path.iterdir()] == ["evil.zip"]
    assert not Path("/tmp/pspexp-evil").exists()


def test_links_in_zips_become_plain_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(zip_member("d/real", stat.S_IFREG | 0o6777), "good")
        packed.writestr(zip_member("d/soft", LINK), "../d/real")
        packed.writestr("__MACOSX/d/._real", "mac")
    extract(tmp_path / "a.zip", tmp_path / "out")
    unpacked = {path.name: path for path in (tmp_path / "out").rglob("*") if not path.is_dir()}
    assert unpacked.keys() == {"real", "soft"}
    for path in unpacked.values():
        assert not path.is_symlink()
        assert path.read_text() == "good"
        assert path.stat().st_mode & 0o7111 == 0


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(files, "ANY_RATIO_BELOW", 1 << 16)
    (tmp_path / "zeros").write_bytes(bytes(1 << 20))
    bomb = tmp_path / f"bomb.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.write(tmp_path / "zeros", "d/zeros")
    else:
        with tarfile.open(bomb, "w:gz") as tar:
            tar.add(tmp_path / "zeros", "d/zeros")
    with pytest.raises(UserError, match=r"unpacks to (1,048,576|more than .*) bytes, more than 100 times its size"):
        extract(bomb, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_zip_larger_than_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=7))
    with zipfile.ZipFile(tmp_path / "big.zip", "w") as packed:
        packed.writestr("d/a", "good")
        packed.writestr("d/b", "good")
    with pytest.raises(UserError, match="needs 8 bytes, but only 7 are free"):
        extract(tmp_path / "big.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_zip_with_a_wrong_checksum_leaves_no_such_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("d/first", "first")
        packed.writestr("d/second", "second")
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace(b"second", b"sEcond", 2).replace(b"d/sEcond", b"d/second"))
    with pytest.raises(UserError, match=r"a\.zip: damaged"):
        extract(tmp_path / "a.zip", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out/d").iterdir()] == ["first"]


def test_encrypted_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("d/a", "good")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip: is encrypted"):
        extract(tmp_path / "a.zip", tmp_path / "out")


def test_icons_of_macos_folders_are_left_out(tmp_path: Path) -> None:
    """Their names end with a carriage return."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name in ("d/a", "d/Icon\r", "__MACOSX/d/._Icon\r"):
            packed.writestr(name, "x")
    extract(tmp_path / "a.zip", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["a"]


@pytest.mark.parametrize("name", ["d/anIcon\r", "Icon\r/a", "d\x1b/Icon\r", "d\x1b/._a"])
def test_other_control_characters_in_names_are_shown(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(name, "x")
    with pytest.raises(UserError) as refused:
        extract(tmp_path / "a.zip", tmp_path / "out")
    assert f"{name!r}: control character in its name" in str(refused.value)


def test_too_little_memory_is_not_a_damaged_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("d/a", "good")
    monkeypatch.setattr("shutil.copyfileobj", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        extract(tmp_path / "a.zip", tmp_path / "out")
