"""A stand-in for the vendor plug-in of the same name, for tests: PyTorch's own out-of-tree backend, on host memory.

``import torch_sdaa`` makes the device type ``sdaa`` and the module ``torch.sdaa``. The first import in an environment
compiles the C++ part; where that cannot be done it raises an ImportError that says what is missing, so a test
module begins with ``pytest.importorskip("torch_sdaa", exc_type=ImportError)``. An import after that takes no time.
There are two devices, or as many as the environment variable SDAA_VISIBLE_DEVICES lists; none if it is empty.

It shows that a program goes through torch's dispatcher, autograd, autocast and c10d as it would on the vendor's
device. It shows nothing about the vendor's operators, numbers or speed.
"""
# ruff: noqa: E402, F401  # the order matters, and to import a part is to register it


def _autoload() -> None:
    """Entry point of the group ``torch.backends``: to import this package is all it takes.

    It stands above ``import torch``, which may call it while this module is only half imported.
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

# The backward pass runs on a thread of its device, which takes Python's lock to let go of its last node a moment after
# backward() has returned. If the interpreter is gone by then, Python 3.11 aborts the process. Give it that moment.
atexit.register(time.sleep, 0.05)
