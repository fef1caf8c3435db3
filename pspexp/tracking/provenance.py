"""Which code made a run."""

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from pspexp import __version__

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "hydra-core", "mlflow")


@cache
def git_commit() -> str | None:
    """Commit of this package's checkout, with ``-dirty`` where tracked files differ; None outside of one."""
    here = Path(__file__).resolve().parent
    if not (here.parents[1] / ".git").exists():  # installed: a repository further up is somebody else's
        return None
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a result; those not installed are left out."""
    own = {"python": platform.python_version(), "pspexp": __version__}
    return own | {package: version for package in _PACKAGES if (version := _version(package))}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
