"""``mode=predict``: predict the classes of images, and write them to files."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import DictConfig
from PIL import Image

from pspexp.config.build import build_trained
from pspexp.data.bands import AnyImage
from pspexp.data.dataset import DatasetInfo
from pspexp.engine.components import Components
from pspexp.engine.device import Device
from pspexp.engine.distributed import World
from pspexp.engine.predictor import Prediction, Predictor
from pspexp.errors import Interrupted, JobFailed, UserError
from pspexp.jobs.evaluate import warn_unlike_training
from pspexp.jobs.predict import outputs
from pspexp.jobs.predict.gallery import FILE as GALLERY
from pspexp.jobs.predict.gallery import write_gallery
from pspexp.jobs.predict.inputs import Input, Inputs
from pspexp.jobs.records import Request, public
from pspexp.launchers.base import StopSignal
from pspexp.metrics import ConfusionMatrix
from pspexp.tracking.provenance import file_hash
from pspexp.utils.files import shown_path
from pspexp.utils.progress import Progress
from pspexp.utils.text import count

log = logging.getLogger(__name__)

Found = tuple[AnyImage, npt.NDArray[np.uint8] | None]  # an image and its label
Results = tuple[AnyImage, Prediction, dict[str, object]]
MAX_LISTED = 20  # unreadable images in the final message


def predict(job: Request, device: Device, world: World, stop_signal: StopSignal) -> None:
    """Predict ``predict.input``; the images are divided among the processes.

    Raises:
        UserError: There is nothing to predict, or nothing could be read.
        JobFailed: Some images could not be read, or a result could not be written.
        Interrupted: A stop was requested; the same command continues.
    """
    config, folder = job.config, job.folder
    components, saved = build_trained(config, device, world)
    info = components.dataset.info
    inputs = world.broadcast_from_main(lambda: Inputs(config.predict.input, components.dataset, folder))
    settings = describe_settings(config, components, inputs)
    written = outputs.Outputs(folder, config.predict.save, info)
    table = outputs.Table(folder, info.class_names, world.rank)
    todo, written.replaces = world.broadcast_from_main(lambda: begin(config, settings, inputs, written, table))
    if world.is_main_process:
        announce(config, components, inputs, todo, folder, saved)
    try:
        failures, stopped_by = predict_all(
            todo, inputs, Predictor(components), written, table, info, world, stop_signal
        )
        # Before any process stops: the others would wait for it.
        stops = world.all_gather_object(stopped_by)
        if number := max(stops):
            raise Interrupted(number, "stopped; run the same command again to continue")
    except BaseException as error:
        if world.is_main_process:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            with suppress(JobFailed):  # the first error counts
                outputs.finish(folder, "KILLED" if stopped else "FAILED", settings, {})
        raise
    failures = {name: line for found in world.all_gather_object(failures) for name, line in found.items()}
    if world.is_main_process:
        conclude(config, settings, inputs, written, table, failures)


def describe_settings(config: DictConfig, components: Components, inputs: Inputs) -> dict[str, Any]:
    """What the results depend on; stored with them."""
    shown, info = public(config), components.dataset.info
    return {
        "checkpoint_sha256": file_hash(Path(config.checkpoint.path)),
        "model": {key: value for key, value in shown["model"].items() if key != "file"},
        "inference": shown["inference"],
        "precision": components.precision.resolve(components.device),
        "class_names": list(info.class_names),
        "mean": list(info.mean),
        "std": list(info.std),
        "input": [inputs.where, shown["dataset"] if inputs.split is not None else None],
    }


def begin(
    config: DictConfig, settings: dict[str, Any], inputs: Inputs, written: outputs.Outputs, table: outputs.Table
) -> tuple[list[Input], bool]:
    """The images without results, and whether what is in the output folder is replaced.

    Raises:
        UserError: The folder holds results made with other settings.
        JobFailed: The folder cannot be written.
    """
    overwrite: bool = config.predict.overwrite
    same = outputs.are_from(written.folder, settings, overwrite=overwrite)
    if overwrite or not same:
        table.clear()  # first: rows of other settings must never be taken for finished
    outputs.finish(written.folder, "RUNNING", settings, {})
    if overwrite or not same:
        return inputs.items, True
    done = table.resume()
    return [item for item in inputs.items if item.image not in done or not written.exist(item.name)], False


def announce(
    config: DictConfig,
    components: Components,
    inputs: Inputs,
    todo: Sequence[Input],
    folder: Path,
    saved: dict[str, Any],
) -> None:
    """Log what is about to be done."""
    skipped = len(inputs.items) - len(todo)
    if not todo:
        log.info("nothing to predict: the results of all %s are there", count(skipped, "image"))
        return
    log.info(
        "predicting %s with %s, %s, %s; results in %s%s",
        count(len(todo), "image"),
        shown_path(config.checkpoint.path),
        components.device.describe(),
        components.precision.explain(components.device),
        shown_path(folder),
        f"; {skipped} of {len(inputs.items)} are there already" if skipped else "",
    )
    warn_unlike_training(config, saved)
    if components.inference.region(2, 1) != (0, 0, 2, 1):
        log.warning(
            "inference=%s: only the central square is predicted, other pixels become %d; set inference=whole or slide",
            config.choices.inference,
            components.dataset.info.ignore_index,
        )


def predict_all(
    todo: Sequence[Input],
    inputs: Inputs,
    predictor: Predictor,
    written: outputs.Outputs,
    table: outputs.Table,
    info: DatasetInfo,
    world: World,
    stop_signal: StopSignal,
) -> tuple[dict[str, str], int]:
    """Predict this process's share of the images.

    Returns:
        A line for each image that cannot be predicted, and the number of the signal that stopped this process, or 0.
    """
    mine = todo[world.rank :: world.size]
    failures: dict[str, str] = {}
    stopped_by = 0
    writing: Future[None] | None = None
    with (
        ThreadPoolExecutor(1) as writer,
        Progress(len(todo), "predict", unit="image", silent=not world.is_main_process) as progress,
    ):
        for item, found in read_ahead(mine, inputs.read):
            try:
                result = predict_one(item, found, predictor, written, info)
            except UserError as error:
                failures[item.image] = str(error)
                log.warning("skipped: %s", error)
            else:
                if writing is not None:
                    writing.result()
                writing = writer.submit(save, written, table, item, *result)
            progress.add(world.size)
            if stopped_by := stop_signal() or 0:
                break
        if writing is not None:
            writing.result()
    return failures, stopped_by


def predict_one(
    item: Input, found: Found | UserError, predictor: Predictor, written: outputs.Outputs, info: DatasetInfo
) -> Results:
    """The results of an image that was read.

    Raises:
        UserError: It could not be read, or the network cannot be applied to it.
    """
    if isinstance(found, UserError):
        raise found
    image, label = found
    try:
        prediction = predictor.predict(image, with_probabilities="probabilities" in written.kinds)
    except UserError as error:
        raise UserError(*(f"{item.image}: {problem}" for problem in error.problems)) from error
    return image, prediction, describe_image(item, image, label, prediction, info)


def save(
    written: outputs.Outputs,
    table: outputs.Table,
    item: Input,
    image: AnyImage,
    prediction: Prediction,
    row: dict[str, object],
) -> None:
    """Write the results of an image, and then its row, which marks it as finished."""
    written.save(item.name, image, prediction.ids, prediction.probabilities)
    table.add(row)


def read_ahead(items: Sequence[Input], read: Callable[[Input], Found]) -> Iterator[tuple[Input, Found | UserError]]:
    """Each item with its image, or with the error if it cannot be read; the next one is read in the meantime."""

    def attempt(item: Input) -> Found | UserError:
        try:
            return read(item)
        except UserError as error:
            return error

    waiting: deque[tuple[Input, Future[Found | UserError]]] = deque()
    with ThreadPoolExecutor(1) as reader:
        for item in items:
            waiting.append((item, reader.submit(attempt, item)))
            if len(waiting) > 1:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def describe_image(
    item: Input,
    image: AnyImage,
    label: npt.NDArray[np.uint8] | None,
    prediction: Prediction,
    info: DatasetInfo,
) -> dict[str, object]:
    """The row of an image in the table."""
    pixels = Image.fromarray(prediction.ids).histogram()
    shares = {name: f"{pixels[index] / prediction.ids.size:.6f}" for index, name in enumerate(info.class_names)}
    row: dict[str, object] = {
        "image": item.image,
        "width": image.width,
        "height": image.height,
        "confidence": f"{prediction.confidence:.6f}",
        **shares,
    }
    if label is not None:
        matrix = ConfusionMatrix(info.num_classes, info.ignore_index)
        scored = np.where(prediction.ids == info.ignore_index, info.ignore_index, label)
        known = np.where(prediction.ids == info.ignore_index, 0, prediction.ids)
        matrix.update(torch.from_numpy(known)[None].long(), torch.from_numpy(scored)[None].long())
        report = matrix.report(info.class_names)
        measures = {"iou": report.mean_iou, "accuracy": report.overall_acc}
        row |= {name: f"{value:.6f}" for name, value in measures.items() if np.isfinite(value)}
    return row


def conclude(
    config: DictConfig,
    settings: dict[str, Any],
    inputs: Inputs,
    written: outputs.Outputs,
    table: outputs.Table,
    failures: dict[str, str],
) -> None:
    """Write the table, the gallery and the summary, and report what could not be read.

    Raises:
        UserError: Nothing could be read.
        JobFailed: Some images could not be read.
    """
    rows = table.merge([item.image for item in inputs.items if item.image not in failures])
    if config.predict.gallery:
        write_gallery(written, rows, {item.image: item.name for item in inputs.items})
    results = {"checkpoint": config.checkpoint.path, "images": len(rows), "skipped": list(failures)}
    outputs.finish(written.folder, "FAILED" if failures else "FINISHED", settings, results)
    lines = list(failures.values())
    if len(lines) > MAX_LISTED:
        lines[MAX_LISTED:] = [f"… and {len(failures) - MAX_LISTED} more, listed in {written.folder / outputs.SUMMARY}"]
    if failures and not rows:
        raise UserError(*lines)
    gallery = [GALLERY] if config.predict.gallery else []
    kinds = ", ".join([*(f"{kind}/" for kind in config.predict.save), outputs.TABLE, *gallery])
    log.info("%s in %s: %s", count(len(rows), "image"), shown_path(written.folder), kinds)
    if failures:
        raise JobFailed("\n".join([f"{len(failures)} of {len(inputs.items)} images could not be predicted:", *lines]))
