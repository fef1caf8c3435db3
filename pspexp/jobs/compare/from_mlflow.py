"""Reads runs from MLflow: by id, or by experiment, sweep and filter."""

import ast
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pspexp.errors import UserError, did_you_mean
from pspexp.jobs.compare.from_folders import read_explicit_keys, read_files, scores
from pspexp.jobs.compare.run_set import (
    SPLITS,
    Run,
    RunSet,
    Table,
    as_text,
    compared_metrics,
    explicit_settings,
    is_complete,
)
from pspexp.tracking.mlflow_client import local_folder, reader, sweep_filter
from pspexp.tracking.mlflow_limits import Names
from pspexp.tracking.run_folder import finite
from pspexp.tracking.secrets import mask_logins
from pspexp.utils.text import count, one_line

PAGE_SIZE = 200  # runs per request
SMALL_FILES = ("overrides.txt", "config.yaml", "summary.json", "tables")
EXAMPLE = "example: params.`optimizer.lr` = '0.001' and metrics.`best/mean_iou` > 0.5"
KEY = re.compile(r"\b(param|metric|tag)(?:eter)?s?\.(?:`([^`]+)`|\"([^\"]+)\"|([\w./-]+))")


def get(uri: str, run_id: str) -> RunSet:
    """One run.

    Raises:
        UserError: It was deleted, is a sweep's summary, or cannot be read.
    """
    with reader(uri, f"compare.runs=runs:/{run_id}") as client:
        run = client.get_run(run_id)
        if run.info.lifecycle_stage == "deleted":
            raise UserError(f"compare.runs=runs:/{run_id}: is deleted in MLflow; restore it there, or remove it here")
        if is_overview(run):
            sweep = run.data.tags.get("sweep")
            raise UserError(f"compare.runs=runs:/{run_id}: summarises a sweep; set compare.sweep={sweep} instead")
        return read(client, [run], f"runs:/{run_id}")


def search(uri: str, experiment: str, sweep: str | None, filter_string: str | None) -> RunSet:
    """The runs of an experiment, oldest first, without those that summarise a sweep.

    Args:
        uri: MLflow tracking URI.
        experiment: Name of the experiment.
        sweep: Only runs of this sweep.
        filter_string: Only runs that match this filter, in MLflow's filter language.

    Raises:
        UserError: There are none.
    """
    given = {"experiment": experiment, "sweep": sweep, "filter": filter_string}
    settings = ", ".join(f"compare.{key}={value}" for key, value in given.items() if value is not None)
    clauses = [None if sweep is None else sweep_filter(sweep), filter_string]
    query = " and ".join(clause for clause in clauses if clause is not None)
    with reader(uri, settings) as client:
        experiment_id = find_experiment(client, uri, experiment)
        try:
            runs = list(paged(client, experiment_id, query))
        except Exception as error:
            if not query:
                raise
            raise UserError(f"{settings}: MLflow reports: {one_line(error)}; {EXAMPLE}") from error
        if not runs:
            problem = nothing_found(query, list(paged(client, experiment_id, "")))
            raise UserError(f"{settings}: {problem}; change these keys, or name run folders in compare.runs")
        return read(client, runs, f"MLflow experiment '{experiment}'{f', {query}' if query else ''}")


