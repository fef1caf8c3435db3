"""A disk that is full, read-only, limited or lost: one clear error, and nothing that was saved is lost."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pspexp.engine.checkpoint import CheckpointDir
from pspexp.errors import JobFailed
from pspexp.utils import files
from tests.conftest import TINY, Cli, default_signals, last

CHECKOUT = Path(__file__).parents[2]


def can_mount() -> bool:
    """Whether this user may mount a file system of its own."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="needs the right to mount file systems")


def run_on_small_disk(
    tmp_path: Path, size: str, *overrides: str, before: str = "true"
) -> subprocess.CompletedProcess[str]:
    """Run a job with its output on a small disk, whose contents are then copied to ``tmp_path/kept``."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    command = " ".join([sys.executable, "-m", "pspexp", *(f"'{one}'" for one in overrides)])
    script = (
        f"mount -t tmpfs -o size={size} tmpfs {disk} && {before}; {command}; code=$?; cp -a {disk} {kept}; exit $code"
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@needs_mount
def test_training_that_does_not_fit_is_refused_before_it_begins(tmp_path: Path) -> None:
    found = run_on_small_disk(tmp_path, "300k", *TINY, "output_root=disk")
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"{tmp_path}/disk/shapes/")
    assert "the checkpoints need about 1." in line
    assert line.endswith("free some space, or choose another disk with output_root or hydra.run.dir")
    assert not list((tmp_path / "kept").rglob("*.pt"))


@needs_mount
@pytest.mark.slow
def test_full_disk_is_one_line_and_the_last_state_is_kept(tmp_path: Path) -> None:
    """Another file fills the disk once the first state is saved."""
    (tmp_path / "filler.py").write_text(
        "from pathlib import Path\n"
        "from pspexp.engine.hooks import Hook\n"
        "class Filler(Hook):\n"
        "    def on_step_end(self, trainer):\n"
        "        if trainer.state.step == 3:\n"
        "            with Path('disk/filler').open('wb', buffering=0) as file:\n"
        "                try:\n"
        "                    while file.write(bytes(4096)):\n"
        "                        file.flush()\n"
        "                except OSError:\n"
        "                    pass\n"
        "            with Path('disk/filler').open('r+b') as file:\n"
        "                file.truncate(Path('disk/filler').stat().st_size - 65536)\n"
    )
    overrides = (*TINY, "checkpoint.every_steps=1", "+hooks.filler._target_=filler.Filler", "hydra.run.dir=disk/run")
    found = run_on_small_disk(tmp_path, "8m", *overrides)
    assert found.returncode == 1, found.stderr
    assert "Traceback" not in found.stdout + found.stderr
    lines = [line for line in found.stderr.splitlines() if "cannot be written" in line]
    assert lines[-1].startswith(
        f"{tmp_path}/disk/run/checkpoints/last.pt: cannot be written: No space left on device, "
    )
    assert "last.pt of step 2 is kept; free some space, then continue with checkpoint.resume=auto" in lines[-1]
    assert last(tmp_path / "kept" / "run")["step"] == 2

    shutil.copytree(tmp_path / "kept" / "run", tmp_path / "resumed")
    code = subprocess.run(
        [sys.executable, "-m", "pspexp", *TINY, "checkpoint.resume=auto", "hydra.run.dir=resumed"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, check=False, capture_output=True,
    ).returncode  # fmt: skip
    assert code == 0
    assert last(tmp_path / "resumed")["step"] == 4


@needs_mount
def test_read_only_disk_is_one_line(tmp_path: Path) -> None:
    found = run_on_small_disk(
        tmp_path, "8m", *TINY, "hydra.run.dir=disk/run", before=f"mount -o remount,ro {tmp_path}/disk"
    )
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert line == "hydra.run.dir=disk/run: cannot write there (Read-only file system); choose another folder"


def test_file_size_limit(tmp_path: Path) -> None:
    def limited() -> None:
        default_signals()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    found = subprocess.run(
        [sys.executable, "-m", "pspexp", *TINY, "hydra.run.dir=run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        preexec_fn=limited,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert ".pt: cannot be written: File too large" in found.stderr
    assert "Traceback" not in found.stdout + found.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "FAILED"


@pytest.mark.parametrize("tracking", ["none", "mlflow"])
def test_disk_that_vanishes_is_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tracking: str
) -> None:
    """The whole folder of results, as of a network drive that is gone."""
    (tmp_path / f"vanish_{tracking}.py").write_text(
        "from pathlib import Path\n"
        "from pspexp.engine.hooks import Hook\n"
        "class Vanish(Hook):\n"
        "    def on_step_end(self, trainer):\n"
        "        if trainer.state.step == 3:\n"
        "            Path('disk').rename('gone')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    overrides = [*TINY, f"tracking={tracking}", "output_root=disk", "hydra.run.dir=disk/run"]
    overrides += ["tracking.wait_s=0"] if tracking == "mlflow" else []
    vanish = f"+hooks.vanish._target_=vanish_{tracking}.Vanish"
    assert cli(*overrides, "checkpoint.every_steps=1", vanish) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [one for one in error.splitlines() if one.startswith(f"{tmp_path}/disk/run")]
    assert line.startswith(f"{tmp_path}/disk/run: was moved or deleted, or its disk was removed; restore it, then ")
    assert not (tmp_path / "disk").exists()
    assert last(tmp_path / "gone" / "run")["step"] == 2


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let writes to files fail whose path contains a text."""

    def fill(part: str) -> None:
        real = files.make_folders

        def make_folders(folder: Path) -> None:
            if part in str(folder):
                raise OSError(errno.ENOSPC, "No space left on device", str(folder))
            real(folder)

        monkeypatch.setattr(files, "make_folders", make_folders)

    return fill


