"""The store: what runs learn from it, damaged files, several programs at once, kills."""

import contextlib
import functools
import hashlib
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    BUBBLE,
    DEADLINE_S,
    PATCHING,
    PUBLISHED,
    SMALL,
    TRIANGLEBOX,
    Touches,
    ended,
    exit_code,
    flipped,
    known,
    patch_rooms,
    point_of,
    python,
    reduced,
    rules_in,
    ship_from,
    snapshot,
    start_python,
)

from executors.files import load_builtins
from ibp.families import BUILT_IN_FAMILIES
from ibp.knowledge import Knowledge, SectorKnowledge
from ibp.rules import NEIGHBOURHOODS, Rule
from ibp.store import Store


def test_second_run_finds_nothing_new_and_says_the_same(place):
    first, again = reduced(*PUBLISHED), reduced(*PUBLISHED)
    assert first["statistics"]["rules"] > 0 == again["statistics"]["rules"] and first["final_expr"] == again["final_expr"]


def test_shipped_rules_are_used_and_left_alone(place, monkeypatch):
    expected = reduced(*PUBLISHED, "--store", "shipped/rules.shelf")["final_expr"]
    (place / "shipped/rules.shelf").chmod(0o444)
    ship_from(monkeypatch, place / "shipped")
    before = snapshot(place / "shipped")
    result = reduced(*PUBLISHED)
    assert (result["statistics"]["rules"], result["final_expr"]) == (0, expected)
    assert snapshot(place / "shipped") == before


@pytest.mark.parametrize("other", [["--prime", "2147483647"], ["--kinematics", "s=8"], ["--d", "40"], ["--cold"]], ids=" ".join)
def test_stored_steps_serve_their_own_point_only(other, place):
    right = reduced("--family", "bubble", "--integral", "2,1", *other, "--store", "elsewhere")["final_expr"]
    family = BUILT_IN_FAMILIES["bubble"]
    marked = Knowledge(steps={3: {(2, 1): {(1, 1): 5}}})  # false, so that its use shows
    Store("s").merge(family, point_of(family, 1009), marked)
    assert reduced("--family", "bubble", "--integral", "2,1", "--store", "s")["final_expr"] == {(1, 1): 5}
    assert reduced("--family", "bubble", "--integral", "2,1", "--store", "s", *other)["final_expr"] == right


def test_results_do_not_depend_on_what_ran_before(place):
    """Targets of very different size in one sector, in both orders, against empty stores."""
    targets = ["0,1,1,1,-9,-9,-9", "0,1,1,1,0,-18,0", "0,3,2,1,-2,-1,-1", "-3,1,2,1,0,0,-1", "0,1,1,4,0,0,0", "-2,1,1,2,0,-3,-1",
               "0,1,1,1,0,0,-20", "-1,2,1,1,0,0,-4"]  # fmt: skip
    alone = [reduced(f"--integral={target}", "--store", f"s{i}")["final_expr"] for i, target in enumerate(targets)]
    for order in (list(range(len(targets))), list(range(len(targets)))[::-1]):
        found = {i: reduced(f"--integral={targets[i]}", "--store", f"shared{order[0]}")["final_expr"] for i in order}
        assert [found[i] for i in range(len(targets))] == alone


@functools.lru_cache
def rule_of(seed, rows=3, n=7):
    draw = random.Random(seed)
    vectors = [tuple(draw.randint(-3, 3) for _ in range(n)) for _ in range(2 * rows)]
    return Rule(tuple((draw.randrange(9), vector) for vector in vectors[:rows]), tuple(vectors[rows:-1]), seed % 3)


