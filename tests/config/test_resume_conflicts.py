"""Comparison of the data with that of a saved training state."""

from typing import Any

from pspexp.config.resume import data_conflicts


def state(names: str = "n", files: str = "f", images: int = 4) -> dict[str, Any]:
    return {"images": images, "names": names, "files": files}


def saved(best: dict[str, float] | None = None) -> dict[str, Any]:
    return {"data": {"train": state(), "val": state(images=2)}, "state": {"best": best or {}}}


def test_equal_data_and_states_without_data_are_accepted() -> None:
    assert data_conflicts(saved(), saved()["data"]) == ([], [])
    assert data_conflicts({"state": {}}, saved()["data"]) == ([], [])


def test_training_images_are_refused_and_validation_images_warned_of() -> None:
    data = {"train": state("other"), "val": state("other", images=3)}
    (refused,), (warning,) = data_conflicts(saved({"best/mean_iou": 0.5}), data)
    assert refused.startswith("dataset: the training images or their order differ from the saved run (4 in both); ")
    assert warning == (
        "dataset: 3 validation images here, 2 in the saved run; the best mean IoU so far, 50.00 %, was measured on "
        "those images"
    )


def test_changed_files_are_warned_of() -> None:
    refused, warnings = data_conflicts(saved(), {"train": state(files="x"), "val": state(images=2, files="x")})
    assert refused == []
    assert warnings == [
        "dataset: files of the training images have changed since the saved run: their sizes differ",
        "dataset: files of the validation images have changed since the saved run: their sizes differ",
    ]
