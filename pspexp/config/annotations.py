"""The types of a target's arguments, read from its source, and how help writes them.

Importing a target imports torch, which takes seconds; help is to appear at once.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo

from pspexp.errors import as_yaml

CHEAP = {"annotated_types", "pydantic", *sys.stdlib_module_names}  # packages that may be imported
NAMES = {int: "int", float: "float", str: "str", bool: "true | false", NoneType: "null", Path: "path"}
BOUNDS = {Gt: ">", Ge: "≥", Lt: "<", Le: "≤"}


def argument_types(target: str) -> dict[str, Any]:
    """The types of the arguments of a class or function, by name; Any for what is unknown.

    Args:
        target: Its dotted path, such as ``pspexp.losses.Focal``.

    Returns:
        Annotations. Empty if there is no such source, or if it cannot be read.
    """
    module, _, name = target.rpartition(".")
    try:
        found = _definition(module, name)
        return {} if found is None else _arguments(*found)
    except RecursionError:  # a class has the name of its base, or modules import a name from each other
        return {}


def _arguments(module: str, node: ast.ClassDef | ast.FunctionDef) -> dict[str, Any]:
    """`argument_types` of a class or function in a module."""
    if isinstance(node, ast.ClassDef):
        init = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
        if init is None:
            return _inherited(module, node) | _fields(module, node)
        node = init
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    names = _Names(module)
    return {one.arg: names.evaluate(one.annotation) for one in arguments if one.arg != "self"}


def type_text(annotation: Any) -> str:
    """A type as help writes it, such as ``float in [0, 1) | null``; empty if anything is allowed."""
    return " | ".join(dict.fromkeys(_alternatives(annotation)))


def choices(annotation: Any) -> list[str]:
    """The single values that a type names, such as ``null`` and ``auto``; there may be others."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return list(dict.fromkeys(value for one in inner for value in choices(one)))
    if origin is Annotated:
        return choices(inner[0])
    if origin is Literal:
        return [as_yaml(value) for value in inner]
    return {bool: ["false", "true"], NoneType: ["null"]}.get(annotation, [])


def _alternatives(annotation: Any) -> list[str]:
    """The alternatives of a union, or the only one."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        parts = [_alternatives(one) for one in inner]
        if not all(parts):
            return []
        return [one for part in parts for one in part if one != "int" or float not in _plain(inner)]
    if origin is Annotated:
        return _constrained(inner[0], [*_flat(inner[1:])])
    if origin is Literal:
        return [as_yaml(value) for value in inner]
    if annotation in NAMES:
        return [NAMES[annotation]]
    kind = origin or annotation
    if kind in (list, tuple, Sequence):
        items = list(dict.fromkeys(text for one in inner if one is not Ellipsis for text in _alternatives(one)))
        return [f"list of {items[0] if len(items) == 1 else '({})'.format(' | '.join(items))}" if items else "list"]
    return ["mapping"] if kind in (dict, Mapping) else []


def _constrained(annotation: Any, limits: Sequence[Any]) -> list[str]:
    """The alternatives of an annotated type."""
    found = _alternatives(annotation)
    if not found:
        return []
    bounds = {kind: getattr(one, kind.__name__.lower()) for one in limits for kind in BOUNDS if isinstance(one, kind)}
    least = [one.min_length for one in limits if isinstance(one, MinLen)]
    most = [one.max_length for one in limits if isinstance(one, MaxLen)]
    if len(bounds) == 2:
        (low, start), (high, end) = bounds.items()
        found[0] += f" in {'[' if low is Ge else '('}{start}, {end}{']' if high is Le else ')'}"
    elif bounds:
        ((kind, bound),) = bounds.items()
        found[0] += f" {BOUNDS[kind]} {bound}"
    if least and least == most:
        found[0] += f" ({least[0]} values)"
    is_wider = any(type(one).__name__ in ("WrapValidator", "BeforeValidator", "PlainValidator") for one in limits)
    return [*found, "…"] if is_wider else found


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    """Metadata of ``Annotated``, those within ``Field`` included."""
    for one in metadata:
        yield from one.metadata if isinstance(one, FieldInfo) else (one,)


def _plain(annotations: Iterable[Any]) -> list[Any]:
    """The types without their annotations."""
    return [get_args(one)[0] if get_origin(one) is Annotated else one for one in annotations]


class _Names(dict[str, Any]):
    """The names in a module, found when they are used; Any for those of modules that may be slow to import."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self._module = module

    def __missing__(self, name: str) -> Any:
        node = _statement(self._module, name)
        if node is None:
            raise KeyError(name)  # a builtin
        if isinstance(node, ast.Assign | ast.AnnAssign):
            return self.evaluate(node.value)
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module.partition(".")[0] in CHEAP:
                return getattr(import_module(node.module), node.names[0].name)
            with suppress(KeyError):
                return _Names(node.module)[node.names[0].name]
        return Any

    def evaluate(self, node: ast.expr | None) -> Any:
        """The value of an annotation; Any if it needs names that are not known here."""
        if node is None:
            return Any
        with suppress(Exception):
            return eval(compile(ast.Expression(node), self._module, "eval"), {}, self)
        return Any


