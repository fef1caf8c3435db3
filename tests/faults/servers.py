"""Tracking servers that tests start, pause, kill and restart."""

import json
import os
import pwd
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

START_S = 120  # on a busy machine


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class MLflowServer:
    """A ``mlflow server`` process.

    Args:
        folder: For its artifacts, and its database unless ``store`` is given.
        store: URI of its database.
    """

    def __init__(self, folder: Path, store: str = "") -> None:
        self.folder, self.port = folder, free_port()
        self.store = store or f"sqlite:///{folder}/server.db"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.store]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_S
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.1)

    def answers(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def send(self, number: int) -> None:
        """Send a signal to it and its workers."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def limit_files(self, size: int) -> None:
        """Let it write no file beyond ``size`` bytes, as if its disk were full; -1 for no limit."""
        assert self.process is not None
        for folder in Path("/proc").glob("[0-9]*"):
            pid = int(folder.name)
            try:
                if os.getpgid(pid) == self.process.pid:
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            except ProcessLookupError:
                continue

    def kill(self) -> None:
        """Kill it."""
        if self.process is not None:
            self.send(signal.SIGKILL)
            self.process.wait()
            self.process = None

    close = kill


Answer = Callable[[str, bytes], tuple[int, dict[str, str]] | None]


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server, except those that it answers itself.

    Attributes:
        answer: Called with path and body of a request; returns a status with the error, or None to pass it on.
    """

    daemon_threads = True

    def __init__(self, server: MLflowServer) -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.behind, self.answer = server, passed_on
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"


def passed_on(path: str, body: bytes) -> None:
    """An `Answer` that leaves everything to the server."""


class ProxyHandler(BaseHTTPRequestHandler):
    """One request to a `Proxy`."""

    server: Proxy

    def _handle(self) -> None:
        body = self._body()
        if (own := self.server.answer(self.path, body)) is not None:
            status, content = own[0], json.dumps(own[1]).encode()
        else:
            connection = HTTPConnection("127.0.0.1", self.server.behind.port, timeout=60)
            dropped = ("host", "transfer-encoding", "content-length", "connection")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            status, content = answer.status, answer.read()
            connection.close()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815 - names that the base class looks for

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def postgresql_programs() -> Path | None:
    """The folder of PostgreSQL's programs; None if it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """The URI of an empty database, in a server of its own.

    PostgreSQL refuses to run as root, so root starts it as the user ``postgres``, which Debian's package creates.
    """
    programs, port = postgresql_programs(), free_port()
    assert programs is not None
    user = pwd.getpwnam("postgres") if os.getuid() == 0 else None

    def run(*command: str, check: bool = True) -> None:
        as_user = {"user": user.pw_uid, "group": user.pw_gid} if user else {}
        subprocess.run(
            [str(programs / command[0]), *command[1:]], cwd=folder, check=check, stdout=subprocess.DEVNULL, **as_user
        )

    if user:
        os.chown(folder, user.pw_uid, user.pw_gid)
        for parent in folder.parents:  # temporary folders are private
            if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
    data = folder / "data"
    run("initdb", "-D", str(data), "-U", "pspexp", "--auth=trust", "--no-sync")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    run("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg2://pspexp@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", str(data), "-m", "immediate", "stop", check=False)
