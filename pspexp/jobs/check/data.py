"""What ``mode=check`` finds out about the data: findings, class shares and sizes, for data sets of any kind."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from pspexp.data.dataset import DatasetInfo, Role, Split
from pspexp.data.file_dataset import FileDataset
from pspexp.data.file_split import FileSplit
from pspexp.data.inspection import file_rules, label_rules
from pspexp.data.inspection.cache import FactsCache
from pspexp.data.inspection.collect import common_root, inspect_all
from pspexp.data.inspection.findings import Finding
from pspexp.data.inspection.inspected import InspectedSplit, Inspection
from pspexp.data.inspection.quick import file_splits, identical
from pspexp.errors import UserError
from pspexp.utils.progress import Progress, slow_loop

MAX_SAMPLES = 200  # of a split that is not in files
ROLES: tuple[Role, ...] = ("train", "val", "test")
RULES = (
    file_rules.missing_files,
    file_rules.unreadable,
    file_rules.refused_modes,
    file_rules.different_sizes,
    file_rules.several_frames,
    file_rules.shared_samples,
    file_rules.duplicates,
    file_rules.near_duplicates,
    file_rules.small_images,
    file_rules.unlike_sizes,
    label_rules.undeclared,
    label_rules.void_objects,
    label_rules.unlabelled_splits,
    label_rules.missing_classes,
    label_rules.void_labels,
    label_rules.void_splits,
    label_rules.palettes,
    label_rules.snapped_values,
    label_rules.stale_copies,
)


@dataclass
class SplitSummary:
    """What is in a split.

    Attributes:
        name: Its role.
        split: The split.
        counted: Number of samples that the other fields describe.
        by_sample: int64 ``[counted, C]``, pixels of each class.
        ignored: Number of ignored pixels.
        sizes: Number of images by width and height.
        indices: Index in the split of each row of ``by_sample``.
    """

    name: str
    split: Split
    counted: int
    by_sample: npt.NDArray[np.int64]
    ignored: int
    sizes: Counter[tuple[int, int]]
    indices: list[int]

    @property
    def pixels(self) -> npt.NDArray[np.int64]:
        """int64 ``[C]``, pixels of each class."""
        return np.asarray(self.by_sample.sum(axis=0))

    @property
    def images(self) -> npt.NDArray[np.int64]:
        """int64 ``[C]``, number of images with each class."""
        return np.asarray((self.by_sample > 0).sum(axis=0))

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Share of each class in the labelled pixels."""
        pixels = self.pixels
        return np.asarray(pixels / max(int(pixels.sum()), 1))

    @property
    def void(self) -> float:
        """Share of ignored pixels in all."""
        return self.ignored / max(self.ignored + int(self.pixels.sum()), 1)


@dataclass
class CheckedData:
    """The data of a configuration.

    Attributes:
        info: Class names and so on; None if the data set cannot be built.
        summaries: The splits.
        inspection: Facts about files; None for data that is not in files.
        findings: Findings about data that is not in files.
        gaps: Lines about missing files.
    """

    info: DatasetInfo | None = None
    summaries: list[SplitSummary] = field(default_factory=list)
    inspection: Inspection | None = None
    findings: list[Finding] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)

    def show(self, path: Path) -> str:
        """A path as it is shown."""
        return self.inspection.show(path) if self.inspection else str(path)

    def split(self, name: str) -> SplitSummary | None:
        """The summary of a role, if it could be opened."""
        return next((one for one in self.summaries if one.name == name), None)


def check_data(dataset: Any, config: DictConfig) -> CheckedData:
    """Inspect the splits of a data set; None, one that cannot be built, has none."""
    if dataset is None:
        return CheckedData()
    splits, gaps = open_splits(dataset)
    data = CheckedData(dataset.info, gaps=[line for lines in gaps.values() for line in lines])
    files = file_splits(splits)
    if files or data.gaps:
        same = identical(files)
        data.inspection = inspect_files({role: one for role, one in files.items() if role not in same}, dataset, config)
        data.inspection.same, data.inspection.gaps = same, gaps
        data.summaries = [summary_of(split, dataset.info) for split in data.inspection.splits.values()]
    others = {role: split for role, split in splits.items() if role not in files and len(split)}
    data.summaries += sampled(others, dataset.info)
    for summary in data.summaries:
        if not isinstance(summary.split, FileSplit):
            data.findings += findings_of(summary, dataset.info)
    return data