def _inherited(module: str, node: ast.ClassDef) -> dict[str, Any]:
    """The arguments of the first base class."""
    base = node.bases[0] if node.bases else None
    return argument_types(f"{module}.{base.id}") if isinstance(base, ast.Name) else {}


def _fields(module: str, node: ast.ClassDef) -> dict[str, Any]:
    """The fields of a dataclass."""
    if not any("dataclass" in ast.unparse(one) for one in node.decorator_list):
        return {}
    names = _Names(module)
    annotated = [one for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]
    return {one.target.id: names.evaluate(one.annotation) for one in annotated if isinstance(one.target, ast.Name)}


def _definition(module: str, name: str) -> tuple[str, ast.ClassDef | ast.FunctionDef] | None:
    """A class or function, and the module that defines it, followed through imports."""
    node = _statement(module, name)
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return module, node
    if isinstance(node, ast.ImportFrom) and node.module is not None:
        return _definition(node.module, node.names[0].name)
    return None


def _statement(module: str, name: str) -> ast.stmt | None:
    """The last statement of a module that gives a name its meaning; an import is reduced to that name."""
    return _statements(module).get(name)


@cache
def _statements(module: str) -> dict[str, ast.stmt]:
    """The statements of a module by the names that they define; those of relative imports are made absolute."""
    file = _source(module)
    found: dict[str, ast.stmt] = {}
    try:
        body = ast.parse(file.read_bytes()).body if file else []
    except (OSError, SyntaxError, ValueError):  # reported when the target is built
        return found
    package = module if file and file.name == "__init__.py" else module.rpartition(".")[0]
    for node in _unconditional(body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            for one in node.names:
                found[one.asname or one.name] = ast.ImportFrom(_absolute(node, package), [one], 0)
        elif isinstance(node, ast.Import):
            found |= {(one.asname or one.name).partition(".")[0]: node for one in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {one.id: node for one in targets if isinstance(one, ast.Name)}
    return found


def _absolute(node: ast.ImportFrom, package: str) -> str | None:
    """The module that a statement imports from; None if it is not within ``package``'s top-level package."""
    try:
        return resolve_name("." * node.level + (node.module or ""), package)
    except ImportError:
        return None


def _unconditional(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, those in ``if TYPE_CHECKING: … else: …`` included: the last ones apply at run time."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _unconditional([*node.body, *node.orelse])
        else:
            yield node


def _source(module: str) -> Path | None:
    """The file of a module, found without importing a package; None if there is none."""
    top, *parts = module.split(".")
    with suppress(ImportError, ValueError):
        spec = find_spec(top)
        for root in (spec.submodule_search_locations or []) if spec else []:
            place = Path(root, *parts)
            for file in (place / "__init__.py", place.with_suffix(".py")):
                if file.is_file():
                    return file
        if spec and spec.origin and not parts:
            return Path(spec.origin)
    return None
