"""Label maps in MATLAB files: those of SBD and of COCO-Stuff 10k."""

from pathlib import Path
from typing import Any

import numpy as np

from pspexp.data.labels import Labels
from pspexp.data.preparation.mat_elements import check_elements
from pspexp.errors import UserError
from pspexp.utils.files import DAMAGED_FILE
from pspexp.utils.text import one_line

_VARIABLES = ("GTcls", "S", "names")
_OLD_NAMES = 172  # version 1.0 of COCO-Stuff 10k lists the label "unlabeled", too; version 1.1 lists 182


def check_scipy() -> None:
    """Raise UserError unless scipy, which reads MATLAB files, is installed."""
    try:
        import scipy.io  # noqa: F401 - MLflow's scikit-learn brings it along; its smaller variant does not
    except ImportError as error:
        raise UserError("scipy: is not installed, but reads the .mat labels; run: pip install scipy") from error


def read_mat(path: Path) -> Labels:
    """The label map in a MATLAB file: ``GTcls.Segmentation`` (SBD) or ``S`` (COCO-Stuff 10k).

    Returns:
        uint8 ``[H, W]``, with values as in the file.

    Raises:
        UserError: The file cannot be read, or contains no such map.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        check_elements(path, [name.encode() for name in _VARIABLES])
        content = loadmat(str(path), variable_names=_VARIABLES)
    except (*DAMAGED_FILE, MatReadError) as error:
        reason = one_line(error) or type(error).__name__
        raise UserError(f"{path}: not a readable MATLAB file ({reason}); download the file again") from error
    if "S" in content and np.size(content.get("names")) == _OLD_NAMES:
        raise UserError(
            f"{path}: labels of COCO-Stuff 10k v1.0, in which the classes have other numbers; "
            "download cocostuff-10k-v1.1.zip"
        )
    labels = _label_map(content)
    if labels is None:
        raise UserError(f"{path}: contains no label map (GTcls.Segmentation or S); download the file again")
    if not np.array_equal(labels, labels.astype(np.uint8)):
        raise UserError(f"{path}: label values that are not whole numbers from 0 to 255; download the file again")
    return np.ascontiguousarray(labels, np.uint8)


def _label_map(content: Any) -> Any:
    """The array in the file's contents, or None."""
    try:
        labels = content["GTcls"]["Segmentation"].flat[0] if "GTcls" in content else content["S"]
    except (KeyError, ValueError, IndexError):  # no such variable, no such field, or an empty one
        return None
    is_map = isinstance(labels, np.ndarray) and labels.ndim == 2 and labels.size and labels.dtype.kind in "uif"
    return labels if is_map else None
