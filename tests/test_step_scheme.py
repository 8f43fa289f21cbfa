"""One-step tasks: the same results as by sectors, whatever becomes of the tasks."""

import math
import struct

import numpy as np
import pytest
from support import TRIANGLEBOX, Observed, combine, done_in, pairs, patch_rooms, point_of, records_of, run_steps, said_by, with_cpus
from support_oracles import LAW_TARGETS, PREFERRED, SAMPLES

from executors.local import LocalExecutor
from executors.tasks import TimeLimits
from ibp.errors import ReductionError
from ibp.families import BUILT_IN_FAMILIES
from ibp.knowledge import Knowledge
from ibp.rules import NEIGHBOURHOODS
from ibp.runs import describe_task
from ibp.sectors import Sector, corner, layout_for, sector_of, sector_order
from ibp.steps import reduce_steps
from ibp.store import Store
from ibp.tables import pack_keys, unpack_keys


class OutOfTime(Observed):
    """The time of each task is up after its first wave."""

    def submit(self, fn, /, *args):
        return super().submit(fn, *args[:4], -1.0)


# family, targets and options of problems; ways to run them: batch, job_seconds, processes, constants
PROBLEMS = {
    "trianglebox": ("trianglebox", [(1, 1, 1, 1, 1, 1, -1), LAW_TARGETS[2], (1, 0, 0, 0, 1, 0, -1)], {"paper_masters_only": True}),
    "trianglebox, corners stay": ("trianglebox", [LAW_TARGETS[2], (1, 1, 1, 1, 1, 1, -1)], {}),
    "trianglebox, preferred": ("trianglebox", [PREFERRED[2][1]], {"paper_masters_only": True, "preferred_masters": tuple(PREFERRED[2][2])}),
    "sunrise, preferred": ("sunrise", [PREFERRED[1][1], (0, 2, 1, -1, -1)], {"preferred_masters": tuple(PREFERRED[1][2])}),
    "doublebox": ("doublebox", [*SAMPLES["doublebox"], (0, 0, 1, 1, 1, 0, 0, 0, 0)], {}),
    "box": ("box", SAMPLES["box"], {}),
}
WAYS = {
    "one by one": (1, 1.0, 1, {"TARGETS_PER_PASS": 1}),
    "by sevens": (7, 1.0, 1, {}),
    "auto": (None, 1.0, 1, {}),
    "auto, no time": (None, 1e-3, 1, {}),
    "auto, work is left": (None, 0.1, 1, {"BLOCK": 2}),
    "python integers": (7, 1.0, 1, {"KEY_BITS": 8}),
    "python integers, auto": (None, 1e-2, 1, {"KEY_BITS": 8}),
    "two processes": (7, 1.0, 2, {}),
    "two processes, auto": (None, 1e-2, 2, {}),
}


@pytest.fixture(scope="module")
def by_sectors(reduce_at):
    """What the other controller gives for a problem, once for all."""
    kept = {}

    def run(problem):
        if problem not in kept:
            name, targets, options = PROBLEMS[problem]
            kept[problem] = reduce_at(name, targets, **options)
        return kept[problem]

    return run


SLOW_WAYS = {"one by one", "auto, no time", "python integers, auto"}  # the first problem shows them


@pytest.mark.parametrize(
    ("problem", "way"), [(p, way) for number, p in enumerate(PROBLEMS) for way in WAYS if number == 0 or way not in SLOW_WAYS]
)
def test_one_step_tasks_give_what_sectors_give(problem, way, by_sectors, shelves, pool, tmp_path, monkeypatch):
    name, targets, options = PROBLEMS[problem]
    expected = by_sectors(problem)
    batch, job_seconds, processes, constants = WAYS[way]
    for constant, value in constants.items():
        patch_rooms(monkeypatch, "ibp", constant, value)
    executor = pool if processes == 2 else OutOfTime() if "BLOCK" in constants else Observed()
    outcome = run_steps(tmp_path / "run", name, targets, batch, job_seconds, executor, shelves, **options)
    assert said_by(outcome) == said_by(expected) and not outcome.unreduced
    if "BLOCK" in constants:  # what tasks had left came again in later ones
        assert len(executor.keys) > len(set(executor.keys)) > 0
    assert outcome.statistics["hits"] == outcome.statistics["references"] - outcome.statistics["integrals"]
    done = done_in(tmp_path / "run/run.journal")
    assert len(done) == len(set(done)) == outcome.statistics["integrals"] > 0


