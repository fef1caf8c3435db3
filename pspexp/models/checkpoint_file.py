"""Reads a file of weights without running any code in it."""

import codecs
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


def load_checkpoint_file(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a file that ``torch.save`` or safetensors wrote, onto the CPU, without running any code in it.

    Raises:
        UserError: There is no such file, or it holds anything but a dict of tensors and plain values.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{path}: {'a folder, not a checkpoint file' if file.is_dir() else 'no such file'}")
    _allow_numpy_numbers()
    try:
        if is_safetensors(file):
            return dict(load_file(file))
        contents = torch.load(file, map_location="cpu", weights_only=True)
        if isinstance(contents, torch.jit.ScriptModule):  # torch 2.4 loads them in spite of weights_only
            raise TypeError("a TorchScript network")
    except Exception as error:  # a damaged file raises errors of many classes: pickle, zip, EOF, unicode, ...
        raise UserError(f"{path}: {describe_unreadable(file, error)}") from error
    if not isinstance(contents, dict):
        raise UserError(f"{path}: holds a {type(contents).__name__}, not a dict of weights")
    return contents


@cache
def _allow_numpy_numbers() -> None:
    """Let ``torch.load`` read pickled NumPy numbers, since the reference saves its best score as one.

    None of the types allowed for this can run code. NumPy 1 and 2 name the constructor differently, and each must read
    the other's files.
    """

    def scalar(dtype: Any, data: bytes) -> Any:
        return np.frombuffer(data, dtype)[0]

    constructors: list[Any] = []
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        constructor = FunctionType(scalar.__code__, globals(), "scalar")
        constructor.__module__, constructor.__qualname__ = module, "scalar"
        constructors.append(constructor)
    kinds = {type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")}
    # torch 2.5 and later allow codecs.encode (text to bytes) by default
    torch.serialization.add_safe_globals([*constructors, np.dtype, *kinds, codecs.encode])
