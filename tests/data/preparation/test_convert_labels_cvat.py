"""CVAT's XML files and segmentation masks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspexp.data.labels import VOC_COLOURS
from pspexp.errors import UserError
from tests.data.preparation.annotations import convert, converted, labels, mask, problems

AREA = (slice(2, 6), slice(2, 7))  # the border is covered, as with labelme
BOX = '<box label="car" xtl="2" ytl="2" xbr="6" ybr="5" z_order="0"/>'


def xml(path: Path, *shapes: str, name: str = "set/a.jpg", meta: str = "", start: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = f'<image id="0" name="{name}" width="10" height="8">{"".join(shapes)}</image>'
    header = f'<?xml version="1.0" encoding="utf-8"?>{start}'
    path.write_text(f"{header}<annotations><version>1.1</version><meta>{meta}</meta>{image}</annotations>")
    return path


@pytest.mark.parametrize(
    "shape",
    [
        BOX,
        '<polygon label="car" points="2.00,2.00;6.00,2.00;6.00,5.00;2.00,5.00"/>',
        '<mask label="car" rle="0, 20" left="2" top="2" width="5" height="4"/>',
        '<mask label="car" rle="9, 5, 2, 5, 2, 5, 2, 5" left="0" top="1" width="7" height="5"/>',
        '<box label="car" xtl="2.5" ytl="1.5" xbr="5.5" ybr="5.5" rotation="90"/>',  # 3×4 becomes 4×3
    ],
)
def test_shapes_from_2_2_to_6_5(tmp_path: Path, shape: str) -> None:
    assert converted("cvat", xml(tmp_path / "a.xml", shape), tmp_path) == {"set/a.png": mask(10, 8, (*AREA, 1))}


def test_masks_are_clipped(tmp_path: Path) -> None:
    shape = '<mask label="car" rle="1, 5" left="8" top="-1" width="3" height="2"/>'
    found = converted("cvat", xml(tmp_path / "a.xml", shape), tmp_path)
    assert found == {"set/a.png": mask(10, 8, (slice(0, 1), slice(8, 10), 1))}


def test_ellipse(tmp_path: Path) -> None:
    ellipse = '<ellipse label="car" cx="4" cy="4" rx="3" ry="1" rotation="90.0"/>'
    pixels = np.array(converted("cvat", xml(tmp_path / "a.xml", ellipse), tmp_path)["set/a.png"])
    assert pixels[:, 4].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert pixels[4].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0]


def test_higher_z_order_is_on_top(tmp_path: Path) -> None:
    top = '<box label="car" xtl="0" ytl="0" xbr="3" ybr="3" z_order="2"/>'
    source = xml(tmp_path / "a.xml", top, BOX.replace("car", "tree"), BOX.replace("car", "bus"))
    expected = mask(10, 8, (*AREA, 1), (slice(0, 4), slice(0, 4), 2))
    assert converted("cvat", source, tmp_path) == {"set/a.png": expected}


def test_shapes_without_an_area_are_ignored_and_counted(tmp_path: Path) -> None:
    lines = '<polyline label="lane" points="0,0;5,5"/><points label="eye" points="1,1"/><tag label="night"/>'
    done = convert("cvat", xml(tmp_path / "a.xml", lines, BOX), tmp_path / "out")
    assert done.ignored == 3
    assert done.class_names == ["background", "car"]


def test_declared_labels_are_classes(tmp_path: Path) -> None:
    label = "<label><name>{}</name><type>{}</type></label>"
    meta = f"<task><labels>{label.format('zebra', 'any')}{label.format('lane', 'polyline')}</labels></task>"
    convert("cvat", xml(tmp_path / "a.xml", BOX, meta=meta), tmp_path / "out")
    assert (tmp_path / "out/classes.txt").read_text() == "background\ncar\nzebra\n"


def test_folder_of_files(tmp_path: Path) -> None:
    xml(tmp_path / "in/1/annotations.xml", BOX)
    xml(tmp_path / "in/2/annotations.xml", name="b.jpg")
    assert converted("cvat", tmp_path / "in", tmp_path) == {"set/a.png": mask(10, 8, (*AREA, 1)), "b.png": mask(10, 8)}
    xml(tmp_path / "in/3/annotations.xml")
    assert "2 images would become set/a.png" in problems("cvat", tmp_path / "in", tmp_path)[0]


def test_all_problems_are_listed(tmp_path: Path) -> None:
    source = xml(
        tmp_path / "in/a.xml",
        '<polygon label="car" points="1,1;2,2"/>',
        '<polygon label="car" points="1,1;2"/>',
        '<polygon label="car" points="1,nan;2,2;3,3"/>',
        '<mask label="car" rle="1, 2" left="0" top="0" width="2" height="2"/>',
        '<mask label="car" rle="x" left="0" top="0" width="2" height="2"/>',
        '<box label="car" xtl="2" ytl="?" xbr="6" ybr="5"/>',
        '<cuboid label="car"/>',
        BOX.replace("car", " "),
    )
    (tmp_path / "in/b.xml").write_text("<annotations><image")
    (tmp_path / "in/c.xml").write_text("<annotations><track/></annotations>")
    (tmp_path / "in/d.xml").write_text("<svg/>")
    (tmp_path / "in/e.xml").write_text('<annotations><image name="e" width="0" height="1"/></annotations>')
    found = problems("cvat", tmp_path / "in", tmp_path)
    start = f"{source}: set/a.jpg:"
    assert found[:8] == [
        f"{start} polygon 0: a polygon needs at least 3 points, not 2; correct or remove it",
        f"{start} polygon 1: its points are not x,y;x,y;…; export it again",
        f"{start} polygon 2: coordinate nan is not within ±100,000; correct or remove the shape",
        f"{start} mask 3: its rle has 3 pixels, but it is 2×2; export it again",
        f"{start} mask 4: its rle is not a list of whole numbers; export it again",
        f"{start} box 5: ytl='?' is not a number; correct it",
        f"{start} cuboid 6: a <cuboid> cannot be converted; draw a polygon instead",
        f"{start} box 7: label '' is empty; correct it",
    ]
    for line, part in zip(
        found[8:12], ("not valid XML", "CVAT for video", "a <svg> file", "e: image size 0×1"), strict=True
    ):
        assert part in line


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;">]>',
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>',
    ],
)
def test_entities_are_not_expanded(tmp_path: Path, doctype: str) -> None:
    source = xml(tmp_path / "a.xml", BOX, start=doctype)
    assert "contains a DOCTYPE" in problems("cvat", source, tmp_path)[0]


INDEX = np.array([[0, 1, 1, 2], [0, 0, 2, 2]], np.uint8)


def masks(folder: Path, label_map: str, colours: np.ndarray = VOC_COLOURS[INDEX]) -> Path:
    (folder / "SegmentationClass/set").mkdir(parents=True, exist_ok=True)
    (folder / "labelmap.txt").write_text(label_map)
    Image.fromarray(colours).save(folder / "SegmentationClass/set/a.png")
    return folder


MAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nzebra:128,0,0::\ncar:0,128,0:a,b:c\n"


def test_segmentation_masks_have_the_order_of_the_label_map(tmp_path: Path) -> None:
    source = masks(tmp_path / "in", MAP)
    for folder in (source, source / "SegmentationClass"):
        assert converted("cvat", folder, tmp_path) == {"set/a.png": INDEX.tolist()}
    assert (tmp_path / "out0/classes.txt").read_text() == "background\nzebra\ncar\n"
    found = converted("cvat", source, tmp_path, class_names=["car", "zebra"])
    assert found == {"set/a.png": np.array([0, 2, 1])[INDEX].tolist()}
    found = converted("cvat", source, tmp_path, background=False)
    assert found == {"set/a.png": np.array([255, 0, 1])[INDEX].tolist()}


def test_background_has_index_0_wherever_the_label_map_lists_it(tmp_path: Path) -> None:
    for label_map in ("zebra:128,0,0::\nbackground:0,0,0::\ncar:0,128,0::\n", "zebra:128,0,0::\ncar:0,128,0::\n"):
        found = converted("cvat", masks(tmp_path / "in", label_map), tmp_path)
        assert found == {"set/a.png": INDEX.tolist()}


def test_segmentation_masks_in_palette_pngs_are_read_by_colour(tmp_path: Path) -> None:
    source = masks(tmp_path / "in", MAP)
    image = Image.fromarray(2 - INDEX)
    image.putpalette(VOC_COLOURS[[2, 1, 0]].tobytes())
    image.save(source / "SegmentationClass/set/a.png")
    assert converted("cvat", source, tmp_path) == {"set/a.png": INDEX.tolist()}


def test_wrong_label_maps_and_colours_are_refused(tmp_path: Path) -> None:
    source = masks(tmp_path / "in", "car:1,2::\nbus:1,2,256::\ncar:1,2,3::\nbus:1,2,3::\n")
    found = problems("cvat", source, tmp_path)
    assert "line 1: 'car:1,2::' is not label:red,green,blue::" in found[0]
    assert "line 2" in found[1]
    assert "line 4: 'bus' has the colour of 'car'" in found[2]
    masks(source, MAP, VOC_COLOURS[INDEX + 1])
    Image.fromarray(INDEX).save(source / "SegmentationClass/grey.png")
    found = problems("cvat", source, tmp_path)
    assert "grey.png: is grey" in found[0]
    assert "a.png: 1 colour not in labelmap.txt: (128, 128, 0) (3 pixels)" in found[1]
    masks(source, MAP)
    (source / "SegmentationClass/grey.png").unlink()
    assert "label 'zebra' is not a class" in problems("cvat", source, tmp_path, class_names=["car"])[0]


def test_segmentation_masks_are_never_replaced(tmp_path: Path) -> None:
    source = masks(tmp_path / "in", MAP)
    before = (source / "SegmentationClass/set/a.png").read_bytes()
    with pytest.raises(UserError, match="would replace the file that it is made from"):
        convert("cvat", source, source / "SegmentationClass", overwrite=True)
    assert (source / "SegmentationClass/set/a.png").read_bytes() == before
    convert("cvat", source, source / "SegmentationClassGray")
    assert labels(source / "SegmentationClassGray") == {"set/a.png": INDEX.tolist()}


def test_archives_must_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    assert "unpack it" in problems("cvat", tmp_path / "a.zip", tmp_path)[0]