def test_merge_keeps_what_others_wrote_and_repeats_nothing(place):
    point, rules = point_of(TRIANGLEBOX, 1009), [rule_of(seed) for seed in range(6)]
    first, second = Store("s"), Store("s")
    first.load(TRIANGLEBOX, point)

    def knows(*numbers, masters=None, steps=None):
        return Knowledge(sectors={63: SectorKnowledge(masters, tuple(rules[i] for i in numbers))}, steps=steps or {})

    second.merge(TRIANGLEBOX, point, knows(0, 1, steps={63: {(1,) * 6 + (-1,): {(1,) * 6 + (0,): 3}}}))
    first.merge(TRIANGLEBOX, point, knows(1, 2, masters=((1,) * 6 + (0,),), steps={63: {(2,) * 6 + (-1,): {}}}))
    second.merge(TRIANGLEBOX, point, knows(2, 0, 3))
    for _ in range(2):  # what is there already changes nothing
        second.merge(TRIANGLEBOX, point, Knowledge(sectors={7: SectorKnowledge((), (rules[4],))}))
    second.merge(TRIANGLEBOX, point, Knowledge())
    knowledge = known("s", point=point)
    assert list(knowledge.sectors[63].rules) == rules[:4]
    assert knowledge.sectors[63].masters == ((1,) * 6 + (0,),)
    assert knowledge.sectors[7] == SectorKnowledge((), (rules[4],))
    assert knowledge.steps == {63: {(1,) * 6 + (-1,): {(1,) * 6 + (0,): 3}, (2,) * 6 + (-1,): {}}}
    assert known("s", BUILT_IN_FAMILIES["doublebox"]) == Knowledge()
    assert known("s", point=point_of(TRIANGLEBOX, 2003)).steps == {}
    assert known("s").steps == {}


def test_store_that_receives_only_is_not_read(place):
    Store("s").merge(TRIANGLEBOX, point_of(TRIANGLEBOX, 1009), Knowledge(sectors={63: SectorKnowledge(None, (rule_of(1),))}))
    cold = Store("s", write_only=True)
    assert cold.load(TRIANGLEBOX) == Knowledge()
    cold.merge(TRIANGLEBOX, point_of(TRIANGLEBOX, 1009), Knowledge(sectors={63: SectorKnowledge(None, (rule_of(2),))}))
    assert set(known("s").sectors[63].rules) == {rule_of(1), rule_of(2)}


def test_store_with_an_awkward_name(place):
    name = 'a dir/100% "it\'s"?mode=ro#x;.shelf'
    assert reduced(*BUBBLE, "--store", name)["final_expr"] == reduced(*BUBBLE, "--store", name)["final_expr"]
    assert {path.name for path in (place / "a dir").iterdir()} >= {Path(name).name}


def vectors(n):
    return st.tuples(*[st.integers(-128, 127)] * n)


@st.composite
def rules(draw, n=7):
    rows = draw(st.lists(st.tuples(st.integers(0, TRIANGLEBOX.operators - 1), vectors(n)), min_size=1, max_size=5))
    pivots = tuple(draw(vectors(n)) for _ in rows[1:])
    return Rule(tuple(rows), pivots, draw(st.integers(0, len(NEIGHBOURHOODS) - 1)))


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.integers(1, 63),
        st.tuples(
            st.none() | st.lists(vectors(7), unique=True, max_size=3).map(tuple),
            st.lists(rules(), unique=True, max_size=4).map(tuple),
            st.frozensets(st.tuples(st.integers(0, 5), st.binary(min_size=7, max_size=7)), max_size=3),
        ),
        max_size=3,
    )
)
def test_rules_come_back_as_they_were_stored(sectors):
    written = {bits: SectorKnowledge(*parts) for bits, parts in sectors.items()}
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory) / "s")
        store.merge(TRIANGLEBOX, point_of(TRIANGLEBOX, 1009), Knowledge(sectors=written))
        assert store.load(TRIANGLEBOX).sectors == written


@pytest.fixture(scope="session")
def good_store(tmp_path_factory):
    """Bytes of a store with the bubble's rules, and what it gives."""
    directory = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        ship_from(patch, directory / "nothing shipped")
        expected = reduced(*BUBBLE, "--store", "s")["final_expr"]
    return (directory / "s").read_bytes(), expected


