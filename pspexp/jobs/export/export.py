"""``mode=export``: write a trained network in other formats, and check each file against it."""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pspexp import __version__
from pspexp.config.build import build_trained
from pspexp.data.transforms import normalize
from pspexp.engine.components import Components
from pspexp.engine.device import Device
from pspexp.engine.distributed import ProcessInfo, World
from pspexp.errors import JobFailed, UserError
from pspexp.jobs.export import formats
from pspexp.jobs.export.interface import ImageInterface, Kind, TensorInterface, example, exportable
from pspexp.jobs.export.register import register
from pspexp.jobs.export.verify import MIN_EQUAL_LABELS, Agreement, compare, samples, tensors
from pspexp.jobs.predict.inputs import Inputs
from pspexp.jobs.records import public
from pspexp.models.exported import LOADER, ExportedNetwork, is_exported
from pspexp.models.segmenter import size_rule
from pspexp.tracking.provenance import file_hash, git_commit
from pspexp.utils.allowed import allowing
from pspexp.utils.files import write_text_atomic
from pspexp.utils.progress import slow_loop
from pspexp.utils.tables import PIPED_WIDTH
from pspexp.utils.text import one_line

log = logging.getLogger(__name__)

FILES = {"pt2": "model.pt2", "onnx": "model.onnx", "int8": "model.int8.onnx"}
REPORT = "report.json"


def export(config: DictConfig, folder: Path) -> None:
    """Write the formats in ``export.format`` to ``folder``; a file is kept only if it agrees with the network.

    Raises:
        UserError: Something is missing.
        JobFailed: A file disagrees with the network, or cannot be written.
    """
    if is_exported(config.checkpoint.path):
        raise UserError(f"checkpoint.path={config.checkpoint.path}: is an exported file; give the checkpoint")
    config = in_float32(config)
    components, saved = build_trained(config, *on_cpu())
    images = config.export.images
    inputs = Inputs("split:val" if images is None else images, components.dataset, folder, "export.images")
    inputs.read(inputs.items[0])  # for its error, before anything is written
    warn_of_inference(config)
    exporter = Exporter(config, components, saved, inputs, folder)
    try:
        agreements = exporter.run()
        write_text_atomic(folder / REPORT, json.dumps(report(agreements), indent=2) + "\n")
    except OSError as error:
        raise JobFailed(f"{error.filename or folder}: cannot be written ({error.strerror or error})") from error
    show(agreements)
    if config.export.register is not None and not disagrees("onnx", agreements["onnx"]):
        register(folder / FILES["onnx"], config, config.export.register, config.export.alias)
    if wrong := [name for name, one in agreements.items() if disagrees(name, one)]:
        raise JobFailed(
            "\n".join(
                f"{FILES[name]}: only {agreements[name].equal_labels:.4%} of the pixels have the network's class, less "
                f"than {MIN_EQUAL_LABELS:.2%}; the file was not kept"
                for name in wrong
            )
        )


def require_onnx() -> None:
    """Raise UserError, shared by all processes, unless the packages that ONNX files need are installed."""
    if missing := [package for package in ("onnx", "onnxruntime", "onnxscript") if find_spec(package) is None]:
        raise UserError(
            f"tracking.register: needs {', '.join(missing)}; pip install 'pspexp[export]', or set it to null",
            shared=True,
        )


def register_trained(config: DictConfig, folder: Path, name: str) -> None:
    """Register the best weights of a finished training; a failure is logged and does not affect its result.

    Args:
        config: The training's configuration.
        folder: Its run folder.
        name: Name of the registered model.
    """
    copy = config.copy()
    OmegaConf.set_struct(copy, False)
    copy.checkpoint.path = str(folder / "checkpoints" / "best.pt")
    copy.export = {**copy.export, "format": ["onnx"], "input": "image", "register": name}
    try:
        (folder / "export").mkdir(exist_ok=True)
        export(copy, folder / "export")
    except Exception as error:
        log.warning(
            "tracking.register=%s: failed (%s); try again with mode=export checkpoint.path=%s export.register=%s",
            name,
            one_line(error),
            folder,
            name,
        )


def on_cpu() -> tuple[Device, World]:
    """The device of exports, and a world of one process."""
    device = Device("cpu")
    return device, World(ProcessInfo(), device)


def warn_of_inference(config: DictConfig) -> None:
    """Warn if the files will contain another inference mode than the configured one."""
    inference = config.inference
    plain = list(inference.get("scales", [1.0])) == [1.0] and not inference.get("flip")
    if config.export.input == "image" and not (plain and inference._target_ == "pspexp.inference.Whole"):
        log.warning(
            "export.input=image: the files contain inference=whole at scale 1, not the configured inference mode; "
            "with export.input=tensor, it can be chosen later"
        )


def in_float32(config: DictConfig) -> DictConfig:
    """The configuration with which files are made and checked, whatever the precision of the training was."""
    copy = config.copy()
    OmegaConf.set_struct(copy, False)
    copy.precision = {"_target_": "pspexp.engine.precision.Precision", "name": "fp32"}
    copy.channels_last = False
    return copy


