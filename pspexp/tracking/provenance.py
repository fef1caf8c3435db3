"""Where a run comes from: code, versions, machine, command, data."""

import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from pspexp import __version__
from pspexp.tracking.secrets import mask_diff, words_without_secrets

CHECKOUT = Path(__file__).resolve().parents[2]
MAX_DIFF = 2**20  # characters; a longer one is kept as a list of files only
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "hydra-core", "omegaconf", "mlflow")
# Whatever the user's own settings are: what `git apply` takes.
_PLAIN = ("-c", "core.quotePath=false", "-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false")

_DIFF = ("diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv")
_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX")
NOT_KEPT = "# new, not kept: "


class Uncommitted(NamedTuple):
    """What a checkout holds beyond its commit.

    Attributes:
        fingerprint: SHA-256 of all of it, contents of new files included.
        file: name to keep `text` under: ``uncommitted.diff``, or ``uncommitted.stat`` where it was too long.
        text: the diff, new files of the program included, after a line for each one that is not; secrets are masked.
    """

    fingerprint: str
    file: str
    text: str


def git(*words: str, differs: bool = False) -> str | None:
    """What git says of this package's checkout; None outside of one, or if git fails.

    Args:
        words: of the command.
        differs: it ends with 1 where it has found a difference, which is no failure.
    """
    if not (CHECKOUT / ".git").exists():  # installed: a repository further up is somebody else's
        return None
    # A hook's variables would name another repository; and this one may be somebody else's to lock.
    environment = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    try:
        done = subprocess.run(
            ["git", *_PLAIN, *words],
            cwd=CHECKOUT,
            env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "surrogateescape") if done.returncode in (0, int(differs)) else None


@cache
def git_commit() -> str | None:
    """Commit of this package's checkout, with ``-dirty`` where tracked files differ; None outside of one."""
    return (git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty") or "").strip() or None


@cache  # as it is when the process asks first: what it has imported does not change later either
def uncommitted() -> Uncommitted | None:
    """What this package's checkout holds beyond its commit; None if that is nothing, or not known."""
    diff = git(*_DIFF, "HEAD") or ""
    names = (git("ls-files", "--others", "--exclude-standard", "-z", "--", "pspexp", "conf") or "").split("\0")
    room, lines, patches = MAX_DIFF - len(diff), list[str](), list[str]()
    for name in filter(None, names):
        patch = new_file(name, room)
        room -= len(patch)
        (patches if patch else lines).append(patch or f"{NOT_KEPT}{name} (SHA-256 {file_hash(CHECKOUT / name)})\n")
    text = "".join([*lines, diff, *patches])
    if not text:
        return None
    fingerprint = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    if len(text) <= MAX_DIFF:
        return Uncommitted(fingerprint, "uncommitted.diff", mask_diff(text))
    size = f"# {len(text) / 2**20:.1f} MiB of changes are not kept, only their list\n"
    return Uncommitted(fingerprint, "uncommitted.stat", size + (git("diff", "HEAD", "--stat") or ""))


def new_file(name: str, room: int) -> str:
    """The patch that makes a text file git does not know yet; empty if that is longer than ``room`` characters."""
    file = CHECKOUT / name
    try:
        kept = file.stat().st_size <= room and b"\0" not in file.read_bytes()
    except OSError:
        return ""
    patch = git(*_DIFF, "--no-index", "--", os.devnull, name, differs=True) if kept else None
    return patch if patch and len(patch) <= room else ""


def file_hash(path: Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256; what went wrong if it cannot be read."""
    try:
        return _whole_hash(path)[:16]
    except OSError as error:
        return str(error.strerror)


def weights_hashes(model: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the files that a model's weights start from, by key; ``model`` is that node of the configuration."""
    files = {f"model.{key}": Path(str(model.get(key))) for key in ("weights", "backbone_weights")}
    return {key: _whole_hash(file) for key, file in files.items() if file.is_file()}


def _whole_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:  # may be large
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a result; those not installed are left out."""
    own = {"python": platform.python_version(), "pspexp": __version__}
    return own | {package: version for package in _PACKAGES if (version := _version(package))}


def device_versions(plugin: str | None) -> dict[str, str]:
    """Versions of what drives accelerators: CUDA, ROCm, cuDNN and a device plugin, where there are any."""
    cudnn: Any = torch.backends.cudnn  # untyped
    found = {
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "cudnn": cudnn.version() if cudnn.is_available() else None,
    }
    if plugin:
        found[plugin] = _version(plugin) or getattr(sys.modules.get(plugin), "__version__", None)
    return {name: str(version) for name, version in found.items() if version}


def host(device: str) -> dict[str, Any]:
    """This machine and how this process computes on it.

    Args:
        device: in the words of :meth:`pspexp.engine.device.Device.describe`.
    """
    return {
        "name": platform.node(),
        "os": platform.platform(),
        "cpu": cpu_model(),
        "vector": torch.backends.cpu.get_cpu_capability(),  # decides the order of sums
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
    }


def cpu_model() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def command_line(typed: Sequence[str], overrides: Sequence[str]) -> str:
    """The command as it can be typed again, without secrets.

    Args:
        typed: ``sys.argv`` as it was; empty in a process that a launcher started.
        overrides: the job's words, which then stand for it.
    """
    program, *words = typed or ["pspexp", *overrides]
    program = "python -m pspexp" if Path(program).name == "__main__.py" else Path(program).name
    return " ".join([program, *map(shlex.quote, words_without_secrets(words))])


def attempt(
    *,
    command: str,
    device: str,
    plugin: str | None,
    processes: int,
    data: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """The record of a run that begins, or goes on, now and in this process.

    Args:
        command: what was typed.
        device: see `host`.
        plugin: module of the device, for its version.
        processes: how many compute.
        data: number of images and fingerprint of each split.
        weights: of `weights_hashes`; none where a saved state is gone on with.
    """
    commit, changes = git_commit(), uncommitted()
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command,
        "git_commit": commit,
        "dirty": changes is not None or str(commit).endswith("-dirty"),
        "uncommitted": changes.fingerprint if changes else None,
        "versions": versions() | device_versions(plugin),
        "host": host(device),
        "processes": processes,
        "data": {name: dict(split) for name, split in data.items()},
        "weights": dict(weights),
    }


def short_fingerprint(data: Mapping[str, Mapping[str, Any]]) -> str:
    """Twelve digits for all splits together."""
    text = " ".join(f"{name}={split['fingerprint']}" for name, split in sorted(data.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
