"""The text of ``--help``: an overview on one screen, or all about a group, node or key, in the words of ``conf/``."""

import shutil
from collections.abc import Iterator, Sequence
from textwrap import shorten as shorten_words
from textwrap import wrap
from typing import Any

from pspexp.config.modes import MODES
from pspexp.config.overrides import ADDED_GROUPS, suggestion
from pspexp.config.reference import Key, Reference
from pspexp.errors import UserError, as_yaml, did_you_mean
from pspexp.utils.text import shorten

MIN_WIDTH, MAX_WIDTH = 60, 100  # columns
MAX_VALUE = 60  # characters of a value
OVERVIEW = """\
Train, test, apply and export networks for semantic segmentation.

  pspexp experiment=quickstart               train a small network, without data
  pspexp mode=init init.output=my_project    start a project of your own
  pspexp dataset.root=/data/VOCdevkit        train PSPNet-50 on PASCAL VOC 2007
  pspexp mode=test checkpoint.path=RUN       test the network in a run folder
  pspexp mode=predict checkpoint.path=RUN predict.input=photos     predict masks
  pspexp -m optimizer.lr=1e-3,1e-4           run a sweep: a job for each value

{groups}

{keys}

  -m, --multirun       run a sweep         --config-dir DIR  add your options
  --cfg job --resolve  print all keys      --info defaults   print files used
  --version            print the version   --hydra-help      print all flags
{more}
"""
COMPLETION = """\
Completion of groups, options, keys and flags, by a line in the start-up file of the shell:

  ~/.bashrc                   eval "$(pspexp -sc install=bash)"
  ~/.zshrc                    autoload -U compinit bashcompinit && compinit && bashcompinit
                              eval "$(pspexp -sc install=bash)"
  ~/.config/fish/config.fish  pspexp -sc install=fish | source
"""
MOST_USED = (
    "dataset.root",
    "crop_size",
    "loader.batch_size",
    "loader.num_workers",
    "trainer.epochs",
    "trainer.validate_every",
    "optimizer.lr",
    "model.backbone_weights",
    "checkpoint.resume",
    "output_root",
)


def help_text(reference: Reference, topics: Sequence[str] = ()) -> str:
    """The overview, or all about ``topics``: groups (``model``), nodes (``trainer``) or keys (``trainer.epochs``).

    Raises:
        UserError: Lists every topic that there is not, with those probably meant.
    """
    width = min(max(shutil.get_terminal_size().columns, MIN_WIDTH), MAX_WIDTH)
    if topics:
        names = [topic.rstrip("=.") for topic in topics]  # with which completion ends
        return "\n".join(topic_texts(reference, names, width))
    nodes = [name for name, value in reference.values.items() if isinstance(value, dict)]
    nodes = [name for name in nodes if name not in reference.groups]
    more = f"pspexp --help TOPIC explains a group, a key, completion, {', '.join(nodes)}"
    return OVERVIEW.format(
        groups="\n".join(group_lines(reference, width)),
        keys="\n".join(key_table(reference, width)),
        more="\n".join(wrap(more, width, subsequent_indent="  ")),
    )


def topic_texts(reference: Reference, topics: Sequence[str], width: int) -> list[str]:
    """The text about each topic.

    Raises:
        UserError: Lists every topic that there is not.
    """
    known = {*reference.groups, "completion"}
    if unknown := [topic for topic in topics if topic not in known and not reference.keys(topic)]:
        raise UserError(*(unknown_topic(reference, topic) for topic in unknown))
    return [
        COMPLETION if topic == "completion" else "\n".join([*topic_lines(reference, topic, width), ""])
        for topic in topics
    ]


def group_lines(reference: Reference, width: int) -> Iterator[str]:
    """The options of each group, wrapped; the chosen ones are marked."""
    yield "Groups (GROUP=OPTION; * = chosen)"
    options = {"mode": marked([*MODES], reference.values["mode"])}
    for group, found in reference.groups.items():
        if len(found) > 1:
            options[added(reference, group)] = marked(found, reference.choices.get(group))
    longest = max(map(len, options))
    for group, names in options.items():
        yield from columns(group, " ".join(names), longest, width)


def added(reference: Reference, group: str) -> str:
    """The name of a group as it is chosen, with a plus if it has no default."""
    has_default = group not in ADDED_GROUPS and (group in reference.choices or group in reference.values)
    return group if has_default else f"+{group}"


