"""The process-group backend ``tccl``: gloo on the device's memory. Used as ``cpu:gloo,sdaa:tccl``."""

from datetime import timedelta

import torch.distributed as dist

from torch_sdaa import _C, device


def _create(store: dist.Store, rank: int, size: int, timeout: timedelta) -> object:
    if not device.device_chosen:  # required by the vendor's backend, too
        raise RuntimeError("tccl: call torch.sdaa.set_device before init_process_group")
    return _C.tccl(dist.ProcessGroupGloo(store, rank, size, timeout))


dist.Backend.register_backend("tccl", _create, devices=["sdaa"])