def open_splits(dataset: Any) -> tuple[dict[str, Split], dict[str, list[str]]]:
    """The splits by role, and lines about missing files; without a test split that is the validation split."""
    splits: dict[str, Split] = {}
    gaps: dict[str, list[str]] = {}
    for role in ROLES:
        if role == "test" and (not isinstance(dataset, FileDataset) or dataset.splits["test"] == dataset.splits["val"]):
            continue
        lines: list[str] = []
        try:
            if isinstance(dataset, FileDataset):
                samples, lines = dataset.samples(role)
                info = dataset.info
                splits[role] = FileSplit(samples, dataset.decoder, info.max_image_pixels, info.num_bands)
            else:
                splits[role] = dataset.open(role)
        except UserError as error:
            lines = list(error.problems) if role == "test" else []  # the others are reported when everything is built
        new = [line for line in lines if not any(line in others for others in gaps.values())]
        gaps |= {role: new} if new else {}
    return splits, gaps


def inspect_files(files: dict[str, FileSplit], dataset: Any, config: DictConfig) -> Inspection:
    """The facts about all files, with a progress bar."""
    root = common_root(files.values())
    cache = FactsCache(root)
    with Progress(sum(map(len, files.values())), "inspect", unit="image", log_every=1000) as progress:
        splits = inspect_all(files, cache, progress.add)
    skips = config.dataset.get("on_error") == "skip"
    unmatched: list[Path] = []
    with suppress(UserError):  # reported when the splits are opened
        unmatched = dataset.masks_without_image() if isinstance(dataset, FileDataset) else []
    own = dataset.root if isinstance(dataset, FileDataset) else root
    return Inspection(splits, dataset.info, own.absolute(), config.crop_size, skips, unmatched=unmatched)


def summary_of(inspected: InspectedSplit, info: DatasetInfo) -> SplitSummary:
    """The summary of a split in files."""
    images = [sample.image for sample in inspected.samples]
    indices = [index for index, sample in enumerate(inspected.samples) if sample.label]
    return SplitSummary(
        inspected.name,
        inspected.split,
        len(inspected.labels),
        inspected.pixels_by_file(info.num_classes),
        inspected.ignored(),
        Counter(image.shown for image in images if image and image.width),
        indices,
    )


def sampled(splits: dict[str, Split], info: DatasetInfo) -> Iterable[SplitSummary]:
    """The summaries of splits that are not in files, from at most `MAX_SAMPLES` decoded samples of each."""
    for role, split in splits.items():
        indices = np.unique(np.linspace(0, len(split) - 1, min(len(split), MAX_SAMPLES)).round().astype(int)).tolist()
        rows, sizes, ignored, kept = [], Counter[tuple[int, int]](), 0, []
        for index in slow_loop(indices, len(indices), f"checking the samples of {role}"):
            with suppress(UserError):
                image, label = split[index]
                histogram = label.histogram()
                rows.append(histogram[: info.num_classes])
                ignored += histogram[info.ignore_index]
                sizes[image.size] += 1
                kept.append(index)
        by_sample = np.array(rows, np.int64).reshape(-1, info.num_classes)
        yield SplitSummary(role, split, len(kept), by_sample, ignored, sizes, kept)


def findings_of(summary: SplitSummary, info: DatasetInfo) -> Iterable[Finding]:
    """Findings about a split that is not in files."""
    absent = [name for name, pixels in zip(info.class_names, summary.pixels, strict=True) if not pixels]
    if len(absent) == info.num_classes:
        message = f"no labelled pixel in {summary.counted} samples of the split {summary.name}"
        yield Finding("error", "nothing labelled", None, message, "check the labels", summary.name)
    elif absent and summary.counted == len(summary.split):
        message = f"no pixel of {', '.join(absent)} in the split {summary.name}"
        yield Finding("warning", "missing class", None, message, "label examples, or remove the class", summary.name)
