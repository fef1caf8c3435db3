"""Draw the packages of pspexp, their layers and the imports between them: docs/img/architecture.svg.

    python -m tools.architecture            # write the picture
    python -m tools.architecture --check    # exit code 1 if it is not up to date

Layers are those of the import contract in setup.cfg; import-linter installs grimp, which reads the imports.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from configparser import ConfigParser
from html import escape
from typing import NamedTuple

import grimp

from pspexp.utils.text import count
from tools.generated import CHECKOUT, write_or_check

PICTURE = CHECKOUT / "docs" / "img" / "architecture.svg"
CONTRACT = "importlinter:contract:rooms"
PACKAGE = "pspexp"
CELL, LEFT, TOP, RIGHT = 40, 110, 90, 40  # pixels: a cell, the names on the left and at the top, and to the right


class Imports(NamedTuple):
    """The packages from the top layer down, and what they import.

    Attributes:
        layers: Packages and single modules of each layer.
        modules: Number of modules of each package.
        counts: For two packages, the number of imports of a module of the second by a module of the first.
    """

    layers: list[list[str]]
    modules: Counter[str]
    counts: Counter[tuple[str, str]]


def read_imports() -> Imports:
    """The imports between the packages, from the source."""
    settings = ConfigParser()
    settings.read(CHECKOUT / "setup.cfg")
    lines = settings[CONTRACT]["layers"].split("\n")
    layers = [[name.strip() for name in line.split("|")] for line in lines if line.strip()]
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    modules, counts = Counter[str](), Counter[tuple[str, str]]()
    known = {name for layer in layers for name in layer}
    for module in sorted(graph.modules):
        package = part(module)
        modules[package] += package in known
        for imported in graph.find_modules_directly_imported_by(module):
            if package != part(imported) and {package, part(imported)} <= known:
                counts[package, part(imported)] += 1
    return Imports(layers, modules, counts)


def part(module: str) -> str:
    """The package or module directly below pspexp that a module is in; empty for pspexp itself."""
    return module.partition(".")[2].partition(".")[0]


def drawing(imports: Imports) -> str:
    """The picture: a row for each package, a column for each that it may import, and the number of imports."""
    names = [name for layer in imports.layers for name in layer]
    place = {name: number for number, name in enumerate(names)}
    size = CELL * len(names)
    width, height = LEFT + size + RIGHT, TOP + size
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13" fill="#263238">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *bands(imports, place, size),
    ]
    for name, number in place.items():
        middle = CELL * number + CELL // 2
        lines.append(text(LEFT - 8, TOP + middle, name, count(imports.modules[name], "module"), "end"))
        lines.append(f'<text transform="translate({LEFT + middle + 4} {TOP - 8}) rotate(-45)">{escape(name)}</text>')
    most = max(imports.counts.values(), default=1)
    for (importer, imported), number in sorted(imports.counts.items()):
        row, column = place[importer], place[imported]
        colour = "#1565c0" if column > row else "#c62828"
        shade = 0.15 + 0.65 * (number / most) ** 0.5
        lines.append(square(row, column, colour, shade, f"{importer} imports {imported} {count(number, 'time')}"))
        x, y = LEFT + CELL * column + CELL // 2, TOP + CELL * row + CELL // 2 + 5
        lines.append(f'<text x="{x}" y="{y}" text-anchor="middle">{number}</text>')
    return "\n".join([*lines, "</svg>", ""])


def bands(imports: Imports, place: dict[str, int], size: int) -> Iterator[str]:
    """The background: a stripe for each layer, every second one grey, and the diagonal."""
    for number, layer in enumerate(imports.layers):
        colour = "#f3f5f6" if number % 2 == 0 else "#ffffff"
        y = TOP + CELL * place[layer[0]]
        yield f'<rect x="0" y="{y}" width="{LEFT + size}" height="{CELL * len(layer)}" fill="{colour}"/>'
    for number in place.values():
        yield square(number, number, "#cfd8dc")


def square(row: int, column: int, colour: str, opacity: float = 1, title: str = "") -> str:
    """A cell."""
    place = f'x="{LEFT + CELL * column + 2}" y="{TOP + CELL * row + 2}" width="{CELL - 4}" height="{CELL - 4}"'
    return f'<rect {place} rx="4" fill="{colour}" fill-opacity="{opacity:.2f}"><title>{escape(title)}</title></rect>'


def text(x: int, y: int, name: str, note: str, anchor: str) -> str:
    """A name with a smaller note below."""
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(name)}'
        f'<tspan x="{x}" dy="13" font-size="10" fill="#607d8b">{escape(note)}</tspan></text>'
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, or check; returns the exit code."""
    return write_or_check(PICTURE, lambda: drawing(read_imports()), "tools.architecture", __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
