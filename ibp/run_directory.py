"""The files of a run inside its work directory."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from executors.job_runs import read_run


@dataclass(frozen=True)
class RunDirectory:
    """The files of a run of one-step tasks inside its work directory."""

    path: Path

    journal = property(lambda self: self.path / "run.journal")
    shared = property(lambda self: self.path / "shared")
    jobs = property(lambda self: self.path / "condor")
    exact = property(lambda self: self.path / "exact.journal")
    status = property(lambda self: self.path / "status.json")
    stop_request = property(lambda self: self.path / "stop.request")

    def drop_jobs(self) -> None:
        """Forget the jobs, which are no longer in the queue, but not what happened to them."""
        if self.jobs.is_dir() and read_run(self.jobs) is not None:  # else it is a directory of somebody else's
            with suppress(FileNotFoundError):
                os.replace(self.jobs / "events.jsonl", self.path / "events.jsonl")
            shutil.rmtree(self.jobs, ignore_errors=True)

    def clear(self) -> None:
        """Forget the run: nothing of it is needed any more."""
        self.drop_jobs()
        for path in (*self.shared.glob("*.shared"), self.journal, self.exact, self.stop_request):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it holds other files, or was never made
            self.shared.rmdir()
