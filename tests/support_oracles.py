"""What tests compare with: families in Fractions, an elimination of all identities, closed forms, published numbers; plain and slow."""

import contextlib
import functools
import itertools
import math
import pickle
import random
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from support import P31, PUBLISHED, bits_of, combine, exit_code, point_of, residue

from ibp.console import Progress
from ibp.families import BUILT_IN_FAMILIES, Family
from ibp.geometry import Geometry
from ibp.identities import Point, derive_identities, evaluate_identities
from ibp.policy import describe_moves
from ibp.positions import Position, SearchGround
from ibp.problems import Problem
from ibp.reconstruction import reconstruct
from ibp.recording import record_trace
from ibp.sectors import Layout, Sector
from ibp.shipped import shipped
from ibp.symmetries import find_symmetries

OTHER_PRIMES = (2147483629, 2147483587)  # the two primes below 2**31 - 1
SHIPPED = shipped("rules.shelf")
FAMILIES = [  # that the tables below are of; a file more in data/families needs no line here
    *("banana3", "box", "bubble", "doublebox", "doublebox-1m", "ladder3", "nonplanar-doublebox", "pentabox", "sunrise", "trianglebox"),
]
needs_stored_rules = pytest.mark.skipif(not SHIPPED.exists(), reason="minutes without data/rules.shelf")
few_examples = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def quadratic_form(text, momenta):
    """{(x, y): coefficient}, symmetric, of a propagator: 'k1-k2+p1' is squared, '2*k1*p1' is a product as it stands."""
    text = text.replace(" ", "")
    if "*" in text:
        number, x, y = text.split("*")
        return {(x, y): Fraction(number) / 2, (y, x): Fraction(number) / 2}
    routing = {name: Fraction(sign + "1") for sign, name in re.findall(r"([+-]?)(\w+)", text)}
    return {(x, y): routing[x] * routing[y] for x in momenta for y in momenta if x in routing and y in routing}


def solve_columns(matrix, columns):
    """X with matrix @ X = columns, in Fractions."""
    import sympy

    solution = sympy.Matrix(matrix).LUsolve(sympy.Matrix(columns))
    return [[Fraction(int(value.p), int(value.q)) for value in row] for row in solution.tolist()]


