"""Networks in files that ``mode=export`` wrote, and the description stored in them."""

import json
import logging
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pspexp.errors import UserError
from pspexp.utils.allowed import how_to_allow, is_allowed
from pspexp.utils.files import sha256
from pspexp.utils.text import one_line
from pspexp.utils.user_cache import cache_folder

ONNX, PT2 = ".onnx", ".pt2"
LOADER = "torch.export.load"  # which unpickles, imports and evaluates what a file says
DESCRIPTION = "pspexp.json"  # the extra file in a .pt2, and without suffix the key in an ONNX file's metadata

log = logging.getLogger(__name__)

Run = Callable[[Tensor], list[Tensor]]


def is_exported(path: str | Path) -> bool:
    """Whether a file's name is that of an exported network."""
    return Path(path).suffix in (ONNX, PT2)


def read_description(path: Path, *required: str) -> dict[str, Any]:
    """What ``mode=export`` stored about a network: configuration, class names, palette, interface and more.

    Args:
        path: The file.
        required: Parts that it must have.

    Raises:
        UserError: The file cannot be read, or was not written by ``mode=export``.
    """
    try:
        text = _onnx_description(path) if path.suffix == ONNX else _pt2_description(path)
        found: Any = None if text is None else json.loads(text)
    except ImportError as error:
        raise UserError(f"{path}: needs ONNX Runtime ({error}); pip install 'pspexp[export]'") from error
    except Exception as error:  # a damaged file raises errors of many classes
        raise UserError(f"{path}: not a readable exported network ({one_line(error)}); export it again") from error
    if text is None:
        raise UserError(
            f"{path}: was not written by mode=export: it has no description of classes and input; export it again"
        )
    if not isinstance(found, dict) or not isinstance(found.get("config", {}), dict) or not {*required} <= {*found}:
        raise UserError(f"{path}: is damaged (its description is incomplete); export the network again")
    return found


def _onnx_description(path: Path) -> str | None:
    metadata: dict[str, str] = open_session(path, optimize=False).get_modelmeta().custom_metadata_map
    return metadata.get(Path(DESCRIPTION).stem)


def _pt2_description(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.rpartition("/")[2] == DESCRIPTION]
        return archive.read(names[0]).decode() if names else None


def remember(file: Path) -> None:
    """Note that a file was exported here, by its digest."""
    note = cache_folder("exported") / sha256(file)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
    except OSError as error:
        log.warning("%s: will not be read without being allowed, since %s cannot be written (%s)", file, note, error)


def is_known(file: Path) -> bool:
    """Whether a file was exported here."""
    return (cache_folder("exported") / sha256(file)).exists()


def open_session(path: Path, *, optimize: bool = True) -> Any:
    """ONNX Runtime's session of a file, on the CPU, with as many threads as torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if not optimize:  # takes a fraction of the time
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class ExportedNetwork(nn.Module):
    """An exported network in place of the one it was made from. It runs on the CPU, whatever device the images are on.

    A file with the interface ``image`` gives ids and confidences instead of logits. Its "logits" here have that
    largest class and that confidence, with equal values for all other classes.

    Args:
        file: The file.
        num_classes: Number of classes.

    Raises:
        UserError: The file cannot be used.
    """

    def __init__(self, file: str, num_classes: int) -> None:
        super().__init__()
        description = read_description(Path(file), "input", "mean", "std")
        self.num_classes = num_classes
        self.interface: str = description["input"]
        # The interface ``image`` pads by itself.
        rule = description["size_rule"] if self.interface == "tensor" else {"multiple_of": 1, "plus": 0}
        self.output_stride, self.align_corners = int(rule["multiple_of"]), bool(rule["plus"])
        self._mean, self._std = (torch.tensor(description[key])[:, None, None] for key in ("mean", "std"))
        self._run: Run = _onnx_run(Path(file)) if Path(file).suffix == ONNX else _pt2_run(Path(file))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits ``{"out": [N, C, H, W]}`` of normalised images ``[N, 3, H, W]``."""
        host = images.float().cpu()
        if self.interface == "tensor":
            return {"out": self._run(host)[0].to(images.device)}
        pixels = ((host * self._std + self._mean) * 255).round().clamp(0, 255).to(torch.uint8)
        ids, confidence = self._run(pixels.permute(0, 2, 3, 1).contiguous())
        return {"out": logits_from_confidence(ids.long(), confidence, self.num_classes).to(images.device)}


def logits_from_confidence(ids: Tensor, confidence: Tensor, num_classes: int) -> Tensor:
    """Logits ``[N, C, H, W]`` with these largest classes, and these probabilities of them, ``[N, H, W]``."""
    confidence = confidence.clamp(1 / num_classes + 1e-6, 1)
    others = ((1 - confidence) / max(num_classes - 1, 1)).clamp_min(torch.finfo(torch.float32).tiny).log()
    logits = others[:, None].expand(-1, num_classes, -1, -1).clone()
    return logits.scatter_(1, ids[:, None], confidence.log()[:, None])


def _onnx_run(file: Path) -> Run:
    session = open_session(file)
    (source,) = session.get_inputs()

    def run(value: Tensor) -> list[Tensor]:
        found: Sequence[npt.NDArray[Any]] = session.run(None, {source.name: value.numpy()})
        return [torch.from_numpy(np.asarray(one)) for one in found]

    return run


def _pt2_run(file: Path) -> Run:
    if not is_known(file) and not is_allowed(LOADER):
        raise UserError(
            f"{file}: was not exported here, and reading a .pt2 file may run code in it; use the ONNX file, or, "
            f"{how_to_allow(LOADER)}"
        )
    try:
        network = torch.export.load(file).module()
    except Exception as error:  # see `read_description`
        raise UserError(f"{file}: not a readable exported network ({one_line(error)}); export it again") from error

    def run(value: Tensor) -> list[Tensor]:
        try:
            found = network(value)
        except AssertionError as error:  # a condition on the sizes that torch.export recorded
            size = "×".join(map(str, value.shape))
            raise UserError(f"{file}: cannot be applied to {size} ({one_line(error)}); use the ONNX file") from error
        return list(found) if isinstance(found, tuple) else [found]

    return run
