"""Conversion of annotations: order of classes and overlaps, palettes, all or nothing."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspexp.data.labels import VOC_COLOURS
from pspexp.data.preparation.annotations.classes import read_names
from pspexp.errors import UserError
from tests.data.preparation.annotations import convert, converted, labelme, labels, mask, problems

TOOL = Path(__file__).parents[3] / "tools/convert_labels.py"
BIG, SMALL = [[0, 0], [9, 7]], [[2, 2], [4, 3]]
ALL, INNER = (slice(0, 8), slice(0, 10)), (slice(2, 4), slice(2, 5))


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_tool(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(TOOL.parents[1])}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two images: a small car below a large tree, and the other way round."""
    labelme(tmp_path / "in/a.json", ("car", "rectangle", SMALL), ("tree", "rectangle", BIG))
    labelme(tmp_path / "in/sub/b.json", ("tree", "rectangle", BIG), ("car", "rectangle", SMALL))
    return tmp_path / "in"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("overlap", "small", "names"),
    [
        ("file", {"a": False, "b": True}, None),
        ("area", {"a": True, "b": True}, None),
        ("class", {"a": False, "b": False}, None),
        ("class", {"a": True, "b": True}, ["tree", "car"]),
    ],
)
def test_overlap(
    source: Path, tmp_path: Path, overlap: str, small: dict[str, bool], names: list[str], workers: int
) -> None:
    car, tree = (2, 1) if names else (1, 2)
    covered, visible = mask(10, 8, (*ALL, tree)), mask(10, 8, (*ALL, tree), (*INNER, car))
    assert converted("labelme", source, tmp_path, overlap=overlap, class_names=names, num_workers=workers) == {
        "a.png": visible if small["a"] else covered,
        "sub/b.png": visible if small["b"] else covered,
    }


def test_ignored_areas_cover_every_class_in_class_order(tmp_path: Path) -> None:
    labelme(tmp_path / "in/a.json", ("__ignore__", "rectangle", SMALL), ("car", "rectangle", BIG))
    assert converted("labelme", tmp_path / "in", tmp_path) == {"a.png": mask(10, 8, (*ALL, 1))}
    expected = mask(10, 8, (*ALL, 1), (*INNER, 255))
    assert converted("labelme", tmp_path / "in", tmp_path, overlap="class") == {"a.png": expected}


def test_classes_are_sorted_by_name_or_in_the_order_given(source: Path, tmp_path: Path) -> None:
    assert convert("labelme", source, tmp_path / "1").class_names == ["background", "car", "tree"]
    assert (tmp_path / "1/classes.txt").read_text() == "background\ncar\ntree\n"
    convert("labelme", source, tmp_path / "2", class_names=["tree", "bus", "car"])
    assert (tmp_path / "2/classes.txt").read_text() == "background\ntree\nbus\ncar\n"
    assert labels(tmp_path / "2")["sub/b.png"] == mask(10, 8, (*ALL, 1), (*INNER, 3))
    # The file that one conversion writes is the order of the next.
    convert("labelme", source, tmp_path / "3", class_names=read_names(str(tmp_path / "2/classes.txt")))
    assert content(tmp_path / "3") == content(tmp_path / "2")


def test_without_background_index_0_is_the_first_class(tmp_path: Path) -> None:
    shapes = ("tree", "rectangle", [[0, 0], [9, 3]]), ("_background_", "rectangle", SMALL), ("car", "point", [[0, 0]])
    labelme(tmp_path / "in/a.json", *shapes[:2])
    rows = slice(0, 4), slice(0, 10)
    assert converted("labelme", tmp_path / "in", tmp_path) == {"a.png": mask(10, 8, (*rows, 1), (*INNER, 0))}
    expected = mask(10, 8, (*rows, 0), (*INNER, 255), start=255)
    assert converted("labelme", tmp_path / "in", tmp_path, background=False) == {"a.png": expected}
    assert (tmp_path / "out1/classes.txt").read_text() == "tree\n"


