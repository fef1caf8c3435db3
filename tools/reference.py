"""Write docs/configuration.md: every group, option and key of ``conf/``, with type, default and explanation.

python -m tools.reference            # write the page
python -m tools.reference --check    # exit code 1 if it is not up to date
"""

import re
import sys
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby, zip_longest
from typing import Any

import yaml

from pspexp.config.help import paragraphs
from pspexp.config.reference import Key, Reference
from pspexp.config.targets import MISSING
from pspexp.errors import as_yaml
from pspexp.utils.tables import escape_markdown, markdown_table
from pspexp.utils.text import shorten
from tools.generated import CHECKOUT, write_or_check

PAGE = CHECKOUT / "docs" / "configuration.md"
MAX_VALUE = 48  # characters
INTRODUCTION = """\
<!-- Written by `python -m tools.reference` from conf/ and the signatures of what it names. -->

# Configuration

Every option and key, as in `conf/`. `group=option` chooses an option, `key=value` overrides a key:

```
python -m pspexp model=pspnet18 optimizer.lr=0.01
python -m pspexp --help model          # the entries below about a group or a key
python -m pspexp --cfg job --resolve   # the configuration of a command
```

`${…}` takes the value of another key. In types, `[0, 1)` is a range that contains 0 but not 1. A key that the target of
an option takes, but that is not listed, is added with `+key=value`."""


def page() -> str:
    """The whole page."""
    first = Reference()
    groups = first.groups
    presets = {group for group, options in groups.items() if all(first.is_preset(group, one) for one in options)}
    nodes = [name for name, value in first.values.items() if isinstance(value, dict) and name not in groups]
    plain = [key for name, value in first.values.items() if not isinstance(value, dict) for key in first.keys(name)]
    blocks = [INTRODUCTION, *overview(first, nodes), "## Top-level keys", *key_table(plain)]
    for node in nodes:
        blocks += [f"## {node}", sentence(first.comment(node)), *key_table(first.keys(node))]
    composed = compositions(first, [group for group in groups if group not in presets])
    for group in groups:
        blocks += [f"## {group}", sentence(first.comment(group))]
        blocks += preset_section(first, group) if group in presets else group_section(composed, first, group)
    return "\n\n".join(block for block in blocks if block) + "\n"


def overview(reference: Reference, nodes: Sequence[str]) -> Iterator[str]:
    """A table of all groups, and links to the nodes."""
    rows = []
    for group, options in reference.groups.items():
        chosen = reference.choices.get(group)
        names = (f"**`{option}`**" if option == chosen else f"`{option}`" for option in options)
        rows.append((f"[`{group}`](#{group})", ", ".join(names)))
    yield "\n".join(markdown_table(("group", "options (default in bold)"), rows))
    links = ", ".join(f"[`{node}`](#{node})" for node in nodes)
    yield f"Other keys: [top-level](#top-level-keys), {links}."


def compositions(first: Reference, groups: Sequence[str]) -> dict[tuple[str, str], Reference]:
    """For each option, a configuration in which it is chosen; several groups share one, since composing takes time."""
    found = dict[tuple[str, str], Reference]()
    for chosen in zip_longest(*([(group, option) for option in first.groups[group]] for group in groups)):
        pairs = [pair for pair in chosen if pair is not None]
        found |= dict.fromkeys(pairs, Reference([f"{group}={option}" for group, option in pairs]))
    return found


def group_section(composed: dict[tuple[str, str], Reference], first: Reference, group: str) -> Iterator[str]:
    """The options of a group, the keys of each target, and the defaults of further options with that target."""
    shown: dict[Any, tuple[str, dict[str, Key]]] = {}
    chosen = first.choices.get(group)
    for option in sorted(first.groups[group], key=lambda one: (one != chosen, one == "custom", one)):
        reference = composed[group, option]
        keys = {key.name: key for key in reference.keys(group)}
        yield f"### {group}={option}"
        yield from comment_blocks(first.option_comment(group, option))
        target = reference.values[group].get("_target_")
        like, known = shown.setdefault(target, (option, keys))
        if target is None or like == option:
            yield from key_table([*keys.values()])
        else:
            link = f"[`{group}={like}`](#{anchor(f'{group}={like}')})"
            missing = ", ".join(f"`{name}`" for name in known if name not in keys)
            changed = [key for name, key in keys.items() if name not in known or key.value != known[name].value]
            yield f"Keys as for {link}{f' without {missing}' if missing else ''}{', but:' if changed else '.'}"
            yield from key_table(changed)


def preset_section(reference: Reference, group: str) -> Iterator[str]:
    """The options of a group whose files set keys of other groups and nodes."""
    yield from key_table(reference.keys(group))  # of a node of the same name
    for option in reference.groups[group]:
        yield f"### {'' if group in reference.choices else '+'}{group}={option}"
        yield from comment_blocks(reference.option_comment(group, option))
        yield f"Sets {', '.join(code(f'{key.name}={flow(key.value)}') for key in reference.preset(group, option))}."


def comment_blocks(comment: str) -> Iterator[str]:
    """The comment at the top of a file as Markdown: paragraphs, and indented lines as code."""
    for is_code, lines in groupby(paragraphs(comment), lambda line: line.startswith(" ")):
        found = [line.strip() for line in lines]
        yield "\n".join(["```text", *found, "```"] if is_code else map(prose, found))


def anchor(heading: str) -> str:
    """The anchor that MkDocs gives a heading."""
    return re.sub(r"[^\w-]", "", heading.lower())


def key_table(keys: Sequence[Key]) -> Iterator[str]:
    """A table of keys; nothing without any."""
    rows = [
        (code(key.name), code(unbroken(key.type)) if key.type else "", default(key.value), prose(key.comment))
        for key in keys
        if not key.is_node
    ]
    if rows:
        yield "\n".join(markdown_table(("key", "type", "default", ""), rows))


def unbroken(text: str) -> str:
    """A type without line breaks inside its limits."""
    return re.sub("(?<=[<>≤≥,]) (?=[-0-9])", "\N{NO-BREAK SPACE}", text)


def default(value: Any) -> str:
    """A default value in a cell."""
    return "required" if value == MISSING else code(flow(value))


def flow(value: Any) -> str:
    """A value as on the command line, shortened."""
    if isinstance(value, list) and len(as_yaml(value)) > MAX_VALUE and not any(isinstance(one, dict) for one in value):
        return f"{shorten(as_yaml(value), MAX_VALUE)} ({len(value)} values)"
    if isinstance(value, dict | list) and value:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True).strip()
        return shorten(text, 3 * MAX_VALUE)
    return as_yaml(value)


def code(text: str) -> str:
    """A code span; in HTML if it contains what would divide cells of a table."""
    return f"<code>{escape(text, quote=False).replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def sentence(comment: str) -> str:
    """A comment as a sentence of its own."""
    return f"{prose(comment[:1].upper() + comment[1:])}." if comment else ""


def prose(comment: str) -> str:
    """A comment as Markdown: what would be markup there is meant literally here, except for code spans."""
    parts = comment.split("`")
    parts[::2] = map(escape_markdown, parts[::2])
    return "`".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write, or check; returns the exit code."""
    return write_or_check(PAGE, page, "tools.reference", __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
