"""Reads a file of weights without running any code in it."""

import codecs
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from os import PathLike
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from pspexp.errors import UserError
from pspexp.models.file_kinds import describe_unreadable, is_safetensors
from pspexp.utils.files import max_unpacked, unpacks_to

FORMAT = "pspexp/1"  # the value of "format" in this project's checkpoints
MAX_DEPTH, MAX_VALUES = 40, 100_000  # of a configuration
NUMBERS = ("f4", "f8", "i4", "i8", "b1")  # types of NumPy numbers that are read


def load_checkpoint_file(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a file that ``torch.save`` or safetensors wrote, onto the CPU, without running any code in it.

    Raises:
        UserError: There is no such file, or it holds anything but a dict of tensors and plain values.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        reason = "a folder, not a checkpoint file" if file.is_dir() else "no such file"
        raise UserError(f"{path}: {reason}; give a file of weights")
    try:
        if is_safetensors(file):
            return dict(load_file(file))
        _refuse_bomb(file)
        with _numpy_numbers_allowed():
            contents = torch.load(file, map_location="cpu", weights_only=True)
        if isinstance(contents, torch.jit.ScriptModule):  # torch 2.4 loads them in spite of weights_only
            raise TypeError("a TorchScript network")
    except Exception as error:  # a damaged file raises errors of many classes: pickle, zip, EOF, unicode, ...
        raise UserError(f"{path}: {describe_unreadable(file, error)}") from error
    if not isinstance(contents, dict):
        raise UserError(f"{path}: holds a {type(contents).__name__}, not a dict of weights; save network.state_dict()")
    if problem := _damage(contents):
        raise UserError(f"{path}: is damaged ({problem}); copy or download it again")
    return contents


def is_own_format(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's content has this project's current format."""
    kind = content.get("format")
    return isinstance(kind, str) and kind == FORMAT  # a tensor would compare element by element


def _refuse_bomb(file: Path) -> None:
    """Raise ValueError for a zip that unpacks to far more than its size; torch never compresses what it saves."""
    with file.open("rb") as stream:
        if stream.read(2) != b"PK":
            return
    with zipfile.ZipFile(file) as archive:
        size = sum(info.file_size for info in archive.infolist())
    if size > max_unpacked(file):
        raise ValueError(unpacks_to(f"{size:,}"))


def _damage(contents: dict[str, Any]) -> str | None:
    """What is wrong with those parts of one of this project's checkpoints that all readers rely on."""
    if not is_own_format(contents):
        return None
    config, training = contents.get("config", {}), contents.get("training", {})
    if not isinstance(config, dict) or not _is_plain(config):
        return "its configuration does not consist of plain values"
    if wrong := [key for key in ("choices", "dataset", "model") if not isinstance(config.get(key, {}), dict)]:
        return f"{wrong[0]} in its configuration is a {type(config[wrong[0]]).__name__}"
    return None if isinstance(training, dict) else f"its training state is a {type(training).__name__}"


def _is_plain(value: Any) -> bool:
    """Whether a value consists of those of YAML, and not of endlessly many: a pickled list may contain itself."""
    left, number = [(value, 0)], 0
    while left:
        (one, depth), number = left.pop(), number + 1
        inner = [*one.keys(), *one.values()] if isinstance(one, dict) else one
        if number > MAX_VALUES or depth > MAX_DEPTH:
            return False
        if isinstance(inner, list | tuple):
            left += [(item, depth + 1) for item in inner]
        elif one is not None and type(one) not in (str, int, float, bool):
            return False
    return True


class _NumberType:
    """Stands for ``numpy.dtype`` in pickled NumPy numbers.

    NumPy's own accepts a state with which numbers are read as addresses of Python objects: a file could name any.
    """

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        self.name, self.byte_order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = state[1]


def _scalar(kind: _NumberType, data: bytes) -> Any:
    """NumPy's function that makes a number of its bytes."""
    if kind.name not in NUMBERS or kind.byte_order not in ("<", ">", "|", "="):
        raise ValueError(f"a NumPy value of type {kind.name}")
    return np.frombuffer(data, np.dtype(kind.name).newbyteorder(kind.byte_order))[0]  # type: ignore[arg-type]


@contextmanager
def _numpy_numbers_allowed() -> Iterator[None]:
    """Let ``torch.load`` read pickled NumPy numbers, since the reference saves its best score as one.

    None of what is allowed for this can run code. NumPy 1 and 2 name the constructor differently, and each must read
    the other's files. What others have allowed for ``numpy.dtype`` applies again afterwards.
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([*(one for one in before if one is not np.dtype), *_numpy_numbers()])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


@cache
def _numpy_numbers() -> list[Any]:
    """The stand-ins for NumPy's functions and types."""
    constructors: list[Any] = []
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        constructor = FunctionType(_scalar.__code__, globals(), "scalar")
        constructor.__module__, constructor.__qualname__ = module, "scalar"
        constructors.append(constructor)
    dtype: Any = type("dtype", (_NumberType,), {"__module__": "numpy"})
    # torch 2.5 and later allow codecs.encode (text to bytes) by default
    return [*constructors, dtype, codecs.encode]
