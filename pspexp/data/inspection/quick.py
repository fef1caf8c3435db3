"""Quick checks of labels and images before every training and test."""

import logging
from collections.abc import Mapping
from typing import Literal

from pspexp.data.cache import uncached
from pspexp.data.dataset import DatasetInfo, Split
from pspexp.data.file_split import FileSplit
from pspexp.data.inspection import file_rules, label_rules
from pspexp.data.inspection.cache import FactsCache
from pspexp.data.inspection.collect import common_root, inspect_quickly
from pspexp.data.inspection.findings import Finding, find, summarised
from pspexp.data.inspection.inspected import Inspection
from pspexp.errors import UserError

LIMIT = 2000  # samples of a split
RULES = (
    file_rules.unreadable,
    file_rules.different_sizes,
    file_rules.shared_samples,
    file_rules.nothing_readable,
    file_rules.several_frames,
    label_rules.undeclared,
    label_rules.void_objects,
    label_rules.unlabelled_splits,
    label_rules.missing_classes,
    label_rules.palettes,
    label_rules.snapped_values,
    label_rules.stale_copies,
)
NEVER_FATAL = ("stale copy",)  # what mode=check calls an error, but training can go on with

log = logging.getLogger(__name__)


def look(splits: Mapping[str, Split], info: DatasetInfo, on_error: Literal["raise", "skip"] = "raise") -> None:
    """Look at the labels and the headers of the images of splits, and log warnings.

    Splits that are not in files are not looked at. The facts are cached, see `pspexp.data.inspection.cache`.

    Args:
        splits: By role: ``train``, ``val``, ``test``.
        info: The data set's class names and so on.
        on_error: Whether samples that cannot be read are errors or skipped.

    Raises:
        UserError: Lists everything that makes training or testing on these samples pointless.
    """
    files = file_splits(splits)
    if not files:
        return
    same = identical(files)
    files = {role: split for role, split in files.items() if role not in same}
    root = common_root(files.values())
    inspected = inspect_quickly(files, info.num_classes, FactsCache(root), LIMIT)
    data = Inspection(inspected, info, root, skips=on_error == "skip", same=same)
    findings = find(data, RULES)

    def is_fatal(finding: Finding) -> bool:
        return finding.level == "error" and finding.kind not in NEVER_FATAL

    for finding in summarised((one for one in findings if not is_fatal(one)), str):
        log.warning("%s", finding.line())
    if errors := [one for one in findings if is_fatal(one)]:
        raise UserError(*(finding.line() for finding in summarised(errors, str)))


def file_splits(splits: Mapping[str, Split]) -> dict[str, FileSplit]:
    """The splits that consist of files, without the caches around them."""
    found: dict[str, FileSplit] = {}
    for role, split in splits.items():
        inner = uncached(split)
        if isinstance(inner, FileSplit) and len(inner):
            found[role] = inner
    return found


def identical(splits: Mapping[str, FileSplit]) -> dict[str, str]:
    """Roles with exactly the samples of an earlier role, and that role."""
    same: dict[str, str] = {}
    for role, split in splits.items():
        for other, earlier in splits.items():
            if other == role:
                break
            if earlier.samples == split.samples:
                same[role] = other
                break
    return same
