"""Runs from MLflow: by id, or by experiment, sweep and filter."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pspexp.errors import UserError, did_you_mean
from pspexp.jobs.compare.from_folders import read_files, read_typed, scores
from pspexp.jobs.compare.run_set import SPLITS, Run, RunSet, Table, compared_metrics, is_whole, text, typed_part
from pspexp.tracking.mlflow import Names
from pspexp.tracking.mlflow_client import reader, sweep_filter
from pspexp.tracking.run_folder import finite
from pspexp.tracking.secrets import mask_logins

PAGE = 200  # runs a call
EXAMPLE = "a filter reads like params.`optimizer.lr` = '0.001' and metrics.`best/mean_iou` > 0.5"
KEY = re.compile(r"\b(param|metric|tag)(?:eter)?s?\.(?:`([^`]+)`|\"([^\"]+)\"|([\w./-]+))")


def get(uri: str, run_id: str) -> RunSet:
    """One run.

    Raises:
        UserError: it cannot be had.
    """
    with reader(uri, f"compare.runs=runs:/{run_id}") as client:
        run = client.get_run(run_id)
        if run.info.lifecycle_stage == "deleted":
            raise UserError(f"compare.runs=runs:/{run_id}: was deleted from MLflow; restore it there or leave it out")
        if is_overview(run):
            sweep = run.data.tags.get("sweep")
            raise UserError(
                f"compare.runs=runs:/{run_id}: tells about a whole sweep; set compare.sweep={sweep} instead"
            )
        return read(client, [run], f"runs:/{run_id}")


def search(uri: str, experiment: str, sweep: str | None, words: str | None) -> RunSet:
    """The runs of an experiment, the oldest first; without those that only tell about a sweep.

    Args:
        uri: of MLflow's records.
        experiment: its name.
        sweep: only those of this sweep.
        words: only those for which this holds, in MLflow's filter language.

    Raises:
        UserError: there are none.
    """
    given = {"experiment": experiment, "sweep": sweep, "filter": words}
    typed = ", ".join(f"compare.{key}={value}" for key, value in given.items() if value is not None)
    clauses = [
        *([sweep_filter(sweep)] if sweep is not None else []),
        *([words] if words is not None else []),
    ]
    asked = " and ".join(clauses)
    with reader(uri, typed) as client:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            names = sorted(one.name for one in client.search_experiments())
            raise UserError(
                f"compare.experiment={experiment}: unknown to MLflow at {mask_logins(uri)}"
                f"{did_you_mean(experiment, names)}; it has {', '.join(names)}; or name run folders in compare.runs"
            )
        if found.lifecycle_stage == "deleted":
            raise UserError(
                f"compare.experiment={experiment}: was deleted from MLflow at {mask_logins(uri)}; restore it there, or "
                "name run folders in compare.runs"
            )
        try:
            runs = list(paged(client, found.experiment_id, asked))
        except Exception as error:
            if not asked:
                raise
            raise UserError(f"{typed}: MLflow says: {' '.join(str(error).split())[:300]}; {EXAMPLE}") from error
        if not runs:
            problem = nothing_found(asked, list(paged(client, found.experiment_id, "")))
            raise UserError(f"{typed}: {problem}; change that, or name run folders in compare.runs")
        return read(client, runs, f"MLflow experiment '{experiment}'{f', {asked}' if asked else ''}")


def paged(client: Any, experiment_id: str, asked: str) -> Iterator[Any]:
    """The runs of an experiment, the oldest first, without sweeps' overviews."""
    token: str | None = None
    while token != "":
        order = ["attributes.start_time ASC"]
        page = client.search_runs([experiment_id], asked, max_results=PAGE, order_by=order, page_token=token)
        yield from (run for run in page if not is_overview(run))
        token = page.token or ""


def is_overview(run: Any) -> bool:
    """Whether this is no experiment, but holds the table and the pictures of a sweep."""
    return bool(run.data.tags.get("kind") == "sweep")


def nothing_found(asked: str, all_runs: list[Any]) -> str:
    """What to tell when no run fits: which keys of the filter no run of the experiment has."""
    known = {
        "param": {key for run in all_runs for key in run.data.params},
        "metric": {key for run in all_runs for key in run.data.metrics},
        "tag": {key for run in all_runs for key in run.data.tags},
    }
    hints = []
    for kind, *names in KEY.findall(asked):
        key = "".join(names)
        if key not in known[kind]:
            hints.append(f"none has {kind}s.{key}{did_you_mean(key, known[kind])}")
    if sweeps := sorted({run.data.tags["sweep"] for run in all_runs if "sweep" in run.data.tags}):
        hints.append(f"the sweeps there are {', '.join(sweeps[-5:])}")
    return f"no such run among {len(all_runs)}" + (f" ({'; '.join(hints)})" if hints else "")


def read(client: Any, runs: list[Any], source: str) -> RunSet:
    """What MLflow knows about runs: their files, or params and metrics in the place of missing ones."""
    found, notes = [], []
    with TemporaryDirectory() as folder:
        for run in runs:
            copies = Path(folder) / run.info.run_id
            missing = download(client, run.info.run_id, copies)
            one = read_run(run, copies)
            found.append(one)
            if missing and one.status == "FINISHED":
                notes.append(f"{one.name}: no {', '.join(missing)} in MLflow; its params and metrics stand in")
    return RunSet(found, notes, source)


def download(client: Any, run_id: str, copies: Path) -> list[str]:
    """Copy a run's small files; returns those it does not have and that would tell metrics or configuration."""
    copies.mkdir()
    missing = []
    for name in ("overrides.txt", "config.yaml", "summary.json", "tables"):
        try:
            client.download_artifacts(run_id, name, str(copies))
        except Exception:  # MLflow raises half a dozen kinds, and params and metrics tell nearly the same
            missing.append(name)
    return [name for name in missing if name != "overrides.txt"]


def read_run(run: Any, copies: Path) -> Run:
    """A run of MLflow.

    Args:
        run: MLflow's entity.
        copies: a folder with copies of the run's files.
    """
    config, summary, tables = read_files(copies)
    metrics: Mapping[str, float] = run.data.metrics
    config = config or {key: text(value) for key, value in run.data.params.items()}
    finished = run.info.status == "FINISHED"
    whole, typed = is_whole(config, run.info.status, began="host" in run.data.tags), read_typed(copies)
    return Run(
        name=run.info.run_name,
        where=f"runs:/{run.info.run_id}",
        status=run.info.status,
        config=config if whole else typed_part(config, typed),
        is_whole=whole,
        metrics=compared_metrics({**metrics, **scores(summary)}) if finished else {},
        tables=(tables or tables_of(config, metrics)) if finished else {},
        started_s=run.info.start_time / 1000,
        mlflow_id=run.info.run_id,
        typed=typed,
    )


def tables_of(config: dict[str, str], metrics: Mapping[str, float]) -> dict[str, Table]:
    """The IoU of the classes from metrics; undefined ones have none there."""
    try:
        classes = [str(name) for name in ast.literal_eval(config.get("dataset.class_names", ""))]
    except (ValueError, SyntaxError, TypeError):  # cut, since it was long
        return {}
    shown, metrics = Names(), finite(metrics)
    found = {split: {name: metrics.get(shown(f"{split}/iou/{name}")) for name in classes} for split in SPLITS}
    return {split: table for split, table in found.items() if any(iou is not None for iou in table.values())}
