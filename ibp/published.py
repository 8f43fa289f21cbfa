"""The published integrals against the published figures: every one by a process of its own, then all in one.

The figures are those of arXiv:2502.05121 and of Kira, in data/benchmark_published.csv.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from executors.files import load_builtins
from ibp.console import new_figure, write_figure, write_table
from ibp.errors import InputError, ReductionError, how_to_install
from ibp.families import load_family
from ibp.sectors import show
from ibp.shipped import program, shipped

COLUMNS = {  # name: format
    **{"integral": "18", "r": "3", "s": "3", "dots": "5"},
    **{"here_s": "8.2f", "here_mb": "8.0f", "kira_s": "8.1f", "kira_mb": "8.0f", "sailir_s": "9.1f"},
    **{"kira/here": "10.0f", "kira/here_mb": "13.0f", "sailir/here": "12.0f"},
}


def published_benchmark(most: int | None, table: Path) -> Iterator[str]:
    """A table, line by line, of all published integrals or so many of them; CSV and a plot of the same name are written at the end.

    Raises InputError where the figures are missing, ReductionError where an integral does not end on the 16 masters.
    """
    published = _published()
    if most:
        published = published[:: max(len(published) // most, 1)][:most]
    yield "".join(f"{name:>{width.split('.')[0]}}" for name, width in COLUMNS.items())
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for line in published:
            rows.append(_row(line, *_measure([f"--integral={line['integral']}"], Path(scratch))))
            yield "".join(f"{rows[-1][name]:>{width}}" for name, width in COLUMNS.items())
        targets = Path(scratch) / "targets.txt"
        targets.write_text("\n".join(line["integral"] for line in published))
        seconds, megabytes = _measure(["--integrals", str(targets)], Path(scratch))
    here, kira, sailir = (sum(row[name] for row in rows) for name in ("here_s", "kira_s", "sailir_s"))
    yield f"{len(rows)} integrals, a process each: {here:.1f} s here, {kira:,.0f} s Kira, {sailir:,.0f} s SAILIR on a farm"
    yield f"{len(rows)} integrals in one process: {seconds:.1f} s, {megabytes:.0f} MB; every one ends on the 16 masters"
    write_table(table, [COLUMNS, *([round(x, 3) if isinstance(x, float) else x for x in row.values()] for row in rows)])
    yield f"written to {table}"
    yield _draw(rows, table.with_suffix(".png"))


def _published() -> list[dict[str, str]]:
    source = shipped("benchmark_published.csv")
    if not source.is_file():
        raise InputError(f"{source}: the published figures are missing; copy data/ along with the program")
    with source.open(newline="") as file:
        return list(csv.DictReader(file))


def _measure(words: Sequence[str], scratch: Path) -> tuple[float, float]:
    """Seconds of the whole process and its peak MB."""
    output = scratch / "result.pkl"
    places = ["--work-dir", str(scratch), "--output", str(output)]
    command = [sys.executable, str(program()), *words, "--paper-masters-only", "--quiet", *places]
    started = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if run.returncode:
        raise ReductionError(f"benchmark: {' '.join(words)} failed: {run.stderr or run.stdout}")
    result = load_builtins(output.read_bytes())
    masters = set(load_family("trianglebox").paper_masters)
    for target, expression in result["reductions"].items():
        if not expression or not set(expression) <= masters:
            raise ReductionError(f"benchmark: {show(target)} does not end on the 16 masters")
    return seconds, result["peak_memory_kb"] / 1024


def _row(line: dict[str, str], seconds: float, megabytes: float) -> dict[str, Any]:
    kira_s, kira_mb, sailir_s = (float(line[name]) for name in ("kira_seconds", "kira_peak_mb", "sailir_seconds"))
    ratios = (kira_s / seconds, kira_mb / megabytes, sailir_s / seconds)
    own = (line["integral"], int(line["r"]), int(line["s"]), int(line["dots"]))
    return dict(zip(COLUMNS, (*own, seconds, megabytes, kira_s, kira_mb, sailir_s, *ratios)))


def _draw(rows: Sequence[dict[str, Any]], path: Path) -> str:
    """Write the plot where there is matplotlib; says which."""
    if (figure := new_figure(9, 5)) is None:
        return f"no plot: matplotlib is not installed ({how_to_install('matplotlib')})"
    axes = figure.add_subplot()
    ways = (("SAILIR, HTCondor farm", "sailir_s", "s"), ("Kira, 1 core", "kira_s", "o"), ("here, 1 core", "here_s", "D"))
    for label, name, marker in ways:
        axes.semilogy(range(len(rows)), [row[name] for row in rows], marker, label=label)
    axes.set_xticks(range(len(rows)), [row["integral"] for row in rows], rotation=60, ha="right", fontsize=8)
    axes.set_ylabel("seconds, whole process")
    axes.set_title("trianglebox integrals to the 16 masters, modulo 1009")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    write_figure(path, figure)
    return f"written to {path}"
