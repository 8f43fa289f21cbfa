"""Lines for a person."""

from __future__ import annotations

import contextlib
import sys


def say(line: str) -> None:
    """One line on stderr, whatever is in it."""
    line = " ".join(line.split())
    with contextlib.suppress(OSError):  # nobody may read stderr any more; that must not end a run
        print(f"explorer: {line if len(line) < 900 else line[:900] + ' ...'}", file=sys.stderr, flush=True)
