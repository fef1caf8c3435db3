"""The recorded provenance of a run."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pspexp.tracking import provenance
from pspexp.tracking.local import LocalTracker
from pspexp.tracking.provenance import Uncommitted, command_line
from pspexp.tracking.run_folder import read_provenance
from pspexp.tracking.secrets import mask_overrides


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with one commit that replaces this package's checkout."""
    folder = tmp_path / "checkout"
    (folder / "conf").mkdir(parents=True)
    (folder / "pspexp").mkdir()
    (folder / "code.py").write_text("a = 1\nb = 2\n")
    (folder / "conf" / "c.yaml").write_text("lr: 1\n")
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    monkeypatch.setattr(provenance, "CHECKOUT", folder)
    clear_caches()
    yield folder
    clear_caches()


def clear_caches() -> None:
    """Clear the caches of what git reports, which is queried once per process."""
    provenance.uncommitted.cache_clear()
    provenance.git_commit.cache_clear()


def changes() -> Uncommitted:
    clear_caches()
    found = provenance.uncommitted()
    assert found is not None
    return found


def test_clean_checkout_has_a_commit_and_no_changes(checkout: Path) -> None:
    assert provenance.uncommitted() is None
    assert len(str(provenance.git_commit())) == 40


def test_commit_is_unknown_without_a_repository(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    assert (provenance.git_commit(), provenance.uncommitted()) == (None, None)


def test_stored_diff_restores_the_changes(checkout: Path, tmp_path: Path) -> None:
    changed = {"code.py": b"a = 1\nb = '\xe9'\n", "conf/c.yaml": b"lr: 2\n"}
    for name, content in changed.items():
        (checkout / name).write_bytes(content)
    new = checkout / "pspexp" / "new é.py"
    new.write_text("c = 3\n")
    (checkout / "pspexp" / "empty.py").touch()
    (checkout / "pspexp" / "new.bin").write_bytes(b"\0\1")
    (checkout / "elsewhere.txt").write_text("not of the program\n")
    found = changes()
    assert found.file == "uncommitted.diff"
    assert found.text.startswith("# new, not kept: pspexp/new.bin (SHA-256 ")
    assert "elsewhere" not in found.text

    tracker = LocalTracker(tmp_path / "run")
    tracker.provenance({"uncommitted": found.fingerprint}, found, None, resume=False)
    git(checkout, "checkout", ".")
    git(checkout, "clean", "-fd")
    git(checkout, "apply", str(tmp_path / "run" / "uncommitted.diff"))
    assert {name: (checkout / name).read_bytes() for name in changed} == changed

    assert (new.read_text(), (checkout / "pspexp" / "empty.py").read_bytes()) == ("c = 3\n", b"")

    new.write_text("c = 4\n")
    assert changes().fingerprint != found.fingerprint


def test_long_diff_is_stored_as_a_file_list(checkout: Path) -> None:
    (checkout / "code.py").write_text("x = 1\n" * 200_000)
    found = changes()
    assert found.file == "uncommitted.stat"
    assert found.text.startswith("# 1.3 MiB of changes: only the list of files is kept")
    assert "code.py" in found.text
    assert len(found.text) < 500


def test_large_new_files_do_not_displace_the_diff(checkout: Path) -> None:
    (checkout / "code.py").write_text("a = 7\n")
    (checkout / "pspexp" / "long.py").write_text("x = 1\n" * 200_000)
    text = changes().text
    assert text.startswith("# new, not kept: pspexp/long.py (SHA-256 ")
    assert "+a = 7\n" in text


def test_git_environment_variables_are_ignored(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = provenance.git_commit()
    (tmp_path / "other").mkdir()
    git(tmp_path / "other", "init")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "other" / ".git"))
    clear_caches()
    assert (provenance.git_commit(), provenance.uncommitted()) == (commit, None)


