"""Metrics compared with scikit-learn, torchmetrics and hand-made cases, including absent classes."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import Tensor
from torchmetrics.functional import classification as torchmetrics_functional

from pspexp.metrics import ConfusionMatrix, Report


def labels(seed: int, classes: int, absent_truth: int = 0, absent_both: int = 0) -> tuple[Tensor, Tensor]:
    """Prediction and target ``[2, 13, 17]``; the last classes are absent from the ground truth, or from both."""
    rng = np.random.default_rng(seed)
    shape = (2, 13, 17)
    target = rng.integers(0, classes - absent_truth - absent_both, shape)
    wrong = rng.integers(0, classes - absent_both, shape)
    prediction = np.where(rng.random(shape) < 0.6, target, wrong)
    target[rng.random(shape) < 0.15] = 255
    return torch.from_numpy(prediction), torch.from_numpy(target)


def report(prediction: Tensor, target: Tensor, classes: int) -> Report:
    matrix = ConfusionMatrix(classes)
    matrix.update(prediction, target)
    return matrix.report([f"c{i}" for i in range(classes)])


CASES = [
    (seed, classes, truth, both)
    for seed, (classes, truth, both) in enumerate([(2, 0, 0), (5, 0, 0), (21, 0, 0), (6, 2, 0), (7, 0, 3), (9, 2, 2)])
]


@pytest.mark.parametrize(("seed", "classes", "truth", "both"), CASES)
def test_agrees_with_scikit_learn(seed: int, classes: int, truth: int, both: int) -> None:
    prediction, target = labels(seed, classes, truth, both)
    ours = report(prediction, target, classes)
    y, x = target[target != 255].numpy(), prediction[target != 255].numpy()
    ids = range(classes)
    confusion = sklearn_metrics.confusion_matrix(y, x, labels=ids)
    assert np.array_equal(ours.confusion, confusion)
    assert ours.overall_acc == pytest.approx(sklearn_metrics.accuracy_score(y, x))
    iou = sklearn_metrics.jaccard_score(y, x, labels=ids, average=None, zero_division=0)
    iou[[i not in x and i not in y for i in ids]] = np.nan  # scikit-learn has no value for "undefined"
    assert ours.iou == pytest.approx(iou, nan_ok=True)
    assert ours.mean_iou == pytest.approx(np.nanmean(iou))
    recall = sklearn_metrics.recall_score(y, x, labels=ids, average=None, zero_division=np.nan)
    assert ours.accuracy == pytest.approx(recall, nan_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes that are only predicted; it omits them, too
        assert ours.mean_acc == pytest.approx(sklearn_metrics.balanced_accuracy_score(y, x))
    options = {"labels": list(ids), "average": None, "zero_division": np.nan}
    precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(y, x, **options)
    assert ours.precision == pytest.approx(precision, nan_ok=True)
    assert ours.recall == pytest.approx(recall, nan_ok=True)
    f1[[i in x and i not in y for i in ids]] = 0  # undefined there, since recall is; 0 in older versions
    assert ours.dice == pytest.approx(f1, nan_ok=True)
    assert ours.mean_dice == pytest.approx(np.nanmean(f1))
    assert (ours.mean_precision, ours.mean_recall) == pytest.approx((np.nanmean(precision), np.nanmean(recall)))
    weighted = sklearn_metrics.jaccard_score(y, x, average="weighted", zero_division=0)
    assert ours.freqw_acc == pytest.approx(weighted)
    assert ours.pixels == tuple(np.bincount(y, minlength=classes))


@pytest.mark.parametrize(("seed", "classes", "truth", "both"), CASES)
def test_agrees_with_torchmetrics(seed: int, classes: int, truth: int, both: int) -> None:
    prediction, target = labels(seed, classes, truth, both)
    ours = report(prediction, target, classes)
    options = {"num_classes": classes, "ignore_index": 255}
    confusion = torchmetrics_functional.multiclass_confusion_matrix(prediction, target, **options)
    assert np.array_equal(ours.confusion, confusion)
    overall = torchmetrics_functional.multiclass_accuracy(prediction, target, average="micro", **options)
    assert ours.overall_acc == pytest.approx(overall.item(), rel=1e-6)
    iou = torchmetrics_functional.multiclass_jaccard_index(prediction, target, average=None, **options)
    # torchmetrics gives 0 for a class in neither; ours is undefined.
    assert np.nan_to_num(ours.iou) == pytest.approx(iou.numpy(), rel=1e-6)
    dice = torchmetrics_functional.multiclass_f1_score(prediction, target, average=None, **options)
    assert np.nan_to_num(ours.dice) == pytest.approx(dice.numpy(), rel=1e-6)
    mean_acc = torchmetrics_functional.multiclass_accuracy(prediction, target, average="macro", **options).item()
    # torchmetrics counts a class that is only predicted as 0 in the mean; ours omits it.
    present = classes - truth - both
    assert ours.mean_acc * present / (classes - both) == pytest.approx(mean_acc, rel=1e-6)


def test_class_without_ground_truth_counts_for_iou_not_accuracy() -> None:
    prediction, target = torch.tensor([[[0, 0, 1, 2]]]), torch.tensor([[[0, 0, 1, 1]]])
    ours = report(prediction, target, 4)
    assert ours.iou == pytest.approx((1.0, 0.5, 0.0, math.nan), nan_ok=True)
    assert ours.accuracy == pytest.approx((1.0, 0.5, math.nan, math.nan), nan_ok=True)
    assert ours.dice == pytest.approx((1.0, 2 / 3, 0.0, math.nan), nan_ok=True)
    assert ours.precision == pytest.approx((1.0, 1.0, 0.0, math.nan), nan_ok=True)
    assert ours.recall == ours.accuracy
    assert ours.pixels == (2, 2, 0, 0)
    assert ours.mean_dice == pytest.approx(5 / 9)
    assert ours.mean_precision == pytest.approx(2 / 3)
    assert ours.mean_recall == ours.mean_acc
    assert ours.mean_iou == pytest.approx(0.5)
    assert ours.mean_acc == pytest.approx(0.75)
    assert ours.overall_acc == pytest.approx(0.75)
    assert ours.freqw_acc == pytest.approx(0.75)
    assert ours.confusion[1] == (0, 1, 1, 0)  # rows are ground truth


def test_class_that_is_never_predicted_counts_for_recall_not_precision() -> None:
    ours = report(torch.tensor([[[0, 0, 0, 0]]]), torch.tensor([[[0, 0, 0, 1]]]), 2)
    assert ours.precision == pytest.approx((0.75, math.nan), nan_ok=True)
    assert ours.recall == (1.0, 0.0)
    assert ours.dice == pytest.approx((6 / 7, 0.0))
    assert (ours.mean_precision, ours.mean_recall, ours.mean_dice) == pytest.approx((0.75, 0.5, 3 / 7))


def test_metrics_without_pixels_are_undefined_and_omitted() -> None:
    prediction, target = torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), 255)
    for ours in (report(prediction, target, 2), ConfusionMatrix(2).report(["c0", "c1"])):
        headline = (ours.overall_acc, ours.mean_acc, ours.freqw_acc, ours.mean_iou, *ours.iou, *ours.accuracy)
        headline += (ours.mean_dice, ours.mean_precision, ours.mean_recall, *ours.dice, *ours.precision, *ours.recall)
        assert all(map(math.isnan, headline))
        assert ours.scalars("val") == {}
        assert "nan" not in ours.table()


@pytest.mark.parametrize("dtypes", [(torch.uint8, torch.uint8), (torch.int64, torch.uint8), (torch.int32, torch.int64)])
def test_all_integer_dtypes_give_the_same_counts(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    prediction, target = labels(0, 21)
    assert report(prediction.to(dtypes[0]), target.to(dtypes[1]), 21) == report(prediction, target, 21)


@pytest.mark.parametrize("ignore_index", [255, 0, 3, -1])
def test_ignored_pixels_are_not_counted(ignore_index: int) -> None:
    prediction, target = labels(1, 5)
    target = target.where(target != 255, ignore_index)
    matrix = ConfusionMatrix(5, ignore_index)
    matrix.update(prediction, target)
    valid = target != ignore_index
    expected = sklearn_metrics.confusion_matrix(target[valid], prediction[valid], labels=range(5))
    assert np.array_equal(matrix.matrix, expected)


def test_update_does_not_modify_its_inputs() -> None:
    prediction, target = labels(3, 4)
    before = prediction.clone(), target.clone()
    report(prediction, target, 4)
    assert torch.equal(prediction, before[0])
    assert torch.equal(target, before[1])


def test_matrices_can_be_added() -> None:
    prediction, target = labels(2, 6)
    whole, first, second = ConfusionMatrix(6), ConfusionMatrix(6), ConfusionMatrix(6)
    whole.update(prediction, target)
    for p, t in zip(prediction[0], target[0], strict=True):  # row by row: any shape is accepted
        first.update(p, t)
    second.update(prediction[1:], target[1:])
    total = first + second
    assert torch.equal(total.matrix, whole.matrix)
    assert total.matrix.dtype == torch.int64
    assert first.matrix.sum() + second.matrix.sum() == total.matrix.sum()  # the summands are unchanged
    with pytest.raises(AssertionError, match="different classes"):
        whole + ConfusionMatrix(5)


def test_counts_are_exact_beyond_float32() -> None:
    matrix = ConfusionMatrix(2)
    matrix.counts[0] = 2**53
    matrix.update(torch.tensor([0]), torch.tensor([0]))
    assert matrix.report(["a", "b"]).pixels == (2**53 + 1, 0)


@pytest.mark.parametrize(("prediction", "target"), [(2, 0), (-1, 0), (0, 2), (0, -1), (254, 254)])
def test_invalid_ids_are_never_counted(prediction: int, target: int) -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([prediction, 1]), torch.tensor([target, 1]))
    assert matrix.matrix.tolist() == [[0, 0], [0, 1]]
    with pytest.raises(AssertionError, match="1 pixels with a class id outside 0 to 1"):
        matrix.report(["a", "b"])


def test_update_refuses_scores_and_mismatched_shapes() -> None:
    matrix = ConfusionMatrix(2)
    with pytest.raises(AssertionError, match="scores"):
        matrix.update(torch.rand(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(AssertionError, match=r"\(1, 2, 2\)"):
        matrix.update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 3, dtype=torch.int64))
    with pytest.raises(AssertionError, match="1 names for 2 classes"):
        matrix.report(["a"])


def test_update_does_not_read_values() -> None:
    matrix = ConfusionMatrix(21)
    # Meta tensors have no values: reading one raises.
    ids = torch.zeros(2, 5, 5, dtype=torch.int64, device="meta")
    matrix.update(ids, ids.to(torch.uint8))
    assert matrix.matrix.device.type == "meta"


@pytest.mark.cuda
def test_update_does_not_synchronise_cuda() -> None:
    prediction, target = (ids.cuda() for ids in labels(0, 21))
    matrix = ConfusionMatrix(21)
    matrix.update(prediction, target)
    torch.cuda.set_sync_debug_mode("error")
    try:
        matrix.update(prediction, target)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.array_equal(matrix.matrix.cpu(), 2 * np.array(report(prediction, target, 21).confusion))


def example() -> Report:
    matrix = ConfusionMatrix(3)
    matrix.counts[:9] = torch.tensor([1200, 34, 0, 66, 700, 0, 0, 0, 0])
    return matrix.report(["sky", "road", "tram"])


def test_scalars_have_the_public_names() -> None:
    assert example().scalars("val") == pytest.approx(
        {
            "val/overall_acc": 1900 / 2000,
            "val/mean_acc": (1200 / 1234 + 700 / 766) / 2,
            "val/freqw_acc": (1234 * 1200 / 1300 + 766 * 700 / 800) / 2000,
            "val/mean_iou": (1200 / 1300 + 700 / 800) / 2,
            "val/mean_dice": (2400 / 2500 + 1400 / 1500) / 2,
            "val/mean_precision": (1200 / 1266 + 700 / 734) / 2,
            "val/mean_recall": (1200 / 1234 + 700 / 766) / 2,
            "val/iou/sky": 1200 / 1300,
            "val/iou/road": 700 / 800,
        }
    )


def test_table_is_plain_text_in_percent() -> None:
    assert example().table() == "\n".join(
        [
            "class                   IoU %  accuracy %  pixels",
            "-------------------------------------------------",
            "sky                     92.31       97.24   1,234",
            "road                    87.50       91.38     766",
            "tram                        –           –       0",
            "-------------------------------------------------",
            "mean                    89.90       94.31   2,000",
            "overall                             95.00",
            "frequency-weighted IoU  90.47",
        ]
    )


def test_undefined_values_of_rows_are_none() -> None:
    rows = example().rows()
    assert rows[2] == ("tram", None, None, 0)
    assert rows[0] == ("sky", pytest.approx(1200 / 1300), pytest.approx(1200 / 1234), 1234)


def test_columns_begin_with_those_that_the_table_always_had() -> None:
    columns = example().columns()
    assert list(columns) == ["class", "iou", "accuracy", "pixels", "dice", "precision", "recall"]
    assert [column[2] for column in columns.values()] == ["tram", None, None, 0, None, None, None]
    assert columns["recall"] == columns["accuracy"]
    assert columns["precision"][:2] == pytest.approx([1200 / 1266, 700 / 734])


def test_further_metrics_are_added_to_scalars_table_and_columns() -> None:
    others = {"mean_edge": 0.25, "kappa": math.nan}
    ours = replace(example(), others=others, class_columns={"edge": (0.5, 0.0, math.nan)})
    assert ours.scalars("test")["test/mean_edge"] == 0.25
    assert "test/kappa" not in ours.scalars("test")
    assert ours.table() == f"{example().table()}\nmean_edge: 0.2500\nkappa: –"
    assert list(ours.columns().items())[-1] == ("edge", [0.5, 0.0, None])


def test_report_is_plain_python() -> None:
    ours = example()
    for values in (ours.iou, ours.accuracy, (ours.overall_acc, ours.mean_acc, ours.freqw_acc, ours.mean_iou)):
        assert all(type(value) is float for value in values)
    assert all(type(count) is int for row in (*ours.confusion, ours.pixels) for count in row)
    with pytest.raises(AttributeError):
        ours.mean_iou = 1.0  # type: ignore[misc]
