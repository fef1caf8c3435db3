import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from PIL import Image

from pspexp.tracking import figures, sweep_figures

METRIC = "mean IoU (%)"
LR = [1e-4, 1e-4, 5e-5, 5e-5]
BATCH_SIZE = [4, 8, 4, 8]
FAILED_LAST = [61.32, 58.9, 63.14, None]


def names(axes: Axes) -> list[str]:
    """Return the titles of the vertical axes."""
    return [text.get_text() for text in axes.texts if not isinstance(text, Annotation)]


def ticks(axes: Axes, at: int) -> list[str]:
    """Return the tick labels of a vertical axis, from bottom to top."""
    found = [text for text in axes.texts if isinstance(text, Annotation) and text.xy[0] == at]
    return [text.get_text() for text in sorted(found, key=lambda text: text.xy[1])]


def spacing(axes: Axes, at: int) -> list[float]:
    """Return the gaps between the ticks of a vertical axis, as fractions of the distance from first to last."""
    positions = sorted(text.xy[1] for text in axes.texts if isinstance(text, Annotation) and text.xy[0] == at)
    return [float(gap / (positions[-1] - positions[0])) for gap in np.diff(positions)]


def bar_labels(axes: Axes) -> list[str]:
    """Return the tick labels of the metric's axis, which is the colour bar."""
    (bar,) = axes.child_axes
    return [text.get_text() for text in bar.get_yticklabels()]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for drawn in figure.legends for text in drawn.get_texts()]


def cells(figure: Figure | None) -> dict[tuple[str, str], str]:
    """Return the text of each heat-map cell, keyed by the labels of its column and row."""
    assert figure is not None
    axes = figure.axes[0]
    columns, rows = ([text.get_text() for text in found] for found in (axes.get_xticklabels(), axes.get_yticklabels()))
    at = ((text.get_position(), text.get_text()) for text in axes.texts)
    return {(columns[int(x)], rows[int(y)]): text for (x, y), text in at}


def brightness(colour: object) -> float:
    red, green, blue = (int(to_hex(colour)[i : i + 2], 16) for i in (1, 3, 5))
    return 0.3 * red + 0.6 * green + 0.1 * blue


def test_parallel_coordinates_of_a_sweep_with_a_failed_job() -> None:
    parameters = {"lr": LR, "batch_size": BATCH_SIZE, "seed": [0] * 4}
    figure = sweep_figures.parallel_coordinates(parameters, FAILED_LAST, METRIC)
    (axes,) = figure.axes
    assert names(axes) == ["lr", "batch_size", METRIC]  # the seed does not vary
    assert ticks(axes, 0) == ["5e-5", "0.0001"]
    assert ticks(axes, 1) == ["4", "8"]
    assert bar_labels(axes)[-1] == "best: 63.1"
    assert legend(figure) == ["failed or not finished"]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    finished = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert [len(line.get_ydata()) for line in dashed] == [2]  # up to the last parameter
    assert [len(line.get_ydata()) for line in finished] == [3, 3, 3]
    ends = [line.get_ydata()[-1] for line in finished]
    np.testing.assert_allclose(ends, [0, (61.32 - 58.9) / (63.14 - 58.9), 1])
    light = [brightness(line.get_color()) for line in finished]
    assert light == sorted(light, reverse=True)  # darker is better
    assert finished[-1].get_linewidth() > 2 * finished[0].get_linewidth()


def test_axes_that_span_magnitudes_are_logarithmic() -> None:
    parameters = {"lr": [1e-4, 1e-3, 1e-2], "crop_size": [100, 200, 1000], "decay": [0, 1e-4, 1e-2]}
    axes = sweep_figures.parallel_coordinates(parameters, [1, 2, 3], METRIC).axes[0]
    assert ticks(axes, 0) == ["0.0001", "0.001", "0.01"]
    assert spacing(axes, 0) == pytest.approx([1 / 2, 1 / 2])
    assert spacing(axes, 1) == pytest.approx([1 / 9, 8 / 9])
    assert ticks(axes, 2) == ["0", "0.01"]  # 0.0001 would overlap 0


