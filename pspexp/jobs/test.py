"""``mode=test``."""

import logging
import math
from dataclasses import replace

from pspexp.config.build import build_trained
from pspexp.config.training_data import test_split
from pspexp.engine.device import Device
from pspexp.engine.distributed import World
from pspexp.errors import Interrupted, JobFailed, UserError, setting
from pspexp.jobs.class_weights import resolve_class_weights
from pspexp.jobs.evaluate import describe, evaluate, look_at_labels, warn_unlike_training
from pspexp.jobs.next_steps import after_test, is_sweep_job
from pspexp.jobs.records import Request, recorded, start_tracker
from pspexp.launchers.base import StopSignal
from pspexp.models.checkpoint_file import is_own_format
from pspexp.models.exported import ExportedNetwork
from pspexp.utils.files import shown_path

log = logging.getLogger(__name__)


def test(job: Request, device: Device, world: World, stop_signal: StopSignal) -> float | None:
    """``mode=test``: evaluate a checkpoint on the test split; returns the mean IoU."""
    config = job.config
    resolve_class_weights(config, world)
    parts, saved = build_trained(config, device, world)
    split = world.broadcast_from_main(lambda: test_split(config, parts.dataset))
    if not len(split):
        name = setting("dataset.test_split", config.dataset.get("test_split"))
        raise UserError(f"{name}: contains no images; name another split", shared=True)
    look_at_labels({"test": split}, parts, config)
    num_images = min(len(split), config.loader.max_eval_images or len(split))
    log.info("%s", describe(config, parts, num_images))
    log.info("records in %s", shown_path(job.folder))
    warn_unlike_training(config, saved)
    tracker = start_tracker(job, parts, {"test": split}, resume=False)
    found: dict[str, float] = {}

    def stop_if_asked() -> None:
        if number := world.all_reduce_max_async(stop_signal() or 0):
            raise Interrupted(number, "stopped during the test; run the same command again")

    with recorded(tracker, lambda: {"last": found}):
        evaluation = evaluate(parts.model, split, "test", parts, config, tracker, stop_if_asked)
        if evaluation.nonfinite:
            raise JobFailed(evaluation.describe_nonfinite())
        if isinstance(parts.model, ExportedNetwork) and parts.model.interface == "image":
            evaluation = replace(evaluation, loss=math.nan)  # there are no logits
        found |= evaluation.scalars("test")
        tracker.report(
            "test",
            evaluation.report,
            step=saved["step"] if is_own_format(saved) else 1,
            epoch=saved["epoch"] if is_own_format(saved) else 1,
            extra=evaluation.extra("test"),
        )
        for name, target in (config.dataset.get("class_map") or {}).items():
            if name != target:
                log.info("class_map: %s → %s", name, "ignored" if target is None else target)
        log.info("%s\n%s", shown_path(config.checkpoint.path), evaluation.report.table())
    if world.is_main_process and not is_sweep_job(job):
        for line in after_test(job, evaluation.report.mean_iou, num_images):
            log.info("%s", line)
    return evaluation.report.mean_iou
