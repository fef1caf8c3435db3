"""The messages of the package, read from its source: those that end a command, and warnings."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[2] / "pspexp"
ERRORS = {"UserError", "ArgumentError", "JobFailed"}
LOG = {"warning", "error"}  # methods of loggers
GATHER = {"append", "add"}  # methods of lists of problems
RESULTS = (ast.Yield, ast.Return, ast.AugAssign)
LISTS = (ast.List, ast.ListComp)
THROUGH = {"mask_logins", "shorten"}  # functions that return their first argument, changed
ELLIPSIS = "…"  # what is known only when the message is written
# Texts in the places of messages that are none: parts of logs, of reports and of files.
OTHERS = (
    *("configuration: ", "code: ", "machine: ", "data: ", "weights: the file", "frozen: ", "# "),
    *("Not in the class table", "The runs ", "No run has", "…: some classes", "…: … runs have seed"),
    *("…: uncommitted changes, machine", "…: code, versions", "…: no … in MLflow", "…, in the layout"),
    *(
        "existing sweeps",
        "not available",
        "Predictor(",
        "configured: ",
        "job …: …",
        "…; results in",
        "…on … images; results",
        "also in MLflow",
        "precision=…: …",
        "Groups (",
        "\nOptions (",
        "…: loading PyTorch",
        "validation on ",
        "…, … steps",
    ),
)


class Message(NamedTuple):
    """A message, with ``…`` in place of what it names.

    Args:
        file: The source file, relative to the package.
        text: The message.
        is_warning: Whether the command goes on.
    """

    file: str
    text: str
    is_warning: bool


def collect() -> list[Message]:
    """All messages of the package, in the order of its files, each once."""
    return list(dict.fromkeys(message for path in sorted(PACKAGE.rglob("*.py")) for message in in_file(path)))


def in_file(path: Path) -> Iterator[Message]:
    """The messages in a source file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    known = assigned(tree.body)
    for scope in scopes(tree):
        names = known | assigned([*ast.walk(scope)])
        for node, is_warning in places(scope):
            for text in texts(node, names):
                if is_message(text):
                    yield Message(path.relative_to(PACKAGE).as_posix(), text, is_warning)


def scopes(node: ast.AST) -> Iterator[ast.AST]:
    """The outermost functions and methods."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield child
        else:
            yield from scopes(child)


def assigned(nodes: list[ast.AST] | list[ast.stmt]) -> dict[str, str]:
    """The names that are set exactly once, to a text or, if they are constants, a number."""
    found: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
    once = {name: values[0] for name, values in found.items() if len(values) == 1}
    return {
        name: written(value, {})
        for name, value in once.items()
        if isinstance(value, ast.JoinedStr)
        or (isinstance(value, ast.Constant) and (isinstance(value.value, str) or name.isupper()))
    }


def places(scope: ast.AST) -> Iterator[tuple[ast.expr, bool]]:
    """The expressions that may be messages or lists of them, and whether they are warnings."""
    for node in ast.walk(scope):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ERRORS | GATHER:
                yield from ((argument, False) for argument in node.args)
            elif name in LOG and node.args:
                yield node.args[0], True
        elif isinstance(node, RESULTS) or (isinstance(node, ast.Assign) and isinstance(node.value, LISTS)):
            yield from ((value, False) for value in [node.value] if value is not None)


def texts(node: ast.expr, names: Mapping[str, str]) -> Iterator[str]:
    """The texts that an expression may be, or that a list of them may hold."""
    parts: list[ast.expr] = []
    if isinstance(node, ast.IfExp):
        parts = [node.body, node.orelse]
    elif isinstance(node, ast.BinOp) and isinstance(node.left, LISTS) | isinstance(node.right, LISTS):
        parts = [node.left, node.right]
    elif isinstance(node, ast.List | ast.Tuple):
        parts = node.elts
    elif isinstance(node, ast.Dict | ast.BoolOp):
        parts = node.values
    elif isinstance(node, ast.Starred):
        parts = [node.value]
    elif isinstance(node, ast.ListComp | ast.GeneratorExp):
        parts = [node.elt]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in THROUGH:
        parts = node.args[:1]
    elif isinstance(node, ast.JoinedStr | ast.Constant | ast.BinOp | ast.Name):
        text = re.sub(r"%(?:[.\d]*[sdfgr])", ELLIPSIS, written(node, names)).replace("%%", "%")
        yield re.sub(f"{ELLIPSIS}+", ELLIPSIS, text)
    for part in parts:
        yield from texts(part, names)


def written(node: ast.expr, names: Mapping[str, str]) -> str:
    """What an expression adds to a message."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(written(part, names) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return written(node.value, names)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return written(node.left, names) + written(node.right, names)
    if isinstance(node, ast.Name):
        return names.get(node.id, ELLIPSIS)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return of_call(node.func.id, [written(argument, names) for argument in node.args])
    return ELLIPSIS


def of_call(name: str, arguments: list[str]) -> str:
    """What the result of a function adds to a message."""
    if name == "setting":
        return "=".join({"None": "null", "True": "true", "False": "false"}.get(one, one) for one in arguments)
    if name == "did_you_mean":
        return ""
    if name == "count":
        noun = arguments[1]
        return noun if noun == ELLIPSIS else f"{ELLIPSIS} {noun}{'es' if noun.endswith('s') else 's'}"
    return ELLIPSIS


def is_message(text: str) -> bool:
    """Whether a text is a message rather than a name, a pattern or a part of one: it says something about something."""
    words = re.findall(r"[A-Za-z]{2,}", text)
    return len(words) > 1 and bool(re.search(r": |; ", text)) and not text.startswith((*OTHERS, "<", "; "))