def test_many_numbers_have_ticks_at_round_values() -> None:
    parameters = {"lr": np.geomspace(1.1e-5, 0.9e-3, 30).tolist(), "decay": np.linspace(0, 0.99, 30).tolist()}
    axes = sweep_figures.parallel_coordinates(parameters, list(range(30)), METRIC).axes[0]
    assert ticks(axes, 0) == ["2e-5", "5e-5", "0.0001", "0.0002", "0.0005"]
    assert ticks(axes, 1) == ["0", "0.2", "0.4", "0.6", "0.8"]


def test_text_is_spaced_evenly_in_order_of_appearance() -> None:
    parameters = {"optimizer": ["sgd", "adamw", "lion"], "ema": [True, False, None], "aux": ["off", 0.4, 0.2]}
    axes = sweep_figures.parallel_coordinates(parameters, [1, 2, 3], METRIC).axes[0]
    assert ticks(axes, 0) == ["sgd", "adamw", "lion"]
    assert ticks(axes, 1) == ["null", "false", "true"]
    assert ticks(axes, 2) == ["0.2", "0.4", "off"]
    assert spacing(axes, 0) == pytest.approx([1 / 2, 1 / 2])


def test_lines_through_the_same_values_are_separated() -> None:
    grid = [*itertools.product([1e-4, 1e-3], [4, 8], ["adamw", "sgd"])]
    columns = [[*column] for column in zip(*grid, strict=True)]
    parameters = dict(zip(["lr", "batch_size", "optimizer"], columns, strict=True))
    axes = sweep_figures.parallel_coordinates(parameters, list(range(8)), METRIC).axes[0]
    for axis in range(3):
        assert len({round(line.get_ydata()[axis], 6) for line in axes.lines}) == 8


@pytest.mark.parametrize("values", [[61.2], [None], [float("nan")], [0.0]])
def test_parallel_coordinates_of_one_job(tmp_path: Path, values: Sequence[float | None]) -> None:
    figure = sweep_figures.parallel_coordinates({"lr": [0.1], "batch_size": [4]}, values, METRIC)
    figures.save(figure, tmp_path / "lines.png")
    assert names(figure.axes[0]) == ["lr", "batch_size", METRIC]
    assert len(figure.axes[0].lines) == 1
    finished = values[0] is not None and np.isfinite(values[0])
    assert legend(figure) == ([] if finished else ["failed or not finished"])
    assert bool(figure.axes[0].child_axes) == finished


def test_equal_results_have_one_colour_and_one_label() -> None:
    axes = sweep_figures.parallel_coordinates({"lr": [1, 2, 3]}, [50.0] * 3, METRIC).axes[0]
    assert bar_labels(axes) == ["best: 50.0"]
    assert len({line.get_color() for line in axes.lines}) == 1


def test_similar_results_have_more_decimals() -> None:
    axes = sweep_figures.parallel_coordinates({"lr": [1, 2]}, [61.284, 61.291], METRIC).axes[0]
    assert bar_labels(axes)[-1] == "best: 61.2910"


def test_many_jobs_and_parameters_with_long_values_fit(tmp_path: Path) -> None:
    values = [f"pretrained/on/a_data_set_with_a_long_name/version_{i}" for i in range(60)]
    parameters = {f"parameter_{i}": [values[job * (i + 1) % 60] for job in range(200)] for i in range(12)}
    figure = sweep_figures.parallel_coordinates(parameters, [job % 37 for job in range(200)], METRIC)
    figures.save(figure, tmp_path / "lines.png")
    with Image.open(tmp_path / "lines.png") as image:
        assert image.size == (2400, 900)
    axes = figure.axes[0]
    assert len(axes.lines) == 200
    assert len(ticks(axes, 3)) < 26
    assert all(len(tick) < 16 for tick in ticks(axes, 3))
    assert ticks(axes, 0)[-1].endswith("59")
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts if isinstance(text, Annotation)]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert min(box.x0 for box in boxes) >= 0


