"""Readers of files from elsewhere, what each begins with, and what is wrong with how it refuses a file.

Everything of the package is imported inside functions: it must be imported with instrumentation.
"""

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_PIXELS, MAX_UNPACKED = 1 << 18, 1 << 22
MAX_RATIO = 100  # bytes that are read from a byte of a file
MAX_MESSAGE = 3000  # characters
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1")


def attempt(file: Path, reader: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a reader returns; None if it refuses the file in a line that names it."""
    from pspexp.errors import UserError

    try:
        return reader(*arguments, **options)
    except UserError as error:
        text = str(error)
        if file.name not in text:
            raise AssertionError(f"the message does not name the file: {text!r}") from error
        if text.count("\n") >= len(error.problems) or re.search(r"[\0-\x08\x0a-\x1f\x7f-\x9f]", text.replace("\n", "")):
            raise AssertionError(f"control characters in the message: {text!r}") from error
        if len(text) > MAX_MESSAGE:
            raise AssertionError(f"a message of {len(text)} characters: {text[:200]!r}") from error
    return None


def read_checkpoint(folder: Path, data: bytes) -> None:
    import torch

    from pspexp.engine import checkpoint
    from pspexp.models.checkpoint_file import load_checkpoint_file
    from pspexp.models.weights import load_weights

    file = folder / "any.pt"
    file.write_bytes(data)
    content = attempt(file, load_checkpoint_file, file)
    if content is None:
        return
    tensors = [value for value in content.values() if type(value) is torch.Tensor and value.layout is torch.strided]
    size = sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())
    assert size <= MAX_RATIO * len(data), f"{size:,} bytes in a file of {len(data):,}"
    attempt(file, checkpoint.read, file, training=True)
    attempt(file, load_weights, small_network(), file)


def small_network() -> Any:
    import torch

    return torch.nn.ModuleDict({"backbone": torch.nn.Conv2d(3, 2, 1), "classifier": torch.nn.BatchNorm2d(2)})


def checkpoints() -> list[bytes]:
    import numpy as np
    import torch
    from safetensors.torch import save

    from pspexp.models.checkpoint_file import FORMAT

    network = small_network()
    optimizer = torch.optim.Adam(network.parameters()).state_dict()
    state = network.state_dict()
    own = {
        "format": FORMAT,
        "config": {"choices": {"model": "a"}},
        "model": state,
        "training": {"optimizer": optimizer},
    }
    half = {"state_dict": {key: value.half() for key, value in state.items()}, "epoch": 1, "best": [0.5, None, True]}
    numbers = {"best": np.float64(0.5), "n": np.int64(3), "f": np.float32(1)}
    more = {**numbers, "a": torch.eye(2).to_sparse(), "b": torch.nn.Parameter(torch.ones(1)), "c": torch.Size([1])}
    files = []
    for content, new in ((own, True), (own, False), (half, True), (dict(state), False), (more, True)):
        torch.save(content, file := io.BytesIO(), _use_new_zipfile_serialization=new)
        files.append(file.getvalue())
    return [*files, save({key: value.contiguous() for key, value in state.items()})]


def read_archive(folder: Path, data: bytes) -> None:
    from pspexp.data.preparation import archive
    from pspexp.data.preparation.downloads import unpack
    from pspexp.utils import files

    files.ANY_RATIO_BELOW = MAX_UNPACKED  # else 1 GiB, and each such file would take seconds
    file, out = folder / "any.tar", folder / "out"
    file.write_bytes(data)
    try:
        unpacked = attempt(file, archive.extract, file, out)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        assert size <= max(MAX_UNPACKED, MAX_RATIO * len(data)), f"unpacked to {size:,} bytes"
        assert {*folder.iterdir()} <= {file, out}, "unpacked elsewhere"
        assert not any(path.is_symlink() or ".partial" in path.name for path in out.rglob("*"))
        if unpacked is not None:
            attempt(out, unpack, "voc2012", [out], out)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def archives() -> list[bytes]:
    from tests.faults.test_properties_files import ARCHIVES

    return ARCHIVES


def read_split(folder: Path, data: bytes) -> None:
    from PIL import Image

    from pspexp.data.class_files import read_class_names, read_label_values
    from pspexp.data.folder import FolderDataset
    from pspexp.data.voc import VocDataset

    lists = folder / "ImageSets" / "Segmentation"
    if not lists.is_dir():
        for name in ("0", "1", "a b", "sub/4", "é"):
            for file in (folder / "JPEGImages" / f"{name}.jpg", folder / "SegmentationClass" / f"{name}.png"):
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (2, 2)).save(file)
        lists.mkdir(parents=True)
        (lists / "val.txt").write_text("0\n")
    arguments: dict[str, Any] = {
        **{"root": str(folder), "class_names": ["a", "b"], "num_classes": 2, "ignore_index": 255},
        **{"train_split": "train", "val_split": "val", "test_split": "val", "mean": [0.5] * 3, "std": [0.2] * 3},
    }
    patterns = {"images": "JPEGImages/{id}.jpg", "masks": "SegmentationClass/{id}.png"}
    for file in (lists / "train.txt", folder / "classes.txt", folder / "labelmap.txt"):
        file.write_bytes(data)
    attempt(lists / "train.txt", VocDataset(**arguments).open, "train")
    folders = FolderDataset(splits="ImageSets/Segmentation/{split}.txt", **patterns, **arguments)
    attempt(lists / "train.txt", folders.open, "train")
    attempt(folder / "labelmap.txt", read_label_values, str(folder))
    (folder / "labelmap.txt").unlink()
    attempt(folder / "classes.txt", read_class_names, str(folder))


def splits() -> list[bytes]:
    pairs = "".join(f"/JPEGImages/{name}.jpg SegmentationClass/{name}.png\n" for name in ("0", "a b", "é"))
    labelmap = "# label:color_rgb:parts:actions\na:0,0,0::\nb:128,64,255:x:y\n"
    texts = ("0\n1\nsub/4\n", "0.jpg\r\na b.jpg\r\n", pairs, "0 1 -1\n1 -1 1\n", labelmap, '"0.jpg",\t;0.png\n')
    return [text.encode(encoding, "replace") for text in texts for encoding in ENCODINGS]


def read_labels(folder: Path, data: bytes) -> None:
    from pspexp.data.band_files import read_bands
    from pspexp.data.file_split import read_label
    from pspexp.data.label_decoder import LabelDecoder
    from pspexp.data.preparation.mat import read_mat

    file = folder / "any.png"
    file.write_bytes(data)
    colours = [[(number * 9, number, 0)] for number in range(21)]
    for decoder in (
        LabelDecoder([[number] for number in range(21)], [255], voc_colours=True),
        LabelDecoder([[number] for number in range(21)], [255], tolerance=1),
        LabelDecoder(colours, [255], tolerance=2),
    ):
        decoded = attempt(file, read_label, file, decoder, MAX_PIXELS)
        assert decoded is None or ({*decoded.ids.flat} <= {*range(21), 255} and decoded.ids.ndim == 2)
    for bands in (1, 3, 4):
        attempt(file, read_bands, file, bands, MAX_PIXELS)
    if data.startswith(b"MATLAB"):
        attempt(file, read_mat, file)


def labels() -> list[bytes]:
    import numpy as np
    from scipy.io import savemat

    from tests.faults.test_properties_files import images

    ids = np.arange(72, dtype=np.uint8).reshape(8, 9) % 21
    files = images()
    for content in ({"GTcls": {"Segmentation": ids}}, {"S": ids, "names": ["a"]}):
        savemat(file := io.BytesIO(), content, do_compression="S" in content)
        files.append(file.getvalue())
    return files
