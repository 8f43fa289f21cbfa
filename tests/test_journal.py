"""The journal of a run: damaged, of another run, on a full disk."""

import contextlib
import dataclasses
import hashlib
import pickle
import random
import re
import resource
import struct
import sys
import zlib
from pathlib import Path

import pytest
from support import Observed, Touches, done_in, flipped, limited_file_size, pairs, point_of, problem_of, run_steps, said_by
from support_oracles import SAMPLES

from ibp.errors import InputError, ReductionError
from ibp.families import BUILT_IN_FAMILIES
from ibp.journal import Journal
from ibp.step_scheme import Closure

BOX = ("box", SAMPLES["box"])


@pytest.fixture(scope="module")
def written(reduce_at, shelves, tmp_path_factory):
    """Bytes of the journal of a whole run, where its records begin, and the answer."""
    work = tmp_path_factory.mktemp("journal")
    outcome = run_steps(work, *BOX, 2, shelves=shelves)
    assert said_by(outcome) == said_by(reduce_at(*BOX))
    data, starts = (work / "run.journal").read_bytes(), [0]
    while starts[-1] < len(data):
        starts.append(starts[-1] + 20 + struct.unpack("<I", data[starts[-1] : starts[-1] + 4])[0])
    return data, starts, said_by(outcome)


@pytest.fixture
def go_on(written, shelves, tmp_path):
    """go_on(bytes of a journal): the run gives the right answer; whole are the integrals that it had done, and the lines that it said."""
    work = tmp_path / "run"
    work.mkdir()

    def run(data, batch=2):
        (work / "run.journal").write_bytes(data)
        observed, said = Observed(), []
        assert said_by(run_steps(work, *BOX, batch, executor=observed, shelves=shelves, said=said)) == written[2]
        after = done_in(work / "run.journal")
        assert len(after) == len(set(after))
        return set(after) - set(observed.keys), said

    return run


