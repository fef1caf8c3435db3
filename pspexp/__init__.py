"""Configurable experiments for semantic segmentation, built around PSPNet-50."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pspexp.config.build import build
    from pspexp.config.compose import compose

__all__ = ["build", "compose"]


def __getattr__(name: str) -> Any:
    """``compose`` and ``build`` on first use: importing the package costs neither torch nor Hydra."""
    if name == "compose":
        from pspexp.config.compose import compose

        return compose
    if name == "build":
        from pspexp.config.build import build

        return build
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
