"""``mode=predict``: masks, overlays, table and gallery of images."""

import csv
import errno
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image

import pspexp
from pspexp.engine.predictor import Predictor
from pspexp.metrics import ConfusionMatrix
from pspexp.utils.files import atomic_write
from tests.conftest import TINY, Cli, run_commands
from tests.models import foreign_checkpoints

LEARNING = ("optimizer=adamw", "optimizer.lr=0.01", "trainer.epochs=15", "trainer.validate_every=15")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network distinguishes a few classes."""
    home = tmp_path_factory.mktemp("home")
    run_commands(home, (*TINY, *LEARNING, "hydra.run.dir=run"))
    return home / "run"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of several sizes and formats, some in subfolders."""
    folder = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for name, size in (("a.jpg", (60, 50)), ("sub/b.png", (33, 33)), ("sub/deep/c.webp", (100, 20)), ("d.PNG", (1, 1))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def predict(cli: Cli, run: Path, source: object, *overrides: str, output: str = "predictions") -> int:
    command = ("mode=predict", f"checkpoint.path={run}", f"predict.input={source}", f"predict.output={output}")
    return cli(*command, *overrides)


def table(folder: str | Path = "predictions") -> list[dict[str, str]]:
    with Path(folder, "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files(folder: str | Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def ids(file: str | Path) -> np.ndarray:
    with Image.open(file) as image:
        assert image.mode == "P"
        return np.asarray(image)


@pytest.mark.parametrize(
    "inference",
    [
        ("inference=whole",),
        ("inference=whole", "inference.scales=[0.5,1.0]", "inference.flip=true"),
        ("inference=slide", "inference.window=33", "inference.flip=true"),
    ],
)
def test_masks_score_what_the_test_reports(cli: Cli, run: Path, inference: Sequence[str]) -> None:
    assert cli("mode=test", f"checkpoint.path={run}", "hydra.run.dir=test", *inference) == 0
    reported = json.loads(Path("test/summary.json").read_text())["last"]
    assert predict(cli, run, "split:val", *inference) == 0
    config = pspexp.compose(["mode=test", f"checkpoint.path={run}"])
    split = pspexp.build(config.dataset).open("val")
    matrix = ConfusionMatrix(5, 255)
    for index, name in enumerate(split.names):
        label = np.asarray(split[index][1])
        mask = ids(f"predictions/ids/{name}.png")
        assert mask.shape == label.shape
        matrix.update(torch.from_numpy(mask.copy())[None].long(), torch.from_numpy(label.copy())[None].long())
    report = matrix.report(config.dataset.class_names)
    assert report.mean_iou == reported["test/mean_iou"]
    assert report.overall_acc == reported["test/overall_acc"]
    assert len(np.unique(np.concatenate([ids(file).ravel() for file in Path("predictions/ids").iterdir()]))) > 1

    rows = table()
    assert sorted(row["image"] for row in rows) == sorted(split.names)
    measured = [float(row["iou"]) for row in rows]
    assert measured == sorted(measured)
    assert all(0 < float(row["confidence"]) <= 1 for row in rows)
    assert all(abs(sum(float(row[name]) for name in config.dataset.class_names) - 1) < 1e-4 for row in rows)


def test_results_keep_names_folders_and_sizes(cli: Cli, run: Path, photos: Path) -> None:
    assert predict(cli, run, photos, "predict.save=[ids,overlay,colour,probabilities]", "predict.gallery=true") == 0
    names = ["a", "d", "sub/b", "sub/deep/c"]
    assert files("predictions/ids") == [f"{name}.png" for name in names]
    assert files("predictions/overlay") == [f"{name}.jpg" for name in names]
    assert files("predictions/colour") == [f"{name}.png" for name in names]
    assert files("predictions/probabilities") == [f"{name}.npz" for name in names]
    segmenter = pspexp.load(run)
    for row in table():
        image = photos / row["image"]
        name = row["image"].rpartition(".")[0]
        mask = ids(f"predictions/ids/{name}.png")
        assert (int(row["width"]), int(row["height"])) == mask.shape[::-1] == Image.open(image).size
        assert np.array_equal(segmenter(image), mask)
        colours = np.asarray(Image.open(f"predictions/ids/{name}.png").convert("RGB"))
        assert np.array_equal(colours, segmenter.palette[mask])
        assert np.array_equal(np.asarray(Image.open(f"predictions/colour/{name}.png")), colours)
        with np.load(f"predictions/probabilities/{name}.npz") as saved:
            assert np.array_equal(saved["probabilities"], segmenter.probabilities(image))
    page = Path("predictions/gallery.html").read_text()
    assert all(page.count(f'data-image="{row["image"]}"') == 1 for row in table())
    assert page.count("data:image/jpeg;base64,") == 4
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a.jpg", ["a.jpg"]),
        ("sub/*.png", ["b.png"]),
        ("**/*.[pPw]*", ["d.PNG", "sub/b.png", "sub/deep/c.webp"]),
        ("@list.txt", ["a.jpg", "sub/b.png"]),
    ],
)
def test_inputs(cli: Cli, run: Path, photos: Path, pattern: str, found: list[str]) -> None:
    (photos / "list.txt").write_text("a.jpg\nsub/b.png\n")
    source = f"@{photos / 'list.txt'}" if pattern[0] == "@" else f"'{photos / pattern}'"
    assert predict(cli, run, source) == 0
    assert [row["image"] for row in table()] == found