def marked(names: Sequence[str], chosen: str | None) -> list[str]:
    """Names, with an asterisk behind the chosen one."""
    return [f"{name}*" if name == chosen else name for name in names]


def key_table(reference: Reference, width: int) -> Iterator[str]:
    """A line for each of the keys that are changed most often, with its value."""
    yield "Frequent keys (KEY=VALUE), with their values"
    keys = {assignment(key): key.comment for name in MOST_USED for key in reference.keys(name)}
    longest = max(map(len, keys))
    for setting, comment in keys.items():
        line = f" {setting:<{longest}}  "
        yield line + shorten_words(comment, max(width - len(line), 20), placeholder=" …")


def topic_lines(reference: Reference, topic: str, width: int) -> Iterator[str]:
    """All about a group, node or key."""
    keys = reference.keys(topic)
    if len(keys) == 1 and topic not in reference.groups:
        yield from key_lines(keys[0], "", width)
        return
    comment = reference.comment(topic)
    yield from wrap(f"{topic}: {comment}" if comment else topic, width)
    chosen = reference.choices.get(topic)
    if topic in reference.groups:
        yield from option_lines(reference, topic, chosen, width)
    is_preset = chosen is not None and reference.is_preset(topic, chosen)
    if keys[1:]:
        yield f"\nKeys of {topic}={chosen}" if chosen and not is_preset else "\nKeys"
    for key in keys[1:]:
        yield from key_lines(key, "  ", width)
    if chosen and is_preset:
        yield f"\n{topic}={chosen} sets"
        for key in reference.preset(topic, chosen):
            yield from key_lines(key, "  ", width)


def option_lines(reference: Reference, group: str, chosen: str | None, width: int) -> Iterator[str]:
    """The options of a group and what they are; commands in comments, which are indented, keep their lines."""
    yield f"\nOptions ({added(reference, group)}=OPTION; * = chosen)"
    options = reference.groups[group]
    names = marked(options, chosen)
    longest = max(map(len, names))
    for option, name in zip(options, names, strict=True):
        first, *others = [*paragraphs(reference.option_comment(group, option)), ""]
        yield from columns(name, first, longest, width)
        for text in others:
            yield from columns("", text, longest, width) if text else ()


def paragraphs(comment: str) -> list[str]:
    """The lines of a comment, joined except for indented ones: commands."""
    found = list[str]()
    for line in comment.splitlines():
        if found and not line.startswith(" ") and not found[-1].startswith(" "):
            found[-1] += f" {line}"
        else:
            found.append(line)
    return found


def key_lines(key: Key, indent: str, width: int) -> Iterator[str]:
    """A key with its value, then its type and comment, wrapped."""
    yield f"{indent}{key.name}" if key.is_node else f"{indent}{assignment(key)}"
    text = " ".join(part for part in (f"[{key.type}]" if key.type else "", key.comment) if part)
    yield from wrap(
        text, width, initial_indent=f"{indent}    ", subsequent_indent=f"{indent}    ", break_on_hyphens=False
    )


def assignment(key: Key) -> str:
    """A key and its value as they are written on the command line; a long value is shortened."""
    return f"{key.name}={shorten(value_text(key.value), MAX_VALUE)}"


def value_text(value: Any) -> str:
    """A value in the notation of the command line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {value_text(below)}' for name, below in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(value_text, value))}]"
    return as_yaml(value)


def columns(name: str, text: str, longest: int, width: int) -> list[str]:
    """A name and the text beside it, wrapped within its column."""
    first = f" {name:<{longest}}  "
    indent = " " * (len(first) + 2 * text.startswith(" "))
    lines = wrap(text.strip(), width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return [first + lines[0].lstrip(), *lines[1:]] if name and lines else lines or [first.rstrip()]


def unknown_topic(reference: Reference, topic: str) -> str:
    """The line about a topic that there is not."""
    if topic.startswith("hydra"):
        return f"{topic}: belongs to Hydra; see --hydra-help"
    problem = f"{topic}: no such group, node or key"
    options = {option: group for group, found in reference.groups.items() for option in found}
    if topic in MODES:
        return f"{problem}, but a mode: mode={topic}"
    if topic in options:
        return f"{problem}, but an option: --help {options[topic]} {options[topic]}={topic}"
    names = [] if "." in topic else [*reference.groups, *reference.values, *MODES, *options]
    return problem + (did_you_mean(topic, names) or suggestion(topic, reference.config))