CORNER_TARGETS = [(1, 1, 1, 1, 1, 1, -1), (2, 1, 1, 1, 1, 0, 0), (1, 1, 0, 1, 1, 1, -1), (1, 0, 2, 1, 1, 1, 0)]


@pytest.fixture(scope="module")
def alone(reduce_at):
    return {target: reduce_at("trianglebox", [target]).reductions[target] for target in CORNER_TARGETS}


@pytest.mark.parametrize("way", ["controller", "by sevens", "auto, work is left", "two processes, auto", "few, backwards"])
def test_where_corners_stay_an_expression_depends_on_its_integral_only(way, alone, reduce_at, pool, tmp_path, monkeypatch):
    if way == "controller":
        assert reduce_at("trianglebox", CORNER_TARGETS[::-1]).reductions == alone
        return
    batch, job_seconds, processes, constants = WAYS.get(way, (3, 1.0, 1, {}))
    for constant, value in constants.items():
        patch_rooms(monkeypatch, "ibp", constant, value)
    targets = CORNER_TARGETS[2:0:-1] if way == "few, backwards" else CORNER_TARGETS
    executor = pool if processes == 2 else OutOfTime() if "BLOCK" in constants else None
    outcome = run_steps(tmp_path / "run", "trianglebox", targets, batch, job_seconds, executor)
    assert outcome.reductions == {target: alone[target] for target in targets}
    extra = {term for expression in alone.values() for term in expression} - set(TRIANGLEBOX.paper_masters)
    assert extra and extra == {corner(sector_of(term), 7) for term in extra}  # else it would say nothing


def test_where_corners_stay_targets_that_are_zero_but_large_change_nothing(alone, reduce_at, tmp_path):
    """They make keys so large that they are Python integers, and the steps between them exceed 62 bits."""
    targets = [*CORNER_TARGETS[:2], (100, 100, -100, -100, 100, 100, -100), (1, *[-100] * 6)]
    assert layout_for(targets, 7).dtype is object
    expected = {target: alone.get(target, {}) for target in targets}
    assert run_steps(tmp_path / "run", "trianglebox", targets, 20).reductions == expected
    assert reduce_at("trianglebox", targets).reductions == expected


@pytest.mark.parametrize("batch", [1, 4, 50])
def test_each_integral_is_reduced_once_and_the_heavier_first(batch, shelves, tmp_path):
    observed = Observed()
    name, targets, options = PROBLEMS["trianglebox"]
    outcome = run_steps(tmp_path / "run", name, targets, batch, executor=observed, shelves=shelves, **options)
    assert len(observed.keys) == len(set(observed.keys)) == outcome.statistics["integrals"]
    assert sorted(observed.keys) == sorted(done_in(tmp_path / "run/run.journal"))
    assert outcome.statistics["tasks"] == len(observed.calls) and (batch > 1 or len(observed.calls) == len(observed.keys))
    references = sum(len(unpack_keys(record["terms"][0])) for record in records_of(tmp_path / "run/run.journal"))
    assert outcome.statistics["hits"] == references - len(observed.keys) > 0
    ends = [-1, *(number for number, args in enumerate(observed.rounds) if args is None), len(observed.rounds)]
    rounds = [observed.rounds[a + 1 : b] for a, b in zip(ends, ends[1:]) if b > a + 1]
    assert len(rounds) > 5
    for calls in rounds:
        keys = [(sector_order(bits), key) for args in calls for bits, key in pairs(args[2])[::-1]]
        assert keys == sorted(keys, reverse=True)
        assert all(len(pairs(args[2])) <= batch for args in calls)


@pytest.fixture
def complete(shelves, tmp_path):
    """complete(problem, batch): the calls of a run and its journal, made anew with its first records only."""

    def run(problem, batch, keep):
        name, targets, options = PROBLEMS[problem]
        observed = Observed()
        run_steps(tmp_path / "run", name, targets, batch, executor=observed, shelves=shelves, **options)
        shorten(tmp_path / "run/run.journal", keep)
        return name, targets, options, observed.calls

    return run


def shorten(journal, keep):
    """Leave the header of a journal and the first records."""
    data, end = journal.read_bytes(), 0
    for _ in range(keep + 1):
        end += 20 + struct.unpack("<I", data[end : end + 4])[0]
    journal.write_bytes(data[:end])


