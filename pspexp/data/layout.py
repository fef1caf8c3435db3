"""Recognises the layout of a folder, and suggests the settings with which `FolderDataset` reads it."""

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from pspexp.data.images import SUFFIXES
from pspexp.data.layout_content import looks_like_masks
from pspexp.data.layout_files import describe_files, list_files, list_folders
from pspexp.data.layout_names import TRAIN, VAL, Group, find_groups, name_score, split_names, with_split
from pspexp.data.splits import find_samples, read_lines
from pspexp.errors import UserError, did_you_mean, setting
from pspexp.utils.text import count, first_names

LISTS = (".txt", ".lst", ".csv")  # suffixes of split files
MAX_LINES = 200  # of a split file
MAX_LIST_BYTES = 10_000_000
NEAR = 0.9  # candidates with this share of the most pairs are compared by name
LEAST = 0.25  # share of the smaller group that must have a partner
MAX_LOOKED_AT = 30  # candidates whose files are opened


@dataclass(frozen=True)
class Layout:
    """How a folder can be read.

    Args:
        images: Pattern of the images.
        masks: Pattern of the masks.
        splits: Pattern of the split files, such as ``ImageSets/Segmentation/{split}.txt``.
        train_split: Name of the split to train on; None: the default, ``train``, or there are no splits.
        val_split: Name of the split to validate on; None: the default, ``val``, or there are no splits.
        pairs: Number of images that have a mask, as far as files were listed.
    """

    images: str
    masks: str
    splits: str | None
    train_split: str | None
    val_split: str | None
    pairs: int

    def overrides(self, root: Path | str) -> list[str]:
        """The overrides that read ``root`` so, quoted for the shell and, where needed, for Hydra."""
        values = {
            "root": _without_interpolation(os.fspath(root)),
            "images": self.images,
            "masks": self.masks,
            "splits": self.splits,
            "train_split": self.train_split,
            "val_split": self.val_split,
        }
        return [setting("dataset", "folder")] + [
            shlex.quote(f"{setting(f'dataset.{key}')}={_quoted(value)}") for key, value in values.items() if value
        ]


@dataclass(frozen=True)
class Candidate:
    """Two groups of files that may be images and their masks."""

    images: Group
    masks: Group
    keys: frozenset[tuple[str | None, str]]  # of the images that have a mask
    named: int

    @cached_property
    def roles(self) -> dict[str, str]:
        """The names of the splits to train and to validate on."""
        return choose_splits({split for split, _ in self.keys if split})

    @property
    def weight(self) -> int:
        """The number of pairs; those that are divided into splits count twice."""
        return len(self.keys) * (2 if self.images.has_split else 1)

    def rank(self) -> tuple[object, ...]:
        """The greater, the better."""
        labels = {*self.masks.files.values()}
        unpaired = sum(path not in labels for path in self.images.files.values()) - len(self.keys)
        text = f"{self.images.pattern}/{self.masks.pattern}"
        stars = sum(2 if part == "*" else "*" in part for part in text.split("/"))
        return self.named, self.weight, -unpaired, -stars, text.count("/"), -len(text)


@dataclass(frozen=True)
class Survey:
    """What is in a folder: its files, whether these are all, and the best candidate."""

    files: list[str]
    complete: bool
    best: Candidate | None
    layout: Layout | None


def recognise(root: Path) -> Layout | None:
    """How a folder can be read; None if no images and masks in it pair.

    At most 20,000 files are listed, and some opened if names do not say which are masks.
    """
    return _survey(root).layout


def describe(root: Path) -> str:
    """What is in a folder, and the overrides that read it, as the end of a message that names the folder."""
    if not root.is_dir():
        if root.exists():
            return "is a file, not a folder"
        return f"no such folder{did_you_mean(root.name, list_folders(root.parent))}"
    try:
        os.scandir(root).close()
    except OSError as error:
        return f"cannot be listed ({error.strerror or error})"
    survey = _survey(root)
    least = "" if survey.complete else "at least "
    if survey.best is None or survey.layout is None:
        return _unrecognised(root, survey.files, least)
    labels = {*survey.best.masks.files.values()}
    images = [path for path in survey.best.images.files.values() if path not in labels]
    there = f"{least}{describe_files(images)}, {describe_files(labels)}"
    if missing := len(images) - survey.layout.pairs:
        there += f" ({count(missing, 'image')} without a mask)"
    return f"{there}; read it with {' '.join(survey.layout.overrides(root))}"


def _survey(root: Path) -> Survey:
    files, complete = list_files(root)
    best = _best(find_groups(files), root, complete)
    if best is None:
        return Survey(files, complete, None, None)
    layout = Layout(best.images.pattern, best.masks.pattern, None, None, None, len(best.keys))
    if best.images.has_split:
        layout = _with_roles(layout, best.roles)
    else:
        layout = _with_split_files(layout, best, root, files, complete)
    return Survey(files, complete, best, layout)


def _best(groups: Sequence[Group], root: Path, complete: bool) -> Candidate | None:
    """The candidate with the most pairs; by name if several have about as many, by content if no name says anything."""
    found = [*_candidates(groups, complete, by_name=True)]
    if not found:
        unnamed = sorted(_candidates(groups, complete, by_name=False), key=Candidate.rank, reverse=True)
        found = [one for one in unnamed[:MAX_LOOKED_AT] if _look_right(one, root)]
    most = max((one.weight for one in found), default=0)
    near = sorted((one for one in found if one.weight >= NEAR * most), key=lambda one: one.images.pattern)
    return max(near, key=Candidate.rank, default=None)