class Kinematics:
    """A family in Fractions: forms[b], quadratic form of propagator b; masses[b], squared; products[x, y] of external momenta."""

    def __init__(self, family, **invariants):
        import sympy

        values = {name: sympy.Rational(str(value)) for name, value in (dict(family.point) | invariants).items()}

        def number(text):
            return Fraction(str(sympy.Rational(sympy.sympify(text, rational=True).subs(values))))

        self.family, self.loops, self.legs = family, family.loop_momenta, family.external_momenta
        self.momenta = self.loops + self.legs
        self.forms = [quadratic_form(text, self.momenta) for text, _ in family.propagators]
        self.masses = [number(mass) for _, mass in family.propagators]
        self.products = {}
        for pair, value in family.kinematics:
            x, y = pair.split("*")
            self.products[x, y] = self.products[y, x] = number(value)

    def split(self, form):
        """A quadratic form as {(loop momentum, momentum): coefficient} and a number."""
        loop, rest = {}, Fraction(0)
        for (x, y), value in form.items():
            if x in self.legs and y in self.legs:
                rest += value * self.products[x, y]
            else:
                pair = tuple(sorted((x, y), key=self.momenta.index))
                loop[pair] = loop.get(pair, 0) + value
        return loop, rest

    def in_propagators(self):
        """Every scalar product with a loop momentum as n + 1 coefficients of D_1 … D_n, 1: loop part = D + mass - rest."""
        pairs = [pair for pair in itertools.combinations_with_replacement(self.momenta, 2) if pair[0] in self.loops]
        parts = [(*self.split(form), mass) for form, mass in zip(self.forms, self.masses)]
        matrix = [[loop.get(pair, 0) for pair in pairs] for loop, _, _ in parts]
        columns = [[*(int(b == c) for c in range(len(parts))), mass - rest] for b, (_, rest, mass) in enumerate(parts)]
        return dict(zip(pairs, solve_columns(matrix, columns)))

    def identities(self, d):
        """[{shift: [c_0, c_1, …, c_n]}]: d/dk . q for all loop momenta k and all momenta q, then the LI of each pair of legs."""
        n, table = len(self.forms), self.in_propagators()

        def derivative(momentum, vector):
            """vector . d/d momentum of the integrand: sum over b of -a_b / D_b * (2 sum_y form_b[momentum, y] y . vector)."""
            terms = {}
            for b, form in enumerate(self.forms):
                loop, rest = self.split({(y, vector): 2 * value for (x, y), value in form.items() if x == momentum})
                numerator = [Fraction(0)] * n + [rest]
                for pair, value in loop.items():
                    numerator = [old + value * new for old, new in zip(numerator, table[pair])]
                for c, value in enumerate(numerator):
                    shift = tuple((i == b) - (i == c) for i in range(n))
                    terms.setdefault(shift, [Fraction(0)] * (n + 1))[b + 1] -= value
            return terms

        def add(*parts):
            total = {}
            for factor, terms in parts:
                for shift, row in terms.items():
                    total[shift] = [a + factor * b for a, b in zip(total.get(shift, [Fraction(0)] * (n + 1)), row)]
            return {shift: row for shift, row in total.items() if any(row)}

        divergence = {(0,) * n: [Fraction(d)] + [Fraction(0)] * n}
        operators = [add((1, derivative(k, q)), (k == q, divergence)) for k in self.loops for q in self.momenta]
        for u, v in itertools.combinations(self.legs, 2):  # invariance of the integral under u ∧ v, a rotation of all legs e
            rotated = [(sign * self.products[e, x], derivative(e, y)) for e in self.legs for sign, x, y in ((1, v, u), (-1, u, v))]
            operators.append(add(*rotated))
        return operators

    def nonzero_sectors(self):
        """Lee (arXiv:1405.5616): a sector is scaleless if some k has k . e = 1 for the exponents e of all monomials of U + F."""
        import sympy

        lines = self.family.lines
        ring, *x = sympy.ring([f"x{i}" for i in range(lines)], sympy.QQ)

        def weighted(numbers):
            return sum((xi * sympy.QQ(v.numerator, v.denominator) for xi, v in zip(x, numbers)), ring.zero)

        def entry(i, j):
            return weighted([form.get((i, j), Fraction(0)) for form in self.forms[:lines]])

        def determinant(m):
            permutations = list(itertools.permutations(range(len(m))))
            signs = [(-1) ** sum(a > b for a, b in itertools.combinations(order, 2)) for order in permutations]
            return sum((s * math.prod((m[i][j] for i, j in enumerate(o)), start=ring.one) for s, o in zip(signs, permutations)), ring.zero)

        quadratic = [[entry(i, j) for j in self.loops] for i in self.loops]
        linear = [{e: entry(i, e) for e in self.legs} for i in self.loops]
        u = determinant(quadratic)
        f = u * weighted([self.split(form)[1] - mass for form, mass in zip(self.forms[:lines], self.masses)])
        for i, j in itertools.product(range(len(self.loops)), repeat=2):
            minor = determinant([[v for c, v in enumerate(row) if c != j] for r, row in enumerate(quadratic) if r != i])
            for a, b in itertools.product(self.legs, repeat=2):
                product = self.products[a, b]
                f -= (-1) ** (i + j) * minor * linear[i][a] * linear[j][b] * sympy.QQ(product.numerator, product.denominator)
        exponents = np.array([*u.itermonoms(), *f.itermonoms()]).reshape(-1, lines)
        found = []
        for bits in range(1, 1 << lines):
            absent = np.array([not bits >> i & 1 for i in range(lines)])
            here = exponents[~exponents[:, absent].any(1)]
            if len(here) and np.linalg.matrix_rank(np.column_stack([here, np.ones(len(here))])) > np.linalg.matrix_rank(here):
                found.append(bits)
        return found


def operators_modulo(kinematics, d, p=P31):
    return [{shift: [residue(value, p) for value in row] for shift, row in terms.items()} for terms in kinematics.identities(d)]


def at_seed(terms, seed):
    """An identity, {integral: coefficient}."""
    return {tuple(map(int.__add__, seed, shift)): row[0] + sum(c * a for c, a in zip(row[1:], seed)) for shift, row in terms.items()}


def check_identities(family, d, **invariants):
    """Every IBP and LI operator, term by term, is what explicit differentiation gives."""
    equations = evaluate_identities(derive_identities(family), point_of(family, d=d, **invariants))
    found = [{} for _ in range(equations.count)]
    for operator, shift, row in zip(equations.operator.tolist(), equations.shift.tolist(), equations.coefficient.tolist()):
        found[operator][tuple(shift)] = row
    assert found == operators_modulo(Kinematics(family, **invariants), d)


def any_kinematics(family):
    """Invariants without special relations, for what holds at generic points."""
    draw = random.Random(family.name)
    return Kinematics(family, **{name: draw.randrange(10**4, 10**6) for name, _ in family.point})