def find_experiment(client: Any, uri: str, name: str) -> str:
    """The id of an experiment.

    Raises:
        UserError: It does not exist, or was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        names = sorted(experiment.name for experiment in client.search_experiments())
        raise UserError(
            f"compare.experiment={name}: no such experiment in MLflow at {mask_logins(uri)}"
            f"{did_you_mean(name, names)}; choose one of {', '.join(names)}, or name run folders in compare.runs"
        )
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"compare.experiment={name}: is deleted in MLflow at {mask_logins(uri)}; restore it there, or name run "
            "folders in compare.runs"
        )
    return str(found.experiment_id)


def paged(client: Any, experiment_id: str, query: str) -> Iterator[Any]:
    """The runs of an experiment, oldest first, without those that summarise a sweep."""
    token: str | None = None
    while token != "":
        order = ["attributes.start_time ASC"]
        page = client.search_runs([experiment_id], query, max_results=PAGE_SIZE, order_by=order, page_token=token)
        yield from (run for run in page if not is_overview(run))
        token = page.token or ""


def is_overview(run: Any) -> bool:
    """Whether a run only summarises a sweep with its table and figures."""
    return bool(run.data.tags.get("kind") == "sweep")


def nothing_found(query: str, all_runs: list[Any]) -> str:
    """The message for a query without results: names keys that no run has, and the sweeps that exist."""
    known = {
        "param": {key for run in all_runs for key in run.data.params},
        "metric": {key for run in all_runs for key in run.data.metrics},
        "tag": {key for run in all_runs for key in run.data.tags},
    }
    hints = []
    for kind, *names in KEY.findall(query):
        key = "".join(names)
        if key not in known[kind]:
            hints.append(f"no run has {kind}s.{key}{did_you_mean(key, known[kind])}")
    if sweeps := sorted({run.data.tags["sweep"] for run in all_runs if "sweep" in run.data.tags}):
        hints.append(f"existing sweeps: {', '.join(sweeps[-5:])}")
    return f"no match among {count(len(all_runs), 'run')}" + (f" ({'; '.join(hints)})" if hints else "")


def read(client: Any, runs: list[Any], source: str) -> RunSet:
    """Read runs from their files in MLflow; params and metrics replace missing files."""
    found, notes = [], []
    with TemporaryDirectory() as folder:
        for run in runs:
            files = small_files(client, run, Path(folder))
            missing = [name for name in SMALL_FILES if not (files / name).exists() and name != "overrides.txt"]
            one = read_run(run, files)
            found.append(one)
            if missing and one.status == "FINISHED":
                notes.append(f"{one.name}: no {', '.join(missing)} in MLflow; its params and metrics are used instead")
    return RunSet(found, notes, source)


def small_files(client: Any, run: Any, copies: Path) -> Path:
    """The folder with a run's `SMALL_FILES`: its artifacts if they are local, else copies below ``copies``."""
    if root := local_folder(run.info.artifact_uri):  # MLflow would look the run up eight times, and copy the files
        return root
    folder = copies / str(run.info.run_id)
    folder.mkdir()
    for name in SMALL_FILES:
        with suppress(Exception):  # MLflow raises half a dozen types; params and metrics are used instead
            client.download_artifacts(run.info.run_id, name, str(folder))
    return folder


def read_run(run: Any, folder: Path) -> Run:
    """Convert an MLflow run.

    Args:
        run: MLflow's entity.
        folder: Folder with the run's files.
    """
    config, summary, tables = read_files(folder)
    metrics: Mapping[str, float] = run.data.metrics
    config = config or as_text(run.data.params)
    finished = run.info.status == "FINISHED"
    complete = is_complete(config, run.info.status, began="host" in run.data.tags)
    keys = read_explicit_keys(folder)
    return Run(
        name=run.info.run_name,
        where=f"runs:/{run.info.run_id}",
        status=run.info.status,
        config=config if complete else explicit_settings(config, keys),
        is_complete=complete,
        metrics=compared_metrics({**metrics, **scores(summary)}) if finished else {},
        tables=(tables or tables_of(config, metrics)) if finished else {},
        started_s=run.info.start_time / 1000,
        mlflow_id=run.info.run_id,
        explicit_keys=keys,
    )


def tables_of(config: dict[str, str], metrics: Mapping[str, float]) -> dict[str, Table]:
    """IoU tables from metrics, where undefined values are missing."""
    try:
        classes = [str(name) for name in ast.literal_eval(config.get("dataset.class_names", ""))]
    except (ValueError, SyntaxError, TypeError):  # MLflow truncates long params
        return {}
    shown, metrics = Names(), finite(metrics)
    found = {split: {name: metrics.get(shown(f"{split}/iou/{name}")) for name in classes} for split in SPLITS}
    return {split: table for split, table in found.items() if any(iou is not None for iou in table.values())}
