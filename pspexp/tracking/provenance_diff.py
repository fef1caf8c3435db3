"""Differences between the provenance of a rerun and that of the run it repeats, one line each."""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pspexp.errors import UserError
from pspexp.tracking.provenance import NOT_KEPT
from pspexp.tracking.secrets import MASKED_DIFF

FindFile = Callable[[str], Path]  # a file of the repeated run, by its path in the run folder; raises UserError
Record = Mapping[str, Any]  # see `pspexp.tracking.provenance.record`


def read_records(find: FindFile) -> tuple[list[Record], str | None]:
    """The provenance records of all attempts at the repeated run, and a line about what is unknown.

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
        return [known], f"{reason}: uncommitted changes, machine and data of the repeated run are unknown"
    except (UserError, OSError, ValueError, AttributeError):
        return [], f"{reason}: code, versions, machine and data of the repeated run are unknown"


def differences(earlier: list[Record], now: Record, find: FindFile) -> list[str]:
    """A line for each way in which ``now`` differs from any of the earlier records."""
    lines = [
        line
        for then in earlier
        for line in (
            *code_differences(then, now, find),
            *version_differences(then, now),
            *machine_differences(then, now),
            *data_differences(then.get("data"), now["data"]),
            *weights_differences(then.get("weights", {}), now.get("weights", {})),
        )
    ]
    return list(dict.fromkeys(lines))


def code_differences(then: Record, now: Record, find: FindFile) -> Iterator[str]:
    """Differences of commit and uncommitted changes."""
    before, here = (str(one.get("git_commit") or "unknown").removesuffix("-dirty") for one in (then, now))
    if before != here:
        hint = f" (git checkout {before})" if "unknown" not in (before, here) else ""
        yield f"code: commit {before} then, {here} now{hint}"
    elif before == "unknown":
        yield "code: the commit is unknown, then and now: the code may differ"
    if "uncommitted" not in then:
        return
    unseen = [when for when, one in (("then", then), ("now", now)) if one.get("dirty") and one["uncommitted"] is None]
    if unseen:
        yield f"code: uncommitted changes {' and '.join(unseen)} that git could not show: they may differ"
    elif then["uncommitted"] is None and now["uncommitted"]:
        yield "code: uncommitted changes now, none then"
    if then["uncommitted"] not in (None, now["uncommitted"]):
        state = "others" if now["uncommitted"] or "now" in unseen else "none"
        yield f"code: uncommitted changes then, {state} now; {restore_hint(then.get('diff'), find)}"


def restore_hint(name: Any, find: FindFile) -> str:
    """Where the uncommitted changes of the repeated run are, and how to apply them."""
    try:
        file = find(str(name)).absolute()
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except (UserError, OSError):
        return "the earlier changes were not kept"
    if file.suffix != ".diff" or "\ndiff --git " not in f"\n{text}":
        return f"{file} lists them"
    if text.startswith(MASKED_DIFF):
        return f"{file} shows them, but secrets in it are masked, so that git apply cannot restore them"
    missing = ", except for the new files that its first lines name" if text.startswith(NOT_KEPT) else ""
    return f"restore them with git apply {shlex.quote(str(file))}{missing}"


def version_differences(then: Record, now: Record) -> Iterator[str]:
    """Libraries whose versions differ, or that are missing."""
    before, here = then.get("versions", {}), now["versions"]
    names = before.keys() | here.keys() if "host" in then else before.keys()  # earlier versions recorded fewer
    for name in sorted(names):
        if before.get(name) != here.get(name):
            yield f"version: {name} {before.get(name, 'missing')} then, {here.get(name, 'missing')} now"


def machine_differences(then: Record, now: Record) -> Iterator[str]:
    """Differences of device, CPU and number of processes, which change a result's last bits."""
    if "host" in then:
        before, here = numerics_of(then["host"]), numerics_of(now["host"])
        for name in sorted(before.keys() | here.keys()):
            if before.get(name) != here.get(name):
                yield f"machine: {name} {before.get(name)} then, {here.get(name)} now"
    if then.get("processes", now["processes"]) != now["processes"]:
        yield f"machine: {then['processes']} processes then, {now['processes']} now"


def numerics_of(host: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a host's record that determines a result's last bits: the GPU's model, not its index."""
    device = re.sub(r"^(\w+):\d+", r"\1", str(host.get("device")))
    if not device.startswith("cpu "):
        return {"device": device}
    return {"device": "cpu", **{name: host.get(name) for name in ("cpu", "vector", "threads")}}


def data_differences(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> Iterator[str]:
    """Splits with other files, or with the same files in another order."""
    for name, here in now.items():
        before = here if then is None else then.get(name)
        if before is None:
            yield f"data: {name} is not in the record of the repeated run"
        elif before != here:
            counts = f"{before['images']} images then, {here['images']} now"
            same = f"{here['images']} images then and now, but their names, sizes or order differ"
            fingerprints = f"{before['fingerprint'][:12]} then, {here['fingerprint'][:12]} now"
            yield f"data: {name}: {same if before['images'] == here['images'] else counts} ({fingerprints})"


def weights_differences(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """Files of initial weights whose content differs."""
    for key in sorted(then.keys() & now.keys()):
        if then[key] != now[key]:
            yield f"weights: the file of {key} differs (SHA-256 {then[key][:12]} then, {now[key][:12]} now)"
