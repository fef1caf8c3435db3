"""The module ``torch.sdaa``: devices and random numbers. All calls are synchronous."""

from typing import Any

import torch

from torch_sdaa import _C

device_chosen = False  # set by set_device, which the process-group backend requires


def _index(of: Any = None) -> int:
    """Return the index of a device given as index, name or object; by default that of the current device."""
    if of is None or isinstance(of, int):
        return current_device() if of is None else of
    named = torch.device(of)
    if named.type != "sdaa":
        raise ValueError(f"Expected a sdaa device, but got: {named}")
    return current_device() if named.index is None else named.index


def is_available() -> bool:
    return device_count() > 0


def device_count() -> int:
    return _C.device_count()


def current_device() -> int:
    return _C.current_device()


def set_device(device: Any) -> None:
    global device_chosen
    _C.exchange_device(_index(device))
    device_chosen = True


class device:  # noqa: N801  # as in torch.cuda
    """Context manager that changes the current device."""

    def __init__(self, device: Any) -> None:
        self.index = _index(device)

    def __enter__(self) -> None:
        self.before = _C.exchange_device(self.index)

    def __exit__(self, *error: object) -> None:
        _C.exchange_device(self.before)


def synchronize(device: Any = None) -> None:
    pass


def is_bf16_supported() -> bool:
    return True


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16, torch.bfloat16]


def _is_in_bad_fork() -> bool:
    return False  # called by torch.manual_seed


def manual_seed(seed: int) -> None:
    _C.default_generator(current_device()).manual_seed(int(seed))


def manual_seed_all(seed: int) -> None:
    for index in range(device_count()):
        _C.default_generator(index).manual_seed(int(seed))


def get_rng_state(device: Any = "sdaa") -> torch.Tensor:
    return _C.default_generator(_index(device)).get_state()


def set_rng_state(state: torch.Tensor, device: Any = "sdaa") -> None:
    _C.default_generator(_index(device)).set_state(state)
