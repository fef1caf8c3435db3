"""Generates loads: from one real run, copies that differ in what they must."""

import io
import json
import re
import shutil
import sqlite3
from contextlib import closing
from itertools import product
from pathlib import Path
from uuid import uuid4

import numpy as np
from PIL import Image

SIZE = 40  # pixels, of an image's side
DIFFERENT = 50  # images; the others are copies
ARTIFACTS = ("config.yaml", "overrides.txt", "summary.json", "tables")  # that a comparison reads


def draw_images(folder: Path, number: int, num_classes: int) -> None:
    """A data set in the layout of ``dataset=folder``: images of noise, in whose masks every class occurs."""
    noise = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    (folder / "classes.txt").write_text("".join(f"class {index}\n" for index in range(num_classes)))
    classes = np.resize(np.arange(num_classes, dtype=np.uint8), (SIZE, SIZE))
    pairs = [
        (png(noise.integers(0, 256, (SIZE, SIZE, 3), np.uint8)), png(noise.permutation(classes)))
        for _ in range(DIFFERENT)
    ]
    for index in range(number):
        for kind, data in zip(("images", "masks"), pairs[index % DIFFERENT], strict=True):
            (folder / kind / f"{index:05d}.png").write_bytes(data)


def png(pixels: np.ndarray) -> bytes:
    """A PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def copy_mlflow_run(database: Path, run_id: str, number: int, experiment: str) -> None:
    """Copy a run of a local MLflow, with its metrics, parameters and small artifacts, into a new experiment.

    Every row of the run is copied, whatever the tables are: a thousand runs take seconds, MLflow's calls minutes.
    """
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.row_factory = sqlite3.Row
        (source,) = connection.execute("select * from runs where run_uuid = ?", [run_id]).fetchall()
        (place,) = connection.execute("select * from experiments where experiment_id = ?", [source["experiment_id"]])
        (last,) = connection.execute("select max(experiment_id) from experiments").fetchone()
        new = {**place, "experiment_id": last + 1, "name": experiment}
        insert(connection, "experiments", new)
        ids = [uuid4().hex for _ in range(number)]
        tables = [row["name"] for row in connection.execute("select name from sqlite_master where type = 'table'")]
        for table in tables:
            columns = {row["name"] for row in connection.execute(f"pragma table_info({table})")}
            if "run_uuid" not in columns:
                continue
            rows = [dict(row) for row in connection.execute(f"select * from {table} where run_uuid = ?", [run_id])]
            for row, own in product(rows, ids):
                copy = {
                    key: value.replace(run_id, own) if isinstance(value, str) else value for key, value in row.items()
                }
                insert(connection, table, copy | ({"experiment_id": last + 1} if table == "runs" else {}))
    artifacts = Path(source["artifact_uri"].removeprefix("file://"))
    for index, own in enumerate(ids):
        copy_run(artifacts, Path(str(artifacts).replace(run_id, own)), index)


def insert(connection: sqlite3.Connection, table: str, row: dict[str, object]) -> None:
    """Insert a row."""
    marks = ", ".join("?" * len(row))
    connection.execute(f"insert into {table} ({', '.join(row)}) values ({marks})", list(row.values()))


def copy_run(source: Path, target: Path, seed: int) -> None:
    """Copy the small files of a run, with another seed."""
    target.mkdir(parents=True)
    for name in ARTIFACTS:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        else:
            text = (source / name).read_text(encoding="utf-8")
            (target / name).write_text(re.sub(r"(?m)^seed: \d+$", f"seed: {seed}", text), encoding="utf-8")


def write_records(run: Path, number: int) -> None:
    """Give a run that many records of training steps, like its first one."""
    file = run / "metrics.jsonl"
    first = json.loads(file.read_text(encoding="utf-8").partition("\n")[0])
    noise = np.random.default_rng(0).random(number).tolist()
    with file.open("w", encoding="utf-8") as lines:
        for step, value in enumerate(noise, 1):
            record = {**first, "step": step, "time": first["time"] + step / 10, "train/loss": 1 + value + 100 / step}
            lines.write(json.dumps(record) + "\n")


def copy_job(sweep: Path, number: int) -> None:
    """Add a finished job, a copy of job 0, whose seed is its number."""
    copy_run(sweep / "0", sweep / str(number), number)
    record = json.loads((sweep / "0" / "job.json").read_text())
    result = record["result"] * (1 + number % 17)
    record |= {"number": number, "name": f"seed={number}", "values": {"seed": number}, "result": result}
    (sweep / str(number) / "job.json").write_text(json.dumps(record))
    shutil.copytree(sweep / "0" / "checkpoints", sweep / str(number) / "checkpoints")


def set_step(run: Path, step: int) -> None:
    """Let a run's training state say that it was saved at another step."""
    import torch

    file = run / "checkpoints" / "last.pt"
    saved = torch.load(file, weights_only=True)
    saved["training"]["state"]["step"] = step
    torch.save(saved, file)