def test_dollar_signs_do_not_start_formulas(tmp_path: Path) -> None:
    values = [r"$\frac{", "${dataset}$"]
    lines = sweep_figures.parallel_coordinates({"$a$": values}, [1, 2], "$")
    figures.save(lines, tmp_path / "lines.png")
    assert {"$a$", *values} <= {text.get_text() for text in lines.axes[0].texts}
    figure = sweep_figures.heat_map(("$a$", values * 2), ("b", [1, 1, 2, 2]), [1, 2, 3, 4], "$x$")
    assert figure is not None
    figures.save(figure, tmp_path / "map.png")


def test_heat_map_of_a_sweep_with_a_failed_job() -> None:
    figure = sweep_figures.heat_map(("lr", LR), ("batch_size", BATCH_SIZE), FAILED_LAST, METRIC)
    assert cells(figure) == {
        ("5e-5", "4"): "63.1",
        ("0.0001", "4"): "61.3",
        ("5e-5", "8"): "failed",
        ("0.0001", "8"): "58.9",
    }
    assert figure is not None
    axes, bar = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == ("lr", "batch_size", METRIC)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["5e-5", "0.0001"]
    (frame,) = axes.patches
    assert (frame.get_x(), frame.get_y()) == (-0.5, -0.5)  # around 63.1
    assert legend(figure) == ["failed or not finished", "best: 63.1"]


def test_heat_map_shows_mean_and_number_of_jobs() -> None:
    encoder, ema = ["b", "b", "b", "a", "a", "b", "b"], [True, True, True, True, True, False, False]
    figure = sweep_figures.heat_map(("encoder", encoder), ("ema", ema), [1, 2, 6, 5, None, None, None], METRIC)
    assert cells(figure) == {("b", "true"): "3.0\nn=3", ("a", "true"): "5.0\nn=1 of 2", ("b", "false"): "failed"}
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["b", "a"]  # in order of appearance
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["true", "false"]  # bottom to top
    assert legend(figure) == ["not run", "failed or not finished", "best: 5.0"]


def test_heat_map_of_failed_jobs_only(tmp_path: Path) -> None:
    figure = sweep_figures.heat_map(("lr", LR), ("batch_size", BATCH_SIZE), [None, None, float("nan"), None], METRIC)
    assert set(cells(figure).values()) == {"failed"}
    assert figure is not None
    assert legend(figure) == ["failed or not finished"]
    figures.save(figure, tmp_path / "map.png")


@pytest.mark.parametrize(("columns", "rows"), [(20, 20), (200, 2), (2, 200)])
def test_largest_heat_maps(tmp_path: Path, columns: int, rows: int) -> None:
    x, y = zip(*itertools.product(range(columns), range(rows)), strict=True)
    figure = sweep_figures.heat_map(("x", x), ("y", y), [10.0 * i for i in range(400)], METRIC)
    assert figure is not None
    figures.save(figure, tmp_path / "map.png")
    axes = figure.axes[0]
    assert len(axes.texts) == (400 if columns == rows else 0)  # numbers only where they are legible
    assert sweep_figures.heat_map(("x", [*x, 300]), ("y", [*y, 0]), [1.0] * 401, METRIC) is None
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.get_yticklabels()]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


def test_no_heat_map_without_a_grid() -> None:
    assert sweep_figures.heat_map(("lr", [1, 2, 3]), ("batch_size", [4, 4, 4]), [1, 2, 3], METRIC) is None
    assert sweep_figures.heat_map(("lr", [1, 2, 3]), ("batch_size", [4, 5, 6]), [1, 2, 3], METRIC) is None


def test_no_global_figures_are_left() -> None:
    sweep_figures.parallel_coordinates({"lr": [1, 2]}, [1, 2], METRIC)
    assert plt.get_fignums() == []
