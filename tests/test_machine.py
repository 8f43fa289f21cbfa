"""What is said of too many processes."""

import resource

from support import patch_rooms

from phases.machine import advice


def test_advice(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 100_000))
    patch_rooms(monkeypatch, "phases", "free_memory_mb", lambda: 500.0)
    patch_rooms(monkeypatch, "phases", "usable_cores", lambda: 2.0)
    files, memory, cores, idle = advice(100, 12, 10)
    assert "ulimit -n 4096" in files and "MB" in memory and "100 processes on 2 cores" in cores and "idle" in idle
    assert advice(2, 12, 10) == []
