"""Data sets in VOC's layout: ``JPEGImages``, ``SegmentationClass[Gray]``, ``ImageSets/Segmentation``."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from pspexp.data.dataset import DatasetInfo, Role, Sample, check_classes, check_mean_std, fingerprint, identity
from pspexp.data.images import MAX_PIXELS, read_image
from pspexp.data.labels import VOC_COLOURS, VOID, read_label
from pspexp.errors import UserError, did_you_mean, setting
from pspexp.utils.text import count, first_names

IMAGES, SPLITS = "JPEGImages", "ImageSets/Segmentation"
LABELS, GREY_LABELS = "SegmentationClass", "SegmentationClassGray"
_INVALID = 256  # marks label values without a class


class VocSplit:
    """The samples listed in a split file, in its order.

    Args:
        names: Names of the samples.
        images: Their image files.
        labels: Their label files.
        values: Class id or ignore index of each of the 256 label values; 256 for those without one.
        max_pixels: Largest number of pixels of an image.
    """

    def __init__(
        self,
        names: Sequence[str],
        images: Sequence[Path],
        labels: Sequence[Path],
        values: Sequence[int],
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.names = list(names)
        self._images = list(images)
        self._labels = list(labels)
        self._table = [value % 256 for value in values]
        self._max_pixels = max_pixels
        self._invalid = [value for value, meaning in enumerate(values) if meaning == _INVALID]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """RGB image and "L" label; raises UserError if one is damaged or they do not match."""
        path = self._labels[index]
        label = Image.fromarray(read_label(path, self._max_pixels))
        image = read_image(self._images[index], self._max_pixels, label.size)
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
        """A hash of the names, and of each file's folder, name and size."""
        with ThreadPoolExecutor(16) as pool:  # on network drives each file has a latency
            samples = zip(
                self.names, pool.map(identity, self._images), pool.map(identity, self._labels), strict=True
            )  # fmt: skip
            return fingerprint((name, *image, *label) for name, image, label in samples)


