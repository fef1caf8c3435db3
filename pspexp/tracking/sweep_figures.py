"""Figures of a sweep: the result of each job by the parameters that vary. Greater values count as better.

`parallel_coordinates` fits any sweep, `heat_map` one of two parameters on a grid. Both take one value for each job, in
the same order for all arguments; values of the metric are in the unit of its label (``"mean IoU (%)"``, 61.3).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from pspexp.tracking import sweep_scales as scales
from pspexp.tracking.figures import EMPTY, INK, MAX_CHARACTERS, ORANGE, new_axes, new_figure

FAILED = "#9a9a9a"
FAILED_CELL = "#c6c6c6"
MAX_CELLS = 400  # in a heat map; more are illegible
INCHES_PER_CHARACTER = 0.075  # at font size 8


def parallel_coordinates(
    parameters: Mapping[str, Sequence[object]], values: Sequence[float | None], metric: str
) -> Figure:
    """One line for each job: through one axis for each parameter that varies, to the axis of the metric.

    The metric also gives the line its colour. Numbers are on a linear axis, or on a logarithmic one if all are positive
    and the largest is at least `sweep_scales.LOG_RATIO` times the smallest; other values are spaced evenly, in order of
    appearance. Lines through the same point are drawn next to each other. If no parameter varies, all are shown.

    Args:
        parameters: The value of each parameter in each job, by the parameter's short name; at least one job.
        values: The metric of each job; None or not finite if it failed or did not finish.
        metric: Label of the metric's axis, with its unit.
    """
    varying = {name: column for name, column in parameters.items() if len(scales.levels(column)[0]) > 1} or parameters
    results = scales.as_array(values)
    width = float(np.clip(1.9 * (len(varying) + 1), 7.5, 16))
    column_width = width / (len(varying) + 1)
    figure = new_figure(width, 4.8 if width < 12 else 6)
    figure.set_layout_engine(
        "constrained", w_pad=0.1, h_pad=0.1
    )  # inches: markers may extend beyond the ends of an axis
    axes = new_axes(figure, "", "", "")
    axes.set(xlim=(-0.02, max(len(varying), 1) + 0.02), ylim=(0, 1))
    axes.set_axis_off()
    title = f"{scales.label(metric, 60)} of {len(results)} job{'s' * (len(results) != 1)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    names = [*varying, metric]
    slanted = any(len(name) * INCHES_PER_CHARACTER * 1.2 > column_width for name in names)
    how: dict[str, Any] = {"rotation": 20, "ha": "left"} if slanted else {"ha": "center"}
    for at, name in enumerate(names):
        axes.text(at, 1.03, scales.label(name, MAX_CHARACTERS), va="bottom", fontsize=10, color=INK, **how)
    axes.vlines(range(len(names)), 0, 1, color="#888888", linewidth=1, zorder=3)
    characters = max(8, int((column_width - 0.3) / INCHES_PER_CHARACTER))
    axis_scales = [scales.scale(column) for column in varying.values()]
    for at, scale in enumerate(axis_scales):
        _write_ticks(axes, at, scale.ticks, characters)
    _draw_jobs(axes, [scales.fan_out(scale.positions, results) for scale in axis_scales], results)
    if np.isfinite(results).any():
        _draw_metric_axis(axes, len(varying), results, bar_width=0.15 / column_width)
    if not np.isfinite(results).all():
        line = Line2D([], [], color=FAILED, linestyle="--", linewidth=1, marker="x", label="failed or not finished")
        figure.legend(handles=[line], loc="outside lower right", frameon=False, fontsize=9)
    return figure


def heat_map(
    x: tuple[str, Sequence[object]], y: tuple[str, Sequence[object]], values: Sequence[float | None], metric: str
) -> Figure | None:
    """The metric by two parameters; a cell of several jobs (seeds) shows their mean and number.

    Numbers are in numerical order, other values in order of appearance.

    Args:
        x: Short name of a parameter, and its value in each job.
        y: The same of another parameter.
        values: The metric of each job; None or not finite if it failed or did not finish.
        metric: Label of the colour bar, with its unit.

    Returns:
        None if `parallel_coordinates` is clearer: a parameter does not vary, there are more than `MAX_CELLS` cells, or
        at least half of them have no job (values sampled at random are not on a grid).
    """
    (columns, column_of, _), (rows, row_of, upwards) = scales.levels(x[1]), scales.levels(y[1])
    cells = len(rows) * len(columns)
    filled = len({*zip(row_of, column_of, strict=True)})
    if min(len(rows), len(columns)) < 2 or cells > MAX_CELLS or 2 * filled <= cells:
        return None
    jobs: list[list[list[float]]] = [[[] for _ in columns] for _ in rows]
    for row, column, result in zip(row_of, column_of, scales.as_array(values), strict=True):
        jobs[row][column].append(result)
    if not upwards:  # text is read from top to bottom
        rows, jobs = rows[::-1], jobs[::-1]
    width, height = (float(np.clip(at, 3.6, 12)) for at in (0.95 * len(columns), 0.7 * len(rows)))
    slanted = (_longest(columns) + 1) * INCHES_PER_CHARACTER * 1.2 > width / len(columns)
    margins = 0.08 * _longest(rows), 0.06 * _longest(columns) * slanted
    figure = new_figure(width + 2 + margins[0], height + 1.4 + margins[1])
    x_name, y_name = (scales.label(name, MAX_CHARACTERS) for name, _ in (x, y))
    axes = new_axes(figure, f"{scales.label(metric, MAX_CHARACTERS)} by {x_name} and {y_name}", x_name, y_name)
    _label_cells(axes, columns, rows, (width, height), slanted)
    _draw_cells(figure, axes, jobs, metric, (width / len(columns), height / len(rows)))
    return figure


def _colours() -> Colormap:
    """Viridis, darker for better, without the yellow that is hard to see on white."""
    return ListedColormap(mpl.colormaps["viridis"](np.linspace(0.9, 0.02, 256)), "sweep")


def _limits(results: npt.NDArray[Any]) -> tuple[float, float]:
    low, high = float(np.nanmin(results)), float(np.nanmax(results))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _write_ticks(axes: Axes, at: int, ticks: list[tuple[float, str]], characters: int) -> None:
    axes.hlines([place for place, _ in ticks], at - 0.01, at + 0.01, color="#888888", linewidth=1, zorder=3)
    for place, text in ticks:
        where: dict[str, Any] = {"xytext": (-6, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
        outline = [withStroke(linewidth=2.5, foreground="white")]
        style: dict[str, Any] = {"fontsize": 8, "color": INK, "zorder": 6, "path_effects": outline}
        axes.annotate(scales.label(text, characters), (at, place), **where, **style)


def _draw_jobs(axes: Axes, places: list[scales.Floats], results: scales.Floats) -> None:
    """Draw better jobs on top of worse ones; lines of failed jobs end at the last parameter."""
    many = len(results) > 60
    style: dict[str, Any]
    failed = np.flatnonzero(np.isnan(results)).tolist()
    for job in failed:
        path = [place[job] for place in places]
        style = {"linestyle": "--", "linewidth": 0.8 if many else 1.1, "marker": "x", "markevery": [-1], "zorder": 4}
        axes.plot(path, color=FAILED, clip_on=False, **style)
    finished = np.argsort(results, kind="stable")[: len(results) - len(failed)].tolist()
    if not finished:
        return
    norm, colours = Normalize(*_limits(results)), _colours()
    best = int(np.nanargmax(results))
    for job in [*(job for job in finished if job != best), best]:
        path = [*(place[job] for place in places), float(norm(results[job]))]
        style = {"linewidth": 0.9 if many else 1.5, "alpha": 0.75 if many else 0.9, "zorder": 2.5}
        if job == best:
            style = {"linewidth": 3.2, "marker": "o", "markersize": 6, "markerfacecolor": "white", "zorder": 5}
        axes.plot(path, color=colours(norm(results[job])), solid_joinstyle="round", clip_on=False, **style)


def _draw_metric_axis(axes: Axes, at: int, results: scales.Floats, bar_width: float) -> None:
    """The colour bar is the metric's axis: each line ends at its value and colour."""
    best, (low, high) = float(np.nanmax(results)), _limits(results)
    inset = axes.inset_axes((at, 0, bar_width, 1), transform=axes.transData)
    bar = axes.figure.colorbar(ScalarMappable(Normalize(*_limits(results)), _colours()), cax=inset)
    bar.outline.set_visible(False)
    near = scales.TICK_DISTANCE * (high - low)
    ticks = [tick for tick in scales.round_numbers(low, high).tolist() if abs(tick - best) > near]
    if np.nanmin(results) == best:  # one value only: the ends of the axis are arbitrary
        ticks = []
    texts = [scales.as_text(tick) for tick in ticks]
    bar.set_ticks([*ticks, best], labels=[*texts, f"best: {best:.{scales.decimals(results)}f}"])
    bar.ax.tick_params(labelsize=8, colors=INK, length=3)
    bar.ax.get_yticklabels()[-1].set(fontweight="bold", fontsize=10)


