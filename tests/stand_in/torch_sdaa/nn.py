"""``torch.sdaa.nn``: torch's synchronised batch normalisation with the vendor's name."""

from typing import Any

import torch


class SyncBatchNorm(torch.nn.SyncBatchNorm):
    @classmethod
    def convert_sync_batchnorm(cls, module: torch.nn.Module, process_group: Any = None) -> torch.nn.Module:
        module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(module, process_group)
        for part in module.modules():
            if type(part) is torch.nn.SyncBatchNorm:
                part.__class__ = cls
        return module
