"""Imports that are made cheaper: what is deferred is there when it is needed."""

import os
import subprocess
import sys

COMPILE = """
import sys
import torch
from pspexp.utils.imports import without_compiler

timm = without_compiler("timm")
net = timm.create_model("resnet18", features_only=True).eval()
image = torch.rand(1, 3, 64, 64)
expected = net(image)[-1]
print("torch._dynamo" in sys.modules)
print(torch.equal(torch.compile(net, backend="eager")(image)[-1], expected))
print(sys.modules["torch._dynamo.utils"].__spec__ is not None)
"""
NEEDS_MORE = """
import torch
from pspexp.utils.imports import without_compiler

print(without_compiler("needs_more").Unsupported.__module__)
"""


def printed(script: str, *folders: str) -> list[str]:
    """What a script prints in a process of its own."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=env)
    return done.stdout.split()


def test_compiler_is_imported_when_it_is_used():
    assert printed(COMPILE) == ["False", "True", "True"]


def test_release_that_needs_more_of_the_compiler_imports_it(tmp_path):
    (tmp_path / "needs_more.py").write_text("from torch._dynamo.exc import Unsupported\n")
    assert printed(NEEDS_MORE, str(tmp_path)) == ["torch._dynamo.exc"]


def test_compiled_code_is_kept_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PSPEXP_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    script = (
        "import os; from pspexp.utils.imports import import_torch; import_torch(); "
        "print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    )
    assert printed(script) == [str(tmp_path / "compiled")]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    assert printed(script) == ["/elsewhere"]
