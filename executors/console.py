"""What a program says beside its result: one line on stderr."""

from __future__ import annotations

import contextlib
import sys


def say_line(program: str, line: str) -> None:
    """One line on stderr, whatever is in it, behind the name of the program that says it."""
    line = " ".join(line.split())
    with contextlib.suppress(OSError):  # nobody may read stderr any more; that must not end a run
        print(f"{program}: {line if len(line) < 900 else line[:900] + ' ...'}", file=sys.stderr, flush=True)
