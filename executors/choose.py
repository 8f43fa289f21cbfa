"""Where tasks run, as plain settings, and the executor that they stand for.

A program makes a `Local` or a `Condor` of what its user asks for; `make_executor` is the one place that turns it into an executor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from executors.base import InlineExecutor, TaskExecutor
from executors.condor import CondorExecutor
from executors.local import LocalExecutor
from executors.schedd import check_condor_tools
from executors.tasks import Description, TimeLimits


@dataclass(frozen=True)
class Stragglers:
    """After how many seconds a task is run again, with more processors; learn: also as soon as it is much slower than others."""

    timeout_s: float | None = None
    learn: bool = False
    cpus: int = 8


@dataclass(frozen=True)
class Local:
    """Processes of this machine; None: no process but this one. The fields are arguments of LocalExecutor."""

    processes: int | None = None
    timeout_s: float | None = None
    retries: int = 1
    log_dir: Path | None = None
    stragglers: Stragglers = Stragglers()


@dataclass(frozen=True)
class Condor:
    """Jobs of HTCondor. The fields are arguments of CondorExecutor."""

    check_interval_s: float = 5.0
    timeout_s: float | None = None
    memory_mb: int = 1024
    options: tuple[tuple[str, str], ...] = ()
    transfer_files: bool = False
    max_jobs: int = 5000
    stragglers: Stragglers = Stragglers()


def check_available(where: Local | Condor) -> None:
    """Raises CondorMissing where HTCondor's tools are asked for and not here."""
    if isinstance(where, Condor):
        check_condor_tools()


def make_executor(
    where: Local | Condor,
    directory: Path,
    say: Callable[[str], None],
    describe: Callable[[Callable, tuple, dict], Description] | None = None,
) -> TaskExecutor:
    """directory: of the files of jobs. Raises ValueError for settings that mean nothing, ExecutorError, OSError."""
    limits, cpus = where.stragglers, where.stragglers.cpus
    settings = vars(where) | {"stragglers": TimeLimits(limits.timeout_s, limits.learn), "straggler_cpus": cpus, "describe": describe}
    if isinstance(where, Condor):
        return CondorExecutor(directory, say=say, **settings)
    return InlineExecutor() if where.processes is None else LocalExecutor(**settings)
