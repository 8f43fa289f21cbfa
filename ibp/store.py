"""What is known of families, on disk and shared by programs: `Store`."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import shelve
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from executors.files import load_builtins
from ibp.errors import UNREADABLE, ReductionError
from ibp.families import Expression, Family, Index
from ibp.identities import Point
from ibp.knowledge import Knowledge, pack_sector, unpack_sector
from ibp.shipped import shipped

STORE_FORMAT = {"program": "ibp_reduce", "format": 1}
LOCK_TIMEOUT_S = 60.0


class _StoreDamaged(Exception):
    """What a store's file says of itself when it cannot be used."""


# what SQLite says when the machine, not the file, is the trouble
NOT_THE_FILE = ("locked", "readonly", "unable to open", "disk I/O", "full")


class Store:
    """A shelf on disk that programs share: identities, masters and rules of families, one-step results at points.

    The file is an SQLite database with the table of the standard library's dbm.sqlite3, one format on every platform: SQLite is part of
    Python, its files do not depend on the machine, and its rollback journal keeps them whole through a kill (the other dbm backends differ
    between machines or lose their index). Each access holds a file lock, so that it is safe where SQLite's own locks are weak (NFS). Every
    value carries a checksum; a file that is damaged or not ours is renamed, said in one line, and started anew.
    """

    def __init__(self, path: str | Path, read_only: bool = False, write_only: bool = False, say: Callable[[str], None] = lambda line: None):
        self.path, self.read_only, self.write_only, self.say = Path(path), read_only, write_only, say

    def load(self, family: Family, point: Point | None = None) -> Knowledge:
        """What is known of a family, with the one-step results at one point if that is given. Raises ReductionError."""
        if self.write_only or not self.path.exists():
            return Knowledge()
        with self._locked():
            return self._use(lambda shelf: self._load(shelf, family, point)) or Knowledge()

    def merge(self, family: Family, point: Point, new: Knowledge) -> None:
        """Add what was found; what other programs wrote meanwhile stays. Raises ReductionError."""
        if new:
            if self.read_only:
                raise ReductionError(
                    f"store {self.path}: opened to be read only, so nothing can be added; give one to write to as the last"
                )
            try:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ReductionError(f"store {self.path}: {error.strerror}; give another --store") from None
            with self._locked():
                self._use(lambda shelf: self._merge(shelf, family, point, new))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock beside the file; a soft lock where the file system has no native ones. Raises ReductionError."""
        if self.read_only:
            yield
            return
        import filelock

        lock: Any = filelock.FileLock(f"{self.path}.lock", timeout=LOCK_TIMEOUT_S)
        try:
            try:
                lock.acquire()
            except (filelock.Timeout, PermissionError):
                raise
            except (NotImplementedError, OSError):
                lock = filelock.SoftFileLock(f"{self.path}.softlock", timeout=LOCK_TIMEOUT_S)
                lock.acquire()
        except filelock.Timeout:
            raise ReductionError(
                f"store {self.path}: locked by another program for {LOCK_TIMEOUT_S:.0f} s; try again, or give another --store"
            ) from None
        except OSError as error:
            raise ReductionError(f"store {self.path}: cannot be locked ({error.strerror}); give another --store") from None
        try:
            yield
        finally:
            lock.release()

    def _use(self, action: Callable[[RuleShelf], Any]) -> Any:
        """Run an action on the open shelf in one transaction; a file that is not a sound store is set aside first, once.

        Raises ReductionError.
        """
        import sqlite3

        for attempt in (1, 2):
            try:
                with open_shelf(self.path, self.read_only) as shelf:
                    return action(shelf)
            except (_StoreDamaged, sqlite3.Error) as error:
                if self.read_only:
                    self.say(f"{self.path}: not a sound rule store ({error}); going on without it")
                    return None
                if attempt == 2 or any(text in str(error) for text in NOT_THE_FILE):
                    raise ReductionError(f"store {self.path}: {error}; give another --store") from None
                self.say(f"store {self.path}: {error}; set aside as {set_aside(self.path)} and started anew")

    def _load(self, shelf: RuleShelf, family: Family, point: Point | None) -> Knowledge:
        """Raises _StoreDamaged."""
        name = family.identifier
        try:
            key = f"{name}/identities"
            knowledge = Knowledge(*_get(shelf, key, _check_identities, family)) if key in shelf else Knowledge()
            for key, bits in shelf.numbered(f"{name}/sector/"):
                knowledge.sectors[bits] = _get(shelf, key, unpack_sector, family)
            for key, bits in shelf.numbered(f"{name}/steps/{_point_name(point)}/") if point else ():
                knowledge.steps[bits] = _get(shelf, key, _check_steps, family)
        except UNREADABLE as error:
            raise _StoreDamaged(str(error) or type(error).__name__) from None
        return knowledge

    def _merge(self, shelf: Any, family: Family, point: Point, new: Knowledge) -> None:
        knowledge = self._load(shelf, family, point)
        knowledge.update(new)
        name = family.identifier
        if new.operators or new.nonzero:
            _put(shelf, f"{name}/identities", (knowledge.operators, knowledge.nonzero))
        for bits in new.sectors:
            _put(shelf, f"{name}/sector/{bits}", pack_sector(knowledge.sectors[bits], family.n))
        for bits in new.steps:
            _put(shelf, f"{name}/steps/{_point_name(point)}/{bits}", knowledge.steps[bits])


def _point_name(point: Point) -> str:
    return hashlib.sha256(repr((point.prime, point.residues())).encode()).hexdigest()[:16]


def set_aside(path: Path) -> str:
    """Rename a damaged file, and SQLite's journal of it if there is one, so that nothing is overwritten; returns its new name."""
    aside = next(name for k in itertools.count(1) if not (name := path.with_name(f"{path.name}.damaged-{k}")).exists())
    for suffix in ("", "-journal"):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    return aside.name


