"""What the names of files say: which files belong together, what their ids are, and which of them are masks."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import NamedTuple

from pspexp.data.images import SUFFIXES

CACHED = 20_000  # results for names
LEAST_SHARE, LEAST_STARRED = 0.01, 0.1  # of the image files that a pattern must match, and one with "*"
MAX_GROUPS, GROUPS_PER_FOLDER = 300, 24
MAX_CUT = 500  # names of a folder in which to look for common beginnings and endings
MAX_CUTS, MAX_AFFIXES = 8, 16  # of a name; of a folder

TRAIN = ("train", "training", "trn", "trainval")
VAL = ("val", "valid", "validation", "dev", "test", "testing")  # best first
TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+")
# A split's name at the beginning of a longer word, as in "trainannot".
JOINED = re.compile(r"(?i)(train|val|test)(?=annot|mask|label|image|img|gt|seg)")
SPECIAL = re.compile(r"[{}*$\x00-\x1f\ud800-\udfff]")  # cannot stand in a pattern or on a command line

LABEL_WORDS = re.compile(
    r"gts?|y|lab|lbls?|anno?|tgt|(seg|ground|truth|class|target|manual|trimap)\w*|\w*(annot|label|segm)\w*"
)
MASK_WORDS = re.compile(r"\w*mask\w*|msks?")
IMAGE_WORDS = re.compile(
    r"x|ims?|pics?|rgb|raw|src|(photo|picture|scan|input|jpe?g|orig|source|frame)\w*|\w*(image|img)\w*"
)
# Files made from masks, or for another task.
DERIVED_WORDS = re.compile(
    r"(colou?r|inst|object|vis|overlay|preview|thumb|depth|edge|bound|border|contour|bbox|prob|disp|pred|weight|panoptic"
    r"|superpixel|blend)\w*"
)
PREFIX_END = re.compile(r"(?<=[\s_.\-])(?![\s_.\-])|(?<=[^\W\d_])(?=\d)")
TELLING = re.compile(
    r"(?!.*\d\d)(?=.*[^\W\d_]).*"
)  # names that files in many folders have, such as "image", not "0001"
SUFFIX_START = re.compile(
    r"(?<![\s_.\-/])(?=[\s_.\-])|(?<=\d)(?=[^\W\d_])|(?<=[a-z])(?=Mask|Label|Seg|Annot|G[Tt]|Image)"
)

Key = tuple[str | None, str]  # split, if the pattern has one, and id


@dataclass(frozen=True)
class Group:
    """The files that match a pattern, by split and id."""

    pattern: str
    files: dict[Key, str]
    words: frozenset[str]  # in the pattern and in the folders that * stands for

    @property
    def has_split(self) -> bool:
        """Whether the pattern contains ``{split}``."""
        return "{split}" in self.pattern


@dataclass(frozen=True)
class Tail:
    """A file below a folder of a template; ``text`` is its path there, without suffix."""

    text: str
    suffix: str
    split: str | None
    path: str


class Template(NamedTuple):
    """A folder, in whose path ``*`` or ``{split}`` may stand for a part."""

    parts: tuple[str, ...]
    has_split: bool  # here or in the names of files


def find_groups(files: Iterable[str]) -> list[Group]:
    """The image files in every way of dividing their paths into a pattern and an id, largest group first."""
    groups: list[Group] = []
    for template, tails in _by_template(files).items():
        suffixes = sorted({tail.suffix for tail in tails})
        for suffix in suffixes:
            groups += _divide(template.parts, [tail for tail in tails if tail.suffix == suffix], suffix)
        if len(suffixes) > 1:
            groups += [one for one in _divide(template.parts, tails, ".*") if len(_suffixes(one)) > 1]
    return sorted(groups, key=lambda one: (-len(one.files), len(one.pattern), one.pattern))[:MAX_GROUPS]


def _suffixes(group: Group) -> set[str]:
    return {path.rpartition(".")[2].lower() for path in group.files.values()}


def _by_template(files: Iterable[str]) -> dict[Template, list[Tail]]:
    """The image files by each folder above them, in which ``{split}`` or ``*`` may stand for a part."""
    listed: dict[tuple[tuple[str, ...], tuple[str, ...]], list[tuple[str, str, str]]] = defaultdict(list)
    for path in files:
        *folders, name = path.split("/")
        stem, dot, suffix = name.rpartition(".")
        if (suffix := dot + suffix.lower()) in SUFFIXES:
            listed[tuple(folders), split_names(stem)].append((stem, suffix, path))
    places = [
        (Template(parts[:length], split is not None), split, "/".join(key[0][length:]), key)
        for key in listed
        for parts, split, first in _templates(*key)
        for length in range(len(parts), first - 1, -1)
    ]
    total = sum(map(len, listed.values()))
    useful = _useful([(template, key[0], len(listed[key])) for template, _, _, key in places], total)
    found: dict[Template, list[Tail]] = defaultdict(list)
    for template, split, rest, key in places:
        if template in useful:
            below = f"{rest}/" if rest else ""
            found[template] += [Tail(below + stem, suffix, split, path) for stem, suffix, path in listed[key]]
    return found


def _useful(places: Iterable[tuple[Template, tuple[str, ...], int]], total: int) -> set[Template]:
    """The templates of enough files that are not as good as others.

    Args:
        places: Templates, each with a folder and the number of files there.
        total: Number of files.
    """
    counts: Counter[Template] = Counter()
    origins: dict[Template, set[tuple[str, ...]]] = defaultdict(set)
    for template, folder, number in places:
        counts[template] += number
        origins[template].add(folder)
    useful = set()
    for template, number in counts.items():
        share, folder = number / total, template.parts
        if "*" in folder:  # must stand for several names, and be worth the time
            at = folder.index("*")
            enough = share >= LEAST_STARRED and len({origin[at] for origin in origins[template]}) > 1
        else:
            enough = share >= LEAST_SHARE or mask_weight(words("/".join(folder))) > 0
        if enough:
            useful.add(template)
    for template in [*useful]:
        above = Template(template.parts[:-1], template.has_split)
        # A folder that contains nothing but one other is part of the pattern, not of the ids.
        if template.parts and template.parts[-1] != "*" and counts[above] == counts[template]:
            useful.discard(above)
    return useful


@lru_cache(maxsize=CACHED)
def _templates(folders: tuple[str, ...], in_stem: tuple[str, ...]) -> list[tuple[tuple[str, ...], str | None, int]]:
    """Templates of a file's folder, each with the split and the smallest number of leading folders it applies to."""
    fixed = tuple(SPECIAL.sub("*", folder) for folder in folders)
    found: list[tuple[tuple[str, ...], str | None, int]] = [(fixed, None, 0)]
    for split in sorted({name for part in folders for name in split_names(part)} | {*in_stem}):
        replaced = tuple(with_split(folder, split) for folder in fixed)
        first = next((index + 1 for index, part in enumerate(replaced) if "{split}" in part), len(folders))
        found.append((replaced, split, first))
    return found + [
        ((*parts[:index], "*", *parts[index + 1 :]), split, max(first, index + 1))
        for parts, split, first in found
        for index, part in enumerate(parts)
        if "{split}" not in part
    ]


