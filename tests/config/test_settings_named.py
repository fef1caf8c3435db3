"""How code that does not depend on ``config`` names settings in messages."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import pspexp
from pspexp.config.options import conf_dir

PACKAGE = Path(pspexp.__file__).parent
BELOW_CONFIG = ("engine", "tracking", "models", "data", "utils", "losses", "optim", "inference", "metrics")
GROUPS = sorted(
    path.name for path in Path(conf_dir()).iterdir() if path.is_dir() and path.name not in ("hydra", "sweep")
)
NODES = (
    "trainer",
    "finetune",
    "loader",
    "checkpoint",
    "compare",
    "sync",
    "clean",
    "predict",
    "export",
    "sweep",
    "crop_size",
)
FILES = r"metrics\.(?:jsonl|previous)"
KEY = re.compile(rf"(?<![\w.])(?!{FILES})(?:{'|'.join([*GROUPS, *NODES])})(?:\.[a-z_]+|=[a-z])")


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for part in BELOW_CONFIG:
        path = PACKAGE / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            yield file, ast.parse(file.read_text())


def is_setting(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setting"


def docstrings(tree: ast.Module) -> set[int]:
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def test_settings_are_named_only_through_the_helper() -> None:
    found = []
    for file, tree in trees():
        allowed = docstrings(tree) | {id(arg) for node in ast.walk(tree) if is_setting(node) for arg in node.args}  # type: ignore[attr-defined]
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in allowed:
                found += [f"{file.relative_to(PACKAGE)}:{node.lineno} {key}" for key in KEY.findall(node.value)]
    assert found == []


def named() -> set[str]:
    """Return all keys passed to `setting` as literals."""
    calls = (node for _, tree in trees() for node in ast.walk(tree) if is_setting(node))
    return {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", sorted(named()))
def test_named_settings_exist(key: str) -> None:
    group, _, rest = key.partition(".")
    config = OmegaConf.load(Path(conf_dir()) / "config.yaml")
    if group in GROUPS:
        options = [OmegaConf.load(file) for file in (Path(conf_dir()) / group).glob("*.yaml")]
        assert not rest or any(has(option, rest) for option in options)
    else:
        assert has(config, key)


def has(config: object, key: str) -> bool:
    for part in key.split("."):
        if not OmegaConf.is_dict(config) or part not in config:  # type: ignore[operator]
            return False
        config = OmegaConf.to_container(config, resolve=False)[part]  # type: ignore[call-overload, index]
        config = OmegaConf.create(config) if isinstance(config, dict) else config
    return True