def test_equal_names_keep_their_suffixes(cli: Cli, run: Path, tmp_path: Path) -> None:
    for name in ("x.png", "x.jpg", "y.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "in" / name)
    assert predict(cli, run, "in") == 0
    assert files("predictions/ids") == ["x.jpg.png", "x.png.png", "y.png"]


def test_only_missing_results_are_computed(
    cli: Cli, run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    computed: list[tuple[int, int]] = []
    original = Predictor.predict

    def predict_or_stop(self: Predictor, image: Image.Image, **options: bool) -> object:
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(image.size)
        return original(self, image, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", predict_or_stop)
        assert predict(cli, run, photos) == 130
    assert len(computed) == 2
    assert not list(Path("predictions").rglob("*.part"))
    assert json.loads(Path("predictions/summary.json").read_text())["status"] == "KILLED"
    with Path("predictions/.predictions.csv.0").open("a") as rows:
        rows.write("sub/deep/c.webp,100,2")  # as if it had been killed while writing

    assert predict(cli, run, photos) == 0
    assert "2 of 4 are there already" in capsys.readouterr().out
    assert len(table()) == 4
    before = table()
    Path("predictions/ids/a.png").unlink()
    assert predict(cli, run, photos) == 0
    assert "3 of 4 are there already" in capsys.readouterr().out
    assert table() == before
    assert predict(cli, run, photos, "predict.overwrite=true") == 0
    assert "already" not in capsys.readouterr().out


def test_results_of_other_settings_are_not_mixed(
    cli: Cli, run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(cli, run, photos) == 0
    assert predict(cli, run, photos, "inference=slide") == 2
    assert (
        "holds results made with other settings (inference); choose another folder, or replace them with "
        "predict.overwrite=true" in capsys.readouterr().err
    )
    other = photos.parent / "others"
    other.mkdir()
    Image.new("RGB", (40, 30)).save(other / "a.jpg")
    assert predict(cli, run, other) == 0  # not taken for the a.jpg that is there
    assert ids("predictions/ids/a.png").shape == (30, 40)
    assert [row["image"] for row in table()] == ["a.jpg"]


def test_interrupted_replacement_leaves_no_results_of_other_settings(
    cli: Cli, run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predict(cli, run, photos) == 0

    def stop(self: Predictor, image: Image.Image, **_: bool) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", stop)
        assert predict(cli, run, photos, "inference=slide", "predict.overwrite=true", "predict.save=[ids]") == 130
    assert predict(cli, run, photos, "inference=slide", "predict.save=[ids]") == 0
    segmenter = pspexp.load(run, ["inference=slide"])
    assert np.array_equal(ids("predictions/ids/a.png"), segmenter(photos / "a.jpg"))
    assert predict(cli, run, photos, "inference=slide", "predict.overwrite=true", "predict.save=[ids]") == 0
    assert files("predictions/overlay") == []  # they were made with other settings


def test_results_and_loops_are_no_input(cli: Cli, run: Path, photos: Path) -> None:
    (photos / "sub" / "again").symlink_to(photos, target_is_directory=True)
    assert predict(cli, run, photos, output=str(photos)) == 0
    names = [row["image"] for row in table(photos)]
    assert names == ["a.jpg", "d.PNG", "sub/b.png", "sub/deep/c.webp"]
    assert predict(cli, run, f"'{photos}/**/*.png'", output=str(photos)) == 0
    assert [row["image"] for row in table(photos)] == ["sub/b.png"]


def test_lists_cannot_lead_out_of_the_output_folder(cli: Cli, run: Path, photos: Path) -> None:
    (photos / "sub" / "list.txt").write_text("b.png\n../a.jpg\nb.png\n")
    assert predict(cli, run, f"@{photos / 'sub' / 'list.txt'}") == 0
    assert files("predictions/ids") == ["a.png", "sub/b.png"]


def test_unreadable_images_are_skipped_and_listed(
    cli: Cli, run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cut.jpg").write_bytes((photos / "a.jpg").read_bytes()[:300])
    (photos / "empty.png").touch()
    assert predict(cli, run, photos) == 1
    error = capsys.readouterr().err
    assert "2 of 6 images could not be predicted:" in error
    assert "cut.jpg: not a readable image" in error
    assert "empty.png: not a readable image" in error
    assert "Traceback" not in error
    assert len(table()) == 4
    summary = json.loads(Path("predictions/summary.json").read_text())
    assert (summary["status"], summary["images"], summary["skipped"]) == ("FAILED", 4, ["cut.jpg", "empty.png"])

    assert predict(cli, run, photos / "cut.jpg", output="nothing") == 2
    assert files("nothing") in ([], ["run.log", "summary.json"]) or "ids" not in "".join(files("nothing"))


def test_full_disk_is_named_and_the_rest_is_done_later(
    cli: Cli, run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []

    @contextmanager
    def full(file: Path) -> Iterator[BinaryIO]:
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        written.append(file)
        with atomic_write(file) as stream:
            yield stream

    with monkeypatch.context() as patch:
        patch.setattr("pspexp.jobs.predict.outputs.atomic_write", full)
        assert predict(cli, run, photos) == 1
    error = capsys.readouterr().err
    assert "sub/deep/c" not in error
    assert "overlay/sub/b.jpg: cannot be written (No space left on device)" in error
    assert "run the same command again to continue" in error
    assert predict(cli, run, photos) == 0
    assert "2 of 4 are there already" in capsys.readouterr().out
    assert len(table()) == 4


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "predict.input=nowhere: no such file or folder"),
        ("empty", "predict.input=empty: no images there; looked for *.bmp"),
        ("'*.jpg'", "predict.input=*.jpg: no images there"),
        ("@none.txt", "predict.input=@none.txt: cannot read none.txt"),
        ("split:dev", "predict.input=split:dev: no such split; write split:train, split:val, split:test"),
        ("null", "predict.input=null: mode=predict needs images"),
    ],
)
def test_nothing_to_predict_is_refused(
    cli: Cli, run: Path, source: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    assert predict(cli, run, source) == 2
    assert message in capsys.readouterr().err
    assert not Path("predictions/ids").exists()


def test_output_folder_must_be_possible(cli: Cli, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert predict(cli, run, "split:val", output="file") == 2
    assert "predict.output=" in (error := capsys.readouterr().err)
    assert "cannot write there" in error


def test_default_output_is_in_the_run_folder(cli: Cli, run: Path) -> None:
    assert cli("mode=predict", f"checkpoint.path={run}", "predict.input=split:val") == 0
    assert len(table(run / "predictions")) == 3


def test_center_crop_predicts_the_central_square_only(
    cli: Cli, run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(cli, run, photos / "sub" / "deep", "inference=center_crop") == 0
    assert "only the central square is predicted, other pixels become 255" in capsys.readouterr().out
    mask = ids("predictions/ids/c.png")
    assert (mask[:, :40] == 255).all()
    assert (mask[:, 60:] == 255).all()
    assert (mask[:, 40:60] < 5).all()


def test_window_unlike_the_training_crop_is_warned_about(
    cli: Cli, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(cli, run, "split:val", "inference=slide", "inference.window=65") == 0
    assert "inference.window=65: the network was trained on crops of 33 pixels" in capsys.readouterr().out


@pytest.mark.slow
def test_processes_share_the_images(cli: Cli, run: Path, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (photos / "empty.png").touch()
    assert predict(cli, run, photos, output="one") == 1
    assert predict(cli, run, photos, "launcher=ddp", "launcher.nproc_per_node=2", output="two") == 1
    assert "1 of 5 images could not be predicted:" in capfd.readouterr().err
    assert table("one") == table("two")
    for name in files("one/ids"):
        assert np.array_equal(ids(f"one/ids/{name}"), ids(f"two/ids/{name}"))


@pytest.fixture(scope="module")
def semseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of hszhao/semseg with 21 classes."""
    file = tmp_path_factory.mktemp("semseg") / "train_epoch_50.pth"
    state = {f"module.{key}": value for key, value in foreign_checkpoints.semseg_state().items()}
    torch.save({"epoch": 50, "state_dict": state, "optimizer": {}}, file)
    return file


def test_checkpoints_of_other_projects(
    cli: Cli, semseg: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("model=pspnet50", "inference=whole", "tracking=none")
    assert predict(cli, semseg, photos / "a.jpg", *command, "dataset=voc2007_21", output="named") == 0
    assert "aeroplane" in table("named")[0]
    assert predict(cli, semseg, photos / "a.jpg", *command, output="unnamed") == 0
    assert "has 21 classes without names" in "".join(capsys.readouterr())
    assert {f"class {index}" for index in range(21)} < set(table("unnamed")[0])
    assert np.array_equal(ids("named/ids/a.png"), ids("unnamed/ids/a.png"))
    assert predict(cli, semseg, photos / "a.jpg", *command, "dataset.class_names=[road,sky]", output="wrong") == 2
    assert "dataset.class_names: 2 names, but" in (error := capsys.readouterr().err)
    assert "has 21 classes" in error
