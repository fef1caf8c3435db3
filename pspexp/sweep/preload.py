"""Imported by the fork server of a sweep, so that no job waits for imports.

Nothing here may start threads or touch a card: forked processes could use neither.
"""

import gc
from contextlib import suppress
from importlib import import_module

import pspexp.jobs.test
import pspexp.jobs.train
import pspexp.tracking.figures  # noqa: F401
from pspexp.launchers import fork_server
from pspexp.utils.imports import without_compiler

fork_server.prepare()
without_compiler("timm")
# torch's optimizers need the compiler; MLflow imports its database when it is first used.
for name in ("torch._dynamo", "mlflow", "mlflow.store.tracking.sqlalchemy_store"):
    with suppress(Exception):  # the job reports it
        import_module(name)
# Otherwise, each garbage collection of a job would look at all of this, and thereby copy its memory.
gc.collect()
gc.freeze()
