"""Terminals whose encoding lacks characters of a message."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pspexp.utils.console_handler import ConsoleHandler, escape_unencodable

CHECKOUT = Path(__file__).parents[2]
ASCII = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("text", ["48×32 – 猫", "undecodable file name \udcff"])
def test_messages_are_shown_with_escapes(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    written = {"stdout": io.BytesIO(), "stderr": io.BytesIO()}
    for name, stream in written.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding="ascii", write_through=True))
    handler = ConsoleHandler()
    for level in (logging.INFO, logging.ERROR):
        handler.emit(logging.makeLogRecord({"msg": text, "levelno": level}))
    expected = text.encode("ascii", "backslashreplace") + b"\n"
    assert [stream.getvalue() for stream in written.values()] == [expected, expected]


def test_other_streams_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (None, io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        escape_unencodable()


@pytest.mark.parametrize(
    ("command", "code", "shown"),
    [
        (("-m", "pspexp", "--help", "run_name", "run_name='48×32'"), 0, "run_name=48\\xd732"),
        (("tools/prepare_voc.py", "猫.tar"), 2, "\\u732b.tar: no such file or folder"),
        (("tools/convert_voc_label.py", "--input_dir", "猫", "--output_dir", "out"), 2, "\\u732b: no such folder"),
    ],
)
def test_commands_escape(command: tuple[str, ...], code: int, shown: str) -> None:
    done = subprocess.run([sys.executable, *command], env=ASCII, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == code
    assert shown in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_converted_folder_with_any_name(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "in").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "in" / "a.png")
    command = [sys.executable, str(CHECKOUT / "tools/convert_voc_label.py"), "--workers", "1"]
    folders = ["--input_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "猫")]
    done = subprocess.run([*command, *folders], env=ASCII, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u732b: 1 labels written" in done.stdout


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "is_broken"), [(Terminal(), True), (io.StringIO(), False)])
def test_messages_are_broken_on_a_terminal_only(
    stream: io.StringIO, is_broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "30")
    words = {"msg": "everything of this run is in %s, 'also this one'", "args": (Path("my data/and runs"),)}
    ConsoleHandler().emit(logging.makeLogRecord({**words, "levelno": logging.INFO}))
    shown = ["everything of this run is in", "  my data/and runs,", "  'also this one'"]
    assert stream.getvalue() == ("\n".join(shown) if is_broken else " ".join(map(str.strip, shown))) + "\n"


def test_messages_are_written_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(Path, "home", unknown)  # as in a container, for a user without a name
    ConsoleHandler().emit(logging.makeLogRecord({"msg": "written", "levelno": logging.INFO}))
    assert stream.getvalue() == "written\n"


def test_everything_may_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleHandler(only_stderr=True).emit(logging.makeLogRecord({"msg": "written", "levelno": logging.INFO}))
    assert capsys.readouterr() == ("", "written\n")
