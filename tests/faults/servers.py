"""Tracking servers that tests start, pause, kill and restart."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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

    def kill(self) -> None:
        """Kill it."""
        if self.process is not None:
            self.send(signal.SIGKILL)
            self.process.wait()
            self.process = None


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
