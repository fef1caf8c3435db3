"""Data sets in the VOC layout: ``JPEGImages``, ``SegmentationClass[Gray]``, ``ImageSets/Segmentation``."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from pspexp.data.dataset import DatasetInfo, Role, Sample, check_classes, check_colours, fingerprint, identity
from pspexp.data.labels import VOC_COLOURS, VOID, read_image, read_label
from pspexp.errors import UserError, did_you_mean, setting
from pspexp.utils.text import first_names

IMAGES, SPLITS = "JPEGImages", "ImageSets/Segmentation"
LABELS, GREY_LABELS = "SegmentationClass", "SegmentationClassGray"
_INVALID = 256  # marks label values that no class has


class VocSplit:
    """The samples that one split file names, in its order.

    Args:
        names: one per sample.
        images, labels: their files.
        values: class id or ignore index for each of the 256 label values; 256 where there is none.
    """

    def __init__(
        self, names: Sequence[str], images: Sequence[Path], labels: Sequence[Path], values: Sequence[int]
    ) -> None:
        self.names = list(names)
        self._images = list(images)
        self._labels = list(labels)
        self._table = [value % 256 for value in values]
        self._invalid = [value for value, meaning in enumerate(values) if meaning == _INVALID]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """RGB image and "L" label; UserError naming the file if either is broken or they do not fit."""
        image = read_image(self._images[index])
        path = self._labels[index]
        label = Image.fromarray(read_label(path))
        if image.size != label.size:
            raise UserError(
                f"{path}: {_size(label)} pixels, but {self._images[index].name} has {_size(image)}; "
                "label and image must have the same size"
            )
        pixels = label.histogram()
        wrong = [value for value in self._invalid if pixels[value]]
        if wrong:
            raise UserError(
                f"{path}: label value {', '.join(map(str, wrong[:10]))}, but this data set has "
                f"0–{self._invalid[0] - 1} and {VOID} only; check {setting('dataset.class_names')} or the file"
            )
        return image, label.point(self._table)

    def fingerprint(self) -> str:
        """Of names, and of each file's folder, name and size."""
        with ThreadPoolExecutor(16) as pool:  # on network drives each file takes its time
            samples = zip(
                self.names, pool.map(identity, self._images), pool.map(identity, self._labels), strict=True
            )  # fmt: skip
            return fingerprint((name, *image, *label) for name, image, label in samples)


class VocDataset:
    """A folder in the VOC layout. Labels come from ``SegmentationClassGray`` where it has the file.

    Args:
        root: the folder that holds ``subfolder``, the folder above that (``root/VOCdevkit/VOC2007``), or the
            ``subfolder`` itself.
        num_classes: None means as many as there are names.
        class_names: None reads ``classes.txt`` in ``root``; otherwise nothing is read before `open`.
        ignore_index: what void pixels (255 in the files, and this value itself) become.
        train_split, val_split, test_split: names of the files in ``ImageSets/Segmentation``.
        mean, std: of the image's channels, RGB, as fractions of 255.
        subfolder: name of the data set's own folder, such as ``VOC2007``; None if ``root`` is that folder.
        ignore_background: True is the reference protocol: label 0 is ignored, label k becomes class k - 1.
    """

    def __init__(
        self,
        root: str,
        num_classes: int | None,
        class_names: Sequence[str] | None,
        ignore_index: int,
        train_split: str,
        val_split: str,
        test_split: str,
        mean: Sequence[float],
        std: Sequence[float],
        subfolder: str | None = None,
        ignore_background: bool = False,
    ) -> None:
        names = read_class_names(root) if class_names is None else list(class_names)
        count = len(names) if num_classes is None else num_classes
        check_classes(count, names, ignore_index)
        check_colours(mean, std)
        self._first = 1 if ignore_background else 0  # label value of class 0
        palette = VOC_COLOURS[self._first : self._first + count]
        self.info = DatasetInfo(names, ignore_index, list(mean), list(std), palette)
        self._root, self._subfolder = root, subfolder
        self._splits = {"train": train_split, "val": val_split, "test": test_split}

    @staticmethod
    def class_names_from(root: str) -> list[str]:
        """The class names in the folder, for a configuration that leaves them to it."""
        return read_class_names(root)

    def open(self, role: Role) -> VocSplit:
        """The samples of a role; raises UserError with all that is missing (counts and the first names)."""
        folder = find_tree(self._root, self._subfolder)
        names = read_split(folder, self._splits[role], key=setting(f"dataset.{role}_split"))
        images = files_by_name(folder / IMAGES, (".jpg", ".jpeg", ".png"))
        labels = files_by_name(folder / LABELS, (".png",)) | files_by_name(folder / GREY_LABELS, (".png",))
        problems = [
            *missing_files("images", names, images, folder / IMAGES),
            *missing_files("labels", names, labels, folder / LABELS),
        ]
        if problems:
            raise UserError(*problems)
        return VocSplit(names, [images[n] for n in names], [labels[n] for n in names], self._values())

    def _values(self) -> list[int]:
        """What each of the 256 label values means."""
        values = [_INVALID] * 256
        values[: self._first] = [self.info.ignore_index] * self._first
        values[self._first : self._first + self.info.num_classes] = range(self.info.num_classes)
        values[VOID] = self.info.ignore_index
        if self.info.ignore_index >= self._first + self.info.num_classes:
            values[self.info.ignore_index] = self.info.ignore_index
        return values


