"""What this machine offers: processors, memory, open files; and what may go wrong with so many processes on it."""

from __future__ import annotations

import contextlib
import math
import os
import resource
from pathlib import Path

from phases.errors import InputError

WORKER_MB, CELL_MB = 40.0, 0.02  # resident memory of a worker, and more for each lattice cell; measured: 45, 51, 65 at L = 12, 24, 36
FILES_A_WORKER, FILES_OURS = 4, 40  # open files: two pipes and a sentinel for each worker; our own


def processes_of(n_jobs: int) -> int:
    """The number of processes meant by n_jobs; -1: one for each CPU this process may use. Raises InputError."""
    if n_jobs == -1:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if n_jobs < 1:
        raise InputError(f"n_jobs = {n_jobs}: give at least 1, or -1 for all CPUs")
    return n_jobs


def usable_cores() -> float:
    """Processors this process may use: its affinity, and the quota of its control group where there is one."""
    cores = float(processes_of(-1))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, int(quota) / int(period))
    return cores


def free_memory_mb() -> float | None:
    """What new processes may use without swapping; None where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 1024
    return None


def advice(processes: int, L: int, batch: int) -> list[str]:
    """What may go wrong with so many processes for lattices of L x L cells, `batch` points at a time; one line each."""
    lines = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_OURS + FILES_A_WORKER * processes
    if soft != resource.RLIM_INFINITY and needed > soft:
        limit = 4096 if hard == resource.RLIM_INFINITY else min(max(4096, needed), hard)
        lines.append(
            f"{processes} processes need about {needed} open files, the limit is {soft}: run `ulimit -n {limit}` first, or use fewer"
        )
    wanted_mb, free_mb = processes * (WORKER_MB + CELL_MB * L**2), free_memory_mb()
    if free_mb is not None and wanted_mb > free_mb:
        lines.append(f"{processes} processes need about {wanted_mb:.0f} MB of memory, {free_mb:.0f} MB are free: use fewer")
    cores = usable_cores()
    if processes > math.ceil(cores):
        lines.append(f"{processes} processes on {cores:g} cores: more than one a core gains nothing")
    if batch < processes:
        lines.append(f"{batch} points at a time leave some of the {processes} processes idle: choose at least as many in each iteration")
    return lines
