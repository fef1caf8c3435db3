"""The objects that a job consists of, built from the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pspexp.data.cache import SampleCache
from pspexp.data.dataset import SegmentationDataset, Split
from pspexp.data.loader import TrainLoader
from pspexp.engine.device import Device
from pspexp.engine.distributed import World
from pspexp.engine.finetune import Freezing
from pspexp.engine.precision import Precision
from pspexp.inference import Inference
from pspexp.metrics.base import AnyMetric


@dataclass(frozen=True)
class Components:
    """What every job that runs a network needs; model and loss are on the device."""

    world: World
    device: Device
    precision: Precision
    dataset: SegmentationDataset
    inference: Inference
    model: nn.Module
    loss: nn.Module
    metrics: Mapping[str, AnyMetric] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class TrainingComponents(Components):
    """What training needs in addition."""

    training: Split
    validation: Split
    cache: SampleCache
    loader: TrainLoader
    freezing: Freezing
    optimizer: Optimizer
    scheduler: LRScheduler
