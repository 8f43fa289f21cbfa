"""What can go wrong with a task or a command line; the texts are for a person and stand on one line."""

from __future__ import annotations

import pickle


class ExecutorError(Exception):
    """Root of what goes wrong around a call, as opposed to inside it."""


class TaskDied(ExecutorError):
    """The process ended before its task did: killed, crashed, out of memory, os._exit."""


class TaskTimeout(ExecutorError):
    """The task reached its hard time limit and was killed."""


class Straggling(ExecutorError):
    """The task reached its limit for stragglers and is to run anew; never seen outside."""


class NotPicklable(ExecutorError):
    """A call or a result cannot travel between processes."""


class CondorMissing(ExecutorError):
    """HTCondor's tools are not installed here, or not on PATH."""


class ScheddSilent(ExecutorError):
    """A tool of HTCondor failed or took too long. Nothing is known then; least of all that the queue is empty."""


class SubmitFailed(ExecutorError):
    """condor_submit refused a task, and will do so again."""


class TaskHeld(ExecutorError):
    """HTCondor held the task's job, and releasing it or giving it more memory did not help."""


class DirectoryRefused(ExecutorError):
    """A directory is used by another controller, or others could write to it."""


class ForeignType(ExecutorError, pickle.UnpicklingError):
    """A pickle holds something that is not of a builtin type."""


class NoOutcome(ExecutorError):
    """A job left no outcome, or not a sound one."""


class RemoteError(ExecutorError):
    """In place of an exception of the function that does not pickle: its type's name, message and traceback text."""

    def __init__(self, type_name, message, traceback_text):
        super().__init__(type_name, message, traceback_text)
        self.type_name, self.message, self.traceback_text = type_name, message, traceback_text

    def __str__(self):
        return f"{self.type_name}: {self.message}"


class RemoteTraceback(Exception):
    """The `__cause__` of an exception from another process; printing it shows the traceback text from there."""

    def __str__(self):
        return f'\n"""\n{self.args[0]}"""'


class UsageError(Exception):
    """A command line that means nothing (exit code 2); its text is one line."""
