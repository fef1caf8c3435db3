"""The process-group backend ``tccl``: gloo, working on the device's memory. Needs ``sdaa:tccl`` beside ``cpu:gloo``."""

from datetime import timedelta

import torch.distributed as dist

from torch_sdaa import _C, device


def _create(store: dist.Store, rank: int, size: int, timeout: timedelta) -> object:
    if not device.device_chosen:  # as the vendor's: it could not know which device this process talks for
        raise RuntimeError("tccl: call torch.sdaa.set_device before init_process_group")
    return _C.tccl(dist.ProcessGroupGloo(store, rank, size, timeout))


dist.Backend.register_backend("tccl", _create, devices=["sdaa"])