class Exporter:
    """Writes and checks the files.

    Args:
        config: The configuration.
        components: The trained network, with its data set and inference mode.
        saved: The content of the checkpoint.
        inputs: The images to check the files on.
        folder: Where the files go.
    """

    def __init__(
        self, config: DictConfig, components: Components, saved: dict[str, Any], inputs: Inputs, folder: Path
    ) -> None:
        self._config, self._components, self._inputs, self._folder = config, components, inputs, folder
        self._kind: Kind = config.export.input
        self._stride, self._remainder = size_rule(components.model)
        self._description = self._describe(saved)
        self._module = self._interface(exportable(components.model, components.dataset.info.num_bands))

    def run(self) -> dict[str, Agreement]:
        """Write all formats; returns how each compares with the network."""
        wanted = list(self._config.export.format)
        agreements: dict[str, Agreement] = {}
        with TemporaryDirectory(prefix=".export-", dir=self._folder) as part:
            onnx = Path(part, FILES["onnx"])
            for name in wanted:
                log.info("writing %s", self._folder / FILES[name])
                file = Path(part, FILES[name])
                if name == "int8" and not onnx.exists():
                    self._write("onnx", onnx)
                if name != "onnx" or not onnx.exists():
                    self._write(name, file)
                agreements[name] = self._compare(file)
            for name in wanted:
                final = self._folder / FILES[name]
                if disagrees(name, agreements[name]):
                    final.unlink(missing_ok=True)  # of an earlier export
                else:
                    Path(part, FILES[name]).replace(final)
        return agreements

    def _write(self, name: str, file: Path) -> None:
        sample = example(self._kind, self._stride, self._components.dataset.info.num_bands)
        if name == "pt2":
            formats.write_pt2(self._module, self._kind, sample, file, self._description)
        elif name == "onnx":
            formats.write_onnx(self._module, self._kind, sample, file, self._description)
        else:
            formats.write_int8(file.with_name(FILES["onnx"]), file, self._calibration(), self._kind)
            formats.describe_onnx(file, self._description)

    def _interface(self, network: nn.Module) -> nn.Module:
        if self._kind == "tensor":
            return TensorInterface(network).eval()
        info = self._components.dataset.info
        return ImageInterface(network, info.mean, info.std, self._stride, self._remainder).eval()

    def _compare(self, file: Path) -> Agreement:
        num_classes = self._components.dataset.info.num_classes
        with allowing([LOADER]):  # even where it cannot be noted that the file was exported here
            exported = ExportedNetwork(str(file), num_classes)
        return compare(
            self._components.model.eval(), exported, self._components, self._inputs, self._config.export.num_images
        )

    def _calibration(self) -> Iterator[Tensor]:
        """Training images as the file takes them."""
        config, info = self._config, self._components.dataset.info
        source = "split:train" if config.export.images is None else config.export.images
        inputs = Inputs(source, self._components.dataset, self._folder, "export.images")
        chosen = samples(inputs, config.export.num_calibration_images)
        read = tensors(chosen, inputs, self._components.inference)
        for images, _ in slow_loop(read, len(chosen), f"calibrating {FILES['int8']}"):
            yield images.permute(0, 2, 3, 1) if self._kind == "image" else normalize(images, info.mean, info.std)

    def _describe(self, saved: dict[str, Any]) -> dict[str, Any]:
        """What is stored in every file."""
        config, info = self._config, self._components.dataset.info
        path = Path(config.checkpoint.path)
        shown = public(config)
        whole = {"name": "whole", "scales": [1.0], "flip": False}
        return {
            "input": self._kind,
            "class_names": info.class_names,
            "palette": info.palette.tolist(),
            "ignore_index": info.ignore_index,
            "mean": info.mean,
            "std": info.std,
            "size_rule": {"multiple_of": self._stride, "plus": self._remainder},
            "inference": whole if self._kind == "image" else shown["inference"],
            "step": saved.get("step", 1),
            "epoch": saved.get("epoch", 1),
            "checkpoint_sha256": file_hash(path),
            "git_commit": git_commit(),
            "pspexp_version": __version__,
            "config": saved.get("config", shown),
        }


def disagrees(name: str, agreement: Agreement) -> bool:
    """Whether a file in float32 computes something else than the network."""
    return name != "int8" and agreement.equal_labels < MIN_EQUAL_LABELS


def report(agreements: dict[str, Agreement]) -> dict[str, Any]:
    """The content of ``report.json``."""
    return {
        FILES[name]: {**asdict(one), "speedup": one.speedup, "kept": not disagrees(name, one)}
        for name, one in agreements.items()
    }


def show(agreements: dict[str, Agreement]) -> None:
    """Print the comparison."""
    table = Table(title="Compared with the network in fp32", title_justify="left")
    for column in ("file", "same class", "relative error", "mean IoU", "change", "ms/image", "speed-up"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for name, one in agreements.items():
        known = one.mean_iou is not None and one.reference_mean_iou is not None
        iou, change = ("–", "–")
        if known:
            iou = f"{100 * one.mean_iou:.2f}"  # type: ignore[operator]
            change = f"{100 * (one.mean_iou - one.reference_mean_iou):+.2f}"  # type: ignore[operator]
        table.add_row(
            FILES[name],
            f"{one.equal_labels:.4%}",
            f"{one.relative_error:.1e}",
            iou,
            change,
            f"{1000 * one.seconds:.0f}",
            f"{one.speedup:.2f}×",
        )
    console = Console()
    console.width = console.width if console.is_terminal else PIPED_WIDTH
    console.print(table)