def _candidates(groups: Sequence[Group], complete: bool, by_name: bool) -> Iterator[Candidate]:
    """Pairs of groups that share ids, and whose names say which is which, or say nothing."""
    most = 0
    for images in groups:
        for masks in groups:
            limit = min(len(images.files), len(masks.files))
            named = name_score(images.words, masks.words)
            if bool(named) != by_name or (masks.has_split and not images.has_split):
                continue
            if limit * (1 + images.has_split) < NEAR * most or name_score(masks.words, images.words):
                continue
            one = Candidate(images, masks, _shared(images, masks), named)
            enough = one.keys and (len(one.keys) >= LEAST * limit or not complete)
            if enough and (len(one.roles) == 2 or not images.has_split):
                most = max(most, one.weight)
                yield one


def _shared(images: Group, masks: Group) -> frozenset[tuple[str | None, str]]:
    """The keys of the images that have a mask; none if the same files are images and masks."""
    if images.has_split == masks.has_split:
        if not any(key in images.files for key in islice(masks.files, 100)):
            return frozenset()
        keys = images.files.keys() & masks.files.keys()
    else:
        keys = {key for key in images.files if (None, key[1]) in masks.files}
        if len({name for _, name in keys}) < len(keys):
            return frozenset()
    own = {key for key in keys if images.files[key] == masks.files.get(key, masks.files.get((None, key[1])))}
    return frozenset() if own else frozenset(keys)


def choose_splits(names: Iterable[str]) -> dict[str, str]:
    """The names that are those of a split to train on and of one to validate on."""
    there = {name.lower(): name for name in sorted(names)}
    roles = {"train": TRAIN, "val": VAL}
    return {
        role: next(there[name] for name in known if name in there)
        for role, known in roles.items()
        if any(name in there for name in known)
    }


def _with_roles(layout: Layout, roles: Mapping[str, str]) -> Layout:
    changed = {f"{role}_split": name for role, name in roles.items() if name != role}
    return replace(layout, train_split=changed.get("train_split"), val_split=changed.get("val_split"))


def _with_split_files(layout: Layout, best: Candidate, root: Path, files: Sequence[str], complete: bool) -> Layout:
    """The layout with the split files whose lines are pairs, if there are any."""
    found: dict[str, set[str]] = {}
    for path in files:
        if path.lower().endswith(LISTS):
            for split in {name for part in path.split("/") for name in split_names(part)}:
                found.setdefault(with_split(path, split), set()).add(split)
    images = {name: root / path for (_, name), path in best.images.files.items()}
    masks = {name: root / path for (_, name), path in best.masks.files.items()}
    usable = []
    for pattern, splits in found.items():
        roles = choose_splits(splits)
        if len(roles) < 2 or re.search(r"[*$\x00-\x1f]", pattern) or pattern.replace("{split}", "").count("{"):
            continue
        shares = [_share(root / pattern.replace("{split}", name), images, masks, root) for name in roles.values()]
        if min(shares) >= (NEAR if complete else 0.01):
            usable.append((min(shares), -len(pattern), pattern, roles))
    if not usable:
        return layout
    *_, pattern, roles = max(usable, key=lambda one: one[:3])
    return _with_roles(replace(layout, splits=pattern), roles)


def _share(path: Path, images: Mapping[str, Path], masks: Mapping[str, Path], root: Path) -> float:
    """The share of a split file's lines that are pairs; of a long file, of some lines."""
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            return 0.0
        lines = read_lines(path, "", "")
    except (OSError, UserError):
        return 0.0
    lines = lines[:: -(-len(lines) // MAX_LINES)]
    return len(find_samples(lines, images, masks, root, path)[0]) / len(lines)


def _look_right(one: Candidate, root: Path) -> bool:
    """Whether the files look like images and masks; only the first, middle and last pair are opened."""
    keys = sorted(one.keys, key=str)
    chosen = [keys[index] for index in sorted({0, len(keys) // 2, len(keys) - 1})]
    images = [root / one.images.files[key] for key in chosen]
    return looks_like_masks(
        images, [root / (one.masks.files.get(key) or one.masks.files[None, key[1]]) for key in chosen]
    )


def _unrecognised(root: Path, files: Sequence[str], least: str) -> str:
    """What is in a folder in which nothing pairs."""
    images = [path for path in files if path.lower().endswith(SUFFIXES)]
    if images:
        there = describe_files(images)
        missing = ", but no image and mask whose names match" if ", " in there else " and no masks that pair with them"
        return f"contains {least}{there}{missing}"
    if files:
        return f"contains no images, only {least}{describe_files(files)}"
    folders = list_folders(root)
    return f"contains no files, only folders: {first_names(folders)}" if folders else "is empty"


def _quoted(value: str) -> str:
    """A value as the command line reads it; double quotes, since the word is in single quotes for the shell."""
    if re.fullmatch(r"([\w./*-]|\{\w+\})+", value, re.ASCII):  # pspexp itself quotes placeholders for Hydra
        return value
    escaped = re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), value)
    return f'"{escaped}"'


def _without_interpolation(text: str) -> str:
    """``text`` with ``${`` as OmegaConf reads it."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
