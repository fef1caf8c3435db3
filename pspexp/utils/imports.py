"""Imports that cost seconds, made cheaper or done in a thread."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from threading import RLock
from types import ModuleType
from typing import Any

from pspexp.errors import UserError
from pspexp.utils.user_cache import cache_folder

DYNAMO, DYNAMO_UTILS = "torch._dynamo", "torch._dynamo.utils"
_FORKING = RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_FORKING.acquire, after_in_parent=_FORKING.release, after_in_child=_FORKING.release)


def import_torch() -> None:
    """Import torch, which imports the device plugins that are installed.

    What torch compiles is kept in the user's cache: its own choice, made when it is imported, is a temporary folder.

    Raises:
        UserError: A plugin fails to import.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder("compiled")))
    try:
        import torch  # noqa: F401
    except RuntimeError as error:
        if "TORCH_DEVICE_BACKEND_AUTOLOAD" not in str(error):
            raise
        cause = error.__cause__ or error
        raise UserError(
            f"torch: {str(error).splitlines()[0]} ({type(cause).__name__}: {cause}); repair or uninstall this plugin, "
            "or set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to disable it"
        ) from error


def import_in_thread(name: str) -> Any:
    """Import a module in a thread other than the main one; no process is forked meanwhile.

    Its copy of the module would remain half imported, and importing it there would wait forever.
    """
    with _FORKING:
        return import_module(name)


def without_compiler(name: str) -> Any:
    """Import timm, or torchvision, without torch's compiler, whose import takes as long as that of torch.

    Both use two of its functions while they are imported: one marks functions that are not to be compiled, the other
    is called when an operation is compiled. They are deferred until then, as torch itself defers them. A release that
    needs more of the compiler imports all of it.
    """
    if name in sys.modules:
        return sys.modules[name]
    try:
        with _dynamo_deferred():
            return import_module(name)
    except (ImportError, AttributeError):
        return import_module(name)


@contextmanager
def _dynamo_deferred() -> Iterator[None]:
    """Let modules stand in for torch's compiler, unless it has been imported already."""
    if DYNAMO in sys.modules:
        yield
        return
    from torch._compile import _disable_dynamo

    def disable(function: Callable[..., Any], recursive: bool = True, **_: Any) -> Callable[..., Any]:
        return _disable_dynamo(function, recursive)

    def is_compile_supported(device_type: str) -> bool:
        supported: bool = import_module(DYNAMO_UTILS).is_compile_supported(device_type)
        return supported

    package, utils = ModuleType(DYNAMO), ModuleType(DYNAMO_UTILS)
    package.__path__ = []  # nothing else in it can be imported
    vars(package)["disable"], vars(utils)["is_compile_supported"] = disable, is_compile_supported
    stand_ins = {DYNAMO: package, DYNAMO_UTILS: utils}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]
