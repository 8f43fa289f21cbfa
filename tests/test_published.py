"""The table of published integrals, of which one is run."""

import csv

import pytest

from ibp.errors import InputError
from ibp.published import COLUMNS, published_benchmark


def test_one_row_of_the_table(tmp_path):
    lines = list(published_benchmark(1, tmp_path / "b.csv"))
    assert lines[0].split() == list(COLUMNS)
    integral, r, s, dots, *figures = lines[1].split()
    assert (integral, r, s, dots) == ("1,1,2,1,1,1,-4", "7", "4", "1") and all(float(figure) > 0 for figure in figures[:2])
    assert "1 integrals in one process" in lines[3] and "16 masters" in lines[3]
    with open(tmp_path / "b.csv", newline="") as file:
        assert [row["integral"] for row in csv.DictReader(file)] == [integral]


def test_missing_figures_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("ibp.published.shipped", lambda name: tmp_path / name)
    with pytest.raises(InputError, match="benchmark_published.csv"):
        list(published_benchmark(None, tmp_path / "b.csv"))
