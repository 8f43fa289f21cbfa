"""Helper processes, which share the work of a task that has several processors, and what they are given once for many calls."""

from __future__ import annotations

import pickle
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

from executors.local import LocalExecutor
from executors.tasks import task_cpus


def helper_processes() -> AbstractContextManager[Executor | None]:
    """Processes for the processors that a task may use beside its own, None if there are none: most tasks have one processor."""
    return LocalExecutor(task_cpus()) if task_cpus() > 1 else nullcontext()


@lru_cache(maxsize=2)
def kept_context(context: bytes) -> Any:
    """The value of a pickle, kept from one call to the next, with what it has learned. It comes from the process that started this one."""
    return pickle.loads(context)
