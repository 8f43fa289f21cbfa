"""Reductions by sectors: against brute force, published values and laws of physics, however the work is portioned."""

import dataclasses
import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from support import P31, TRIANGLEBOX, bits_of, combine, patch_rooms, point_of, residue
from support_oracles import FAMILIES, GOLDEN, LAW_TARGETS, SAMPLES, Kinematics, Laporta, any_kinematics, needs_stored_rules, seeds_of

from executors.local import LocalExecutor
from ibp.families import BUILT_IN_FAMILIES
from ibp.knowledge import Knowledge
from ibp.lifting import rational_number
from ibp.rules import Neighbourhood
from ibp.sectors import layout_for

# family, targets, dots and s of the seeds of the elimination
BRUTE_FORCE = [
    ("bubble", [(9, 8), (12, 1), (4, -5), (-2, 6)], 17, 5),
    ("box", [(2, 1, 1, 2), (1, 1, 1, 3), (2, 0, 1, -1), (1, -1, 2, 0)], 4, 2),
    ("sunrise", [(2, 1, 1, -1, -1), (1, 1, 1, -2, -1), (2, 2, 0, -1, 0), (1, 0, 2, -1, -2)], 2, 3),
    ("trianglebox", [(1, 1, 1, 1, 1, 1, -1), (2, 1, 1, 1, 0, 1, 0), (1, -1, 1, 1, 1, 0, -1)], 1, 2),
    ("doublebox", [(1, 0, 1, 1, 1, 0, 1, -1, 0), (1, 1, 1, 1, 1, 0, 0, -1, -1)], 1, 2),
    ("doublebox-1m", [(1, 0, 1, 1, 0, 0, 1, -1, 0), (1, 0, 2, 1, 0, 0, 1, 0, 0)], 1, 2),
    ("nonplanar-doublebox", [(1, 0, 1, 1, 0, 1, 0, -1, 0), (1, 0, 0, 2, 0, 1, 0, 0, 0)], 1, 2),
    ("pentabox", [(0, 0, 1, 0, 0, 1, 0, 2, -1, 0, 0), (1, 0, 1, 0, 1, 0, 1, 0, 0, -1, 0)], 1, 2),
    ("ladder3", [(1, 1, 0, 0, 1, 1, 1, 1, -1), (1, 0, 0, 0, 2, 1, 1, 1, 0)], 1, 2),
    ("banana3", [(1, 1, 1, 0, 0, -1, 0, 0, -1), (2, 1, 0, 1, -1, 0, 0, 0, 0), (1, 0, 1, 2, 0, 0, -1, 0, 0)], 1, 2),
]


@pytest.mark.parametrize(("name", "targets", "dots", "s"), BRUTE_FORCE, ids=[case[0] for case in BRUTE_FORCE])
def test_brute_force(reduce_at, name, targets, dots, s):
    """A full elimination of all identities around gives the same coefficients of the same masters."""
    oracle = Laporta(Kinematics(BUILT_IN_FAMILIES[name]), {bits_of(t) for t in targets}, dots, s)
    outcome = reduce_at(name, targets, paper_masters_only=True)
    assert not outcome.unreduced
    for target in targets:
        assert outcome.reductions[target] == oracle.reduce({target: 1})


