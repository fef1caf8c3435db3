"""Compile ``csrc/``, once per environment and version of the sources.

Without ``torch.utils.cpp_extension``, which needs ninja and setuptools.
"""

import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch

CSRC = Path(__file__).parent / "csrc"


class CannotBuildError(ImportError):
    """The compiler or the headers are missing."""


def load() -> None:
    """Load the compiled part as ``torch_sdaa._C``."""
    loader = importlib.machinery.ExtensionFileLoader("torch_sdaa._C", str(library()))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[loader.name] = sys.modules["torch_sdaa"]._C = module


def library() -> Path:
    """Return the path of the compiled part, which is built if necessary, by one process at a time.

    Raises:
        CannotBuildError: there is no compiler, or no headers of this Python version.
        RuntimeError: the compiler failed; includes its output.
    """
    flags = _flags()
    state = [torch.__version__, sysconfig.get_config_var("SOABI"), *flags, *(file.read_text() for file in _sources())]
    file = _folder() / f"sdaa-{hashlib.sha256(repr(state).encode()).hexdigest()[:16]}.so"
    with (file.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            _compile(flags, file)
    return file


def _sources() -> list[Path]:
    return sorted(CSRC.iterdir())


def _folder() -> Path:
    """Return the build folder: in the environment or, if that is read-only, in the temporary folder."""
    folder = Path(sys.prefix) / "share" / "pspexp-stand-in"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"pspexp-stand-in-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _flags() -> list[str]:
    """Return the compiler flags for this version of torch and Python."""
    home = Path(torch.__file__).parent
    folders = (home / "include", home / "include/torch/csrc/api/include", sysconfig.get_path("include"))
    # Older torch exposes how its pybind11 was built; modules that share types must match.
    pybind = {name: getattr(torch._C, f"_PYBIND11_{name}", None) for name in ("COMPILER_TYPE", "STDLIB", "BUILD_ABI")}
    return [
        "-std=c++20" if torch.__version__ >= (2, 10) else "-std=c++17",
        "-O1",
        "-fPIC",
        "-fvisibility=hidden",
        "-shared",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *(f'-DPYBIND11_{name}="{value}"' for name, value in pybind.items() if value),
        *(flag for folder in folders for flag in ("-isystem", str(folder))),
        f"-L{home / 'lib'}",
    ]


def _compile(flags: list[str], file: Path) -> None:
    compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if shutil.which(compiler[0]) is None:
        raise CannotBuildError(f"torch_sdaa stand-in: no C++ compiler ({compiler[0]}) found")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        raise CannotBuildError("torch_sdaa stand-in: no Python headers (Python.h) found")
    unfinished = file.with_suffix(".unfinished")
    libraries = ["-ltorch_python", "-ltorch_cpu", "-ltorch", "-lc10"]
    command = [*compiler, *flags, str(CSRC / "sdaa.cpp"), "-o", str(unfinished), *libraries]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"torch_sdaa stand-in: {compiler[0]} failed\n{done.stderr[:2000]}")
    unfinished.rename(file)