def test_class_names_from_a_file_or_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ncar\n\ntree\n")
    assert read_names(str(tmp_path / "labels.txt")) == ["background", "car", "tree"]
    assert read_names("car, traffic light") == ["car", "traffic light"]
    assert read_names("car") == ["car"]
    for text, problem in [
        ("car,car", "contains car more than once"),
        ("car,,tree", "label '' is empty"),
        ("missing.txt", r"missing\.txt: cannot be read"),
    ]:
        with pytest.raises(UserError, match=problem):
            read_names(text)


def test_background_must_be_the_first_class(source: Path, tmp_path: Path) -> None:
    given = ["car", "background", "tree"]
    assert "list it first" in problems("labelme", source, tmp_path, class_names=given)[0]
    assert "remove it" in problems("labelme", source, tmp_path, class_names=given, background=False)[0]


def test_more_than_255_classes_are_refused(tmp_path: Path) -> None:
    names = [f"c{k}" for k in range(255)]
    labelme(tmp_path / "in/a.json", *((name, "point", [[1, 1]]) for name in names))
    assert "256 classes: an 8-bit label holds 255" in problems("labelme", tmp_path / "in", tmp_path)[0]
    assert len(convert("labelme", tmp_path / "in", tmp_path / "out", background=False).class_names) == 255


def test_all_problems_of_all_files_are_listed_and_nothing_is_written(source: Path, tmp_path: Path) -> None:
    labelme(source / "c.json", ("trea", "rectangle", BIG), ("car", "polygon", SMALL), ("car", "hexagon", BIG))
    labelme(source / "d.json", ("car", "rectangle", [[float("nan"), 0], [1, 1]]), ("trea", "point", [[1e9, 1]]))
    labelme(source / "e.json", width=-3)
    (source / "f.json").write_text('{"shapes": [')
    (source / "g.json").write_text('{"shapes": [{"label": 3}]}')
    (source / "h.json").write_bytes(b"\xff\xfe{}")
    found = problems("labelme", source, tmp_path, class_names=["car", "tree"])
    for start, part in [
        ("c.json", "shapes.1: a polygon needs at least 3 points, not 2"),
        ("c.json", "shapes.2: shape type 'hexagon' is unknown; known are polygon, rectangle"),
        ("d.json", "shapes.0: coordinate nan is not within ±100,000"),
        ("d.json", "shapes.1: coordinate 1e+09 is not within ±100,000"),
        ("e.json", "image size -3×8"),
        ("f.json", "not valid JSON"),
        ("g.json", "shapes.0.label=3: must be a valid string"),
        ("g.json", "shapes.0.points: missing"),
        ("h.json", "not valid JSON"),
    ]:
        assert any(line.startswith(str(source / start)) and part in line for line in found), (start, part)
    unknown = f"label 'trea' is not a class: 1 shape in 1 file: {source / 'c.json'}; "
    assert f"{unknown}correct it or add it to --class_names; did you mean 'tree'?" in found
    assert found[-1] == "nothing was written"
    assert len(found) == 11


def test_two_annotations_of_one_name_are_refused(source: Path, tmp_path: Path) -> None:
    labelme(source / "a.JSON", ("car", "point", [[1, 1]]))
    (line, *_) = problems("labelme", source, tmp_path)
    assert line == f"{source / 'a.JSON'}, {source / 'a.json'}: 2 images would become a.png; rename all but one"


def test_a_shape_outside_the_image_is_a_warning_and_others_are_clipped(tmp_path: Path) -> None:
    out = ("car", "polygon", [[20, 20], [30, 20], [30, 30]])
    labelme(tmp_path / "in/a.json", out, ("car", "rectangle", [[-500, 6], [5000, 9000]]))
    done = convert("labelme", tmp_path / "in", tmp_path / "out")
    assert labels(tmp_path / "out") == {"a.png": mask(10, 8, (slice(6, 8), slice(0, 10), 1))}
    (warning,) = done.warnings
    assert "a.json" in warning
    assert "1 shape without a pixel in the 10×8 image: shapes.0 (car)" in warning