@needs_stored_rules
@pytest.mark.parametrize(
    ("name", "target", "dots", "s"),
    [
        ("doublebox", (1, 1, 1, 1, 1, 1, 1, -1, 0), 0, 2),
        ("doublebox-1m", (1, 1, 1, 1, 1, 1, 1, 0, -1), 0, 2),
        ("nonplanar-doublebox", (1, 1, 0, 1, 1, 1, 0, -1, -1), 1, 2),
        ("pentabox", (1, 0, 1, 0, 0, 1, 0, 1, -1, 0, 0), 1, 2),
        ("banana3", (1, 1, 1, 1, -2, -1, 0, 0, 0), 0, 3),
        ("trianglebox", (1, 1, 1, 1, 1, 1, -1), 1, 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_brute_force_upper_sectors(reduce_at, name, target, dots, s):
    """As test_brute_force, in sectors whose masters and rules take long to find, or with corners for what they are through the masters."""
    oracle = Laporta(Kinematics(BUILT_IN_FAMILIES[name]), {bits_of(target)}, dots, s)
    outcome = reduce_at(name, [target])
    assert not outcome.unreduced
    normal_form = oracle.reduce({target: 1})
    assert normal_form and oracle.reduce(combine((1, {target: 1}), (-1, outcome.reductions[target]))) == {}


@pytest.mark.parametrize(("prime", "target"), [(prime, target) for prime, values in GOLDEN.items() for target in values])
def test_golden_values(reduce_at, prime, target):
    coefficients = dict(zip(TRIANGLEBOX.paper_masters, map(int, GOLDEN[prime][target].split())))
    outcome = reduce_at("trianglebox", [target], prime, paper_masters_only=True)
    assert outcome.reductions == {target: {master: value for master, value in coefficients.items() if value}}
    assert not outcome.unreduced and set(outcome.reductions[target]) <= set(outcome.masters)


@pytest.mark.parametrize("name", FAMILIES)
def test_masters_are_their_own_reduction(reduce_at, name):
    """Also: a reduction holds nothing but masters, and is the same when asked for again."""
    first = reduce_at(name, SAMPLES[name])
    assert set().union(*first.reductions.values()) <= set(first.masters)
    again = reduce_at(name, [*SAMPLES[name], *first.masters])
    assert again.reductions == first.reductions | {master: {master: 1} for master in first.masters}


@pytest.mark.parametrize("name", FAMILIES)
def test_scaleless_integrals_vanish(reduce_at, name):
    family = BUILT_IN_FAMILIES[name]
    live = any_kinematics(family).nonzero_sectors()
    draw = random.Random(name)
    zero = draw.sample([bits for bits in range(1 << family.lines) if bits not in live], 1 if name in ("bubble", "box") else 4)
    targets = [tuple(draw.randint(1, 4) if bits >> i & 1 else -draw.randint(0, 3) for i in range(family.n)) for bits in zero]
    outcome = reduce_at(name, targets)
    assert outcome.reductions == {target: {} for target in targets} and not outcome.masters


@pytest.mark.parametrize("name", FAMILIES)
def test_dimensional_analysis(reduce_at, name):
    """Invariants times 5: the coefficient of M in I is multiplied by 5^(sum of M's indices - sum of I's indices)."""
    family = BUILT_IN_FAMILIES[name]
    scaled = {symbol: 5 * Fraction(value) for symbol, value in family.point}
    here = reduce_at(name, SAMPLES[name]).reductions
    there = reduce_at(name, SAMPLES[name], point=point_of(family, **scaled)).reductions
    for target, expression in here.items():
        power = {master: residue(Fraction(5) ** (sum(master) - sum(target))) for master in expression}
        assert there[target] == {master: value * power[master] % P31 for master, value in expression.items()}


def test_rotated_box(reduce_at):
    """Rotating the massless box by one leg exchanges s and t."""
    box = BUILT_IN_FAMILIES["box"]
    targets = [(3, 1, 2, 1), (1, 4, 1, 1), (2, -1, 3, 1), (2, 1, -2, 1)]
    rotated = reduce_at(box, [(*t[1:], t[0]) for t in targets], point=point_of(box, s=7, t=3)).reductions
    assert rotated == {
        (*target[1:], target[0]): {(*master[1:], master[0]): value for master, value in expression.items()}
        for target, expression in reduce_at(box, targets, point=point_of(box, s=3, t=7)).reductions.items()
    }


def test_mirrored_bubble(reduce_at):
    """Equal masses: I[a, b] = I[b, a]."""
    targets = [(a, b) for a in range(-3, 5) for b in range(-3, 5)]
    found = reduce_at("bubble", targets).reductions
    for a, b in targets:
        assert found[b, a] == {(j, i): value for (i, j), value in found[a, b].items()}


@pytest.fixture(scope="module")
def lawful(reduce_at):
    """What every way of doing it must give (to independent masters: corners of further sectors would leave it a choice)."""
    return reduce_at("trianglebox", LAW_TARGETS, paper_masters_only=True).reductions


@pytest.mark.parametrize(
    ("constant", "value"), [("BLOCK", 1), ("BLOCK", 7), ("BLOCK", 10**5), ("REPLAY_ELEMENTS", 40), ("TARGETS_PER_PASS", 1)]
)
def test_portions_do_not_matter(reduce_at, lawful, monkeypatch, constant, value):
    patch_rooms(monkeypatch, "ibp", constant, value)
    assert reduce_at("trianglebox", LAW_TARGETS, paper_masters_only=True).reductions == lawful


@pytest.mark.parametrize("bits", [8, 30])
def test_packing_does_not_matter(reduce_at, lawful, monkeypatch, bits):
    """With 8 bits keys are Python integers; with 30 the roomy layout does not fit and the tight one is taken."""
    roomy = layout_for(LAW_TARGETS, 7)
    patch_rooms(monkeypatch, "ibp", "KEY_BITS", bits)
    layout = layout_for([*LAW_TARGETS, (2, 2, 2, 2, 2, 2, 0)], 7)
    assert roomy.dtype is np.int64 and (layout.dtype is object) == (bits == 8) and (layout.s_max < 24) == (bits == 30)
    assert (
        reduce_at("trianglebox", [*LAW_TARGETS, (1, 0, 5, 2, 2, 2, 0)], shelves=[], paper_masters_only=True).reductions.items()
        >= lawful.items()
    )


def test_targets_one_by_one(reduce_at, lawful):
    assert {target: reduce_at("trianglebox", [target], paper_masters_only=True).reductions[target] for target in LAW_TARGETS} == lawful


def test_processes_do_not_matter(reduce_at, lawful):
    with LocalExecutor(2) as executor:
        outcome = reduce_at("trianglebox", LAW_TARGETS, executor=executor, shelves=[], paper_masters_only=True)
    assert outcome.reductions == lawful and not outcome.unreduced


class Rearranged:
    """A shelf that holds what the session's shelves know about a family, with the rules of every sector put through `change`."""

    def __init__(self, shelves, change):
        self.shelves, self.change = shelves, change

    def load(self, family, point=None):
        knowledge = Knowledge()
        for shelf in self.shelves:
            knowledge.update(shelf.load(family))
        for bits, sector in knowledge.sectors.items():
            sector.rules = tuple(self.change(bits, list(sector.rules), family.n))
        return knowledge

    def merge(self, family, point, new):
        pass


def shuffled(bits, rules, n):
    random.Random(bits).shuffle(rules)
    return rules


def with_foreign_rules(bits, rules, n):
    """In front of the true rules: ones of random rows, true ones with the wrong pivots, and true ones with rows lost or
    in another order.
    """
    draw = random.Random(bits)

    def vector(reach):
        return tuple(draw.randint(-reach, reach) for _ in range(n))

    foreign = []
    for rule in rules[:6]:
        rows, pivots = list(rule.rows), list(rule.pivots)
        size = draw.randint(1, 6)
        other_operators = [((o + 1) % 9, seed) for o, seed in rows]
        other_seeds = [(o, tuple(x + (i == 0) for i, x in enumerate(seed))) for o, seed in rows]
        for wrong_rows, wrong_pivots in (
            ([(draw.randrange(9), vector(1)) for _ in range(size)], [vector(2) for _ in range(size - 1)]),
            (rows, [vector(1) for _ in pivots]),
            (rows, pivots[:-1]),
            (rows[1:] or rows, pivots[1:]),
            (rows[::-1], pivots),
            (other_operators, pivots),
            (other_seeds, pivots),
        ):
            foreign.append(dataclasses.replace(rule, rows=tuple(wrong_rows), pivots=tuple(wrong_pivots)))
    draw.shuffle(foreign)
    return foreign + rules


CHANGES = {
    "reversed": lambda bits, rules, n: rules[::-1],
    "shuffled": shuffled,
    "every other": lambda bits, rules, n: rules[::2],
    "foreign": with_foreign_rules,
    "only foreign": lambda bits, rules, n: with_foreign_rules(bits, rules, n)[: -len(rules)],
    "none": lambda bits, rules, n: [],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("prime", [P31, 1009])
def test_rules_cost_time_only(reduce_at, shelves, lawful, change, prime):
    """Whatever rules a store holds and in whatever order, the result is the same."""
    expected = lawful if prime == P31 else reduce_at("trianglebox", LAW_TARGETS, prime, paper_masters_only=True).reductions
    outcome = reduce_at("trianglebox", LAW_TARGETS, prime, shelves=[Rearranged(shelves, CHANGES[change])], paper_masters_only=True)
    assert outcome.reductions == expected and not outcome.unreduced


@pytest.mark.parametrize(
    ("name", "target"),
    [("trianglebox", (1, 1, 1, 1, 0, 1, -1)), ("trianglebox", (2, 0, 1, 1, 1, 0, 0)), ("sunrise", (2, 1, 2, -1, 0)), ("box", (2, 1, 2, 1))],
)
def test_small_primes_agree_with_exact_coefficients(reduce_at, name, target):
    """Exact coefficients from ten large primes, put modulo small primes, where pivots vanish by accident."""
    import sympy

    primes = list(itertools.islice((q for q in range(P31, 0, -2) if sympy.isprime(q)), 10))
    images = [reduce_at(name, [target], prime, paper_masters_only=True).reductions[target] for prime in primes]
    modulus = math.prod(primes)
    exact = {}
    for master in images[0]:
        value = sum(image[master] * (modulus // q) * pow(modulus // q, -1, q) for image, q in zip(images, primes)) % modulus
        exact[master] = rational_number(value, modulus)
        assert max(abs(exact[master].numerator), exact[master].denominator) < 2**150  # accidental values would fill the bound, 2^154
    tested = 0
    for prime in (53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127, 131, 1009):
        if all(value.denominator % prime for value in exact.values()):
            outcome = reduce_at(name, [target], prime, paper_masters_only=True)
            if not outcome.unreduced:
                assert outcome.reductions[target] == {m: residue(v, prime) for m, v in exact.items() if residue(v, prime)}
                tested += 1
    assert tested >= 12


REINSERTION = [
    ("bubble", [3], 3, 2), ("box", [15, 7, 10], 2, 1), ("sunrise", [7, 3], 2, 2),
    ("trianglebox", [63, 61, 47, 30, 21], 2, 3),
    ("doublebox", [0b1011101], 1, 2), ("doublebox-1m", [0b1001101], 1, 2), ("nonplanar-doublebox", [0b0101101], 1, 2),
    ("pentabox", [0b10100100], 1, 2), ("ladder3", [0b11110011], 1, 2), ("banana3", [7, 11], 2, 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "sectors", "dots", "s"), REINSERTION, ids=[case[0] for case in REINSERTION])
def test_reductions_satisfy_the_identities(reduce_at, name, sectors, dots, s):
    """All integrals of every identity at random seeds are reduced, at a point with fractions; each identity must then vanish."""
    family = BUILT_IN_FAMILIES[name]
    invariants = {symbol: Fraction(29 + 6 * i, 7 + i) for i, (symbol, _) in enumerate(family.point)}
    operators = Kinematics(family, **invariants).identities("43/3")
    draw = random.Random(name)
    equations = []
    for bits in sectors:
        for seed in draw.sample(list(seeds_of(bits, family.n, dots, s)), 2):
            for terms in operators:
                values = {
                    tuple(map(int.__add__, seed, shift)): row[0] + sum(c * a for c, a in zip(row[1:], seed)) for shift, row in terms.items()
                }
                equations.append({term: residue(value) for term, value in values.items() if value})
    targets = sorted({term for equation in equations for term in equation})
    outcome = reduce_at(name, targets, point=point_of(family, d="43/3", **invariants), paper_masters_only=True)
    assert not outcome.unreduced
    assert sum(outcome.reductions[term] != {} for term in targets) > len(targets) // 3
    for equation in equations:
        assert combine(*((value, outcome.reductions[term]) for term, value in equation.items())) == {}


@pytest.mark.parametrize("neighbourhoods", [(), (Neighbourhood(1, (-1, -1), (-1, 0), 2),), (Neighbourhood(1, (-1, -1), (-1, 1), 3),)])
def test_unreduced_integrals_are_named(reduce_at, monkeypatch, neighbourhoods):
    """Too narrow a search leaves integrals; what is said about the target stays true, and nothing unreduced passes for a master."""
    targets = [(1, 1, 1, 1, 1, 1, -2), (1, 1, 1, 1, 1, 0, -1)]
    full = reduce_at("trianglebox", targets, paper_masters_only=True)
    with monkeypatch.context() as patch:
        patch_rooms(patch, "ibp", "NEIGHBOURHOODS", neighbourhoods)
        outcome = reduce_at("trianglebox", targets, paper_masters_only=True, shelves=[])
    assert outcome.unreduced and not set(outcome.unreduced) & set(outcome.masters)
    assert set().union(*outcome.reductions.values()) <= set(outcome.masters) | set(outcome.unreduced)
    assert set(outcome.unreduced) <= set().union(*outcome.reductions.values())
    assert set(outcome.masters) == set(full.masters)
    rest = reduce_at("trianglebox", outcome.unreduced, paper_masters_only=True)
    assert not rest.unreduced
    for target in targets:
        inserted = combine(*((value, rest.reductions.get(term, {term: 1})) for term, value in outcome.reductions[target].items()))
        assert inserted == full.reductions[target]