class VocDataset:
    """A folder in VOC's layout. Labels in ``SegmentationClassGray`` take precedence over ``SegmentationClass``.

    Args:
        root: The folder that contains ``subfolder``, the one above it (``root/VOCdevkit/VOC2007``), or ``subfolder``
            itself.
        num_classes: Number of classes; None counts the class names.
        class_names: Class names; None reads ``classes.txt`` in ``root``. Otherwise nothing is read before `open`.
        ignore_index: Label of void pixels, which have this value or 255 in the files.
        train_split: Name of the file in ``ImageSets/Segmentation`` to train on.
        val_split: Name of the file to validate on.
        test_split: Name of the file to test on.
        mean: Mean of the RGB channels, as fractions of 255.
        std: Standard deviation of the RGB channels, likewise.
        subfolder: Name of the data set's own folder, such as ``VOC2007``; None if ``root`` is that folder.
        ignore_background: Whether label 0 is ignored and label k is class k - 1, as in the reference's protocol.
        max_image_pixels: Largest number of pixels of an image; larger ones are refused before they are decoded.
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
        max_image_pixels: int = MAX_PIXELS,
    ) -> None:
        names = read_class_names(root) if class_names is None else list(class_names)
        num_classes = len(names) if num_classes is None else num_classes
        check_classes(num_classes, names, ignore_index)
        check_mean_std(mean, std)
        self._first = 1 if ignore_background else 0  # label value of class 0
        palette = VOC_COLOURS[self._first : self._first + num_classes]
        self.info = DatasetInfo(names, ignore_index, list(mean), list(std), palette, max_image_pixels)
        self._root, self._subfolder = root, subfolder
        self._splits = {"train": train_split, "val": val_split, "test": test_split}

    @staticmethod
    def class_names_from(root: str) -> list[str]:
        """The class names in the folder, for a configuration without class names."""
        return read_class_names(root)

    def open(self, role: Role) -> VocSplit:
        """The samples of a role; raises UserError with the number and first names of missing files."""
        folder = find_tree(self._root, self._subfolder)
        names = read_split(folder, self._splits[role], key=setting(f"dataset.{role}_split"))
        images = files_by_name(folder / IMAGES, (".jpg", ".jpeg", ".png"))
        labels = files_by_name(folder / LABELS, (".png",)) | files_by_name(folder / GREY_LABELS, (".png",))
        problems = [
            *missing_files("image", names, images, folder / IMAGES),
            *missing_files("label", names, labels, folder / LABELS),
        ]
        if problems:
            raise UserError(*problems)
        return VocSplit(
            names,
            [images[n] for n in names],
            [labels[n] for n in names],
            self._values(),
            self.info.max_image_pixels,
        )

    def _values(self) -> list[int]:
        """See `VocSplit`."""
        values = [_INVALID] * 256
        values[: self._first] = [self.info.ignore_index] * self._first
        values[self._first : self._first + self.info.num_classes] = range(self.info.num_classes)
        values[VOID] = self.info.ignore_index
        if self.info.ignore_index >= self._first + self.info.num_classes:
            values[self.info.ignore_index] = self.info.ignore_index
        return values


def read_class_names(root: str) -> list[str]:
    """The names in ``root/classes.txt``, one per line.

    Raises:
        UserError: The file is missing or empty.
    """
    path = Path(root).expanduser() / "classes.txt"
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{setting('dataset.class_names')} is not set, and {path} cannot be read ({_reason(error)}): "
            f"write one class name per line there, or set {setting('dataset.class_names')}=[…]"
        ) from error
    if not names:
        raise UserError(f"{path}: contains no class names; write one per line")
    return names


def find_tree(root: str, subfolder: str | None) -> Path:
    """The folder that contains ``JPEGImages``.

    Raises:
        UserError: There is no such folder; lists the places that were tried.
    """
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
    state = "no such folder" if not base.is_dir() else "contains no data set in VOC's layout"
    hint = ", or unpack a VOC tar with tools/prepare_voc.py" if subfolder else ""
    raise UserError(f"{setting('dataset.root', root)}: {state} (looked for {tried}); set it to the data set{hint}")


def read_split(folder: Path, split: str, key: str) -> list[str]:
    """The sample names of ``ImageSets/Segmentation/<split>.txt``.

    Raises:
        UserError: There is no such file, it is empty, or a name occurs twice; the message names ``key``.
    """
    path = folder / SPLITS / f"{split}.txt"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        known = sorted(file.stem for file in path.parent.glob("*.txt"))
        there = f"{path.parent} contains {', '.join(known) or 'no split files'}"
        raise UserError(
            f"{key}={split}: cannot read {path} ({_reason(error)}); {there}{did_you_mean(split, known)}"
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"{key}={split}: {path} is empty; list one sample per line")
    repeated = sorted({name for name in names if name in _repeated(names)})
    if repeated:
        raise UserError(f"{key}={split}: {path} lists {first_names(repeated)} more than once; remove the repetitions")
    return names


def files_by_name(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files with one of the suffixes, except hidden ones, by name without suffix; empty if there is no such folder."""
    if not folder.is_dir():
        return {}
    # Listed at once: a query per file is slow on network drives.
    files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != "."]
    return {path.stem: path for path in sorted(files, reverse=True)}  # of a.jpg and a.png, a.jpg


def missing_files(what: str, names: Iterable[str], files: dict[str, Path], folder: Path) -> list[str]:
    """A line about the names without a file, if there are any."""
    missing = [name for name in names if name not in files]
    if not missing:
        return []
    state = "" if folder.is_dir() else " (no such folder)"
    return [f"{folder}{state}: {count(len(missing), what)} missing: {first_names(missing)}"]


def _repeated(names: Sequence[str]) -> set[str]:
    seen: set[str] = set()
    return {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]


def _size(image: Image.Image) -> str:
    return f"{image.width}×{image.height}"


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "not UTF-8 text"