def read_class_names(root: str) -> list[str]:
    """The names in ``root/classes.txt``, one a line; UserError if the file is missing or empty."""
    path = Path(root).expanduser() / "classes.txt"
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{setting('dataset.class_names')} is not set, and {path} cannot be read ({_reason(error)}): "
            f"write one class name per line there, or set {setting('dataset.class_names')}=[…]"
        ) from error
    if not names:
        raise UserError(f"{path}: no class names in it; write one a line")
    return names


def find_tree(root: str, subfolder: str | None) -> Path:
    """The folder that holds ``JPEGImages``; UserError naming the places that were tried."""
    base = Path(root).expanduser()
    places = [base]
    if subfolder is not None:
        places = [base / subfolder, base / "VOCdevkit" / subfolder]
        if base.resolve().name == subfolder:
            places.insert(0, base)
    for place in places:
        if (place / IMAGES).is_dir():
            return place
    tried = ", ".join(str(place / IMAGES) for place in places)
    state = "no such folder" if not base.is_dir() else "no data set in the VOC layout there"
    hint = "; tools/prepare_voc.py unpacks a VOC tar" if subfolder else ""
    raise UserError(f"{setting('dataset.root', root)}: {state} (looked for {tried}); set it to the data set{hint}")


def read_split(folder: Path, split: str, key: str) -> list[str]:
    """The sample names of ``ImageSets/Segmentation/<split>.txt``.

    Raises:
        UserError: no such file (names those there are), empty, or a name occurs twice; names ``key``.
    """
    path = folder / SPLITS / f"{split}.txt"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        known = sorted(file.stem for file in path.parent.glob("*.txt"))
        there = f"{path.parent} has {', '.join(known) or 'no split files'}"
        raise UserError(
            f"{key}={split}: cannot read {path} ({_reason(error)}); {there}{did_you_mean(split, known)}"
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"{key}={split}: {path} names no samples")
    repeated = sorted({name for name in names if name in _repeated(names)})
    if repeated:
        raise UserError(f"{key}={split}: {path} names {first_names(repeated)} more than once; keep each name once")
    return names


def files_by_name(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files of these kinds by name without suffix, hidden ones left out; empty if there is no such folder."""
    if not folder.is_dir():
        return {}
    # listed once: asking for each file on its own is slow on network drives
    files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != "."]
    return {path.stem: path for path in sorted(files, reverse=True)}  # of a.jpg and a.png, a.jpg


def missing_files(what: str, names: Iterable[str], files: dict[str, Path], folder: Path) -> list[str]:
    """A line that counts the names without a file, or nothing."""
    missing = [name for name in names if name not in files]
    if not missing:
        return []
    state = "" if folder.is_dir() else " (no such folder)"
    return [f"{folder}{state}: {len(missing)} {what} are missing: {first_names(missing)}"]


def _repeated(names: Sequence[str]) -> set[str]:
    seen: set[str] = set()
    return {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]


def _size(image: Image.Image) -> str:
    return f"{image.width}×{image.height}"


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "not UTF-8 text"
