"""Sparse elimination modulo a prime; a row is a dictionary {column: value} without zeros.

`solve_for` and `substitute` keep a system solved; `eliminate_heavier` finds the shortest combinations that are left with a target column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

CANDIDATES = 8  # shortest combinations compared for the lightest result: more give hardly better rules

Solved = dict[Any, dict[Any, int]]  # what integrals are through others; integers may take part, as names of rows
Having = dict[Any, set[int]]  # the rows that have a column


def subtract(row: dict, other: dict, factor: int, p: int) -> None:
    """row -= factor * other, modulo p, without zeros."""
    for key, value in other.items():
        new = (row.get(key, 0) - factor * value) % p
        if new:
            row[key] = new
        else:
            row.pop(key, None)


def substitute(row: dict[Any, int], lines: dict[Any, dict[Any, int]], p: int) -> dict[Any, int]:
    """A row with every key that has a line replaced by it, without zeros."""
    result = {key: value for key, value in row.items() if key not in lines}
    for key, value in row.items():
        if key in lines:
            subtract(result, lines[key], -value, p)
    return result


def difference(whole: dict[Any, int], part: dict[Any, int], p: int) -> dict[Any, int]:
    """whole - part, modulo p, with the zeros."""
    return {key: -value % p for key, value in part.items()} | {key: (value - part.get(key, 0)) % p for key, value in whole.items()}


def solve_for(pivot: Any, row: dict[Any, int], solved: Solved, p: int) -> None:
    """Note in `solved` what row = 0 says of the pivot. The row has nothing that is solved for; no line is changed in place."""
    inverse = -pow(row[pivot], -1, p)
    line = {key: value * inverse % p for key, value in row.items() if key != pivot}
    for key, other in solved.items():
        if pivot in other:
            solved[key] = substitute(other, {pivot: line}, p)
    solved[pivot] = line


def echelon(rows: Sequence[dict[int, int]], p: int) -> tuple[Solved, list[int]]:
    """Rows, which are zero and get changed, solved for their largest keys: lines that may hold keys of others; numbers of the rows used."""
    solved: Solved = {}
    used = []
    for number, row in sorted(enumerate(rows), key=lambda numbered: (max(numbered[1], default=-1), len(numbered[1]))):
        while row and (lead := max(row)) in solved:
            subtract(row, solved[lead], -row.pop(lead), p)
        if row:
            factor = -pow(row.pop(lead), -1, p)
            solved[lead] = {key: value * factor % p for key, value in row.items()}
            used.append(number)
    return solved, used


def needed_lines(solved: Solved, keys: Iterable[Any]) -> Solved:
    """The lines of an echelon through which these keys are found."""
    left, needed = list(keys), {}
    while left:
        if (key := left.pop()) in solved and key not in needed:
            needed[key] = solved[key]
            left += solved[key]
    return needed


def substitute_back(solved: Solved, p: int) -> None:
    """Take all keys of an echelon out of its lines."""
    for lead in sorted(solved):
        row = solved[lead]
        for key in [key for key in row if key in solved]:
            subtract(row, solved[key], -row.pop(key), p)


def _rows_and_columns(matrix: dict[int, dict[Any, int]]) -> tuple[dict[int, dict[Any, int]], Having]:
    """A copy of a sparse matrix to eliminate in, and which rows have which column."""
    having: Having = {}
    for r, row in matrix.items():
        for c in row:
            having.setdefault(c, set()).add(r)
    return {r: dict(row) for r, row in matrix.items()}, having


def _eliminate(rows: dict[int, dict[Any, int]], having: Having, c: Any, pivot: int, p: int) -> tuple[dict[Any, int], dict[int, int]]:
    """Take a column out of all rows by one of them, which is taken out itself: what is left of it, and its factor for each."""
    pivot_row = rows.pop(pivot)
    inverse = pow(pivot_row.pop(c), -1, p)
    for k in pivot_row:
        having[k].discard(pivot)
    factors = {}
    for r in having.pop(c) - {pivot}:
        row = rows[r]
        factor = factors[r] = row.pop(c) * inverse % p
        for k, value in pivot_row.items():
            new = (row.get(k, 0) - factor * value) % p
            if new:
                row[k] = new
                having[k].add(r)
            elif k in row:
                del row[k]
                having[k].discard(r)
    return pivot_row, factors


def is_reducible(matrix: dict[int, dict[Any, int]], target: Any, p: int) -> bool:
    """Whether the rows combine to one that has the target column and no other, in less than half the time of `eliminate_heavier`.

    Columns with the fewest rows are eliminated first: little is filled in, but the combinations would be long ones.
    """
    rows, having = _rows_and_columns(matrix)
    order = [(len(users), c) for c, users in having.items() if c != target]
    heapify(order)
    while order and having.get(target):
        size, c = heappop(order)
        users = having.get(c, ())
        if len(users) != size:
            if users:
                heappush(order, (len(users), c))
        elif users:
            pivot_row, _ = _eliminate(rows, having, c, min(users, key=lambda r: (len(rows[r]), r)), p)
            for k in pivot_row:
                if k != target:
                    heappush(order, (len(having[k]), k))
    return bool(having.get(target))


def eliminate_heavier(matrix: dict[int, dict[int, int]], target: int, p: int) -> list[dict[int, int]]:
    """Combinations {row: factor} without columns heavier than the target (columns ascend towards it), but with it: the shortest ones.

    Columns are eliminated heaviest first with the row that came from the fewest, which keeps the combinations short.
    """
    rows, having = _rows_and_columns(matrix)
    origins: dict[int, dict[int, int]] = {r: {r: 1} for r in rows}
    for c in sorted(having.keys() - {target}):
        if users := having[c]:
            pivot = min(users, key=lambda r: (len(origins[r]), len(rows[r]), r))
            _, factors = _eliminate(rows, having, c, pivot, p)
            pivot_origin = origins.pop(pivot)
            for r, factor in factors.items():
                subtract(origins[r], pivot_origin, factor, p)
    found = [origins[r] for r, row in rows.items() if target in row]
    shortest = min(map(len, found), default=0)
    return [origin for origin in found if len(origin) == shortest][:CANDIDATES]