def oracle_weight(a):
    """(t, sector id, r, s, |a_n|, …, |a_1|)."""
    positive = [x for x in a if x > 0]
    return len(positive), bits_of(a), sum(positive), -sum(x for x in a if x < 0), tuple(abs(x) for x in reversed(a))


def compositions(total, places):
    """All tuples of so many non-negative numbers with at most this sum."""
    if places == 0:
        return [()]
    return [(x, *rest) for x in range(total + 1) for rest in compositions(total - x, places - 1)]


def seeds_of(bits, n, dots, s):
    for up in compositions(dots, bits.bit_count()):
        for down in compositions(s, n - bits.bit_count()):
            ups, downs = iter(up), iter(down)
            yield tuple(1 + next(ups) if bits >> i & 1 else -next(downs) for i in range(n))


class Laporta:
    """All identities at all seeds with at most so many dots and this s in the sectors below `tops`, eliminated heaviest first, modulo p."""

    def __init__(self, kinematics, tops, dots, s, d=41, p=P31):
        self.p, n, operators = p, kinematics.family.n, operators_modulo(kinematics, d, p)
        live = {b for b in any_kinematics(kinematics.family).nonzero_sectors() if any(b & top == b for top in tops)}
        seeds = sorted((seed for bits in live for seed in seeds_of(bits, n, dots, s)), key=oracle_weight)
        rows = []
        for seed in seeds:
            for terms in operators:
                rows.append({term: value % p for term, value in at_seed(terms, seed).items() if value % p and bits_of(term) in live})
        self.integrals = sorted({term for row in rows for term in row}, key=oracle_weight)
        self.number = {integral: number for number, integral in enumerate(self.integrals)}
        self.pivots = {}
        self.size = len(rows), len(self.integrals)
        for row in rows:
            row = {self.number[term]: value for term, value in row.items()}
            while row and (lead := max(row)) in self.pivots:
                self._eliminate(row, lead)
            if row:
                factor = pow(row.pop(lead), -1, p)
                self.pivots[lead] = [(k, value * factor % p) for k, value in row.items()]

    def _eliminate(self, row, lead):
        factor = row.pop(lead)
        for k, value in self.pivots[lead]:
            new = (row.get(k, 0) - factor * value) % self.p
            if new:
                row[k] = new
            else:
                row.pop(k, None)

    def reduce(self, expression):
        """The expression through integrals that this system does not reduce: its normal form."""
        row = {self.number[integral]: value % self.p for integral, value in expression.items()}
        done = {}
        while row:
            lead = max(row)
            if lead in self.pivots:
                self._eliminate(row, lead)
            else:
                done[self.integrals[lead]] = row.pop(lead)
        return done


NONZERO = {
    "trianglebox": 23, "doublebox": 43, "doublebox-1m": 47, "nonplanar-doublebox": 49, "sunrise": 4, "pentabox": 111,
    "ladder3": 47, "banana3": 5, "box": 7, "bubble": 3,
}  # fmt: skip


def integral_with(n, lines, indices):
    """The integral with these indices on these lines and nothing else."""
    return tuple(dict(zip(lines, indices)).get(i, 0) for i in range(n))


def rising(x, k):
    """Gamma(x + k) / Gamma(x) for any integer k, exactly."""
    return math.prod((x + i for i in range(k)), start=Fraction(1)) if k >= 0 else 1 / rising(x + k, -k)


def massless_banana(indices, square, d=41):
    """I[a_1 … a_m] / I[1 … 1] of m massless lines between two points (m - 1 loops) with momentum squared `square`.

    I is proportional to square^(L d/2 - a) Gamma(a - L d/2) / Gamma((L+1) d/2 - a) prod_i Gamma(d/2 - a_i) / Gamma(a_i) with a = sum a_i:
    the one-loop G(a, b) nested (Chetyrkin, Kataev, Tkachov 1980).
    """
    half, loops, m = Fraction(d, 2), len(indices) - 1, len(indices)
    more = sum(indices) - m
    value = rising(m - loops * half, more) / rising((loops + 1) * half - m, -more) / Fraction(square) ** more
    return value * math.prod(rising(half - 1, 1 - a) / math.factorial(a - 1) for a in indices)


