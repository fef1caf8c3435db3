"""``torch.sdaa.amp``: mixed precision with the vendor's names."""

import torch


class autocast(torch.amp.autocast_mode.autocast):  # noqa: N801  # as in torch.amp
    def __init__(self, enabled: bool = True, dtype: torch.dtype = torch.float16, cache_enabled: bool = True) -> None:
        super().__init__("sdaa", dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)


class GradScaler(torch.amp.GradScaler):
    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        super().__init__("sdaa", init_scale, growth_factor, backoff_factor, growth_interval, enabled)
