"""Refuses ``.pt2`` files by which ``torch.export.load`` would run more than a network.

Such a file may hold pickles, the names of functions that the program calls, and expressions of sizes, which SymPy
evaluates as Python. None of these is restricted by torch.
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

# The operators of networks, and arithmetic of sizes.
OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized|higher_order|torchvision)(\.\w+){1,2}|torch\.sym_\w+"
    r"|_operator\.(?!attrgetter|itemgetter|methodcaller|call)[a-z_]+|math\.[a-z]\w*"
)
PROGRAMS = ("models/model.json", "serialized_exported_program.json")
PAYLOADS = ("_weights_config.json", "_constants_config.json")
EXPRESSION = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp,
    ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip


def check(file: Path) -> None:
    """Check a file before ``torch.export.load`` reads it.

    Raises:
        ValueError: It contains what a network does not need.
    """
    with zipfile.ZipFile(file) as archive:
        names = [name.lower() for name in archive.namelist()]
        if len({*names}) < len(names):
            raise ValueError("several entries have the same name")
        for name in archive.namelist():
            if name.endswith(PROGRAMS):
                _check_program(json.loads(archive.read(name)))
            elif name.endswith(PAYLOADS):
                _check_payloads(json.loads(archive.read(name)))
            elif name.endswith(".pt"):
                torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)


def _check_program(program: Any) -> None:
    for key, value in _strings(program):
        if key in ("target", "as_operator") and value.startswith(("torch", "_operator", "math", "#")):
            if not OPERATOR.fullmatch(value):
                raise ValueError(f"it calls {value}, which is not an operator of networks")
        elif key == "expr_str" and not is_expression(value):
            raise ValueError(f"{value[:80]!r} is not an expression of sizes")


def _check_payloads(config: Any) -> None:
    for payload in config["config"].values():
        if payload["use_pickle"] or not payload["path_name"].startswith(("weight_", "tensor_")):
            raise ValueError(f"{payload['path_name']} is a pickle")


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All strings in nested values, each with the key nearest to it."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _strings(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, str):
        yield key, value


def is_expression(text: str) -> bool:
    """Whether a text is arithmetic of integers and symbols, with SymPy's functions only."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - called
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return (
        all(isinstance(node, EXPRESSION) for node in ast.walk(tree))
        and all(isinstance(node.func, ast.Name) for node in ast.walk(tree) if isinstance(node, ast.Call))
        and all(_is_function(name) for name in called)
        and all(re.fullmatch(r"[a-z]\d+|(int_)?oo", name) for name in (*names, *texts))
    )


def _is_function(name: str) -> bool:
    import sympy
    from torch.utils._sympy import functions

    found = getattr(functions, name, getattr(sympy, name, None))
    return isinstance(found, type) and issubclass(found, sympy.Basic)