# trianglebox at the default point; two independent solvers agree on these values.
# Coefficients in the order of Family.paper_masters, which is eq. (2.5) of arXiv:2502.05121 sorted by weight.
GOLDEN = {
    1009: {
        (2, 1, 2, 1, 2, 2, -4): "202 913 113 666 327 195 265 924 573 7 389 314 7 641 348 107",
        (3, 2, 1, 3, 2, 2, -6): "258 83 629 840 483 277 913 919 691 295 696 586 979 228 238 222",
        (1, 1, 1, 1, 1, 1, -3): "592 873 910 708 365 620 158 404 201 307 873 836 842 514 47 992",
        (2, 0, 2, 0, 1, 1, 0): "0 966 0 120 0 0 0 0 0 0 303 902 0 0 0 0",
        (1, 0, 1, -1, 2, 1, -5): "0 618 0 137 0 0 0 0 0 0 712 1005 0 0 0 0",
    },
    2147483647: {
        (2, 1, 2, 1, 2, 2, -4): "1089059650 1105720964 458815413 309446473 1278593447 1585971970 134968398 1709487165 "
        "630519592 1568061364 611550345 1875317411 1268176107 733255633 951245746 1927890033",
        (3, 2, 1, 3, 2, 2, -6): "630438041 708462970 1791720647 1231778240 407947842 1229882763 224815242 1861512200 "
        "978662642 1533163105 656302105 98675279 1932072379 347679426 885800929 1762278000",
        (1, 1, 1, 1, 1, 1, -3): "927395373 1162884003 1072627557 1424654885 89163843 1014597978 637042038 1393310226 "
        "1866601572 2019173691 266793901 1563491066 1509801620 802375825 1144385938 440841927",
        (2, 0, 2, 0, 1, 1, 0): "0 807385401 0 1528354581 0 0 0 0 0 0 2046380509 48607530 0 0 0 0",
        (1, 0, 1, -1, 2, 1, -5): "0 614294058 0 823078012 0 0 0 0 0 0 1839304551 768947584 0 0 0 0",
    },
}  # fmt: skip
# The numbers of a Laporta run with dots <= 1, s <= 2 (sunrise, banana3: dots <= 2, s <= 3); trianglebox: arXiv:2502.05121.
MASTERS = {
    "trianglebox": 16, "doublebox": 12, "doublebox-1m": 19, "nonplanar-doublebox": 16, "sunrise": 7, "pentabox": 62,
    "ladder3": 10, "banana3": 15, "box": 3, "bubble": 3,
}  # fmt: skip
# family, integrals whose sectors are quick to learn
SAMPLES = {
    "bubble": [(3, 2), (1, 4), (2, -3)],
    "box": [(2, 1, 1, 2), (3, 1, 1, 1), (2, -1, 1, 0)],
    "sunrise": [(2, 1, 1, -1, -1), (1, 1, 1, -2, -1), (0, 2, 1, -1, -1)],
    "trianglebox": [(1, 1, 1, 1, 1, 1, -2), (2, 1, 1, 1, 1, 0, -1), (1, 0, 2, 1, 1, 1, 0)],
    "doublebox": [(1, 0, 1, 1, 1, 0, 1, -1, 0), (0, 0, 1, 2, 1, 0, 0, 0, -1)],
    "doublebox-1m": [(1, 0, 1, 1, 0, 0, 1, -1, 0)],
    "nonplanar-doublebox": [(1, 0, 1, 1, 0, 1, 0, -1, 0)],
    "pentabox": [(0, 0, 1, 0, 0, 1, 0, 2, -1, 0, 0)],
    "ladder3": [(1, 1, 0, 0, 1, 1, 1, 1, -1), (2, 0, 0, 0, 0, 1, 1, 2, -1)],
    "banana3": [(2, 1, 1, 0, 0, -1, 0, 0, -1)],
}
LAW_TARGETS = [(1, 1, 1, 1, 1, 1, -2), (2, 1, 1, 1, 1, 0, -1), (1, 0, 2, 1, 1, 1, 0), (2, 2, 1, 1, 1, 1, -1)]


def small_family(name, loops, legs, propagators, isps, kinematics, point):
    return Family(name, tuple(loops.split()), tuple(legs.split()), tuple(propagators), isps, tuple(kinematics), tuple(point))


PREFERRED = [
    ("bubble", (3, 2), [(2, 0), (1, 2)]),
    ("sunrise", (1, 1, 1, -2, -1), [(2, 1, 1, 0, 0), (1, 2, 1, 0, 0), (1, 1, 2, 0, 0), (1, 1, 1, 0, 0)]),
    ("trianglebox", (2, 1, 1, 1, 1, 0, -1), [(1, 0, 2, 0, 1, 0, 0), (1, 0, 1, 2, 1, 0, 0), (2, 1, 0, 1, 1, 0, 0), (1, 1, 1, 1, 1, 0, -1)]),
]


