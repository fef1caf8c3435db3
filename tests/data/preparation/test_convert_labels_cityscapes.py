"""Cityscapes' polygons become the labels that cityscapesScripts writes."""

from pathlib import Path
from typing import Any

from tests.data.preparation.annotations import convert, converted, mask, problems, write_json

SQUARE = [[2, 2], [6, 2], [6, 5], [2, 5]]
AREA = (slice(2, 6), slice(2, 7))
CORNER = [[0, 0], [1, 0], [1, 1], [0, 1]]
CORNER_AREA = (slice(0, 2), slice(0, 2))


def polygons(folder: Path, *objects: tuple[str, Any], name: str = "aachen/aachen_0", **more: Any) -> Path:
    content = {"imgWidth": 10, "imgHeight": 8, "objects": [{"label": label, "polygon": p} for label, p in objects]}
    write_json(folder / f"{name}_gtFine_polygons.json", {**content, **more})
    return folder


def both(source: Path, tmp_path: Path) -> list[list[list[int]]]:
    ids = converted("cityscapes", source, tmp_path)
    train_ids = converted("cityscapes", source, tmp_path, train_ids=True)
    assert list(ids) == ["aachen/aachen_0_gtFine_labelIds.png"]
    assert list(train_ids) == ["aachen/aachen_0_gtFine_labelTrainIds.png"]
    return [*ids.values(), *train_ids.values()]


def test_ids_and_train_ids(tmp_path: Path) -> None:
    source = polygons(tmp_path / "in", ("road", SQUARE), ("out of roi", CORNER))
    assert both(source, tmp_path) == [
        mask(10, 8, (*AREA, 7), (*CORNER_AREA, 3)),
        mask(10, 8, (*AREA, 0), (*CORNER_AREA, 255), start=255),
    ]
    assert (tmp_path / "out0/classes.txt").read_text().splitlines()[26:29] == ["car", "truck", "bus"]
    assert (tmp_path / "out1/classes.txt").read_text().splitlines()[13:] == [
        *("car", "truck", "bus", "train", "motorcycle", "bicycle")
    ]


def test_groups_have_the_label_of_their_members(tmp_path: Path) -> None:
    source = polygons(tmp_path / "in", ("cargroup", SQUARE), ("polegroup", CORNER))
    assert both(source, tmp_path) == [
        mask(10, 8, (*AREA, 26), (*CORNER_AREA, 18)),  # polegroup is a label of its own
        mask(10, 8, (*AREA, 13), (*CORNER_AREA, 255), start=255),
    ]


def test_licence_plates_and_deleted_polygons_are_skipped(tmp_path: Path) -> None:
    deleted = {"label": "sky", "polygon": CORNER, "deleted": 1}
    objects = [{"label": "car", "polygon": SQUARE}, {"label": "license plate", "polygon": CORNER}, deleted]
    source = polygons(tmp_path / "in", objects=objects)
    assert both(source, tmp_path) == [mask(10, 8, (*AREA, 26)), mask(10, 8, (*AREA, 13), start=255)]
    assert convert("cityscapes", source, tmp_path / "counted").ignored == 2


def test_later_polygons_are_on_top(tmp_path: Path) -> None:
    source = polygons(tmp_path / "in", ("car", SQUARE), ("ego vehicle", SQUARE))
    assert both(source, tmp_path) == [mask(10, 8, (*AREA, 1)), mask(10, 8, start=255)]


def test_all_problems_are_listed(tmp_path: Path) -> None:
    source = polygons(tmp_path / "in", ("cra", SQUARE), ("car", SQUARE[:2]), ("group", SQUARE))
    polygons(source, name="b", imgWidth=None)
    polygons(source, name="c", imgWidth=0)
    (source / "aachen/aachen_0_gtFine_instanceIds.json").write_text("not read")
    found = problems("cityscapes", source, tmp_path)
    path = source / "aachen/aachen_0_gtFine_polygons.json"
    assert found[0] == f"{path}: objects.0: label 'cra' is not one of Cityscapes'; correct it; did you mean 'car'?"
    assert found[1] == f"{path}: objects.1: a polygon needs at least 3 points, not 2; correct or remove it"
    assert "objects.2: label 'group'" in found[2]
    assert "imgWidth=null: must be a valid integer" in found[3]
    assert "image size 0×8" in found[4]


def test_its_indices_are_fixed(tmp_path: Path) -> None:
    source = polygons(tmp_path / "in")
    for options in ({"class_names": ["car"]}, {"background": False}):
        assert "Cityscapes defines its indices" in problems("cityscapes", source, tmp_path, **options)[0]
