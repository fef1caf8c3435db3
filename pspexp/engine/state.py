"""The progress of training, and where its time goes."""

from dataclasses import dataclass, field
from typing import Any

from pspexp.data.dataset import Split, fingerprint


@dataclass
class TrainState:
    """The progress of training. Everything else about the loop follows from it.

    Attributes:
        step: Number of finished optimizer steps.
        validated_step: Step at which the weights were last validated.
        best: Metrics of the best validation, by name.
        last: Metrics of the last validation, by name.
        losses: Losses of the steps since the last log record, as far as they have been read from the device.
        overflows: Number of steps that fp16 skipped because their scaled gradients were not finite.
        consecutive_overflows: Number of such steps since the last one that was not skipped.
        skipped: Names of the images that could not be read, up to the last log record.
    """

    step: int = 0
    validated_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    overflows: int = 0
    consecutive_overflows: int = 0
    skipped: list[str] = field(default_factory=list)


def data_state(split: Split) -> dict[str, Any]:
    """What a training state holds about a split, to tell on resume whether it is still the same.

    Returns:
        The number of images, a hash of their names in order, and one of names and file sizes.
    """
    return {"images": len(split), "names": fingerprint(split.names), "files": split.fingerprint()}


class StepTimer:
    """Seconds spent on steps and on waiting for data, in total and since the last log record."""

    def __init__(self) -> None:
        self.total_s, self.total_images = 0.0, 0
        self.reset()

    def reset(self) -> None:
        """Start the next interval."""
        self.step_s, self.data_s, self.steps, self.images = 0.0, 0.0, 0, 0

    def add_step(self, data_s: float, step_s: float, images: int) -> None:
        """Count a step: seconds of waiting for data and of everything else, and the images of all processes."""
        self.data_s += data_s
        self.step_s += step_s
        self.steps += 1
        self.images += images
        self.total_s += data_s + step_s
        self.total_images += images

    def add_wait(self, seconds: float) -> None:
        """Count time spent waiting for the device to finish its queued work."""
        self.step_s += seconds
        self.total_s += seconds

    def metrics(self) -> dict[str, float]:
        """Means over the interval, in seconds and images per second."""
        return {
            "train/images_per_second": self.images / max(self.data_s + self.step_s, 1e-9),
            "train/data_time": self.data_s / max(self.steps, 1),
            "train/step_time": self.step_s / max(self.steps, 1),
        }
