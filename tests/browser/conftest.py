"""Fixtures: a sweep, an MLflow server with its records, and headless Chromium."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.browser.finished_sweep import FinishedSweep, run_example_sweep

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
SERVER_TIMEOUT_S = 90
PAGE_TIMEOUT_MS = 30_000
# Like on a second visit: the pages for model training, not covered by the assistant.
SETTINGS = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
}
NO_ASSISTANT = "[data-assistant-ui] { visibility: hidden }"

TakeScreenshot = Callable[[str], None]


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> FinishedSweep:
    """A finished sweep, which tests only read."""
    return run_example_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="session")
def server(sweep: FinishedSweep, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the MLflow server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", sweep.store]
    log = tmp_path_factory.mktemp("server") / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its children can be stopped with it
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + SERVER_TIMEOUT_S
    while True:
        with suppress(URLError, OSError), urlopen(address, timeout=5):
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
            pytest.fail(f"the MLflow server exited: {log.read_text()}")
        if time.monotonic() > deadline_s:
            pytest.fail(f"the MLflow server is not up after {SERVER_TIMEOUT_S} s: {log.read_text()}")


@pytest.fixture(scope="session")
def browser(sweep: FinishedSweep) -> Iterator["Browser"]:
    """Chromium, started after the sweep, because playwright leaves an event loop running in this thread."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PAGE_TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "Browser", server: str) -> Iterator["Page"]:
    """An empty page whose base URL is the server."""
    context = browser.new_context(base_url=server, viewport={"width": 1440, "height": 900})
    for key, value in SETTINGS.items():
        context.add_init_script(f"localStorage.setItem({key!r}, {value!r})")
    page = context.new_page()
    page.set_default_timeout(PAGE_TIMEOUT_MS)
    yield page
    context.close()


@pytest.fixture
def take_screenshot(page: "Page", request: pytest.FixtureRequest, tmp_path: Path) -> TakeScreenshot:
    """Save a screenshot as ``<name>.png`` in the folder ``PSPEXP_SCREENSHOTS``, by default a temporary folder."""
    from PIL import Image

    folder = request.config.rootpath / os.environ.get("PSPEXP_SCREENSHOTS", tmp_path)

    def take(name: str) -> None:
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        image = Image.open(BytesIO(page.screenshot(animations="disabled", style=NO_ASSISTANT)))
        image.convert("RGB").save(folder / f"{name}.png", optimize=True)

    return take
