import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pspexp.utils import progress as module
from pspexp.utils.progress import Progress, slow_loop

SCRIPT = """
import logging, sys, time
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="LOG %(message)s")
logging.getLogger().addHandler(logging.FileHandler(sys.argv[1]))
from pspexp.utils.progress import Progress
with Progress(20, "train", start=10, log_every=5) as train:
    for step in range(11, 21):
        train.advance(step, loss=1 / step, images_per_second=12.34, epoch=2)
        time.sleep(0.05)
        if step == 15:
            with Progress(4, "val", unit="image") as val:
                for _ in range(4):
                    val.add(1)
                    time.sleep(0.1)
            logging.info("validated")
print("end")
logging.info("after")
"""


def test_plain_lines_without_a_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run.log")]
    environment = {**os.environ, "FORCE_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    lines = [re.sub(r"ETA \d:\d\d:\d\d", "ETA T", line) for line in done.stdout.splitlines()]
    lines = [re.sub(r"^(LOG val .*  )\d+\.\d images", r"\1S images", line) for line in lines]
    facts = "epoch 2  loss {}  12.3 images/s  ETA T"
    assert lines == [
        "LOG train  step 15/20 (75 %)  " + facts.format("0.0667"),
        "LOG val  image 4/4 (100 %)  S images/s  ETA T",
        "LOG validated",
        "LOG train  step 20/20 (100 %)  " + facts.format("0.0500"),
        "end",
        "LOG after",
    ]
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_progress_bar_on_a_terminal_with_log_lines_above(tmp_path: Path) -> None:
    import pty

    master, slave = pty.openpty()
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run.log")]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
    with subprocess.Popen(command, stdout=slave, stderr=slave, env=environment) as child:
        os.close(slave)
        screen = b""
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # Linux's sign that the other end is closed
                break
            if not part:
                break
            screen += part
    os.close(master)
    assert child.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.decode())
    last = [line.strip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
    assert re.match(r"train ━+ 20/20 epoch 2  loss 0\.0500  12\.3 images/s  ETA 0:00:00$", last[-3])
    assert last[-2:] == ["end", "LOG after"]
    assert any(line.startswith("val ") for line in last)
    assert "LOG validated" in last  # a separate line, not inside a bar
    assert not any(line.startswith("LOG train") for line in last)
    assert (tmp_path / "run.log").read_text() == "validated\nafter\n"


def test_exception_leaves_no_bar_behind(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError), Progress(2, "train"):
        raise RuntimeError
    with caplog.at_level(logging.INFO), Progress(2, "again") as progress:
        progress.advance(2)
    assert "again  step 2/2 (100 %)" in caplog.text


def test_each_interval_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Progress(10, "train", log_every=5) as progress:
        for step in (3, 5, 7, 10, 10):
            progress.advance(step)
    assert [r.getMessage().split("  ")[1] for r in caplog.records] == ["step 5/10 (50 %)", "step 10/10 (100 %)"]


def test_long_steps_are_logged_before_they_are_due(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with caplog.at_level(logging.INFO), Progress(100, "train", log_every=50) as progress:
        for step in range(1, 41):
            now += 3
            progress.advance(step)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "train  step 2/100 (2 %)  ETA 0:04:54"
    assert [line.split()[2] for line in lines] == ["2/100", "12/100", "22/100", "32/100"]


def test_loop_of_less_than_two_seconds_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert list(slow_loop(range(5), 5, "counting")) == [0, 1, 2, 3, 4]
    assert caplog.text == ""


def test_slow_loop_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with caplog.at_level(logging.INFO):
        for _ in slow_loop(range(4), 4, "counting"):
            now += 0.8
    assert [record.getMessage() for record in caplog.records] == [
        "counting  image 3/4 (75 %)  1.2 images/s  ETA 0:00:01",
        "counting  image 4/4 (100 %)  1.2 images/s  ETA 0:00:00",
    ]
