"""Figures of a run. Each function returns a figure; `save` writes it.

They are made without pyplot, whose global state leaks memory and interferes with a caller's own figures.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image

from pspexp.tracking.pictures import save_picture
from pspexp.utils.fonts import fallback_fonts
from pspexp.utils.text import printable

Series = Sequence[tuple[int, int, float]]
"""(step, epoch, value)."""

BLUE, ORANGE, INK, GRID, EMPTY = "#1f6fb4", "#d9690f", "#333333", "#d9d9d9", "#e4e4e4"
DPI = 150
MAX_MARKERS = 60  # points; more are drawn as a line only
MAX_MEDIANS = 1000  # points of a running median, which is smooth; the figure is not wider
MAX_ANNOTATED = 24  # classes; numbers in smaller cells are illegible
MAX_CHARACTERS = 30  # of a class name


def train_loss(series: Series) -> Figure:
    """Training loss by step; many points are drawn pale, with their running median on top."""
    figure = new_figure(7.5, 4.2)
    axes = new_axes(figure, "Training loss", "optimizer step", "loss")
    steps, values = _points(series)
    if len(values) <= MAX_MARKERS:
        axes.plot(steps, values, color=BLUE, marker="o", markersize=3.5, linewidth=1.6)
    else:
        window = max(5, len(values) // 40) | 1  # odd: as many before a point as after it
        axes.plot(steps, values, color=BLUE, alpha=0.3, linewidth=0.8, label="logged")
        places, medians = _running_median(values, window)
        axes.plot(steps[places], medians, color=BLUE, linewidth=2, label=f"running median of {window}")
        axes.legend(frameon=False)
    # The first losses may be many times the others; if the axis included them, the curve would look flat.
    low, high = values.min(), min(values.max(), 1.5 * np.percentile(values, 98))
    margin = 0.06 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)
    return figure


def val_loss(loss: Series, mean_iou: Series = ()) -> Figure:
    """Validation loss by epoch and, beside it, mean IoU in percent; the best point of each is marked."""
    figure = new_figure(10 if mean_iou else 7.5, 4.2)
    columns = 2 if mean_iou else 1
    axes = new_axes(figure, "Validation loss", "epoch", "loss", (1, columns, 1))
    _marked_curve(axes, loss, 1, BLUE, int(np.argmin([value for *_, value in loss])), "{:.3f}")
    if mean_iou:
        axes = new_axes(figure, "Validation mean IoU", "epoch", "mean IoU (%)", (1, columns, 2))
        best = int(np.argmax([value for *_, value in mean_iou]))
        _marked_curve(axes, mean_iou, 100, ORANGE, best, "{:.1f} %")
    return figure


def confusion_matrix(counts: npt.NDArray[Any], class_names: Sequence[str], split: str) -> Figure:
    """Confusion matrix, each row in percent of its class's ground truth.

    Args:
        counts: Pixels ``[C, C]``, rows = ground truth. Rows without pixels are grey.
        class_names: C names.
        split: For the title.
    """
    count, class_names = len(class_names), [printable(name[:MAX_CHARACTERS]) for name in class_names]
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, 100 * counts / np.maximum(totals, 1), np.nan)
    side = float(np.clip(2.5 + 0.45 * count, 5, 16))
    figure = new_figure(side + 1.2, side)
    axes = figure.add_subplot()
    colours = mpl.colormaps["Blues"].with_extremes(bad=EMPTY)
    image = axes.imshow(np.ma.masked_invalid(shares), cmap=colours, vmin=0, vmax=100, interpolation="nearest")
    size = float(np.clip(540 / max(count, 1), 4.5, 10))
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if count <= 8 else {"rotation": 90}
    axes.set_xticks(range(count), class_names, fontsize=size, **slanted)
    axes.set_yticks(range(count), class_names, fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("prediction")
    axes.set_ylabel("ground truth")
    figure.suptitle(f"Confusion matrix, {split} (% of each class's ground truth)", fontsize=11)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=35, pad=0.02, format="%d %%")
    bar.outline.set_visible(False)
    if count <= MAX_ANNOTATED:
        _write_cells(axes, shares)
    if not totals.all():
        empty = Patch(color=EMPTY, label="class without ground truth")
        figure.legend(handles=[empty], loc="outside lower right", fontsize=9, frameon=False)
    return figure


def save(figure: Figure, file: Path) -> None:
    """Write a PNG, see `atomic_write`. Text is drawn as it is, in fonts that have its characters, if there are any."""
    texts: list[Any] = figure.findobj(Text)
    fallback = [font.name for font in fallback_fonts("".join(text.get_text() for text in texts))]
    for text in texts:
        text.set_parse_math(False)  # names may contain $
        text.set_fontfamily([*text.get_fontfamily(), *fallback])
    canvas: Any = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # for each character; `fallback_fonts` has warned
        canvas.draw()  # once; `savefig` draws twice
    save_picture(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), file, dpi=(DPI, DPI))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; the size is in inches."""
    return Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")


def new_axes(
    figure: Figure, title: str, x_label: str, y_label: str, position: tuple[int, int, int] = (1, 1, 1)
) -> Axes:
    axes = figure.add_subplot(*position)
    axes.set_title(title, fontsize=12, color=INK, loc="left", y=1)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#888888")
    axes.tick_params(colors=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 2.5, 5, 10], min_n_ticks=1))
    return axes


def _points(series: Series) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    return np.array([step for step, *_ in series]), np.array([value for *_, value in series], np.float64)


def _running_median(
    values: npt.NDArray[np.float64], window: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Median of the ``window`` values around a value, of fewer at the ends. Unlike a mean, it ignores spikes.

    Returns:
        Indices of at most `MAX_MEDIANS` values, evenly spaced, and the medians there.
    """
    count = len(values)
    places = np.linspace(0, count - 1, min(count, MAX_MEDIANS)).round().astype(np.int64)
    around = (values[max(place - window // 2, 0) : place + window // 2 + 1] for place in places)
    return places, np.array([np.median(near) for near in around])


def _marked_curve(axes: Axes, series: Series, factor: float, colour: str, best: int, text: str) -> None:
    epochs = [epoch for _, epoch, _ in series]
    values = [factor * value for *_, value in series]
    marker = "o" if len(values) <= MAX_MARKERS else None
    axes.plot(epochs, values, color=colour, marker=marker, markersize=4, linewidth=1.8)
    style: dict[str, Any] = {"markersize": 9, "markerfacecolor": "white", "markeredgewidth": 2}
    axes.plot(epochs[best], values[best], "o", color=colour, **style)
    axes.annotate(
        f"best: {text.format(values[best])}",
        (epochs[best], values[best]),
        xytext=(0, -18 if best == int(np.argmin(values)) and len(values) > 1 else 10),
        textcoords="offset points",
        ha="center",
        color=INK,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )
    axes.margins(x=0.1, y=0.18)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], min(0.0, *values)))  # no empty space below zero


def _write_cells(axes: Axes, shares: npt.NDArray[Any]) -> None:
    size = 10 if len(shares) <= 12 else 8
    for row, column in zip(*np.nonzero(np.nan_to_num(shares) >= 0.5), strict=True):
        share = shares[row, column]
        colour = "white" if share > 55 else INK
        text = axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=size, color=colour)
        text.set_in_layout(False)  # it stays inside its cell; measuring hundreds of texts is slow