@lru_cache(maxsize=CACHED)
def split_names(text: str) -> tuple[str, ...]:
    """The names of splits in a file's or folder's name, as written there."""
    return tuple(text[start:end] for start, end in _split_spans(text))


@lru_cache(maxsize=CACHED)
def with_split(text: str, split: str | None) -> str:
    """``text`` with ``{split}`` in the places of a split's name."""
    if split is None or split not in text:
        return text
    for start, end in reversed(_split_spans(text)):
        if text[start:end] == split:
            text = f"{text[:start]}{{split}}{text[end:]}"
    return text


def _split_spans(text: str) -> list[tuple[int, int]]:
    spans = []
    for token in TOKEN.finditer(text):
        if token[0].lower() in (*TRAIN, *VAL):
            spans.append(token.span())
        elif joined := JOINED.match(token[0]):
            spans.append((token.start(), token.start() + joined.end()))
    return spans


def _divide(folder: tuple[str, ...], tails: Sequence[Tail], suffix: str) -> list[Group]:
    """The groups of a folder's files by what comes before and after the id in their names."""
    some = tails if len(tails) <= MAX_CUT else Random(0).sample(tails, MAX_CUT)
    cuts = [_cuts(tail.text, tail.split) for tail in some]
    prefixes, endings = _frequent([cut[0] for cut in cuts]), _frequent([cut[1] for cut in cuts])
    counts = Counter(
        (before, after)
        for starts, ends in cuts
        for before in starts
        if before in prefixes
        for after in ends
        if after in endings and starts[before] < ends[after]
    )
    ways = [(-number, len(before + after), before, after) for (before, after), number in counts.items()]
    groups = []
    for _, _, before, after in sorted(ways)[:GROUPS_PER_FOLDER]:
        pattern = "/".join([*folder, f"{before}{{id}}{after}{suffix}"])
        files = _matching(tails, before, after)
        # With a split, files are grouped only by patterns in which it occurs.
        if files and ("{split}" in pattern) == (tails[0].split is not None):
            groups.append(Group(pattern, files, words(pattern) | _starred(folder, files.values())))
    return groups


