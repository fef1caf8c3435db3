"""No secret reaches the disk, the log or MLflow."""

from pathlib import Path

import pytest

from pspexp.tracking.secrets import mask_logins, mask_overrides, mask_secrets
from tests.conftest import TINY, Cli

MODULE = """
from pspexp.engine.hooks import Hook
from pspexp.tracking import Logger


class Notifier(Hook):
    def __init__(self, **arguments):
        self.arguments = arguments


class Remote(Logger):
    def __init__(self, url, token):
        self.url, self.token = url, token

    def open(self, *, run_id, name, params, tags):
        raise ConnectionError(f"no answer from {self.url}")
"""
VARIABLES = (
    "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN",
)  # fmt: skip
KEYS = ("api_key", "password", "webhook_secret", "key", "access_token")
SECRETS = [f"hidden{number}" for number in range(12)]


def traces(folder: Path) -> list[str]:
    """Each file below a folder that contains a secret, and the secret."""
    found = []
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix != ".py":
            content = file.read_bytes()
            found += [f"{file.relative_to(folder)}: {secret}" for secret in SECRETS if secret.encode() in content]
    return found


def test_nothing_that_a_run_leaves_contains_a_secret(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_module_of_secrets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    variables = (
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "HF_TOKEN",
    )
    for name, secret in zip(variables, SECRETS, strict=False):
        monkeypatch.setenv(name, secret)
    hook = [f"+hooks.mine.{key}={secret}" for key, secret in zip(KEYS, SECRETS[5:], strict=False)]
    overrides = [
        *TINY[:-1],
        f"tracking.tracking_uri=http://me:{SECRETS[10]}@127.0.0.1:9",
        "tracking.wait_s=0",
        "+hooks.mine._target_=my_module_of_secrets.Notifier",
        *hook,
        "+tracking.loggers.remote._target_=my_module_of_secrets.Remote",
        f"+tracking.loggers.remote.url='https://example.org/?token={SECRETS[11]}&x=1'",
        f"+tracking.loggers.remote.token={SECRETS[11]}",
        "hydra.run.dir=run",
    ]
    assert cli(*overrides) == 0
    assert (
        cli(*(one for one in overrides if "tracking" not in one), "tracking=mlflow", "hydra.run.dir=outputs/second")
        == 0
    )
    assert cli("mode=test", "checkpoint.path=run", "hydra.run.dir=test") == 0
    captured = capsys.readouterr()
    assert [secret for secret in SECRETS if secret in captured.out + captured.err] == []
    assert traces(tmp_path) == []
    assert (tmp_path / "outputs" / "mlflow.db").is_file()


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://me:pass@host/db", "postgresql://***@host/db"),
        ("https://host/?a=1&token=abc&b=2", "https://host/?a=1&token=***&b=2"),
        ("s3://bucket?aws_access_key_id=abc", "s3://bucket?aws_access_key_id=***"),
        ("https://host/?a=1", "https://host/?a=1"),
        ("postgresql://me:pa/ss@host/db", "postgresql://***@host/db"),
        ("https://host/?key=abc", "https://host/?key=***"),
        ("git+https://github.com/a/b@v1", "git+https://github.com/a/b@v1"),
        ("https://host:8080/x@3", "https://host:8080/x@3"),
    ],
)
def test_urls(text: str, masked: str) -> None:
    assert mask_logins(text) == masked
    assert mask_secrets({"uri": [text]}) == {"uri": [masked]}
    assert mask_overrides([f"a.uri={text}"]) == [f"a.uri={masked}"]


def test_keys() -> None:
    secret = {"access_key_id": "b", "Token": "c", "db_password": "d", "apiKey": "e", "n": {"secret": ["f"]}}
    assert mask_secrets(secret) == {**dict.fromkeys(secret, "***"), "n": {"secret": ["***"]}}
    assert mask_secrets({"hooks": {"mine": {"key": "a"}}}) == {"hooks": {"mine": {"key": "***"}}}
    plain = {"turkey": "bird", "keyboard": "device", "dataset": {"image_key": "rgb", "class_map": {"key": "tool"}}}
    assert mask_secrets(plain) == plain
    nodes = {"model": {"token_mixer": {"_target_": "my.Pool"}}, "hooks": {"save_keys": {"_target_": "my.Hook"}}}
    assert mask_secrets(nodes) == nodes
    assert mask_overrides(["+hooks.mine={_target_: my.Hook, key: abc}"]) == ["+hooks.mine=***"]