def record(name, value):
    """An entry of a store with a right checksum."""
    data = zlib.compress(pickle.dumps(value, 4))
    return pickle.dumps((hashlib.sha256(entry(name) + b"\0" + data).digest()[:16], data), 4)


def on_database(act, is_new=False):
    """Damage done with SQLite to a good store, or a database that is none."""

    def change(path, good):
        if not is_new:
            path.write_bytes(good)
        database = sqlite3.connect(path)
        with contextlib.closing(database), database:
            act(database)

    return change


def sql(*statements):
    def act(database):
        for statement, *parameters in statements:
            assert database.execute(statement, parameters).rowcount

    return on_database(act)


def entry(name):
    return b"format" if name == "format" else f"{BUILT_IN_FAMILIES['bubble'].identifier}/{name}".encode()


def replaced(name, value):
    return sql(("UPDATE Dict SET value = ? WHERE key = ?", value, entry(name)))


def altered(name, **changes):
    """A sector's entry with some of its parts changed, its checksum right."""

    def act(database):
        ((value,),) = database.execute("SELECT value FROM Dict WHERE key = ?", (entry(name),)).fetchall()
        parts = pickle.loads(zlib.decompress(pickle.loads(value)[1]))
        parts |= {part: function(parts[part]) for part, function in changes.items()}
        database.execute("UPDATE Dict SET value = ? WHERE key = ?", (record(name, parts), entry(name)))

    return on_database(act)


def raw(change):
    return lambda path, good: path.write_bytes(change(good))


def database_with(*statements):
    return on_database(lambda database: [database.execute(statement) for statement in statements], is_new=True)