def test_journal_cut_off_anywhere(written, go_on):
    data, starts, _ = written
    assert len(starts) > 8
    ends = {end for start in starts for end in (start - 1, start, start + 1, start + 19, start + 20, start + 21) if 0 <= end <= len(data)}
    for end in sorted(random.Random(1).sample(sorted(ends), 30) + [*range(0, len(data), len(data) // 20), *starts[:4]]):
        kept, said = go_on(data[:end])
        assert kept == set(done_in_bytes(data, starts, end)), end
        assert bool(kept) == any("going on" in line for line in said)
        assert any("not a whole record" in line or "damaged" in line for line in said) == (end not in starts), (end, said)


def done_in_bytes(data, starts, end):
    """Integrals in the records that are whole before this position."""
    for start, stop in zip(starts[1:], starts[2:]):
        if stop <= end:
            record = pickle.loads(zlib.decompress(data[start + 20 : stop]))
            yield from pairs({record["sector"]: record["done"]})


def test_journal_with_a_flipped_byte(written, go_on):
    """What is before the damage stays; the answer is right."""
    data, starts, _ = written
    draw = random.Random(3)
    for offset in sorted({*draw.sample(range(len(data)), 25), *(start + i for start in starts[1:4] for i in (0, 2, 4, 20))}):
        kept, _ = go_on(flipped(data, offset, draw.choice([0xFF, 1, 64])))
        assert kept == (set(done_in_bytes(data, starts, offset)) if offset >= starts[1] else set()), offset


def test_flipped_length_costs_no_memory(written, tmp_path):
    """A length of gigabytes in the head of a record is refused before it is allocated."""
    data, starts, _ = written
    (tmp_path / "j").write_bytes(flipped(data, starts[2] + 3, 0xF0))
    limit = resource.getrlimit(resource.RLIMIT_AS)
    journal = Journal(tmp_path / "j", problem_of(*BOX).name)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 2**33
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limit[1]))
    try:
        assert len(list(journal.records())) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
        journal.close()


def checked_record(value):
    data = zlib.compress(pickle.dumps(value, 4))
    return struct.pack("<I16s", len(data), hashlib.sha256(data).digest()[:16]) + data


@pytest.mark.parametrize(
    "tail",
    [b"\0", b"\0" * 20, b"\0" * 5000, random.Random(1).randbytes(3000), checked_record(Touches()), checked_record({"sector": Touches()})],
    ids=["a zero", "a head of zeros", "zeros", "garbage", "a class", "a class within"],
)
def test_what_is_appended_to_a_journal_is_dropped(tail, written, go_on, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, starts, _ = written
    for end in starts[4], starts[-1]:
        kept, said = go_on(data[:end] + tail)
        assert kept == set(done_in_bytes(data, starts, end))
        assert [f"{len(tail)} bytes" in line for line in said] == [True, False]
    assert not (tmp_path / "broken-out").exists()


@pytest.mark.parametrize(
    "header", [checked_record({"program": "ibp_reduce", "run": "another"}), checked_record(["x"]), checked_record("x")]
)
def test_journal_of_another_run_is_refused_and_left_alone(header, written, tmp_path):
    data, starts, _ = written
    (tmp_path / "run.journal").write_bytes(header + data[starts[1] :])
    with pytest.raises(InputError, match=r"(another|another program); .*--fresh"):
        run_steps(tmp_path, *BOX)
    assert (tmp_path / "run.journal").read_bytes() == header + data[starts[1] :]


NAMED_APART = {
    "target": lambda p: dataclasses.replace(p, targets=p.targets[:1]),
    "order of the targets": lambda p: dataclasses.replace(p, targets=p.targets[::-1]),
    "prime": lambda p: dataclasses.replace(p, point=point_of(p.family, 1009)),
    "kinematics": lambda p: dataclasses.replace(p, point=point_of(p.family, s="5")),
    "dimension": lambda p: dataclasses.replace(p, point=point_of(p.family, d="40")),
    "masters": lambda p: dataclasses.replace(p, preferred_masters=((2, 1, 1, 1),)),
    "published": lambda p: dataclasses.replace(p, paper_masters_only=True),
    "family": lambda p: dataclasses.replace(p, family=BUILT_IN_FAMILIES["doublebox"]),
}


@pytest.mark.parametrize("change", NAMED_APART)
def test_other_problems_have_other_journals(change, tmp_path):
    mine = problem_of(*BOX)
    Journal(tmp_path / "j", mine.name).close()
    with pytest.raises(InputError, match=re.escape(f"the unfinished run of {mine.name}")):
        Journal(tmp_path / "j", NAMED_APART[change](mine).name)
    assert mine.name.startswith("I[2,1,1,2] and 2 more of box modulo 2147483647 (")


@pytest.mark.parametrize("size", [300, 20_000], ids=["within the buffer", "beyond the buffer"])
@pytest.mark.parametrize("room", [0, 15, 20, 200])
def test_journal_on_a_full_disk_stays_usable(room, size, tmp_path):
    large = random.Random(1).randbytes(size)
    journal = Journal(tmp_path / "j", "mine")
    first = journal.append("first")
    with limited_file_size(journal.end + room), pytest.raises(ReductionError, match="j: File too large; make room"):
        journal.append(large)
    second = journal.append("second")
    assert [journal.read(first), journal.read(second)] == ["first", "second"]
    journal.sync()
    journal.close()
    with contextlib.closing(Journal(tmp_path / "j", "mine")) as again:
        assert [value for _, value in again.records()] == ["first", "second"]


@pytest.mark.parametrize("appends", [1, 4, 9])
def test_run_on_a_full_disk_ends_in_one_line_and_goes_on_later(appends, go_on, shelves, tmp_path, monkeypatch):
    original, count = Journal.append, [0]

    def append(self, value):
        count[0] += 1
        with limited_file_size(self.end + 30) if count[0] > appends else contextlib.nullcontext():
            return original(self, value)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", append)
        with pytest.raises(ReductionError, match="run.journal: File too large; make room, then go on with the same command"):
            run_steps(tmp_path / "full", *BOX, 2, shelves=shelves)
    kept, _ = go_on((tmp_path / "full/run.journal").read_bytes())
    assert kept or appends == 1


def test_record_that_changes_while_the_run_goes_on_is_an_error(written, shelves, tmp_path, monkeypatch):
    """Between the reduction and the last step, which reads the journal again."""
    original = Closure.carry

    def carry_down(self, targets):
        with open(self.results.journal.path, "r+b") as file:
            file.seek(written[1][3] + 25)
            file.write(b"???")
        return original(self, targets)

    monkeypatch.setattr(Closure, "carry", carry_down)
    with pytest.raises(ReductionError, match="the record at byte [0-9]+ has changed; run again"):
        run_steps(tmp_path, *BOX, 2, shelves=shelves)
    monkeypatch.undo()
    assert said_by(run_steps(tmp_path, *BOX, 2, shelves=shelves)) == written[2]
