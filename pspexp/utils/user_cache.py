"""The folder for what is remembered between commands."""

import os
from pathlib import Path


def cache_folder(part: str) -> Path:
    """``$PSPEXP_CACHE/<part>``; by default that is in ``$XDG_CACHE_HOME/pspexp``, or in ``~/.cache/pspexp``."""
    home = os.environ.get("XDG_CACHE_HOME")
    default = Path(home if home and Path(home).is_absolute() else Path("~/.cache").expanduser(), "pspexp")
    return Path(os.environ.get("PSPEXP_CACHE") or default, part)
