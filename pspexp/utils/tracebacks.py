"""Where in the user's own code an error comes from."""

import os
import traceback
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("torch", "hydra", "pydantic", "pspexp")  # whose lines say nothing about the user's mistake


def line_in_user_code(error: BaseException) -> str:
    """`` (file:line)`` of the last line of code outside `PACKAGES` that led to an error; empty if there is none."""
    specs = [find_spec(name) for name in PACKAGES]
    own = tuple(f"{Path(spec.origin).parent}{os.sep}" for spec in specs if spec is not None and spec.origin)
    stack = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in stack if not frame.filename.startswith((*own, "<"))]
    if not frames:
        return ""
    file = Path(frames[-1].filename)
    return f" ({os.path.relpath(file) if file.is_relative_to(Path.cwd()) else file}:{frames[-1].lineno})"