class _Table:
    """bytes -> bytes in the table Dict of an SQLite file, as much as a shelf needs; the layout of the standard library's dbm.sqlite3."""

    def __init__(self, sql: Any):
        self.sql = sql

    def __getitem__(self, key: bytes) -> bytes:
        row = self.sql.execute("SELECT value FROM Dict WHERE key = CAST(? AS BLOB)", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        return row[0]

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.sql.execute("REPLACE INTO Dict (key, value) VALUES (CAST(? AS BLOB), CAST(? AS BLOB))", (key, value))

    def keys(self) -> list[bytes]:
        return [key for (key,) in self.sql.execute("SELECT key FROM Dict ORDER BY key")]

    def __contains__(self, key: bytes) -> bool:
        return key in self.keys()


class RuleShelf(shelve.Shelf):
    """A shelf that reads builtin types only."""

    def __getitem__(self, key: str) -> Any:
        return load_builtins(self.dict[key.encode()])

    def numbered(self, prefix: str) -> list[tuple[str, int]]:
        """Keys that begin so, with the number that follows. Raises ValueError."""
        return [(key, int(key.removeprefix(prefix))) for key in self if key.startswith(prefix)]


@contextmanager
def open_shelf(path: Path, read_only: bool) -> Iterator[RuleShelf]:
    """One transaction on a store's file, which an exception undoes. Raises _StoreDamaged, sqlite3.Error."""
    import sqlite3

    mode = "ro&immutable=1" if read_only else "rwc"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=LOCK_TIMEOUT_S, isolation_level=None)
    with closing(connection) as sql:  # which rolls back what was not committed
        if {name for (name,) in sql.execute("SELECT name FROM sqlite_master WHERE type = 'table'")} - {"Dict"}:
            raise _StoreDamaged("not a store of this program")
        if not read_only:
            sql.execute("BEGIN IMMEDIATE")
            sql.execute("CREATE TABLE IF NOT EXISTS Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
        shelf = RuleShelf(_Table(sql), protocol=4)
        try:
            if not read_only and not shelf.dict.keys():
                shelf["format"] = STORE_FORMAT
            if shelf.get("format") != STORE_FORMAT:
                raise _StoreDamaged("not a store of this program")
        except UNREADABLE as error:
            raise _StoreDamaged(str(error) or type(error).__name__) from None
        yield shelf
        if not read_only:
            sql.execute("COMMIT")


def _digest(key: str, data: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + data).digest()[:16]


def _put(shelf: RuleShelf, key: str, value: Any) -> None:
    data = zlib.compress(pickle.dumps(value, protocol=4))
    shelf[key] = (_digest(key, data), data)


def _get(shelf: RuleShelf, key: str, check: Callable[[Any, Family], Any], family: Family) -> Any:
    """A checked value of the shelf. Raises KeyError where there is none, and one of UNREADABLE where it is not what was written."""
    digest, data = shelf[key]
    if _digest(key, data) != digest:
        raise ValueError(f"entry {key} has a wrong checksum")
    return check(load_builtins(zlib.decompress(data)), family)


def _check_identities(value: Any, family: Family) -> tuple:
    operators, nonzero = value
    shifts = (shift for operator in operators or () for shift, _ in operator)
    if operators is not None and (len(operators) != family.operators or any(len(shift) != family.n for shift in shifts)):
        raise ValueError("identities of another family")
    if nonzero is not None and any(not 0 < bits < 1 << family.lines for bits in nonzero):
        raise ValueError("sectors of another family")
    return operators, nonzero


def _check_steps(value: Any, family: Family) -> dict[Index, Expression]:
    if any(len(term) != family.n for target, step in value.items() for term in (target, *step)):
        raise ValueError("steps of another family")
    return value


def open_stores(path: Path, cold: bool, say: Callable[[str], None]) -> tuple[list[Store], list[Store]]:
    """To look things up, and of a run, which learns into the last one; cold: a run that finds everything anew."""
    common = Store(shipped("rules.shelf"), read_only=True, say=say)
    own = [Store(path, write_only=True, say=say)] if cold else [common, Store(path, say=say)]
    return [common, Store(path, read_only=True, say=say)], own
