from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from pspexp.tracking import figures


@pytest.mark.parametrize("count", [1, 2, 60, 500])
def test_train_loss_of_any_length(tmp_path: Path, count: int) -> None:
    figure = figures.train_loss([(5 * i, 1, 3 / i) for i in range(1, count + 1)])
    figures.save(figure, tmp_path / "deep" / "loss.png")
    with Image.open(tmp_path / "deep" / "loss.png") as image:
        assert image.size == (1125, 630)
    (axes,) = figure.axes
    assert (axes.get_legend() is not None) == (count > figures.MAX_MARKERS)
    assert axes.get_xlabel() == "optimizer step"


def test_early_spike_does_not_flatten_the_curve() -> None:
    figure = figures.train_loss([(i, 1, 1000.0 if i == 1 else 1.0) for i in range(1, 101)])
    assert figure.axes[0].get_ylim()[1] < 10


def test_running_median_is_centred_and_shorter_at_the_ends() -> None:
    values = [float(i) if i % 10 else 1e6 for i in range(100)]  # spikes
    line = figures.train_loss([(i, 1, value) for i, value in enumerate(values)]).axes[0].lines[1]
    assert line.get_label() == "running median of 5"
    expected = [np.median(values[max(i - 2, 0) : i + 3]) for i in range(100)]
    np.testing.assert_array_equal(line.get_ydata(), expected)


def test_median_of_many_points_is_drawn_where_it_can_be_seen() -> None:
    """At each point it would take longer than the training between two validations."""
    values = [3 / i for i in range(1, 100_001)]
    pale, bold = figures.train_loss([(i, 1, value) for i, value in enumerate(values)]).axes[0].lines
    assert len(pale.get_xdata()) == 100_000
    steps, medians = bold.get_data()
    assert len(steps) == figures.MAX_MEDIANS
    assert (steps[0], steps[-1]) == (0, 99_999)
    half = int(bold.get_label().split()[-1]) // 2
    expected = [np.median(values[max(i - half, 0) : i + half + 1]) for i in steps]
    np.testing.assert_array_equal(medians, expected)


def test_val_loss_marks_the_best() -> None:
    loss = [(10, 1, 2.0), (20, 2, 1.0), (30, 3, 1.5)]
    figure = figures.val_loss(loss, [(10, 1, 0.1), (20, 2, 0.2), (30, 3, 0.3)])
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == ["best: 1.000", "best: 30.0 %"]
    assert len(figures.val_loss(loss).axes) == 1


@pytest.mark.parametrize("count", [1, 3, 21, 101])
def test_confusion_matrix_of_any_size(tmp_path: Path, count: int) -> None:
    counts = np.eye(count, dtype=np.int64) * 7
    counts[0] = 0
    figure = figures.confusion_matrix(counts, [f"class {i}" for i in range(count)], "val")
    figures.save(figure, tmp_path / "matrix.png")
    axes = figure.axes[0]
    assert len(axes.get_xticklabels()) == len(axes.get_yticklabels()) == count
    assert [text.get_text() for text in axes.texts] == ["100"] * (count - 1 if count < 25 else 0)
    assert len(figure.legends) == 1  # explains the grey row


def test_no_global_figures_are_left() -> None:
    figures.train_loss([(1, 1, 1.0)])
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    "names",
    [["a$_$", "$b_"], [r"$\frac{$", "%$#"], ["猫", "犬"], ["two\nlines", "tab\t\0"], ["\udcff", "🐈"], ["", " "]],
)
def test_any_class_names_are_drawn(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr("pspexp.utils.fonts._warned", False)
    figures.save(figures.confusion_matrix(np.eye(2, dtype=np.int64), names, "val"), tmp_path / "matrix.png")
    with Image.open(tmp_path / "matrix.png") as image:
        image.load()
    assert [str(warning.message) for warning in recwarn] == []