def test_identical_results_are_kept_and_others_need_overwrite(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert convert("labelme", source, out)[:2] == (2, 0)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    assert convert("labelme", source, out)[:2] == (0, 2)
    (out / "a.png").unlink()
    assert convert("labelme", source, out)[:2] == (1, 1)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    assert {path for path in after if after[path] != before[path]} == {out / "a.png"}
    (out / "mine.txt").write_text("mine")
    old = content(out)
    with pytest.raises(UserError, match=r"other results in 3 files: a\.png, sub/b\.png, classes\.txt; .*--overwrite"):
        convert("labelme", source, out, class_names=["tree", "car"])
    assert content(out) == old
    assert convert("labelme", source, out, class_names=["tree", "car"], overwrite=True)[:2] == (2, 0)
    assert labels(out)["a.png"] == mask(10, 8, (*ALL, 1))
    assert (out / "mine.txt").read_text() == "mine"


def test_results_do_not_depend_on_the_number_of_processes(source: Path, tmp_path: Path) -> None:
    for index in range(12):
        labelme(source / f"{index}.json", (f"class {index % 5}", "circle", [[index, 3], [3, index]]))
    for workers in (1, 3):
        convert("labelme", source, tmp_path / f"out{workers}", num_workers=workers)
    assert content(tmp_path / "out1") == content(tmp_path / "out3")


def test_leftovers_of_a_killed_conversion_are_removed(source: Path, tmp_path: Path) -> None:
    for place in (tmp_path / ".out.123.partial", tmp_path / "out/.out.124.partial"):
        (place / "sub").mkdir(parents=True)
        (place / "sub/b.png").write_text("half")
        convert("labelme", source, tmp_path / "out")
        assert not place.exists()


def test_palette_png_and_back_to_something_visible(source: Path, tmp_path: Path) -> None:
    convert("labelme", source, tmp_path / "index")
    convert("palette", tmp_path / "index", tmp_path / "palette")
    convert("labelme", source, tmp_path / "at_once", palette=True)
    assert content(tmp_path / "palette") == content(tmp_path / "at_once")
    with Image.open(tmp_path / "palette/sub/b.png") as image:
        assert image.mode == "P"
        assert np.asarray(image).tolist() == labels(tmp_path / "index")["sub/b.png"]
        assert np.array_equal(np.asarray(image.convert("RGB"))[2, 2], VOC_COLOURS[1])
    # Palette PNGs of any colours are index PNGs, too.
    assert convert("palette", tmp_path / "palette", tmp_path / "again").written == 2
    assert content(tmp_path / "again") == content(tmp_path / "palette")


def test_palette_needs_indices_below_the_number_of_classes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.array([[0, 3, 255]], np.uint8)).save(tmp_path / "in/a.png")
    assert convert("palette", tmp_path / "in", tmp_path / "out").class_names[3] == "class 3"
    (tmp_path / "in/classes.txt").write_text("background\ncar\n")
    Image.new("RGB", (2, 2)).save(tmp_path / "in/b.png")
    found = problems("palette", tmp_path / "in", tmp_path)
    assert f"{tmp_path / 'in/a.png'}: index 3, but there are 2 classes" in found[0]
    assert f"{tmp_path / 'in/b.png'}: is RGB" in found[1]


def test_output_must_not_be_the_input(source: Path, tmp_path: Path) -> None:
    convert("labelme", source, tmp_path / "index")
    for kind, folder, output_dir in [
        ("labelme", source, source),
        ("palette", tmp_path / "index", tmp_path / "index"),
        ("palette", tmp_path / "index", tmp_path / "index/palette"),
    ]:
        with pytest.raises(UserError, match="choose another folder"):
            convert(kind, folder, output_dir, overwrite=True)


def test_command_line(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_tool("labelme", source, "--output_dir", out, "--class_names", "tree,car", "--overlap", "area")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"{out}: 2 labels written, 0 already existed, 0 shapes ignored"
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert cells == [
        ["0", "background", "0", "0"],
        ["1", "tree", "2", "148"],
        ["2", "car", "2", "12"],
        ["255", "ignored", "0", "0"],
        ["", "all", "2", "160"],
    ]
    wrong = run_tool("labelme", source, "--output_dir", out, "--class_names", "tree", "--train_ids")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "--train_ids is for cityscapes only; remove it\n"
    wrong = run_tool("labelme", source, "--output_dir", tmp_path / "no", "--class_names", "tree")
    assert wrong.returncode == 2
    assert "label 'car' is not a class: 2 shapes in 2 files" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert not (tmp_path / "no").exists()
