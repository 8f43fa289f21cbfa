"""What a person sees of a run: lines, progress, times, and the files that it leaves; tables, and figures where matplotlib is installed.

The core is given a `Reporter` and knows no terminal: the plain one tells nobody, `Progress` shows a bar and says lines on stderr.
"""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from executors.files import replace_file, say_line
from ibp.errors import ReductionError

LINE_INTERVAL_S = 60.0  # how often a line is printed where there is no terminal for a bar
LONGEST_SHOWN = 160  # characters of a coefficient in a summary


class Reporter:
    """What the core tells of its work. This one passes nothing on, for use as a library."""

    def say(self, line: str) -> None:
        """Something that a person should know."""

    def start(self, what: str, total: int) -> None:
        """A stage of so many equal steps begins."""

    def advance(self, counts: dict[str, int]) -> None:
        """One of them is done. counts: statistics of the run so far."""

    def show(self, what: str, done: int, total: int, text: str) -> None:
        """Where a stage is whose total grows."""

    def tick(self) -> None:
        """Nothing new, but the run lives."""

    def close(self) -> None:
        """The stage is over."""


class Progress(Reporter):
    """A tqdm bar on a terminal; elsewhere nothing, or with lines=True a line now and then."""

    def __init__(self, quiet: bool = False, lines: bool = False):
        self.active = not quiet and sys.stderr.isatty()
        self.lines = not quiet and not self.active and lines
        self.last_line = time.monotonic()
        self.bar: Any = None

    def say(self, line: str) -> None:
        if self.bar is not None:
            self.bar.clear()
        say(line)

    def start(self, what: str, total: int) -> None:
        self.close()
        if self.active and total:
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=what, unit="", leave=False, dynamic_ncols=True)

    def advance(self, counts: dict[str, int]) -> None:
        if self.bar is not None:
            hits = max(counts["references"] - counts["integrals"], 0)
            text = f"{counts['integrals']:,} integrals, {hits:,} hits, {counts['rules']:,} new rules, {counts['searches']:,} searches"
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(1)

    def show(self, what: str, done: int, total: int, text: str) -> None:
        if self.active and (self.bar is None or not self.bar.desc.startswith(what)):
            self.start(what, max(total, 1))
        if self.bar is not None:
            self.bar.total, self.bar.n = total, done
            self.bar.set_postfix_str(text)
        elif self.lines and time.monotonic() > self.last_line + LINE_INTERVAL_S:
            self.last_line = time.monotonic()
            self.say(f"{time.strftime('%H:%M:%S')} {done:,} of {total:,} {what}; {text}")

    def tick(self) -> None:
        if self.bar is not None:
            self.bar.refresh()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def say(line: str) -> None:
    """One line on stderr, whatever is in it."""
    say_line("ibp_reduce", line)


def format_rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.2g}"


def format_seconds(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}... ({len(text):,} characters)"


def write_output(path: Path, content: bytes, what: str = "output", remedy: str = "give another --output") -> None:
    """Atomically: a reader sees the old file or the new one. Raises ReductionError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content, sync=True)
    except OSError as error:
        raise ReductionError(f"{what} {path}: {error.strerror or error}; {remedy}") from None


def write_table(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Comma-separated values. Raises ReductionError."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_output(path, text.getvalue().encode(), "table")


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib Figure of this size in inches, None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(width, height), layout="constrained")


def write_figure(path: Path, figure: Any) -> None:
    """PNG. Raises ReductionError."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_output(path, buffer.getvalue(), "figure")