HALVE = "UPDATE Dict SET value = substr(value, 1, length(value) / 2) WHERE key = ?"
FLIP = (
    "UPDATE Dict SET value = CAST(substr(value, 1, length(value) - 9) || x'aa' || substr(value, length(value) - 7) AS BLOB) WHERE key = ?"
)
RENAME = "UPDATE Dict SET key = ? WHERE key = ?"
TABLE = "CREATE TABLE Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)"
DAMAGES = {
    "garbage": raw(lambda good: random.Random(1).randbytes(5000)),
    "text": raw(lambda good: b"hello"),
    "zeros": raw(lambda good: bytes(8192)),
    "half a file": raw(lambda good: good[: len(good) // 2]),
    "header only": raw(lambda good: good[:100]),
    "last byte missing": raw(lambda good: good[:-1]),
    "schema format": raw(lambda good: flipped(good, 47)),
    "another program": database_with("CREATE TABLE notes (text)", "INSERT INTO notes VALUES ('mine')"),
    "another shelf": database_with(TABLE, "INSERT INTO Dict VALUES (x'61', x'62')"),
    "other columns": database_with("CREATE TABLE Dict (word)", "INSERT INTO Dict VALUES ('mine')"),
    "other columns, empty": database_with("CREATE TABLE Dict (word)"),
    "format missing": sql(("DELETE FROM Dict WHERE key = ?", b"format")),
    "format of the future": replaced("format", pickle.dumps({"program": "ibp_reduce", "format": 2})),
    "key no text": sql(("INSERT INTO Dict VALUES (?, ?)", b"\xff\xfe", b"x")),
    "key a number": sql(("INSERT INTO Dict VALUES (?, ?)", 5, b"x")),
    "key no sector": sql(("INSERT INTO Dict VALUES (?, ?)", entry("sector/x"), record("sector/x", None))),
    "entries exchanged": sql(
        (RENAME, b"kept", entry("sector/1")), (RENAME, entry("sector/1"), entry("sector/3")), (RENAME, entry("sector/3"), b"kept")
    ),
    "identities without end": replaced("identities", record("identities", ([], []))),
    "masters no integers": altered("sector/3", masters=lambda masters: (("a", "b"),)),
    "masters of another shape": altered("sector/3", masters=lambda masters: ((1, 1, 1),)),
    "rules cut off": altered("sector/3", rows=lambda rows: rows[:-1]),
    "rules missing": altered("sector/3", rows=lambda rows: b""),
    "unknown operator": altered("sector/3", rows=lambda rows: b"\x63" + rows[1:]),
    **{
        f"{name} {what}": function(name)
        for name in ("format", "identities", "sector/3")
        for what, function in {
            "flipped": lambda name: sql((FLIP, entry(name))),
            "truncated": lambda name: sql((HALVE, entry(name))),
            "empty": lambda name: replaced(name, b""),
            "text": lambda name: replaced(name, "text"),
            "number": lambda name: replaced(name, 5),
            "None": lambda name: replaced(name, pickle.dumps(None)),
            "names a class": lambda name: replaced(name, pickle.dumps(Touches())),
            "checked, names a class": lambda name: replaced(name, record(name, Touches())),
            "checked, None": lambda name: replaced(name, record(name, None)),
            "of a newer protocol": lambda name: replaced(name, flipped(pickle.dumps(None, 4), 1)),
        }.items()
    },
}


def run_on_store(capsys, path="s"):
    """Lines said, and the result, of a run on a store."""
    capsys.readouterr()
    result = reduced(*BUBBLE, "--store", path)
    return capsys.readouterr().err.splitlines(), result


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_store_is_set_aside_and_made_anew(case, place, capsys, good_store):
    good, expected = good_store
    DAMAGES[case](place / "s", good)
    damaged = (place / "s").read_bytes()
    lines, result = run_on_store(capsys)
    assert result["final_expr"] == expected
    assert len(lines) == 1 and "s.damaged-1" in lines[0], lines
    assert (place / "s.damaged-1").read_bytes() == damaged
    lines, result = run_on_store(capsys)
    assert lines == [] and result["final_expr"] == expected
    assert known("s", BUILT_IN_FAMILIES["bubble"]).nonzero
    assert not (place / "broken-out").exists()


def test_each_damaged_store_is_kept(place, capsys):
    for number in (1, 2, 3):
        (place / "s").write_bytes(b"damage %d" % number)
        assert f"s.damaged-{number}" in run_on_store(capsys)[0][0]
    assert [(place / f"s.damaged-{number}").read_bytes() for number in (1, 2, 3)] == [b"damage 1", b"damage 2", b"damage 3"]


def test_empty_file_becomes_a_store(place, capsys, good_store):
    (place / "s").touch()
    assert len(run_on_store(capsys)[0]) <= 1
    assert known("s", BUILT_IN_FAMILIES["bubble"]).nonzero


def test_flipped_bytes_give_the_right_answer_and_at_most_one_line(place, capsys, good_store):
    """Anywhere in the file; each byte of the header is tried, the others by lot."""
    good, expected = good_store
    draw = random.Random(5)
    trouble = []
    anywhere = [draw.randrange(100, len(good)) for _ in range(60)]
    at_the_keys = draw.sample(range(len(good) - 700, len(good)), 80)
    for offset in [*range(16, 100), *anywhere, *at_the_keys]:
        for old in place.glob("s*"):
            old.unlink()
        (place / "s").write_bytes(flipped(good, offset, draw.choice([0xFF, 1, 2, 16, 64])))
        try:
            lines, result = run_on_store(capsys)
            assert result["final_expr"] == expected and len(lines) <= 1, lines
        except (Exception, AssertionError) as error:
            trouble.append(f"byte {offset}: {error!r:.200}")
    assert trouble == []


SHIPPED_DAMAGES = [
    "empty", "garbage", "half a file", "another program", "other columns", "format names a class", "sector/3 flipped",
    "sector/3 truncated", "key no text", "format empty", "directory",
]  # fmt: skip


@pytest.mark.parametrize("case", SHIPPED_DAMAGES)
def test_damaged_shipped_store_is_ignored_with_one_line(case, place, capsys, good_store, monkeypatch):
    good, expected = good_store
    path = place / "shipped/rules.shelf"
    path.parent.mkdir()
    if case == "directory":
        path.mkdir()
    else:
        (DAMAGES | {"empty": raw(lambda good: b"")})[case](path, good)
    ship_from(monkeypatch, path.parent)
    before = snapshot(path.parent)
    lines, result = run_on_store(capsys)
    assert result["final_expr"] == expected
    assert len(lines) == 1 and "rules.shelf" in lines[0], lines
    assert snapshot(path.parent) == before and not (place / "broken-out").exists()


def test_task_beyond_its_time_limit_is_run_again_with_more_processes(place):
    words = ["--family", "sunrise", "--integral", "2,2,1,-1,-1", "--cold"]
    expected = reduced(*words)
    result = reduced(*words, "--local", "2", "--straggler-timeout", "0.02", "--straggler-cpus", "2")
    assert result["reductions"] == expected["reductions"]
    assert (expected["statistics"]["stragglers"], result["statistics"]["stragglers"] > 0) == (0, True)


def test_locked_store_is_given_up_with_one_line_and_does_not_cost_the_result(place, capsys, monkeypatch):
    import filelock

    patch_rooms(monkeypatch, "ibp", "LOCK_TIMEOUT_S", 0.2)
    with filelock.FileLock("s.lock"):
        assert exit_code([*BUBBLE, "--store", "s", "--quiet", "--output", "kept.pkl"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--store" in said and "kept.pkl" in said
    kept = load_builtins(Path("kept.pkl").read_bytes())
    assert kept["final_expr"] == reduced(*BUBBLE, "--store", "other")["final_expr"]


# the program, which says 'done' each time that it has learned something
ANNOUNCING = f"""{PATCHING}
from ibp.console import Progress

_, interval_s, *words = sys.argv
advance = Progress.advance

def announced(*arguments):
    advance(*arguments)
    print('done', flush=True)

replace("FLUSH_INTERVAL_S", float(interval_s))
Progress.advance = announced
sys.argv = ['ibp_reduce.py', *words]
sys.exit(ibp_reduce.main())
"""
# stores a rule of sector 1, 2, 3, … of trianglebox, each in a transaction, and says so
WRITING = """
import sys
from fractions import Fraction
from ibp.families import BUILT_IN_FAMILIES
from ibp.identities import Point
from ibp.knowledge import Knowledge, SectorKnowledge
from ibp.rules import Rule
from ibp.store import Store
first, last = int(sys.argv[1]), int(sys.argv[2])
family = BUILT_IN_FAMILIES['trianglebox']
point = Point(Fraction(41), tuple((name, Fraction(value)) for name, value in family.point), 1009)
store = Store('s', say=print)
for bits in range(first, last + 1):
    rules = tuple(Rule(((number, (bits, 0, 0, 0, 0, 0, 0)),), (), 0) for number in range(9))
    store.merge(family, point, Knowledge(sectors={bits: SectorKnowledge(None, rules)}))
    print(bits, flush=True)
"""
SECTORS, MASTERS = ["--paper-masters-only", "--integral", "3,2,1,3,2,2,-6"], ["--integral", "1,1,1,1,1,1,1,-1,-1"]


@pytest.mark.parametrize("local", ["1", "2"])
@pytest.mark.parametrize(("name", "words"), [("trianglebox", SECTORS), ("doublebox", MASTERS)], ids=["sectors", "masters"])
def test_interrupted_run_keeps_its_rules_and_says_how_to_go_on(name, words, local, bare, place):
    with ended(start_python(bare, place, ANNOUNCING, 3600, "--cold", "--family", name, "--local", local, *words)) as run:
        for _ in range(4):
            assert run.stdout.readline() == "done\n"
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=DEADLINE_S)
        assert (run.returncode, said.count("\n")) == (130, 1), said
    assert "interrupted" in said and words[-1] in said
    knowledge = known(place / "ibp_work/store.shelf", BUILT_IN_FAMILIES[name])
    assert knowledge.operators and knowledge.nonzero
    assert any(sector.rules for sector in knowledge.sectors.values())


def test_command_of_an_interrupted_run_can_be_pasted_and_uses_the_rules_found(bare, place):
    code = (
        PATCHING + "def stop(*_): raise KeyboardInterrupt\n"
        "replace('write_pickle', stop)\n"
        "sys.argv = [sys.argv[1], '--cold', '--paper-masters-only', '--integral', '" + SMALL + "']\n"
        "sys.exit(ibp_reduce.main())"
    )
    run = python(bare, place, code, str(bare / "ibp_reduce.py"))
    assert run.returncode == 130, run.stderr
    command = run.stderr.strip().partition("go on with: ")[2]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    again = subprocess.run(command, shell=True, cwd=place, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert again.returncode == 0, f"{command}: {again.stderr}"
    assert load_builtins((place / "results/reduction.pkl").read_bytes())["statistics"]["rules"] == 0, command


@pytest.mark.parametrize("after", [1, 3, 6])
def test_killed_run_leaves_a_sound_store(after, bare, place):
    with ended(start_python(bare, place, ANNOUNCING, 0, "--cold", *PUBLISHED)) as run:
        for _ in range(after):
            assert run.stdout.readline() == "done\n"
        run.kill()
        run.wait(DEADLINE_S)
    path = place / "ibp_work/store.shelf"
    before = rules_in(known(path))
    assert before
    assert reduced(*PUBLISHED)["final_expr"] == reduced(*PUBLISHED, "--store", "empty")["final_expr"]
    assert rules_in(known(path)) > before


def test_writers_killed_again_and_again_lose_nothing_that_was_committed(bare, place):
    draw = random.Random(11)
    committed = 0
    for _ in range(5):
        with ended(start_python(bare, place, WRITING, committed, 10_000)) as run:
            for _ in range(draw.randrange(1, 12)):
                committed = int(run.stdout.readline()) + 1
            run.kill()  # in the midst of the next transactions
            run.wait(DEADLINE_S)
            left = run.stdout.read().split()
            committed = int(left[-1]) + 1 if left else committed
        sectors = known("s").sectors
        assert set(sectors) >= set(range(committed)) and len(sectors) <= committed + 1
        assert all(len(sector.rules) == 9 for sector in sectors.values())


def test_death_within_a_transaction_changes_nothing(bare, place):
    assert python(bare, place, WRITING, "0", "3").returncode == 0
    before = known("s").sectors
    dying = (
        "import os, signal\n"
        "from ibp.store import RuleShelf\n"
        "original = RuleShelf.__setitem__\n"
        "def write(self, key, value):\n"
        "    original(self, key, value)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "RuleShelf.__setitem__ = write\n"
    )
    assert python(bare, place, dying + WRITING, "2", "9").returncode == -signal.SIGKILL
    assert known("s").sectors == before
    assert python(bare, place, WRITING, "4", "4").returncode == 0
    assert set(known("s").sectors) == {0, 1, 2, 3, 4}


def test_four_writers_at_once_all_get_their_rules_in(bare, place):
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(ended(start_python(bare, place, WRITING, 20 * i, 20 * i + 29))) for i in range(4)]
        ends = [(*writer.communicate(timeout=DEADLINE_S), writer.returncode) for writer in writers]
    assert [(said, code) for _, said, code in ends] == [("", 0)] * 4
    sectors = known("s").sectors
    assert set(sectors) == set(range(90))
    assert all(len(sector.rules) == len(set(sector.rules)) == 9 for sector in sectors.values())


def test_last_store_that_is_read_only_is_said_and_costs_no_result(reduce_at, tmp_path):
    store = Store(tmp_path / "s")
    first = reduce_at("bubble", [(3, 2)], shelves=[store])
    before, said = store.path.read_bytes(), []
    stores = [Store(store.path, read_only=True, say=said.append)]
    again = reduce_at("bubble", [(3, 2)], shelves=stores)
    assert (again.store_trouble, said) == ("", [])  # nothing was learned
    more = reduce_at("bubble", [(1, -3)], shelves=stores)
    assert not more.unreduced and again.reductions == first.reductions and store.path.read_bytes() == before
    assert said == [] and all(text in more.store_trouble for text in (str(store.path), "read only", "write to"))