def _longest(texts: list[str]) -> int:
    return min(max(map(len, texts)), MAX_CHARACTERS)


def _label_cells(axes: Axes, columns: list[str], rows: list[str], size: tuple[float, float], slanted: bool) -> None:
    """Draw as many tick labels as fit; ``size`` is that of all cells together, in inches."""
    how: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    step = int(np.ceil(len(columns) * 0.2 / size[0]))
    texts = [scales.label(text, MAX_CHARACTERS) for text in columns[::step]]
    axes.set_xticks(range(0, len(columns), step), texts, fontsize=9, **how)
    step = int(np.ceil(len(rows) * 0.17 / size[1]))
    texts = [scales.label(text, MAX_CHARACTERS) for text in rows[::step]]
    axes.set_yticks(range(0, len(rows), step), texts, fontsize=9)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _draw_cells(
    figure: Figure, axes: Axes, jobs: list[list[list[float]]], metric: str, size: tuple[float, float]
) -> None:
    means = np.array([[np.nanmean(cell) if np.isfinite(cell).any() else np.nan for cell in row] for row in jobs])
    edges = [np.arange(count + 1) - 0.5 for count in means.shape]
    runs = np.array([[len(cell) for cell in row] for row in jobs])
    failed = np.isnan(means) & (runs > 0)
    background = np.ma.masked_array(failed.astype(float), ~np.isnan(means))
    axes.pcolormesh(edges[1], edges[0], background, cmap=ListedColormap([EMPTY, FAILED_CELL]), vmin=0, vmax=1)
    annotated = size[0] >= 0.4 and size[1] >= 0.3
    handles = [Patch(color=EMPTY, label="not run")] if (runs == 0).any() else []
    if failed.any():
        handles.append(Patch(color=FAILED_CELL, label="failed or not finished"))
    if np.isfinite(means).any():
        norm, colours = Normalize(*_limits(means)), _colours()
        mesh = axes.pcolormesh(edges[1], edges[0], np.ma.masked_invalid(means), cmap=colours, norm=norm)
        bar = figure.colorbar(mesh, ax=axes, aspect=25, pad=0.02)
        bar.set_label(scales.label(metric, 40), color=INK)
        bar.ax.tick_params(labelsize=9, colors=INK, length=3)
        bar.outline.set_visible(False)
        row, column = np.unravel_index(int(np.nanargmax(means)), means.shape)
        frame: dict[str, Any] = {"fill": False, "edgecolor": ORANGE, "linewidth": 2.5}
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, clip_on=False, zorder=4, **frame))
        handles.append(Patch(label=f"best: {np.nanmax(means):.{scales.decimals(means)}f}", **frame))
    axes.vlines(edges[1], -0.5, len(means) - 0.5, color="white", linewidth=1 if annotated else 0.4)
    axes.hlines(edges[0], -0.5, means.shape[1] - 0.5, color="white", linewidth=1 if annotated else 0.4)
    figure.legend(handles=handles, loc="outside lower right", ncols=3, frameon=False, fontsize=9)
    if annotated:
        _write_cells(axes, jobs, means, 10 if size[0] >= 0.7 else 7)


def _write_cells(axes: Axes, jobs: list[list[list[float]]], means: scales.Floats, size: float) -> None:
    decimals = scales.decimals(means) if np.isfinite(means).any() else 1
    for (row, column), mean in np.ndenumerate(means):
        cell = jobs[row][column]
        if not cell:
            continue
        text, colour = "failed", INK
        if np.isfinite(mean):
            finished = int(np.isfinite(cell).sum())
            number = f"\nn={finished}" + (f" of {len(cell)}" if finished < len(cell) else "")
            text = f"{mean:.{decimals}f}" + (number if len(cell) > 1 else "")
            colour = INK if Normalize(*_limits(means))(mean) < 0.4 else "white"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour, linespacing=1.3)
