"""Tables and figures for people: comma-separated values, and PNG where matplotlib is installed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ibp.console import write_output


def write_table(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Comma-separated values. Raises ReductionError."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_output(path, text.getvalue().encode(), "table")


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib Figure of this size in inches, None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(width, height), layout="constrained")


def write_figure(path: Path, figure: Any) -> None:
    """PNG. Raises ReductionError."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_output(path, buffer.getvalue(), "figure")
