"""One-step results as the journal holds them: which integrals are done, what they lead to, and what nothing reduces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ibp.errors import ReductionError
from ibp.journal import Journal
from ibp.knowledge import unpack_sector
from ibp.run_state import RunState
from ibp.sector_tasks import Terms
from ibp.sectors import Sector
from ibp.steps import Frontier
from ibp.tables import is_member, merge, pack_keys, unpack_keys


class StepResults:
    """What one-step tasks have come to, kept in a journal; the state learns what they found out.

    done: {sector: sorted keys} of the integrals whose results are there.
    """

    def __init__(self, journal: Journal, state: RunState):
        self.journal, self.state = journal, state
        self.done: dict[int, np.ndarray] = {}
        self._records: dict[int, list[int]] = {}  # positions in the journal, by sector

    @property
    def count(self) -> int:
        return sum(map(len, self.done.values()))

    def restore(self) -> None:
        """Take over what an earlier controller wrote. Raises ReductionError."""
        for position, record in self.journal.records():
            self._note(position, record)

    def add_masters(self, bits: int, packed: dict[str, Any]) -> None:
        """What a search for masters found. Raises ReductionError."""
        record = {"sector": bits, "learned": packed}
        self._note(self.journal.append(record), record)

    def add_steps(self, bits: int, found: dict[str, Any], frontier: Frontier) -> Terms:
        """What is new in a sector's part of a task's result: one that was thought lost, or went on beside another one, repeats some.

        Raises ReductionError.
        """
        done, known = unpack_keys(found["done"]), self.done.get(bits, frontier.empty)
        new = done[~is_member(done, known) & ~is_member(done, frontier.stops[bits])]
        terms = Terms(*map(unpack_keys, found["terms"]))
        terms = terms.lines(is_member(terms.source, new))
        sector = Sector(frontier.layout, bits)
        record = {
            "sector": bits,
            "done": pack_keys(new),
            "terms": terms.pack(),
            "unreduced": [i for i in found["unreduced"] if not is_member(sector.encode(np.array([i])), known)],
            "learned": found["learned"],
            "steps": found["steps"],
            "paths": found["paths"],
        }
        self._note(self.journal.append(record), record)
        frontier.stop_at(bits, record["unreduced"])
        frontier.note(bits, new)
        frontier.drop(bits, new)
        return terms

    def _note(self, position: int, record: dict[str, Any]) -> None:
        bits, state = record["sector"], self.state
        if record["learned"] is not None:
            state.learn(bits, unpack_sector(record["learned"], state.problem.family), record.get("steps"))
        if "done" in record:
            self._records.setdefault(bits, []).append(position)
            done = unpack_keys(record["done"])
            self.done[bits] = merge(self.done.get(bits, done[:0]), done)
            state.count({"integrals": len(done), "references": len(unpack_keys(record["terms"][0]))})
            state.paths |= record["paths"]

    def read(self, frontier: Frontier, sectors: Sequence[int] | None = None) -> Iterator[Terms]:
        """All one-step results of these sectors, by default of all; the frontier stops at what nothing reduces. Raises ReductionError."""
        for bits in self._records if sectors is None else sectors:
            for position in self._records.get(bits, ()):
                record = self.journal.read(position)
                frontier.stop_at(bits, record["unreduced"])
                yield Terms(*map(unpack_keys, record["terms"]))

    def check_complete(self, bits: int, keys: np.ndarray, frontier: Frontier) -> None:
        """Raises ReductionError if a coefficient arrives where no one-step result is: a damaged journal must not become a wrong result."""
        known = np.union1d(self.done.get(bits, frontier.empty), frontier.stops[bits])
        if len(lost := keys[~is_member(keys, known)]):
            raise ReductionError(f"{self.journal.path}: {len(lost)} results of sector {bits} are missing; start anew with --fresh")