def record_of(reductions, family="trianglebox", prime=None, d=41, **kinematics):
    invariants = {name: int(value) for name, value in BUILT_IN_FAMILIES[family].point}
    masters = sorted({term for expression in reductions.values() for term in expression})
    return {
        "format": 1, "success": True, "family": family, "prime": prime, "d": d, "kinematics": invariants | kinematics,
        "reductions": reductions, "masters": masters, "unreduced": [], "steps": 1, "time": 1.0, "peak_memory_kb": 1,
        "statistics": {}, "version": "0.1.0",
    }  # fmt: skip


def rising_text(x, k):
    """As `rising`, in the letters of x."""
    factors = [f"({x} + {i})" for i in range(k)] or ["1"]
    return "*".join(factors) if k >= 0 else f"1/({rising_text(f'({x} + {k})', -k)})"


def massless_banana_text(indices, square):
    """As `massless_banana`, a function of d and the square."""
    loops, m = len(indices) - 1, len(indices)
    more = sum(indices) - m
    value = f"({rising_text(f'({m} - {loops}*d/2)', more)})/({rising_text(f'({loops + 1}*d/2 - {m})', -more)})/{square}**{more}"
    return value + "".join(f"*({rising_text('(d/2 - 1)', 1 - a)})/{math.factorial(a - 1)}" for a in indices)


SUNRISE_CORNER = (0, 1, 1, 1, 0, 0, 0)
SUNRISES = [(0, 2, 1, 1, 0, 0, 0), (0, 2, 3, 1, 0, 0, 0), (0, 3, 3, 3, 0, 0, 0)]
MODULAR = record_of({(0, 2, 1, 1, 0, 0, 0): {SUNRISE_CORNER: residue(massless_banana((2, 1, 1), 1), 1009)}}, prime=1009)
EXACT = record_of({a: {SUNRISE_CORNER: massless_banana(a[1:4], Fraction(2, 3), 7)} for a in SUNRISES}, d=7, m1="2/3")
SYMBOLIC = record_of({a: {SUNRISE_CORNER: massless_banana_text(a[1:4], "m1")} for a in SUNRISES}, d="d", m1="m1")


def coefficient_texts():
    """Expressions in d and m that Python reads the same way."""
    atoms = st.one_of(st.integers(0, 99).map(str), st.sampled_from(["d", "m"]))

    def extend(inner):
        powers = st.tuples(inner, st.integers(-3, 5)).map(lambda pair: f"({pair[0]})**{pair[1]}")
        signs = st.tuples(inner, st.sampled_from(["+", "-", "*", "/", " + ", " - "]), inner).map("".join)
        return st.one_of(powers, signs, inner.map(lambda text: f"(-{text})"), inner.map(lambda text: f"({text})"))

    return st.recursive(atoms, extend, max_leaves=12)


BIG_PRIMES = (2147400001, 1073746831, 1999999973)  # of the size that exact runs take
IN_D = [*PUBLISHED, "--symbols", "d"]


def trace_at(shelves, family, targets, seed, p=BIG_PRIMES[0], **options):
    """A trace recorded at a random point modulo p, as (trace, problem)."""
    family = BUILT_IN_FAMILIES.get(family, family)
    values = np.random.default_rng(seed).integers(1000 % p, p, len(family.symbols)).tolist()
    point = Point(Fraction(values[0]), tuple((name, Fraction(x)) for (name, _), x in zip(family.point, values[1:])), p)
    problem = Problem(family, point, tuple(targets), **options)
    return record_trace(problem, shelves, Progress(quiet=True))[0], problem


def named(names, row):
    """{target: {master: value}} without zeros."""
    found = {}
    for (target, master), value in zip(names, row.tolist()):
        if value:
            found.setdefault(target, {})[master] = value
    return found


@functools.lru_cache(maxsize=200)
def compiled_expression(text):
    """By Python's own parser; its numbers are wrapped in F(), but for exponents, so that a division is exact."""
    return compile(re.sub(r"(\*\*)?\b\d+\b", lambda m: m[0] if m[1] else f"F({m[0]})", text), "coefficient", "eval")


def exact_value(text, **values):
    """An expression of the program at rational numbers."""
    numbers = {name: Fraction(value) for name, value in values.items()} | {"F": Fraction}
    return eval(compiled_expression(str(text)), {"__builtins__": {}}, numbers)


def exact_result(*words):
    """The result of an exact run that succeeds, in this process and in the current directory."""
    assert exit_code([*words, "--quiet", "--output", "r.pkl"]) == 0
    return pickle.loads(Path("r.pkl").read_bytes())


