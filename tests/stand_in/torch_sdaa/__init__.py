"""A stand-in for the vendor plugin of the same name, for tests: an out-of-tree PyTorch backend on host memory.

``import torch_sdaa`` registers the device type ``sdaa`` and the module ``torch.sdaa``. The first import in an
environment compiles the C++ part; if that is not possible, it raises an ImportError that names what is missing, so
test modules start with ``pytest.importorskip("torch_sdaa", exc_type=ImportError)``. Later imports are fast. There are
two devices, or as many as the environment variable SDAA_VISIBLE_DEVICES lists; none if it is empty.

Tests with it show that a program uses torch's dispatcher, autograd, autocast and c10d as it would on the vendor's
device. They show nothing about the vendor's operators, numerics or speed.
"""
# ruff: noqa: E402, F401  # the order matters, and importing a module registers it


def _autoload() -> None:
    """Entry point in the group ``torch.backends``; importing this package is sufficient.

    Defined before ``import torch``, which may call it while this module is partially imported.
    """


import atexit
import sys
import time

import torch

from torch_sdaa import _build

_build.load()
torch.utils.rename_privateuse1_backend("sdaa")

from torch_sdaa import amp, device, nn

torch._register_device_module("sdaa", device)
torch.utils.generate_methods_for_privateuse1_backend(for_tensor=True, for_module=True, for_storage=True)
for _part in (amp, nn):
    _name = _part.__name__.rpartition(".")[2]
    setattr(device, _name, _part)
    sys.modules[f"torch.sdaa.{_name}"] = _part

from torch_sdaa import distributed, kernels

# The backward pass runs on a thread of its device, which needs the GIL to release its last node shortly after
# backward() has returned. If the interpreter is finalised by then, Python 3.11 aborts the process, so wait briefly.
atexit.register(time.sleep, 0.05)
