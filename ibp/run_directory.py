"""The files that a run keeps in its work directory."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from executors.job_runs import read_run
from ibp.errors import InputError


@dataclass(frozen=True)
class RunDirectory:
    """Of a run of one-step tasks or an exact one."""

    path: Path

    journal = property(lambda self: self.path / "run.journal")
    shared = property(lambda self: self.path / "shared")
    jobs = property(lambda self: self.path / "condor")
    exact = property(lambda self: self.path / "exact.journal")
    status = property(lambda self: self.path / "status.json")
    stop_request = property(lambda self: self.path / "stop.request")

    def drop_jobs(self) -> None:
        """Forget the jobs, which are no longer in the queue, but not what happened to them. Raises ExecutorError."""
        if self.jobs.is_dir() and read_run(self.jobs) is not None:  # else it is a directory of somebody else's
            with suppress(FileNotFoundError):
                os.replace(self.jobs / "events.jsonl", self.path / "events.jsonl")
            shutil.rmtree(self.jobs, ignore_errors=True)

    def clear(self) -> None:
        """Forget the run: nothing of it is needed any more. Raises ExecutorError."""
        self.drop_jobs()
        for path in (*self.shared.glob("*.shared"), self.journal, self.exact, self.stop_request):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it holds other files, or was never made
            self.shared.rmdir()


def check_uses(uses: dict[str, Path], work_dir: Path) -> None:
    """Raises InputError where one file would be two things, or one of a run's own. uses: files by the options that name them."""
    run = RunDirectory(work_dir)
    files = (run.journal, run.exact, run.shared, run.jobs, run.status, run.stop_request)
    own = [os.path.realpath(path) for path in (*files, work_dir / "controller.json", work_dir / "controller.lock")]
    places = [(what, os.path.realpath(path)) for what, path in uses.items()]
    for what, place in places:
        if any(place == path or place.startswith(path + os.sep) for path in own):
            raise InputError(f"{what} {uses[what]}: a run keeps its own files there; choose another")
    for number, (what, place) in enumerate(places):
        for other, other_place in places[:number]:
            if place == other_place and "--masters" not in (what, other):
                raise InputError(f"{other} and {what} are the same file {uses[what]}; give two")
