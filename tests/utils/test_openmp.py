"""How long OpenMP's threads spin."""

import os

import pytest

from tests.conftest import Cli


def test_threads_spin_briefly(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # restored afterwards
    monkeypatch.delenv("GOMP_SPINCOUNT")
    assert cli("--version") == 0
    assert os.environ["GOMP_SPINCOUNT"] == "10000"


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "500"), ("OMP_WAIT_POLICY", "active")])
def test_own_wait_policy_stays(name: str, value: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    assert cli("--version") == 0
    found = {key: os.environ[key] for key in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if key in os.environ}
    assert found == {name: value}
