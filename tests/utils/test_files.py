from pathlib import Path

import pytest

from pspexp.utils.files import atomic_write, write_text_atomic


def test_failed_write_leaves_only_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.txt"
    write_text_atomic(file, "é")
    (tmp_path / "deep" / "a.txt.part").write_text("of a killed process")

    def fail() -> None:
        with atomic_write(file) as stream:
            stream.write(b"half")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert file.read_text(encoding="utf-8") == "é"
    assert list(file.parent.iterdir()) == [file]
    with atomic_write(file) as stream:
        stream.write(b"\xff\n")
    write_text_atomic(file, file.read_text(encoding="utf-8", errors="surrogateescape"))
    assert file.read_bytes() == b"\xff\n"