class Oracle:
    """Values of rational functions, given as texts, with Python's integers. lie: what becomes of the values at a prime."""

    def __init__(self, texts, names, lie=lambda p, values: values, bad=()):
        import sympy

        symbols = sympy.symbols(names)
        fractions = [sympy.fraction(sympy.together(sympy.sympify(text))) for text in texts]
        parts = [[sympy.Poly(part, *symbols, domain="QQ").terms() for part in pair] for pair in fractions]
        self.parts = [[[(e, Fraction(int(c.p), int(c.q))) for e, c in part] for part in pair] for pair in parts]
        self.lie, self.bad, self.primes, self.points = lie, bad, [], 0

    def __call__(self, samples):
        rows, good = [], []
        for p, point in samples:
            self.points += 1
            if p not in self.primes:
                self.primes.append(p)
            row = []
            for pair in self.parts:
                above, below = (
                    sum(residue(c, p) * math.prod(pow(x, e, p) for x, e in zip(point, es)) for es, c in part) % p for part in pair
                )
                row.append(above * pow(below, -1, p) % p if below else None)
            good.append(None not in row and self.points not in self.bad)
            rows.append(self.lie(self.primes.index(p), [0 if value is None else value for value in row]))
        return np.array(rows, np.int64), np.array(good)


def functions_of(oracle, names, count, seed=1, said=None, letters=()):
    rng = np.random.default_rng(seed)
    return reconstruct(oracle, names, count, rng, (said if said is not None else []).append, letters=letters).functions


def are_equal(text, other, names, tries=12):
    """At rational points, of which few can be zeros of a difference."""
    draw, compared = random.Random(4), 0
    while compared < tries:
        values = {name: Fraction(draw.randrange(-(10**6), 10**6), draw.randrange(1, 10**4)) for name in names}
        with contextlib.suppress(ZeroDivisionError):
            if exact_value(text, **values) != exact_value(other, **values):
                return False
            compared += 1
    return True


SEVERAL = ["(3*d-8)*(x+3*y-1)/((d-4)*y**2*(x**2+y**2+1-2*x*y-2*x-2*y))", "(d*x+7*y)/(d*y-x-4)", "x**4*(d-3)/3", "1/(x**2+2)"]


def check_against_direct_runs(result, reduce_at, family, symbols, points, **options):
    """Functions of a result, put at random rational points modulo random primes, against runs of their own."""
    draw = random.Random(8)
    for number in range(points):
        p = BIG_PRIMES[number % 3]
        values = {name: Fraction(draw.randrange(10**3, 10**5), draw.randrange(1, 50)) for name in symbols}
        point = point_of(family, p, **values)
        direct = reduce_at(family.name, list(result["reductions"]), point=point, **options).reductions
        for target, expression in result["reductions"].items():
            assert {m: residue(exact_value(c, **values), p) for m, c in expression.items()} == direct[target]


def numerical(result, number, symbols, family):
    """Reductions of an exact result modulo a prime at a random point, and the point."""
    draw, p = random.Random(number), BIG_PRIMES[number % 3]
    values = {name: Fraction(draw.randrange(10**3, 10**5), draw.randrange(1, 50)) for name in symbols}
    found = {
        target: {m: value for m, c in expression.items() if (value := residue(exact_value(c, **values), p))}
        for target, expression in result["reductions"].items()
    }
    return found, point_of(family, p, **values)


@functools.cache
def raw_operators(name):
    """By explicit differentiation: for each operator {shift: coefficients of (1, a)} modulo P31."""
    return operators_modulo(Kinematics(BUILT_IN_FAMILIES[name]), BUILT_IN_FAMILIES[name].d)


def raw_identity(name, operator, seed):
    return {term: value % P31 for term, value in at_seed(raw_operators(name)[operator], seed).items() if value % P31}


class NaivePosition:
    """What a target is modulo identities, down to itself: dictionaries of integrals, no keys, no arrays."""

    def __init__(self, name, target, start=None):
        self.name, self.target = name, target
        self.open, self.lines, self.rows = start or {target: 1}, {}, []

    def row(self, operator, seed):
        """The terms of an identity in the target's sector that are not lighter than the target."""
        own = {t: v for t, v in raw_identity(self.name, operator, seed).items() if bits_of(t) == bits_of(self.target)}
        return {t: v for t, v in own.items() if oracle_weight(t) >= oracle_weight(self.target)}

    def reduced(self, row):
        parts = [(value, self.lines[term]) if term in self.lines else (value, {term: 1}) for term, value in row.items()]
        return combine(*parts)

    def after(self, operator, seed):
        """The position after an identity, None if that does not contain the heaviest open integral."""
        row, pivot = self.reduced(self.row(operator, seed)), max(self.open, key=oracle_weight)
        if pivot not in row:
            return None
        factor = -pow(row.pop(pivot), -1, P31)
        line = combine((factor, row))
        new = NaivePosition(self.name, self.target)
        new.lines = {key: combine((1, {k: v for k, v in old.items() if k != pivot}), (old.get(pivot, 0), line))
                     for key, old in self.lines.items()} | {pivot: line}  # fmt: skip
        new.open, new.rows = new.reduced(self.open), [*self.rows, (operator, seed)]
        return new

    def follows_from_rows(self, vector):
        """Whether a combination of integrals is zero by the identities used: an elimination that knows no order of theirs."""
        pivots = {}
        for row in [self.row(*row) for row in self.rows]:
            row = self.without(row, pivots)
            if row:
                lead = min(row)
                pivots[lead] = combine((pow(row[lead], -1, P31), row))
        return not self.without(vector, pivots)

    @staticmethod
    def without(row, pivots):
        while lead := next((term for term in row if term in pivots), None):
            row = combine((1, row), (-row[lead], pivots[lead]))
        return row


