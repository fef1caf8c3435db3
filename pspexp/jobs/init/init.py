"""``mode=init``: write a small project of the user's own, which runs as it is."""

import logging
import shlex
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig
from PIL import Image

from pspexp.data.labels import VOC_COLOURS
from pspexp.data.shapes import ShapesSplit
from pspexp.errors import UserError, setting
from pspexp.utils.files import write_text_atomic

PROJECT = Path(__file__).with_name("project")
NUM_IMAGES, IMAGE_SIZE = 48, 96
IGNORED = 255

log = logging.getLogger(__name__)


def init(config: DictConfig, folder: Path) -> None:
    """Write the project to ``config.init.output``.

    Args:
        config: The command's configuration.
        folder: Not used.

    Raises:
        UserError: The folder exists and is not empty, or cannot be written.
    """
    given = config.init.output
    output = Path(given).expanduser()
    try:
        refuse_existing(output)
        for name, text in files():
            write_text_atomic(output / name, text)
        draw(output / "data")
    except OSError as error:
        raise UserError(
            f"{setting('init.output', given)}: cannot be written ({error.strerror}); choose another folder"
        ) from error
    log.info("created the project %s, described in its README.md; train with", output)
    log.info("  cd %s", shlex.quote(str(output)))
    log.info("  python -m pspexp --config-dir conf experiment=my_experiment hydra.run.dir=outputs/first")


def refuse_existing(output: Path) -> None:
    """Raise UserError if the folder to be written is a file, or has something in it."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        what = "is not empty" if output.is_dir() else "is a file"
        raise UserError(f"{setting('init.output', output)}: {what}; choose a new folder")


def files() -> Iterator[tuple[str, str]]:
    """Each file of the project: its name and text."""
    for path in sorted(PROJECT.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            name = ".gitignore" if path.name == "gitignore" else path.relative_to(PROJECT).as_posix()
            yield name, path.read_text(encoding="utf-8")


def draw(folder: Path) -> None:
    """Draw shapes: images, and masks of 0 (background), 1 (striped), 2 (checked) and 255 (their edges)."""
    images, masks = folder / "images", folder / "masks"
    images.mkdir(parents=True)
    masks.mkdir()
    shapes = ShapesSplit("train", NUM_IMAGES, IMAGE_SIZE, seed=0, ignore_index=IGNORED)
    for index in range(NUM_IMAGES):
        image, label = shapes[index]
        mask = label.point([0, 1, 2, 1, 2, *range(5, 256)])  # discs, then triangles
        mask.putpalette(VOC_COLOURS.tobytes())
        assert isinstance(image, Image.Image)
        image.save(images / f"shapes_{index:02d}.jpg", quality=90)
        mask.save(masks / f"shapes_{index:02d}.png")
