"""Tasks in this process, each within submit(): for debugging, and for one process."""

from __future__ import annotations

import time

from executors.base import TaskExecutor, local_report
from executors.tasks import dump_call, perform


class InlineExecutor(TaskExecutor):
    """Runs each task within submit(), so that print, breakpoint() and profilers work.

    Exceptions end in the future, except KeyboardInterrupt, which passes through submit().
    """

    def submit(self, fn, /, *args, **kwargs):
        """A finished future. Raises RuntimeError after shutdown()."""
        with self._changed:
            task = self._new_task(fn, args, kwargs)
        task.future.set_running_or_notify_cancel()
        self._run_and_settle(task, self._run)
        if isinstance(task.future.exception(), KeyboardInterrupt):
            raise task.future.exception()
        return task.future

    @staticmethod
    def _run(task):
        call, started = dump_call(task), time.monotonic()
        return perform(call), local_report(started)

    def shutdown(self, wait=True, *, cancel_futures=False):
        self._closed = True