@functools.cache
def equations_of(name, at=point_of):
    return evaluate_identities(derive_identities(BUILT_IN_FAMILIES[name]), at(BUILT_IN_FAMILIES[name]))


def sector_for(name, target):
    return Sector(Layout(BUILT_IN_FAMILIES[name].n, 2 * sum(map(abs, target)) + 20, 40), bits_of(target))


def ground_of(name, target, kind=SearchGround, at=point_of):
    return kind(sector_for(name, target), equations_of(name, at), np.array(target))


def actions_of(ground, moves):
    return [(operator, tuple(seed)) for operator, seed in zip(moves.operator.tolist(), (moves.seed - ground.target).tolist())]


def as_integrals(ground, expression):
    """{key: value} as {integral: value}."""
    keys = np.array([*expression], ground.sector.layout.dtype) + ground.target_key
    return dict(zip(map(tuple, ground.sector.decode(keys).tolist()), expression.values()))


def moved(target, action):
    """Operator and seed of an action."""
    return action[0], tuple(a + b for a, b in zip(target, action[1]))


SEARCHED = [
    ("bubble", (3, 2)), ("bubble", (2, -3)), ("box", (2, 1, 1, 2)), ("box", (2, 0, 1, -1)), ("sunrise", (2, 1, 1, -1, -1)),
    ("sunrise", (1, 0, 2, -1, -2)), ("trianglebox", (1, 1, 1, 1, 1, 1, -2)), ("trianglebox", (2, 0, 2, -1, 1, 1, 0)),
    ("doublebox", (1, 0, 1, 1, 1, 0, 1, -1, 0)), ("ladder3", (1, 1, 0, 0, 1, 1, 1, 1, -1)), ("banana3", (2, 1, 0, 1, -1, 0, 0, 0, 0)),
]  # fmt: skip


def positions_on_the_way(name, target, seed=0, steps=4):
    """Features of positions on a random way from a target."""
    rng, ground, position, found = np.random.default_rng(seed), ground_of(name, target), Position(), []
    for _ in range(steps):
        moves = ground.moves(position)
        if not position.open or not len(moves.operator):
            break
        found.append(describe_moves(ground, position, moves))
        position = ground.after(position, actions_of(ground, moves)[rng.integers(len(moves.operator))])
        if not position.open:
            break
    return found


ROUNDED = 1.5e-4  # scores are rounded to four decimals, so that what differs by the order of a sum alone is the same
BOX_BY_BEAM = [
    "--family", "box", "--integral", "2,1,1,2", "--engine", "beam", "--policy", "fixed", "--beam-width", "1", "--no-rules", "--quiet",
]  # fmt: skip
DIFFERENTIAL = {"box": "s,t,d", "bubble": "all,d", "sunrise": "all,d", "doublebox": "s,t", "trianglebox": "m1,m2,m3"}


class FunctionField:
    """Rational functions of the symbols of a result, and its matrices as lists of lists of them."""

    def __init__(self, record):
        import sympy

        self.names = ("d", *record["kinematics"])
        self.field, *symbols = sympy.field(self.names, sympy.QQ)
        self.symbols = dict(zip(self.names, symbols))
        own = record["differential_equation"]
        self.masters, self.loops = own["masters"], len(BUILT_IN_FAMILIES[record["family"]].loop_momenta)
        self.matrices = {
            x: [[self.read(matrix[row].get(column, "0")) for column in self.masters] for row in self.masters]
            for x, matrix in own["matrices"].items()
        }

    def read(self, text, **instead):
        names = self.symbols | instead | {"F": self.field}
        return self.field(eval(compiled_expression(str(text)), {"__builtins__": {}}, names))

    def lowered(self, function):
        """At d - 2."""
        return self.read(str(function.as_expr()), d=self.symbols["d"] - 2)

    def product(self, a, b):
        rows = [[(k, x) for k, x in enumerate(row) if x] for row in a]
        return [[sum((x * b[k][j] for k, x in row), self.field.zero) for j in range(len(b[0]))] for row in rows]

    def derivative(self, matrix, name):
        return [[entry.diff(self.symbols[name]) if entry else entry for entry in row] for row in matrix]

    def total(self, *matrices):
        return [[sum(entries, self.field.zero) for entries in zip(*rows)] for rows in zip(*matrices)]

    def times(self, factor, matrix):
        return [[factor * entry for entry in row] for row in matrix]