def _starred(folder: Sequence[str], paths: Iterable[str]) -> frozenset[str]:
    """The words in the names that ``*`` stands for."""
    stars = [index for index, part in enumerate(folder) if part == "*"]
    parents = {path.rpartition("/")[0] for path in paths} if stars else set()
    return frozenset(word for parent in parents for at in stars for word in words(parent.split("/")[at]))


def _matching(tails: Iterable[Tail], before: str, after: str) -> dict[Key, str]:
    """The files whose names begin and end so, by split and id; none if an id has several."""
    found: dict[Key, str] = {}
    affixes: dict[str | None, tuple[str, str]] = {}
    for tail in tails:
        text, split = tail.text, tail.split
        if split not in affixes:
            affixes[split] = (before.replace("{split}", split or ""), after.replace("{split}", split or ""))
        start, end = affixes[split]
        if text.endswith(end) and text.startswith(start) and len(text) > len(start) + len(end):
            key = (split, text[len(start) : len(text) - len(end)])
            if found.setdefault(key, tail.path) != tail.path:
                return {}
    return found


def _frequent(affixes: Sequence[dict[str, int]]) -> set[str]:
    """The affixes that many files share, or some if they say what the files are."""
    counts = Counter(affix for one in affixes for affix in one)
    least = 1 if len(affixes) <= 3 else 2
    shared = [affix for affix, number in counts.most_common() if number >= least]
    telling = [affix for affix in shared if mask_weight(words(affix))]
    return {*shared[:MAX_AFFIXES], *telling, ""}


@lru_cache(maxsize=4 * CACHED)
def _cuts(text: str, split: str | None) -> tuple[dict[str, int], dict[str, int]]:
    """What may stand before the id of a file, and where it ends; what may stand after it, and where it begins."""
    stem = text.rfind("/") + 1
    ends = [match.start() for match in PREFIX_END.finditer(text)][:MAX_CUTS] if not stem else []
    starts = [at for match in SUFFIX_START.finditer(text, stem) if (at := match.start()) > stem][-MAX_CUTS:]
    if stem and TELLING.fullmatch(text, stem):
        starts += [match.start() for match in re.finditer("/", text)]
    before = {text[:end]: end for end in ends}
    after = {text[start:]: start for start in starts}
    if SPECIAL.search(text):
        before, after = ({one: at for one, at in cuts.items() if not SPECIAL.search(one)} for cuts in (before, after))
    if split is not None and split in text:
        before, after = ({with_split(one, split): at for one, at in cuts.items()} for cuts in (before, after))
    return {"": 0} | before, {"": len(text)} | after


@lru_cache(maxsize=4096)
def words(text: str) -> frozenset[str]:
    """The words in a pattern, in lower case."""
    folder, slash, name = text.rpartition("/")
    text = folder + slash + (name.rpartition(".")[0] if "{id}" in name else name)
    return frozenset(token[0].lower() for token in TOKEN.finditer(re.sub(r"\{\w+\}", " ", text)))


@lru_cache(maxsize=MAX_GROUPS**2)
def name_score(images: frozenset[str], masks: frozenset[str]) -> int:
    """How clearly words say that one pattern is that of the images, the other that of their masks; 0: they do not."""
    of_images, of_masks = images - masks, masks - images
    derived_from_mask = _any(DERIVED_WORDS, of_images) and mask_weight(images)
    is_mask = mask_weight(of_images) and not _any(IMAGE_WORDS, of_images)
    if not mask_weight(of_masks) or is_mask or derived_from_mask:
        return 0
    derived = _any(DERIVED_WORDS, of_masks) + _any(DERIVED_WORDS, of_images)
    return max(1, 2 * mask_weight(of_masks) + _any(IMAGE_WORDS, of_images) - 3 * derived)


def mask_weight(names: Iterable[str]) -> int:
    """3 if a word stands for labels, 2 if one is ``mask``, which may also be a region of interest, else 0."""
    return 3 if _any(LABEL_WORDS, names) else 2 * _any(MASK_WORDS, names)


def _any(expression: re.Pattern[str], names: Iterable[str]) -> bool:
    return any(_matches(expression, name) for name in names)


@lru_cache(maxsize=4096)
def _matches(expression: re.Pattern[str], name: str) -> bool:
    return expression.fullmatch(name) is not None
