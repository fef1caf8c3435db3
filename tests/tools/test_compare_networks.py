"""Comparison of networks: what fits into the time, what is kept, and the table."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tools import compare_networks


def finish(folder: Path, mean_iou: float) -> None:
    """Leave what a finished training of 40 steps, 0.5 s each and 10 s beside them, leaves."""
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"model": {"weight": torch.zeros(1000, 1000)}}, folder / "checkpoints" / "best.pt")
    (folder / "summary.json").write_text(json.dumps({"status": "FINISHED", "best": {"best/mean_iou": mean_iou}}))
    (folder / "run.log").write_text("45 steps per epoch; the last 7 of 367 images are dropped\n")
    record = {"step": 25, "train/step_time": 0.4, "train/data_time": 0.1}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n" + json.dumps({"val/loss": 1.0}) + "\n")
    (folder / "seconds.json").write_text("30")


def test_networks_train_as_long_as_the_time_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def train(overrides: Sequence[str], folder: Path) -> int:
        commands.append([*overrides])
        finish(folder, 0.5 + len(commands) / 100)
        return 0

    monkeypatch.setattr(compare_networks, "train", train)
    command = ["--minutes", "4", "--folder", str(tmp_path / "runs"), "--networks", "pspnet_decoder,smp Unet"]
    assert compare_networks.main([*command, "--seeds", "1,2", "--", "dataset.root=data"]) == 0
    assert len(commands) == 8  # two for the speed of each network, two trainings of each
    assert "trainer.epochs=10" in commands[-1], "22.5 s each, 10 s beside them"
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["4 minutes", "smp Unet", "1.0 M", "57.00", "56.00, 58.00", "0.5"],
        ["4 minutes", "pspnet_decoder", "1.0 M", "56.00", "55.00, 57.00", "0.5"],
    ]

    assert compare_networks.main([*command, "--seeds", "1,2", "--", "dataset.root=data"]) == 0
    assert len(commands) == 8, "finished trainings are kept"


def test_another_recipe_needs_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare_networks.keep_recipe(tmp_path / "recipe.json", ["experiment=camvid_lite_cpu"])
    with pytest.raises(SystemExit):
        compare_networks.main(["--folder", str(tmp_path), "--", "loss=dice"])
    assert "give another --folder" in capsys.readouterr().err


def test_unknown_networks_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare_networks.main(["--networks", "pspnet_decoder,unet"])
    assert "--networks: unknown: unet; choose from pspnet_decoder," in capsys.readouterr().err