# family: unique sectors, masters with symmetries. In the literature: doublebox 8 (arXiv:1304.1806), pentabox 61 (arXiv:1511.05409),
# equal-mass sunrise 2 and banana 3 in the top sector, and the tadpole; all as dotted integrals with the same U and F leave them.
SYMMETRIC = {
    "trianglebox": (19, 15), "doublebox": (18, 8), "doublebox-1m": (39, 18), "nonplanar-doublebox": (23, 12), "sunrise": (2, 3),
    "pentabox": (102, 61), "ladder3": (16, 5), "banana3": (2, 4), "box": (5, 3), "bubble": (2, 2),
}  # fmt: skip
NEEDS_SHIPPED_RULES = {"doublebox", "doublebox-1m", "nonplanar-doublebox", "pentabox", "ladder3", "banana3"}


def families_with_rules(names=FAMILIES):
    return [pytest.param(name, marks=needs_stored_rules) if name in NEEDS_SHIPPED_RULES else name for name in names]


@functools.cache
def symmetries_of(name):
    family = BUILT_IN_FAMILIES[name]
    geometry = Geometry(family)
    nonzero = any_kinematics(family).nonzero_sectors()
    found = find_symmetries(geometry, nonzero)
    return geometry, nonzero, found


class FeynmanParameters:
    """U and F of sectors modulo p at numbers for the parameters: the quadratic form sum x_i D_i, loop momenta eliminated one by one."""

    def __init__(self, family):
        kinematics = any_kinematics(family)
        momenta = kinematics.momenta
        self.loops = len(kinematics.loops)
        self.gram = [[residue(kinematics.products[x, y]) for y in kinematics.legs] for x in kinematics.legs]
        self.forms = [[[residue(form.get((x, y), 0)) for y in momenta] for x in momenta] for form in kinematics.forms]
        self.masses = [residue(mass) for mass in kinematics.masses]

    def values(self, numbers):
        """(U, F) with these numbers {line: x}."""
        size = len(self.forms[0])
        form = [[sum(x * self.forms[i][a][b] for i, x in numbers.items()) % P31 for b in range(size)] for a in range(size)]
        u = 1
        for k in range(self.loops):
            u = u * form[k][k] % P31
            inverse = pow(form[k][k], -1, P31)
            form = [[(v - form[a][k] * inverse * form[k][b]) % P31 for b, v in enumerate(row)] for a, row in enumerate(form)]
        external = [row[self.loops :] for row in form[self.loops :]]
        rest = sum(v * g for row, products in zip(external, self.gram) for v, g in zip(row, products))
        return u, u * (rest - sum(x * self.masses[i] for i, x in numbers.items())) % P31

    def ways(self, bits):
        """{(U, F): the orders of the lines that give it} for all ways to give the lines some fixed numbers."""
        lines = [i for i in range(len(self.forms)) if bits >> i & 1]
        numbers = random.Random(len(lines)).sample(range(1, P31), len(lines))
        found = {}
        for order in itertools.permutations(lines):
            found.setdefault(self.values(dict(zip(order, numbers))), []).append(order)
        return found


# an integral below which everything is
TOP = {
    "trianglebox": (1, 1, 1, 1, 1, 1, -2), "doublebox": (1, 1, 1, 1, 1, 1, 1, -1, -1), "doublebox-1m": (1, 1, 1, 1, 1, 1, 1, 0, -2),
    "nonplanar-doublebox": (1, 1, 1, 1, 1, 1, 1, 0, -2), "sunrise": (2, 1, 1, -1, -2), "pentabox": (1, 1, 1, 1, 1, 1, 1, 1, 0, -1, 0),
    "ladder3": (1, 1, 1, 1, 1, 1, 1, 1, -2), "banana3": (2, 1, 1, 1, -1, -1, 0, 0, 0), "box": (2, 1, 3, 1), "bubble": (2, 3),
}  # fmt: skip


def line_mask(*lines):
    return sum(1 << line - 1 for line in lines)