@pytest.mark.parametrize("keep", [0, 6, 25])
def test_tasks_of_an_earlier_controller_are_taken_over_even_twice(keep, complete, by_sectors, shelves, tmp_path):
    name, targets, options, calls = complete("trianglebox", 4, keep)
    before = done_in(tmp_path / "run/run.journal")
    taken = calls[::3] + calls[::6]  # some of them in the journal already, some twice
    observed, said = Observed(left=[(args, lambda _, result: result) for args in taken]), []
    outcome = run_steps(tmp_path / "run", name, targets, 4, executor=observed, shelves=shelves, said=said, **options)
    assert said_by(outcome) == said_by(by_sectors("trianglebox"))
    assert len(set(done_in(tmp_path / "run/run.journal"))) == len(done_in(tmp_path / "run/run.journal")) == outcome.statistics["integrals"]
    assert not set(observed.keys) & (set(before) | {pair for args in taken for pair in pairs(args[2])})
    assert said == [f"going on: {len(before):,} integrals are done already, {len(taken)} tasks are taken over"]


@pytest.mark.parametrize("batch", [2, None])
def test_tasks_that_do_more_than_they_were_asked_change_nothing(batch, by_sectors, shelves, tmp_path):
    name, targets, options = PROBLEMS["trianglebox"]
    everything = tuple(range(64))

    def do_all(args, result):
        setting, known, keys, *_ = args
        return reduce_steps(setting, known, keys, tuple(bits for bits in everything if bits in setting.get().stops), math.inf)

    outcome = run_steps(tmp_path / "run", name, targets, batch, 1e-3, Observed(do_all), shelves, **options)
    assert said_by(outcome) == said_by(by_sectors("trianglebox"))
    usual = run_steps(tmp_path / "usual", name, targets, 2, shelves=shelves, **options).statistics
    assert {name: outcome.statistics[name] for name in ("integrals", "references")} == {
        name: usual[name] for name in ("integrals", "references")
    }


def test_tasks_of_another_run_are_not_taken_for_ones_of_this(by_sectors, shelves, tmp_path):
    """The journal was lost, or damaged at its beginning; what is left belongs to another prime."""
    name, targets, options = PROBLEMS["trianglebox"]
    observed = Observed()
    run_steps(tmp_path / "run", name, targets, 4, executor=observed, shelves=shelves, prime=1009, **options)
    (tmp_path / "run/run.journal").write_bytes(b"damaged")
    left = Observed(left=[(args, lambda _, result: result) for args in observed.calls])
    try:
        outcome = run_steps(tmp_path / "run", name, targets, 4, executor=left, shelves=shelves, **options)
    except ReductionError:
        return
    assert said_by(outcome) == said_by(by_sectors("trianglebox"))


@pytest.mark.parametrize("first", ["reduced", "unreduced"])
def test_an_integral_that_one_task_reduces_and_another_one_does_not(first, complete, by_sectors, reduce_at, shelves, tmp_path):
    """Whichever comes first: what is said of the targets stays true."""
    name, targets, options, calls = complete("trianglebox", 4, 0)
    args = calls[5]
    bits, key = pairs(args[2])[0]

    def give_up(_, result):
        found = result["sectors"][bits]
        done, terms = unpack_keys(found["done"]), [unpack_keys(column) for column in found["terms"]]
        integral = tuple(Sector(args[0].get().task.layout, bits).decode(np.array([key]))[0].tolist())
        less = {"done": pack_keys(done[done != key]), "terms": tuple(pack_keys(column[terms[0] != key]) for column in terms)}
        return result | {"sectors": result["sectors"] | {bits: found | less | {"unreduced": [integral]}}}

    left = [(args, lambda _, result: result), (args, give_up)]
    observed = Observed(left=left if first == "reduced" else left[::-1])
    outcome = run_steps(tmp_path / "run", name, targets, 4, executor=observed, shelves=shelves, **options)
    rest = reduce_at(name, outcome.unreduced or targets[:1], **options).reductions
    inserted = {
        target: combine(*((value, rest.get(term, {term: 1})) for term, value in expression.items()))
        for target, expression in outcome.reductions.items()
    }
    assert inserted == by_sectors("trianglebox").reductions


