"""Problems with several objects that are built, to report them together."""

from collections.abc import Callable
from typing import Any, TypeVar

from pspexp.errors import UserError

Built = TypeVar("Built")


class ErrorCollector:
    """Builds one object after another and collects the problems with all of them, to report them together."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def __call__(self, make: Callable[..., Built], *needed: Any) -> Any:
        """``make(*needed)``; None if it fails, or if one of ``needed`` is None because it failed."""
        if any(one is None for one in needed):
            return None
        try:
            return make(*needed)
        except UserError as error:
            self.problems += [problem for problem in error.problems if problem not in self.problems]
            return None
