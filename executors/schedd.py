"""HTCondor's tools: condor_submit, condor_q, condor_rm and condor_release for the jobs of one run, each call with a time limit.

Where a tool fails or does not end, nothing is known (ScheddSilent); least of all that the queue is empty.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass

from executors.errors import CondorMissing, ScheddSilent, SubmitFailed

TOOL_TIMEOUT_S, SUBMIT_TIMEOUT_S = 30.0, 120.0  # of one call of condor_q and the like, and of condor_submit
LONGEST_BACKOFF_S = 60.0
AD_ATTRIBUTES = "ClusterId,ProcId,JobStatus,HoldReasonCode,HoldReason,CondorWorkerTask,RequestCpus,RequestMemory,JobCurrentStartDate"
IDLE_JOB, RUNNING_JOB, REMOVED_JOB, COMPLETED_JOB, HELD_JOB, TRANSFERRING_JOB, SUSPENDED_JOB = range(1, 8)  # JobStatus


@dataclass(frozen=True)
class JobAd:
    """What condor_q says of a job."""

    job: str  # cluster.process
    task: str
    status: int
    hold: tuple  # (code, reason)
    cpus: int
    memory_mb: int
    started: int

    @staticmethod
    def parse(ad):
        job, hold = f"{ad['ClusterId']}.{ad['ProcId']}", (ad.get("HoldReasonCode", 0), ad.get("HoldReason", "no reason given"))
        numbers = [ad.get(key, 0) for key in ("RequestCpus", "RequestMemory", "JobCurrentStartDate")]
        numbers = [number if isinstance(number, int) else 0 for number in numbers]  # it may be an expression
        return JobAd(job, ad.get("CondorWorkerTask", ""), int(ad["JobStatus"]), hold, *numbers)


class Schedd:
    """The jobs of a run; calls counts the calls of each tool."""

    def __init__(self, run):
        self.run, self.calls = run, Counter()

    @property
    def constraint(self):
        return f'CondorWorkerRun=="{self.run}"'

    def call(self, tool, *arguments, directory=None):
        """The finished process. Raises ScheddSilent if it does not finish."""
        self.calls[tool] += 1
        timeout_s = SUBMIT_TIMEOUT_S if tool == "condor_submit" else TOOL_TIMEOUT_S
        try:
            return subprocess.run(
                [tool, *arguments],
                cwd=directory,
                timeout=timeout_s,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # a Ctrl-C at the terminal is not for it
            )
        except subprocess.TimeoutExpired:
            raise ScheddSilent(f"{tool} took more than {timeout_s:g} s") from None
        except OSError as error:
            raise ScheddSilent(f"{tool} could not be started ({error})") from error

    def jobs(self):
        """JobAds of all jobs of the run that are in the queue, oldest first. Raises ScheddSilent if that is not known."""
        answer = self.call("condor_q", "-constraint", self.constraint, "-json", "-attributes", AD_ATTRIBUTES)
        if answer.returncode:
            raise ScheddSilent(f"condor_q: {_complaint(answer.stderr) or f'exit code {answer.returncode}'}")
        try:
            ads = json.loads(answer.stdout) if answer.stdout.strip() else []  # an empty queue prints nothing
            if not isinstance(ads, list):
                raise TypeError(type(ads).__name__)
            return [JobAd.parse(ad) for ad in sorted(ads, key=lambda ad: (ad["ClusterId"], ad["ProcId"]))]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ScheddSilent(f"condor_q printed what is not a list of jobs ({type(error).__name__}: {error})") from error

    def submit(self, directory, description, count):
        """The cluster of as many new jobs. Raises SubmitFailed if it was refused, ScheddSilent if what happened is not known."""
        answer = self.call("condor_submit", description, directory=directory)
        if answer.returncode:
            raise SubmitFailed(f"condor_submit: {_complaint(answer.stderr) or f'exit code {answer.returncode}'}")
        cluster = re.search(r"cluster\s+(\d+)", answer.stdout)
        number = re.search(r"(\d+) job\(s\) submitted", answer.stdout)
        if cluster is None or (number and int(number[1]) != count):
            raise ScheddSilent(f"condor_submit said '{_complaint(answer.stdout)}' to {count} jobs")
        return int(cluster[1])


class CondorQueue:
    """The queue, asked at intervals. Where it does not answer nothing is concluded, and it is asked less and less often.

    events: an EventLog; must_ask: before anything is submitted, as jobs that we do not know may be in the queue.
    """

    def __init__(self, schedd: Schedd, interval_s: float, events, must_ask: bool):
        self.schedd, self.interval_s, self.must_ask = schedd, interval_s, must_ask
        self._events, self._ask_at, self._backoff_s = events, 0.0, 0.0

    @property
    def silent(self):
        """Whether HTCondor did not answer when it was called last."""
        return self._backoff_s > 0

    def is_due(self, any_jobs):
        return time.monotonic() >= self._ask_at and (any_jobs or self.must_ask)

    def ask_now(self):
        self._ask_at, self.must_ask = time.monotonic(), True

    def jobs(self):
        """JobAds of all jobs, None where that is not known."""
        try:
            ads = self.schedd.jobs()
        except ScheddSilent as error:
            return self._wait_longer(error)
        if self.silent:
            self._events.say("HTCondor answers again")
            self._events.write("answers")
        self._backoff_s, self.must_ask = 0.0, False
        self._ask_at = time.monotonic() + self.interval_s
        return ads

    def tell(self, tool, jobs):
        """Call condor_rm or condor_release; whether it finished. A job that is no more is no error: the queue will tell."""
        if self.silent:
            return False
        try:
            self.schedd.call(tool, *sorted(jobs))
        except ScheddSilent as error:
            self._wait_longer(error)
            return False
        return True

    def _wait_longer(self, error):
        if not self.silent:
            self._events.say(f"HTCondor does not answer ({error}); its jobs go on, waiting for it")
            self._events.write("silent", reason=str(error))
        self._backoff_s = min(2 * self._backoff_s or self.interval_s, LONGEST_BACKOFF_S)
        self._ask_at, self.must_ask = time.monotonic() + self._backoff_s, True


def _complaint(text):
    """What a tool says went wrong, on one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    start = next((i for i, line in enumerate(lines) if line.startswith("ERROR")), 0)
    return " ".join(lines[start : start + 3])[:300]


def check_condor_tools():
    """Raises CondorMissing."""
    if missing := [tool for tool in ("condor_submit", "condor_q", "condor_rm") if shutil.which(tool) is None]:
        raise CondorMissing(f"{', '.join(missing)} not found; log in where HTCondor is installed, or run with local processes")
