"""HTCondor's queue, asked at intervals. Where it does not answer nothing is concluded, and it is asked less and less often."""

from __future__ import annotations

import time

from executors.errors import ScheddSilent
from executors.event_log import EventLog
from executors.schedd import Schedd

LONGEST_BACKOFF_S = 60.0


class CondorQueue:
    """must_ask: before anything is submitted, as jobs that we do not know may be in the queue."""

    def __init__(self, schedd: Schedd, interval_s: float, events: EventLog, must_ask: bool):
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
