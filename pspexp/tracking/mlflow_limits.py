"""What MLflow does not accept: names, and values that another attempt would not make acceptable."""

import re

MAX_NAME = 250  # characters
# Errors of MLflow that another attempt would not cure, and HTTP statuses that it might.
REFUSALS = {
    "BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}  # fmt: skip
OUTAGES = (401, 403, 404, 408, 429)


def is_refusal(error: Exception) -> bool:
    """Whether an error that a call to MLflow has raised means that it will not take what it was given."""
    if isinstance(error, ImportError):  # of a package for a kind of storage
        return True
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return 400 <= status < 500 and status not in OUTAGES
    return getattr(error, "error_code", None) in REFUSALS


class Names:
    """Replaces names by ones that every version of MLflow accepts; different names stay different."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """``iou/a+b`` to ``iou/a_b`` (``iou/a_b_2`` if that is taken)."""
        if name not in self._given:
            # MLflow reads names as paths: no empty, "." or ".." parts.
            parts = [re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/")]
            clean = "/".join("_" if part in ("", ".", "..") else part for part in parts)[: MAX_NAME - 4]
            taken, number, unique = set(self._given.values()), 2, clean
            while unique in taken:
                unique, number = f"{clean}_{number}", number + 1
            self._given[name] = unique
        return self._given[name]