def test_secrets_in_a_diff_are_masked(checkout: Path) -> None:
    yaml = "lr: 2\napi_token: hunter2\nuri: http://me:hunter2@host/\ntoken: null\nall: {a: 1, password: hunter2}\n"
    (checkout / "conf" / "c.yaml").write_text(yaml + "list:\n  - password: hunter2\n")
    (checkout / "code.py").write_text("API_KEY = 'hunter2'\nenv['my-secret'] = 'hunter2'\nf(a, token='hunter2')\n")
    (checkout / "conf" / "d.json").write_text('{"a": {"password": "hunter2"}}\n')
    (checkout / "conf" / ".env").write_text("export MY_TOKEN=hunter2\n")
    text = changes().text
    assert "hunter2" not in text
    assert text.startswith("# secrets in this diff are masked")
    assert "+api_token: ***\n" in text
    assert "+token: null\n" in text
    assert "+lr: 2\n" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("conf/c.yaml", "token: |\n  hunter2\n"),
        ("conf/c.yaml", "a:\n  - api_key: >-  \n      hunter2\n"),
        ("conf/c.yaml", "tokens:\n  - hunter2\n"),
        ("conf/c.yaml", "password:  # of mine\n  hunter2\n"),
        ("conf/d.json", '{"tokens": [\n"hunter2"\n]}\n'),
        ("pspexp/k.py", 'TOKEN = """\nhunter2\n"""\n'),
        ("pspexp/k.py", 'TOKEN: str = (\n    "hunter2"\n)\n'),
        ("pspexp/k.py", "PASSWORD = \\\n    'hunter2'\n"),
    ],
)  # fmt: skip
def test_files_with_multiline_secrets_are_listed_only(checkout: Path, name: str, content: str) -> None:
    (checkout / "code.py").write_text("a = 7\n")
    (checkout / name).write_text(content)
    text = changes().text
    assert "hunter2" not in text
    assert name in text
    assert "+a = 7\n" in text


def test_diff_without_secrets_is_unchanged(checkout: Path) -> None:
    (checkout / "code.py").write_text("class Token:\n    pass\nfor token in tokens:\n    use(token)\n")
    assert not changes().text.startswith("#")
    assert "+for token in tokens:\n" in changes().text


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/x/pspexp/__main__.py", "-m", "seed=1,2"], "python -m pspexp -m seed=1,2"),
        (["/usr/bin/pspexp", "run_name=two words"], "pspexp 'run_name=two words'"),
        (["/usr/bin/pspexp", "tracking.tracking_uri=http://me:pw@host"], "pspexp 'tracking.tracking_uri=http://***@host'"),
        ([], "pspexp seed=3"),
    ],
)  # fmt: skip
def test_command_line(argv: list[str], expected: str) -> None:
    assert command_line(argv, ["seed=3"]) == expected


def test_secrets_in_nested_override_values_are_masked() -> None:
    overrides = ["++hydra.job.env_set={API_TOKEN: hunter2}", "dataset.class_names=[cat,dog]", "+a.password=hunter2"]
    expected = ["++hydra.job.env_set=***", "dataset.class_names=[cat,dog]", "+a.password=***"]
    assert mask_overrides(overrides) == expected


def test_all_attempts_are_kept(tmp_path: Path) -> None:
    tracker = LocalTracker(tmp_path)

    def begin(command: str, diff: Uncommitted | None, *, resume: bool) -> None:
        attempt: dict[str, Any] = {"command": command, "uncommitted": diff.fingerprint if diff else None}
        tracker.provenance(attempt, diff, "runs:/1" if command == "a" else None, resume=resume)

    one, other = (Uncommitted(text, "uncommitted.diff", text) for text in ("one", "other"))
    begin("before", one, resume=False)
    begin("a", one, resume=False)  # another run in this folder
    begin("b", None, resume=True)
    begin("c", other, resume=True)
    begin("d", one, resume=True)
    found = read_provenance(tmp_path)
    assert found["rerun_of"] == "runs:/1"
    kept = [(attempt["command"], attempt["diff"]) for attempt in found["attempts"]]
    assert kept == [("a", "uncommitted.diff"), ("b", None), ("c", "uncommitted-3.diff"), ("d", "uncommitted.diff")]
    assert (tmp_path / "uncommitted-3.diff").read_text() == "other"


def test_unreadable_record_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text('{"attempts": [')
    LocalTracker(tmp_path).provenance({"command": "a"}, None, None, resume=True)
    assert json.loads((tmp_path / "provenance.json").read_text())["attempts"] == [{"command": "a", "diff": None}]


def test_host_record_names_what_affects_results() -> None:
    host = provenance.host("cpu (2 threads)")
    assert host["cpu"]
    assert host["vector"]
    assert host["cores"] >= 1
