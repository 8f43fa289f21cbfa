"""Lines for a person: messages, and the progress of a batch."""

from __future__ import annotations

import contextlib
import sys
import time

from executors.console import say_line


def say(line: str) -> None:
    """One line on stderr, whatever is in it."""
    say_line("explorer", line)


class Progress:
    """A tqdm bar on a terminal, plain lines elsewhere."""

    def __init__(self, total: int, heading: str):
        self.total, self.done, self.failed, self.started = total, 0, 0, time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self.bar = tqdm(total=total, desc="Classifying", unit="sim")
        if self.bar is None:
            print(heading, flush=True)

    def line(self, text: str) -> None:
        if self.bar is None:
            print(f"  {text}", flush=True)

    def count(self, failed: bool, text: str) -> None:
        self.done, self.failed = self.done + 1, self.failed + failed
        if self.bar is not None:
            rate = 1 - self.failed / self.done
            self.bar.set_postfix_str(
                f"completed: {self.done - self.failed}, failed: {self.failed}, success_rate: {rate:.1%}", refresh=False
            )
            self.bar.update()
        self.line(text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = 1 - self.failed / max(self.done, 1)
        self.line(
            f"{self.done}/{self.total} done in {seconds:.1f} s: completed: {self.done - self.failed}, failed: {self.failed}, "
            f"success_rate: {rate:.1%}, {self.done / seconds:.2f} sim/s"
        )
