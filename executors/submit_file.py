"""A job in the words of HTCondor's submit files: what may stand there, how it is quoted, what stands there for every job of ours."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from executors.program import WORD, worker_command

RESERVED = {
    *("executable", "arguments", "queue", "log", "output", "error", "initialdir", "priority"),
    *("max_materialize", "max_idle", "transfer_input_files", "should_transfer_files"),
    *("request_cpus", "request_memory", "condorworkerrun", "condorworkertask"),
}
INSTEAD = {"max_materialize": "max_jobs", "max_idle": "max_jobs", "request_cpus": "cpus", "request_memory": "memory_mb"}
INSTEAD |= {"transfer_input_files": "transfer_files", "should_transfer_files": "transfer_files", "priority": "describe"}
PASSED_ON = ("PYTHONPATH", "LD_LIBRARY_PATH", "PATH")  # of the submitter's environment


def split_options(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Pairs for the options of a CondorExecutor from texts KEY=VALUE, as a command line has them."""
    return tuple((key.strip(), value.strip()) for key, _, value in (text.partition("=") for text in texts))


def check_submit_options(options: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Extra lines of the submit file. Raises ValueError."""
    for key, value in options:
        bare = key.lower().removeprefix("+").removeprefix("my.")
        if not re.fullmatch(r"\+?[A-Za-z_][\w.]*", key) or re.search(r"[\r\n\0]", str(value)):
            raise ValueError(f"submit option {key!r} = {value!r}: give a name and a value on one line")
        if bare in RESERVED:
            instead = f"use {INSTEAD[bare]}" if bare in INSTEAD else "it is set for every job"
            raise ValueError(f"submit option {key!r} cannot be given: {instead}")
    return {str(key): str(value) for key, value in options}


def check_submittable(path: str | Path) -> str:
    """A path that a submit file can hold. Raises ValueError."""
    path = str(path)
    if re.search(r"[\r\n\0]|\\$|^\s|\s$|\$\$", path):
        raise ValueError(f"{path!r} cannot be used by HTCondor: no line breaks, no $$, no blank or backslash at the end")
    return path


def _literal(text: object) -> str:
    return str(text).replace("$", "$(DOLLAR)")


def _quoted(word: str) -> str:
    """A word of `arguments` or `environment`, to stand within double quotes."""
    return "'" + _literal(word).replace("'", "''").replace('"', '""') + "'"


@dataclass(frozen=True)
class SubmitFile:
    """The submit files of one executor: what is the same in all of them.

    run: marks its jobs; options: extra lines; transfer_files: HTCondor carries a task's inputs, the first of which is the program.
    """

    directory: Path
    run: str
    python: str
    options: Mapping[str, str]
    transfer_files: bool

    def text(self, cpus: int, memory_mb: int, inputs: tuple[str, ...], items: str) -> str:
        """For jobs of the same needs, one for each line "task,priority" of a file."""
        words = [inputs[0], WORD] if self.transfer_files else worker_command()
        environment = " ".join(f"{name}={_quoted(os.environ[name])}" for name in PASSED_ON if name in os.environ)
        lines = {
            "universe": "vanilla",
            "executable": _literal(self.python),
            "transfer_executable": "False",
            "arguments": f'"{" ".join(map(_quoted, words))} . $(task) {cpus}"',
            "environment": f'"{environment}"',
            "initialdir": _literal(self.directory),
            "log": "jobs.log",
            "output": "/dev/null",
            "error": "$(task).err",
            "should_transfer_files": "NO",
            "request_cpus": cpus,
            "request_memory": memory_mb,
            "priority": "$(task_priority)",
            "+CondorWorkerRun": f'"{self.run}"',
            "+CondorWorkerTask": '"$(task)"',
        }
        if self.transfer_files:
            files = ",".join((*inputs, "$(task).call"))
            lines |= {"should_transfer_files": "YES", "when_to_transfer_output": "ON_EXIT", "transfer_input_files": files}
        given = {key.lower() for key in self.options}
        lines = {key: value for key, value in lines.items() if key.lower() not in given} | dict(self.options)
        return "".join(f"{key} = {value}\n" for key, value in lines.items()) + f"queue task,task_priority from {items}\n"
