"""A run that repeats another: what differs between the two, in words."""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pspexp.errors import UserError
from pspexp.tracking.provenance import NOT_KEPT
from pspexp.tracking.secrets import MASKED_DIFF

Find = Callable[[str], Path]  # a file of the repeated run, by its path in the run folder; raises UserError
Attempt = Mapping[str, Any]


def read_attempts(find: Find) -> tuple[list[Attempt], str | None]:
    """The repeated run's attempts, each with what is known of it; and a line about what is not known.

    Runs of earlier versions have no ``provenance.json``; their ``summary.json`` holds commit and versions.
    """
    try:
        attempts = json.loads(find("provenance.json").read_text(encoding="utf-8"))["attempts"]
        if isinstance(attempts, list) and attempts and all(isinstance(one, dict) for one in attempts):
            return attempts, None
        reason = "provenance.json holds no attempts"
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        missing = isinstance(error, UserError)
        reason = "there is no provenance.json" if missing else "provenance.json cannot be read"
    try:
        summary = json.loads(find("summary.json").read_text(encoding="utf-8"))
        known = {"git_commit": summary.get("git_commit"), "versions": summary.get("versions", {})}
        return [known], f"{reason}: uncommitted changes, machine and data of then are not known"
    except (UserError, OSError, ValueError, AttributeError):
        return [], f"{reason}: code, versions, machine and data of then are not known"


def differences(attempts: list[Attempt], now: Attempt, find: Find) -> list[str]:
    """A line for each way in which ``now`` differs from any of the attempts at the repeated run."""
    lines = [
        line
        for then in attempts
        for line in (
            *code_differences(then, now, find),
            *version_differences(then, now),
            *machine_differences(then, now),
            *data_differences(then.get("data"), now["data"]),
            *weights_differences(then.get("weights", {}), now.get("weights", {})),
        )
    ]
    return list(dict.fromkeys(lines))


def code_differences(then: Attempt, now: Attempt, find: Find) -> Iterator[str]:
    """Commit and what was not committed."""
    before, here = (str(one.get("git_commit") or "unknown").removesuffix("-dirty") for one in (then, now))
    if before != here:
        hint = f" (git checkout {before})" if "unknown" not in (before, here) else ""
        yield f"code: commit {before} then, {here} now{hint}"
    elif before == "unknown":
        yield "code: no commit is known of then or now: whether the code is the same is not known"
    if "uncommitted" not in then:
        return
    unseen = [when for when, one in (("then", then), ("now", now)) if one.get("dirty") and one["uncommitted"] is None]
    if unseen:
        yield f"code: uncommitted changes {' and '.join(unseen)} that git could not show: what they are is not known"
    elif then["uncommitted"] is None and now["uncommitted"]:
        yield "code: uncommitted changes now, none then"
    if then["uncommitted"] not in (None, now["uncommitted"]):
        state = "others" if now["uncommitted"] or "now" in unseen else "none"
        yield f"code: uncommitted changes then, {state} now; {kept_changes(then.get('diff'), find)}"


def kept_changes(name: Any, find: Find) -> str:
    """Where the changes of then are, and what brings them back."""
    try:
        file = find(str(name)).absolute()
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except (UserError, OSError):
        return "what they were is not known"
    if file.suffix != ".diff" or "\ndiff --git " not in f"\n{text}":
        return f"{file} lists them"
    if text.startswith(MASKED_DIFF):
        return f"{file} shows them, but secrets in it are masked: git apply cannot bring them back"
    missing = ", but for the new files that its first lines name" if text.startswith(NOT_KEPT) else ""
    return f"git apply {shlex.quote(str(file))}{missing}"


def version_differences(then: Attempt, now: Attempt) -> Iterator[str]:
    """Libraries of other versions, or not there at all."""
    before, here = then.get("versions", {}), now["versions"]
    names = before.keys() | here.keys() if "host" in then else before.keys()  # earlier versions recorded fewer
    for name in sorted(names):
        if before.get(name) != here.get(name):
            yield f"version: {name} {before.get(name, 'not there')} then, {here.get(name, 'not there')} now"


def machine_differences(then: Attempt, now: Attempt) -> Iterator[str]:
    """What of device, processor and processes decides the bits of a result."""
    if "host" in then:
        before, here = kind(then["host"]), kind(now["host"])
        for name in sorted(before.keys() | here.keys()):
            if before.get(name) != here.get(name):
                yield f"machine: {name} {before.get(name)} then, {here.get(name)} now"
    if then.get("processes", now["processes"]) != now["processes"]:
        yield f"machine: {then['processes']} processes then, {now['processes']} now"


def kind(host: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a host's record that decides the bits of a result: any card of a model will do."""
    device = re.sub(r"^(\w+):\d+", r"\1", str(host.get("device")))
    if not device.startswith("cpu "):
        return {"device": device}
    return {"device": "cpu", **{name: host.get(name) for name in ("cpu", "vector", "threads")}}


def data_differences(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> Iterator[str]:
    """Splits that are not the same files, or not drawn the same way."""
    for name, here in now.items():
        before = here if then is None else then.get(name)
        if before is None:
            yield f"data: {name} is not in the record of then"
        elif before != here:
            counts = f"{before['images']} images then, {here['images']} now"
            same = f"{here['images']} images as then, but not the same: names, sizes or order differ"
            marks = f"{before['fingerprint'][:12]} then, {here['fingerprint'][:12]} now"
            yield f"data: {name}: {same if before['images'] == here['images'] else counts} ({marks})"


def weights_differences(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """Files that weights start from, and that are not what they were."""
    for key in sorted(then.keys() & now.keys()):
        if then[key] != now[key]:
            yield f"weights: {key} is another file than then (SHA-256 {then[key][:12]} then, {now[key][:12]} now)"
