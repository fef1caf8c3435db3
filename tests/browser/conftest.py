"""A sweep, MLflow's server on its records, and headless Chromium in front of it."""

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

from tests.browser.study import Study, make_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
UP_WITHIN_S = 90
SHOWN_WITHIN_MS = 30_000
# A person's second visit: the pages of model training, and no assistant in front of them.
SETTINGS = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
}
NO_ASSISTANT = "[data-assistant-ui] { visibility: hidden }"

Photograph = Callable[[str], None]


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Made once; tests only look at it."""
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def server(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of MLflow's pages."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", study.store]
    log = tmp_path_factory.mktemp("server") / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it has children, which are ended with it
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + UP_WITHIN_S
    while True:
        with suppress(URLError, OSError), urlopen(address, timeout=5):
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
            pytest.fail(f"MLflow's server ended: {log.read_text()}")
        if time.monotonic() > deadline_s:
            pytest.fail(f"MLflow's server is not up after {UP_WITHIN_S} s: {log.read_text()}")


@pytest.fixture(scope="session")
def browser(study: Study) -> Iterator["Browser"]:
    """Started after the study is made: playwright leaves an event loop running in this thread."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=SHOWN_WITHIN_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "Browser", server: str) -> Iterator["Page"]:
    """An empty window whose addresses begin at the server."""
    context = browser.new_context(base_url=server, viewport={"width": 1440, "height": 900})
    for key, value in SETTINGS.items():
        context.add_init_script(f"localStorage.setItem({key!r}, {value!r})")
    page = context.new_page()
    page.set_default_timeout(SHOWN_WITHIN_MS)
    yield page
    context.close()


@pytest.fixture
def photograph(page: "Page", request: pytest.FixtureRequest, tmp_path: Path) -> Photograph:
    """Writes what the window shows as ``<name>.png`` into the folder ``PSPEXP_SCREENSHOTS``, else a temporary one."""
    from PIL import Image

    folder = request.config.rootpath / os.environ.get("PSPEXP_SCREENSHOTS", tmp_path)

    def take(name: str) -> None:
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        picture = Image.open(BytesIO(page.screenshot(animations="disabled", style=NO_ASSISTANT)))
        picture.convert("RGB").save(folder / f"{name}.png", optimize=True)

    return take
