"""Helper processes, which share the work of a task that has several processors: what they are given once for many calls."""

from __future__ import annotations

import pickle
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=2)
def kept_context(context: bytes) -> Any:
    """The value of a pickle, kept from one call to the next, with what it has learned. It comes from the process that started this one."""
    return pickle.loads(context)