def test_training_goes_on_without_optional_files(
    cli: Cli, full: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("/plots", "/tables"):
        full(part)
    assert cli(*TINY, "hydra.run.dir=run") == 0
    log = (tmp_path / "run" / "run.log").read_text()
    assert "WARNING pspexp.tracking.local: the table of classes could not be written: [Errno 28] No space left" in log
    assert "the loss curves could not be written" in log
    assert "Traceback" not in log
    assert last(tmp_path / "run")["step"] == 4


def test_test_goes_on_without_optional_files(cli: Cli, full: Callable[[str], None], tmp_path: Path) -> None:
    assert cli(*TINY, "hydra.run.dir=run") == 0
    full("/test/plots")
    assert cli("mode=test", "checkpoint.path=run", "tracking=none", "hydra.run.dir=test") == 0
    assert (tmp_path / "test" / "tables" / "test_iou.csv").is_file()


def test_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointDir(tmp_path, {})
    folder.save("last.pt", {"step": 7, "model": {"weight": torch.zeros(1000)}})

    def save(content: Any, file: Any) -> None:
        file.write(b"half")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 3974720 vs 3974614")  # as torch does

    monkeypatch.setattr("torch.save", save)
    with pytest.raises(JobFailed) as failed:
        folder.save("last.pt", {"step": 8, "model": {"weight": torch.zeros(500_000)}})
    assert str(failed.value).startswith(f"{tmp_path}/last.pt: cannot be written: No space left on device, 1.9 MiB are ")
    assert f"; {tmp_path}/last.pt of step 7 is kept; " in str(failed.value)
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 7


def test_earlier_states_are_kept(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = ("checkpoint.every_steps=1", "checkpoint.keep=2", "trainer.validate_every=2")
    assert cli(*TINY, *states, "hydra.run.dir=run") == 0
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(file.name for file in folder.iterdir()) == [
        "best.pt", "last.pt", "step_00000003.pt", "step_00000004.pt",
    ]  # fmt: skip
    assert torch.load(folder / "step_00000003.pt", weights_only=True)["step"] == 3
    whole = last(tmp_path / "run")
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*.pt")}
    record = tmp_path / "run" / "config.yaml"  # as if the run had been resumed with another value since
    record.write_text(record.read_text().replace("weight_decay: 0.0\n", "weight_decay: 0.1\n"))
    assert "weight_decay: 0.1" in record.read_text()
    assert cli(*TINY, *states, "hydra.run.dir=again", f"checkpoint.resume={folder}/step_00000003.pt") == 0
    assert "resuming from step 3" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*.pt")} == before
    again = last(tmp_path / "again")
    assert all(torch.equal(again["model"][name], value) for name, value in whole["model"].items())
    assert cli(*TINY, "checkpoint.keep=2") == 2
    assert "checkpoint.keep=2: keeps the states of checkpoint.every_steps; set it, too" in capsys.readouterr().err


def test_finished_training_can_drop_its_state(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(*TINY, "checkpoint.keep_last=false", "hydra.run.dir=run") == 0
    assert [file.name for file in (tmp_path / "run" / "checkpoints").iterdir()] == ["best.pt"]
    for again in ((), ("checkpoint.resume=auto",)):
        assert cli(*TINY, *again, "hydra.run.dir=run") == 2
        message = "holds a run that would be overwritten; choose another folder"
        assert message in capsys.readouterr().err


def test_names_are_on_the_disk_after_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that survives a power failure: contents, new name, folder; and of a new folder its name."""
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        calls.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().relative_to(tmp_path)}")
        fsync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        calls.append(f"rename {self.relative_to(tmp_path)}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    files.write_text_atomic(tmp_path / "run" / "checkpoints" / "last.pt", "weights")
    assert calls == [
        "fsync run", "fsync .", "fsync run/checkpoints/last.pt.part", "rename run/checkpoints/last.pt.part",
        "fsync run/checkpoints",
    ]  # fmt: skip


def test_records_are_on_the_disk_before_the_checkpoint(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        calls.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    assert cli(*TINY, "hydra.run.dir=run") == 0
    saves = [index for index, name in enumerate(calls) if name in ("best.pt.part", "last.pt.part")]
    assert saves
    assert all(calls[index - 1] == "metrics.jsonl" or calls[index - 2] == "metrics.jsonl" for index in saves[1:])


@needs_mount
@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "40k"])
def test_small_shared_memory_is_one_line(tmp_path: Path, size: str) -> None:
    command = " ".join([sys.executable, "-m", "pspexp", *(f"'{one}'" for one in TINY), "loader.num_workers=2"])
    found = subprocess.run(
        ["unshare", "-m", "bash", "-c", f"mount -t tmpfs -o size={size} tmpfs /dev/shm && {command} hydra.run.dir=run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1, found.stderr
    assert "Traceback" not in found.stderr
    line = found.stderr.splitlines()[-1]
    assert line.startswith("/dev/shm: too small for the workers of the loader (")
    assert line.endswith("set loader.num_workers=0, or start the container with --shm-size=1g")