@pytest.mark.parametrize("way", ["one by one", "by sevens", "auto", "auto, work is left", "python integers"])
@pytest.mark.parametrize("levels", [0, 1])
def test_unreduced_integrals_are_the_same_in_both_schemes(levels, way, reduce_at, tmp_path, monkeypatch):
    targets = [(1, 1, 1, 1, 1, 1, -2), (1, 1, 1, 1, 1, 0, -1)]
    batch, job_seconds, _, constants = WAYS[way]
    for constant, value in {**constants, "NEIGHBOURHOODS": NEIGHBOURHOODS[:levels]}.items():
        patch_rooms(monkeypatch, "ibp", constant, value)
    for more in {}, {"paper_masters_only": True}:
        expected = reduce_at("trianglebox", targets, shelves=[], **more)
        work = tmp_path / f"run{len(more)}"
        outcome = run_steps(work, "trianglebox", targets, batch, job_seconds, **more)
        assert said_by(outcome) == said_by(expected)
        assert outcome.unreduced and not set(outcome.unreduced) & set(outcome.masters)
        observed = Observed()  # and again from the journal alone
        again = run_steps(work, "trianglebox", targets, batch, job_seconds, observed, **more)
        assert said_by(again) == said_by(expected) and not set(observed.keys) & set(done_in(work / "run.journal"))


@pytest.mark.parametrize("batch", [1, 5, None])
def test_a_failing_task_costs_itself_only_and_a_second_run_makes_up_for_it(batch, by_sectors, shelves, tmp_path):
    name, targets, options = PROBLEMS["trianglebox"]
    unlucky = []

    def fail_once(args, result):
        if not unlucky and len(observed.calls) > (3 if batch is None else 12):
            unlucky.extend(pairs(args[2]))
            raise RuntimeError("the node is on fire")
        return result

    observed = Observed(fail_once)
    work = tmp_path / "run"
    with pytest.raises(ReductionError, match="1 tasks failed.*the node is on fire.*run again"):
        run_steps(work, name, targets, batch, 1e-2, observed, shelves, **options)
    kept = set(done_in(work / "run.journal"))
    assert set(observed.keys) - set(unlucky) <= kept and unlucky and len(observed.calls) > (4 if batch is None else 20)
    second = Observed()
    outcome = run_steps(work, name, targets, batch, 1e-2, second, shelves, **options)
    assert said_by(outcome) == said_by(by_sectors("trianglebox"))
    assert not set(second.keys) & kept and set(unlucky) <= set(done_in(work / "run.journal"))
    if batch is not None:
        assert set(second.keys) >= set(unlucky)


def test_five_failures_at_the_start_end_the_run(shelves, tmp_path):
    def fail(args, result):
        if observed.calls[0] is not args or not lucky:
            raise ValueError("no such library")
        return result

    targets = [(a, 1, 1, b) for a in range(2, 5) for b in range(1, 4)]
    for lucky, text in (False, "the first 5 tasks failed.*no such library"), (True, "tasks failed, the first one: no such library"):
        observed = Observed(fail)
        with pytest.raises(ReductionError, match=text):
            run_steps(tmp_path / f"run{lucky}", "box", targets, 1, executor=observed, shelves=shelves)
        assert bool(done_in(tmp_path / f"run{lucky}/run.journal")) == lucky


@pytest.mark.parametrize("more", [{}, {"paper_masters_only": True}], ids=["corners", "published"])
def test_more_processors_give_the_same_one_step_results(more, tmp_path):
    """Without any rules, so that there is much to search for."""
    observed = Observed()
    run_steps(tmp_path / "run", "trianglebox", [(1, 0, 1, 1, 1, 1, -1)], None, 60.0, observed, **more)
    one, three = (with_cpus(cpus, reduce_steps, *observed.calls[0]) for cpus in (1, 3))
    assert one["sectors"] == three["sectors"] and one["counts"] == three["counts"] and one["counts"]["integrals"] > 10
    assert any(found["learned"] for found in one["sectors"].values()) == bool(more)


def test_stragglers_change_nothing_and_are_counted(reduce_at, shelves, tmp_path, monkeypatch):
    patch_rooms(monkeypatch, "executors", "POLL_S", 1e-3)
    targets = [(2, 1, 1, -1, -1)]
    with LocalExecutor(2, stragglers=TimeLimits(1e-3), straggler_cpus=2, describe=describe_task) as executor:
        masters = Knowledge()  # known, so that only one-step tasks are run; no rules
        for shelf in shelves:
            masters.update(shelf.load(BUILT_IN_FAMILIES["sunrise"]))
        for sector in masters.sectors.values():
            sector.rules, sector.hopeless = (), frozenset()
        (tmp_path / "run").mkdir()
        store = Store(tmp_path / "s")
        store.merge(BUILT_IN_FAMILIES["sunrise"], point_of(BUILT_IN_FAMILIES["sunrise"]), masters)
        outcome = run_steps(tmp_path / "run", "sunrise", targets, None, 600.0, executor, [store])
    assert said_by(outcome) == said_by(reduce_at("sunrise", targets))
    assert outcome.statistics["stragglers"] >= 1 and outcome.statistics["failed"] == 0
