"""A user-defined network, used from the command line."""

import json
from pathlib import Path

import pytest

from tests.conftest import TINY, Cli

# The layer names are those by which files of timm, semseg and mmsegmentation are recognised.
NETWORK = """
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer0 = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, 4, 1)
        self.decode_head = nn.Conv2d(4, num_classes, 1)

    def forward(self, images):
        return {"out": self.decode_head(self.conv3(self.layer1(self.layer0(images))).relu())}
"""
OPTION = """
_target_: my_networks.Net
num_classes: ${dataset.num_classes}
"""


def test_own_network_trains_and_is_tested(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_networks.py").write_text(NETWORK)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(OPTION)
    training = [one for one in TINY if not one.startswith(("model", "inference"))]
    own = ("--config-dir=conf", "model=mine", "inference=center_crop")
    assert cli(*own, *training, "trainer.max_steps=1", "hydra.run.dir=run") == 0
    assert cli("--config-dir=conf", "mode=test", "checkpoint.path=run", "tracking=none", "hydra.run.dir=test") == 0
    trained, tested = (json.loads((tmp_path / name / "summary.json").read_text())["last"] for name in ("run", "test"))
    assert tested["test/mean_iou"] == trained["val/mean_iou"]
    assert tested["test/loss"] == trained["val/loss"]
