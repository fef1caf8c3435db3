"""``mode=export``: files that compute what the network computes, and a model that MLflow serves."""

import base64
import json
import os
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import pspexp
from pspexp.models.exported import read_description
from pspexp.models.statistics import imagenet_statistics
from tests.conftest import TINY, Cli, default_signals, run_commands

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
pytest.importorskip("onnx", reason="needs the extra 'export'")

LEARNING = ("optimizer=adamw", "optimizer.lr=0.01", "trainer.epochs=10", "trainer.validate_every=10")
SIZES = [(1, 48, 48), (3, 65, 97), (2, 100, 50), (1, 33, 70)]
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained network, recorded in MLflow, and its exports of both interfaces."""
    home = tmp_path_factory.mktemp("home")
    tracked = [override for override in TINY if override != "tracking=none"]
    register = ("export.register=shapes", "export.alias=champion")
    tensor = ("export.input=tensor", "export.output=tensor", "export.format=[pt2,onnx]")
    run_commands(
        home,
        (*tracked, *LEARNING, "hydra.run.dir=run"),
        ("mode=export", "checkpoint.path=run", *register),
        ("mode=export", "checkpoint.path=run", *tensor),
    )
    return home


@pytest.fixture
def reference(home: Path) -> nn.Module:
    return pspexp.load(home / "run").model


def images(count: int, height: int, width: int) -> Tensor:
    rng = np.random.default_rng(height)
    return torch.from_numpy(rng.integers(0, 256, (count, height, width, 3), np.uint8))


def normalized(pixels: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet's
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def run_file(file: Path, value: Tensor) -> list[np.ndarray]:
    if file.suffix == ".pt2":
        found = torch.export.load(file).module()(value)
        return [one.numpy() for one in (found if isinstance(found, tuple) else (found,))]
    session = onnxruntime.InferenceSession(str(file))
    return list(session.run(None, {session.get_inputs()[0].name: value.numpy()}))


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
@pytest.mark.parametrize("size", SIZES)
def test_files_compute_what_the_network_computes(
    home: Path, reference: nn.Module, name: str, size: tuple[int, int, int]
) -> None:
    """One file for every batch size, height and width."""
    pixels = images(*size)
    whole = pspexp.load(home / "run").inference
    with torch.inference_mode():
        direct = reference(normalized(pixels))["out"].numpy()
        padded = whole.logits(reference, normalized(pixels)).softmax(1)
    (logits,) = run_file(home / "tensor" / name, normalized(pixels))
    assert np.abs(logits - direct).max() <= 1e-4 * np.abs(direct).max()
    assert (logits.argmax(1) == direct.argmax(1)).mean() >= 0.9999

    ids, confidence = run_file(home / "run" / "export" / name, pixels)
    assert ids.dtype == np.uint8
    assert (ids == padded.argmax(1).numpy()).mean() >= 0.9999
    assert np.abs(confidence - padded.amax(1).numpy()).max() < 1e-4


def test_report_compares_every_file_with_the_network(home: Path) -> None:
    report = json.loads((home / "run" / "export" / "report.json").read_text())
    assert list(report) == ["model.pt2", "model.onnx", "model.int8.onnx"]
    reported = json.loads((home / "run" / "summary.json").read_text())["best"]["best/mean_iou"]
    for name, facts in report.items():
        assert facts["images"] == 3
        assert facts["kept"]
        assert facts["reference_mean_iou"] == pytest.approx(reported)
        assert facts["equal_labels"] >= (0.5 if "int8" in name else 0.9999)
        assert facts["seconds"] > 0
    assert report["model.onnx"]["mean_iou"] == pytest.approx(reported)


def test_files_describe_themselves(home: Path) -> None:
    for name in ("model.pt2", "model.onnx", "model.int8.onnx"):
        found = read_description(home / "run" / "export" / name)
        assert found["class_names"][0] == "background"
        assert len(found["palette"]) == 5
        assert (found["ignore_index"], found["mean"], found["std"]) == (255, *imagenet_statistics())
        assert found["size_rule"] == {"multiple_of": 8, "plus": 0}
        assert found["inference"]["name"] == "whole"
        assert found["config"]["model"]["pyramid_channels"] == 4
        assert found["git_commit"] is None or len(found["git_commit"]) >= 7
    metadata = onnxruntime.InferenceSession(str(home / "tensor" / "model.onnx")).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"])[0] == "background"


@pytest.mark.parametrize("file", ["run/export/model.onnx", "tensor/model.onnx", "tensor/model.pt2"])
def test_test_and_predict_take_the_file_itself(cli: Cli, home: Path, file: str) -> None:
    for name, checkpoint in (("theirs", home / file), ("ours", home / "run")):
        assert cli("mode=test", f"checkpoint.path={checkpoint}", f"hydra.run.dir={name}", "tracking=none") == 0
        predict = ("mode=predict", f"checkpoint.path={checkpoint}", "predict.input=split:val")
        assert cli(*predict, f"predict.output={name}-masks") == 0
    found, expected = (json.loads(Path(name, "summary.json").read_text())["last"] for name in ("theirs", "ours"))
    assert found["test/mean_iou"] == pytest.approx(expected["test/mean_iou"])
    assert ("test/loss" in found) == file.startswith("tensor")
    for mask in Path("ours-masks/ids").iterdir():
        assert np.array_equal(np.asarray(Image.open(mask)), np.asarray(Image.open(Path("theirs-masks/ids", mask.name))))
    segmenter = pspexp.load(home / file)
    assert segmenter.class_names[1] == "striped disc"
    assert segmenter(images(1, 40, 50)[0].numpy()).shape == (40, 50)


def test_file_with_its_own_inference_takes_no_other(cli: Cli, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict = ("mode=predict", "predict.input=split:val", "predict.output=masks", "inference=slide")
    assert cli(*predict, f"checkpoint.path={home / 'run/export/model.onnx'}") == 2
    assert "inference: cannot be changed" in (error := capsys.readouterr().err)
    assert "export with export.input=tensor" in error
    assert cli(*predict, f"checkpoint.path={home / 'tensor/model.onnx'}") == 0


def test_file_that_disagrees_is_not_kept(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pspexp.jobs.export.interface import TensorInterface

    def wrong(self: TensorInterface, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.flip(1))["out"]  # red and blue exchanged
        return logits

    monkeypatch.setattr(TensorInterface, "forward", wrong)
    command = ("mode=export", f"checkpoint.path={home / 'run'}", "export.input=tensor", "export.format=[onnx]")
    assert cli(*command, "export.output=wrong") == 1
    assert "model.onnx: only" in (error := capsys.readouterr().err)
    assert "the file was not kept" in error
    assert sorted(file.name for file in Path("wrong").iterdir()) == ["report.json"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("export.format=[tflite]",), "export.format.0=tflite: must be 'pt2', 'onnx' or 'int8'"),
        (("export.alias=best",), "export.alias=best: names a registered model; set export.register, too"),
        (
            ("export.register=a", "export.input=tensor"),
            "export.register=a: serves an ONNX file; needs export.input=image and onnx in export.format",
        ),
        (("export.images=nowhere",), "no such file or folder"),
    ],
)
def test_wrong_exports_are_refused(
    cli: Cli, home: Path, overrides: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("mode=export", f"checkpoint.path={home / 'run'}", "export.output=out", *overrides) == 2
    assert message in capsys.readouterr().err
    assert not list(Path().rglob("model*"))


def test_registered_model_is_used_by_its_name(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'outputs' / 'mlflow.db'}")
    command = ("checkpoint.path=models:/shapes@champion", "tracking=none")
    assert cli("mode=test", *command, "hydra.run.dir=test") == 0
    assert cli("mode=predict", *command, "predict.input=split:val", "predict.output=masks") == 0
    assert len(list(Path("masks/ids").iterdir())) == 3
    reported = json.loads((home / "run" / "summary.json").read_text())["best"]["best/mean_iou"]
    assert json.loads(Path("test/summary.json").read_text())["last"]["test/mean_iou"] == pytest.approx(reported)
    assert cli("mode=test", "checkpoint.path=models:/shapes@nobody", "tracking=none") == 2


def test_training_registers_its_best_network(cli: Cli) -> None:
    tracked = [override for override in TINY if override != "tracking=none"]
    assert cli(*tracked, "trainer.epochs=1", "tracking.register=trained", "hydra.run.dir=run") == 0
    assert json.loads(Path("run/summary.json").read_text())["status"] == "FINISHED"
    assert cli("mode=predict", "checkpoint.path=models:/trained/1", "predict.input=split:val") == 0


def test_run_shows_model_and_data(home: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{home / 'outputs' / 'mlflow.db'}")
    run_id = json.loads((home / "run" / "summary.json").read_text())["mlflow_run_id"]
    assert client.get_model_version_by_alias("shapes", "champion").run_id == run_id
    data = {one.tags[0].value: one.dataset for one in client.get_run(run_id).inputs.dataset_inputs}
    assert set(data) == {"training", "validation"}
    provenance = json.loads((home / "run" / "provenance.json").read_text())["attempts"][-1]["data"]
    assert provenance["train"]["fingerprint"].startswith(data["training"].digest)
    assert data["training"].name == "shapes"


@pytest.fixture(scope="module")
def server(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the registered model, served in an environment that does not know this checkout."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    (site / "beneath.pth").write_text(sysconfig.get_path("purelib") + "\n")  # the .pth files there are not read
    uvicorn = environment / "bin" / "uvicorn"
    uvicorn.write_text(f"#!{python}\nfrom uvicorn.main import main\nmain()\n")
    uvicorn.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLFLOW"))}
    variables |= {
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'outputs' / 'mlflow.db'}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    missing = subprocess.run([python, "-c", "import pspexp"], cwd=environment, env=variables, capture_output=True)
    assert b"No module named 'pspexp'" in missing.stderr
    command = [python, "-m", "mlflow", "models", "serve", "-m", "models:/shapes@champion", "--env-manager", "local"]
    with (environment / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=environment,
            env=variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=default_signals,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process, environment / "log")
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, 15)
        process.wait(60)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            with urlopen(address, timeout=5):
                return
        except (URLError, OSError):
            assert time.monotonic() < deadline, log.read_text()
        try:
            process.wait(0.2)
            pytest.fail(log.read_text())
        except subprocess.TimeoutExpired:
            pass


def ask(address: str, body: object) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urlopen(Request(address, content, {"Content-Type": "application/json"}), timeout=60) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, error.read().decode()


def record(content: bytes) -> dict[str, Any]:
    return {"dataframe_records": [{"image": base64.b64encode(content).decode()}]}


def png(mode: str, size: tuple[int, int]) -> bytes:
    file = BytesIO()
    Image.new(mode, size).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.slow
def test_served_model_answers_what_predict_writes(server: str, home: Path, cli: Cli) -> None:
    Path("photos").mkdir()
    for name, size in (("a.png", (61, 47)), ("b.jpg", (90, 33))):
        Image.fromarray(images(1, size[1], size[0])[0].numpy()).save(Path("photos", name), quality=90)
    predict = ("mode=predict", "predict.input=photos", "predict.output=masks", "tracking=none")
    assert cli(*predict, f"checkpoint.path={home / 'run/export/model.onnx'}") == 0
    for name in ("a.png", "b.jpg"):
        status, answer = ask(server, record(Path("photos", name).read_bytes()))
        assert status == 200
        mask = base64.b64decode(answer["predictions"][0])
        assert mask == Path("masks/ids", name).with_suffix(".png").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (record(b"no image"), "image 0: not a readable image (unknown format)"),
        (record(b""), "image 0: not a readable image (unknown format)"),
        (record(png("RGB", (1, 1))), "must be at least 2"),
        ({"dataframe_records": [{"image": "ü"}]}, "image 0: is not base64"),
        (record(png("1", (20_000, 10_000))), "at most 16,000,000 pixels"),
        ({"dataframe_records": [{"image": "#"}]}, "image 0: is not base64"),
        ({"dataframe_records": [{"picture": ""}]}, "Model is missing inputs ['image']"),
        (b"{", "valid JSON"),
    ],
)
def test_server_explains_bad_requests(server: str, body: object, sentence: str) -> None:
    status, answer = ask(server, body)
    assert 400 <= status < 500
    assert sentence in answer
    status, _ = ask(server, record(png("RGB", (40, 30))))
    assert status == 200
