"""Certificates: results with the identities that prove them, and a verification that derives everything anew.

`make_certificate`, `pack_certificate` and `unpack_certificate` are the file; `pack_point` and `checked_…` serve files of paths, too: they
raise ValueError, or another of UNREADABLE, for what is not what it should be. `Verifier` knows the identities at a point and which sectors
are scaleless, by other ways than the reduction; `verify_certificate` adds the identities up.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import zlib
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from executors import __version__
from ibp.arithmetic import evaluate, parse_number
from ibp.elimination import difference
from ibp.errors import UNREADABLE, CertificateError, InputError, in_short
from ibp.families import BUILT_IN_FAMILIES, Expression, Family, Index, define_family, family_definition
from ibp.geometry import symanzik
from ibp.identities import Coefficient, Point, derive_identities, external_products, identities_digest, propagator_form, show_point
from ibp.polynomials import Polynomial
from ibp.problems import Outcome, Problem
from ibp.residues import is_usable_prime
from ibp.sectors import MAX_INDEX, show
from ibp.tables import sorted_rows, sum_by_key
from ibp.targets import Combination, show_target, show_targets

# A certificate is: one line of text that says what it is, one line of JSON (the Certificate without its arrays), the arrays, compressed,
# and the SHA-256 of all that.
CERTIFICATE_FORMAT = 1
CERTIFICATE_LINE = b"ibp_reduce certificate, format %d\n"
ARRAYS = ("operator", "seed", "start", "step", "multiplier")
ARRAY_TYPES = ("|u1", "<u2", "<u4", "<u8", "|i1", "<i2", "<i4", "<i8")
TERMS_AT_ONCE = 1 << 22  # terms of identities that are added up together: some 100 MB


@dataclass(frozen=True, eq=False)
class Certificate:
    """reductions[k]: target and expression, which differ by sum_j multiplier_j * identity_j modulo the prime at the point.

    A target that is a name stands for one of the combinations: {name: ((integral, text of its coefficient), …)}.
    masters: what the expressions may contain, beside unreduced; digest: of the identities at the point; operator [M], seed [M, n]:
    identities; lines start[k]:start[k+1] of identity [L] and multiplier [L] belong to target k, identity [L] is a row of the former.
    """

    family: Family
    point: Point
    masters: tuple[Index, ...]
    unreduced: tuple[Index, ...]
    reductions: dict[Index, Expression]
    digest: str
    operator: np.ndarray
    seed: np.ndarray
    start: np.ndarray
    identity: np.ndarray
    multiplier: np.ndarray
    combinations: dict[str, tuple[tuple[Index, str], ...]] = field(default_factory=dict)


def make_certificate(problem: Problem, outcome: Outcome) -> Certificate:
    """outcome: of a Controller with certify=True."""
    proof = outcome.proof
    order, first = sorted_rows(proof.operator, *proof.seed.T)
    identity = np.zeros(len(order), np.int64)
    identity[order] = np.repeat(np.arange(len(first)), np.diff(first, append=len(order)))
    start = np.searchsorted(proof.column, np.arange(len(problem.keys) + 1))
    return Certificate(
        problem.family,
        problem.point,
        tuple(outcome.masters),
        tuple(outcome.unreduced),
        outcome.reductions,
        outcome.identities,
        proof.operator[order[first]],
        proof.seed[order[first]],
        start,
        identity,
        proof.value,
        {combination.name: combination.terms for combination in problem.combinations},
    )


def pack_certificate(certificate: Certificate) -> bytes:
    """The content of the file. Inside a target the identities ascend, so that their differences are stored; seeds index by index."""
    own = certificate
    step = np.diff(own.identity, prepend=0)
    values = (own.operator, own.seed.T.ravel(), own.start, step, own.multiplier)
    arrays = {name: _smallest(part) for name, part in zip(ARRAYS, values)}
    header = {
        "version": __version__,
        "family": family_definition(own.family),
        **pack_point(own.point),
        "masters": own.masters,
        "unreduced": own.unreduced,
        "combinations": own.combinations,
        "reductions": [[target, list(expression.items())] for target, expression in own.reductions.items()],
        "identities": own.digest,
        "arrays": {name: [values.dtype.str, values.size] for name, values in arrays.items()},
    }
    packed = zlib.compress(b"".join(values.tobytes() for values in arrays.values()), 9)
    content = CERTIFICATE_LINE % CERTIFICATE_FORMAT + json.dumps(header).encode() + b"\n" + packed
    return content + hashlib.sha256(content).digest()


def _smallest(values: np.ndarray) -> np.ndarray:
    """In the smallest type that holds it."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    fitting = (kind for kind in map(np.dtype, ARRAY_TYPES) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return values.astype(next(fitting))


def unpack_certificate(content: bytes) -> Certificate:
    """Raises CertificateError for anything but what pack_certificate makes."""
    first, _, rest = content.partition(b"\n")
    if first + b"\n" != CERTIFICATE_LINE % CERTIFICATE_FORMAT:
        known = content.startswith(CERTIFICATE_LINE[:22])
        shown = first[:60].decode("ascii", "replace") if known else "neither a certificate nor a result of this program"
        raise CertificateError(f"{shown}; certificates of format {CERTIFICATE_FORMAT} are read")
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise CertificateError("damaged: its checksum is wrong; copy or make it again")
    try:
        line, _, packed = rest[:-32].partition(b"\n")
        return _read_certificate(json.loads(line), packed)
    except InputError as error:
        raise CertificateError(str(error)) from None
    except UNREADABLE as error:
        raise CertificateError(f"not a sound certificate ({in_short(error)})") from None


def _read_certificate(header: dict[str, Any], packed: bytes) -> Certificate:
    """Raises InputError, or one of UNREADABLE."""
    family = define_family(header["family"], "its family")
    point = unpack_point(header, family)
    sizes = [(np.dtype(kind), int(size)) for kind, size in header["arrays"].values() if kind in ARRAY_TYPES and size >= 0]
    unpacker = zlib.decompressobj()
    total = sum(kind.itemsize * size for kind, size in sizes)
    data = unpacker.decompress(packed, total + 1)
    whole = len(data) == total and unpacker.eof and not unpacker.unused_data
    if not whole or list(header["arrays"]) != list(ARRAYS) or len(sizes) != len(ARRAYS):
        raise ValueError("arrays of another size")
    arrays, begin = [], 0
    for kind, size in sizes:
        arrays.append(np.frombuffer(data, kind, size, begin).astype(np.int64))
        begin += kind.itemsize * size
    operator, seed, start, step, multiplier = arrays
    combinations = {
        name: tuple((checked_indices(integral, family), str(text)) for integral, text in terms)
        for name, terms in header.get("combinations", {}).items()
    }
    identity, reductions = np.cumsum(step), {}
    for target, expression in header["reductions"]:
        named = isinstance(target, str) and target in combinations
        reductions[target if named else checked_indices(target, family)] = checked_expression(expression, family, point.prime)
    if len(start) != len(reductions) + 1 or start[0] != 0 or start[-1] != len(step) or (np.diff(start) < 0).any() or not len(reductions):
        raise ValueError("multipliers of another number of targets")
    if len(step) != len(multiplier) or len(step) and not 0 <= identity.min() <= identity.max() < len(operator):
        raise ValueError("multipliers of identities that are not there")
    if len(seed) != len(operator) * family.n or (seed < -MAX_INDEX).any() or (seed > MAX_INDEX).any():
        raise ValueError("seeds of another family, or out of range")
    if (multiplier >= point.prime).any() or (multiplier < 0).any():
        raise ValueError("multipliers out of range")
    return Certificate(
        family,
        point,
        tuple(checked_indices(m, family) for m in header["masters"]),
        tuple(checked_indices(m, family) for m in header["unreduced"]),
        reductions,
        str(header["identities"]),
        operator,
        seed.reshape(family.n, -1).T,
        start,
        identity,
        multiplier,
        combinations,
    )


def pack_point(point: Point) -> dict[str, Any]:
    return {"prime": point.prime, "d": str(point.d), "kinematics": {name: str(value) for name, value in point.invariants}}


def unpack_point(header: dict[str, Any], family: Family, where: str = "") -> Point:
    """Raises InputError, or one of UNREADABLE."""
    values = tuple((name, parse_number(header["kinematics"][name], where + name)) for name, _ in family.point)
    return Point(parse_number(header["d"], f"{where}d"), values, checked_prime(header["prime"]))


def checked_prime(value: Any) -> int:
    if not is_usable_prime(value):
        raise ValueError(f"{value!r} is no prime number in use")
    return value


def checked_indices(value: Any, family: Family) -> Index:
    if len(value) != family.n or any(type(a) is not int or abs(a) > MAX_INDEX for a in value):
        raise ValueError(f"{value} is no integral of the family")
    return tuple(value)


def checked_expression(terms: Any, family: Family, p: int) -> Expression:
    expression = {checked_indices(term, family): value for term, value in terms}
    if len(expression) != len(terms) or any(type(value) is not int or not 0 < value < p for value in expression.values()):
        raise ValueError("a coefficient that is none modulo the prime, or twice")
    return expression


class Verifier:
    """The identities of a family at a point, derived anew, and proofs that sectors are scaleless.

    terms[operator]: (shift [n], coefficients [n + 1] of (1, a) modulo the prime) for each term.
    """

    def __init__(self, family: Family, point: Point):
        self.family, self.point, self.p = family, point, point.prime
        values = point.residues()
        self.terms = [
            [(np.array(shift), self._coefficients(coefficients, values)) for shift, coefficients in operator]
            for operator in derive_identities(family)
        ]
        shifts = np.array([shift for operator in self.terms for shift, _ in operator])
        self.reach = shifts.min(0), shifts.max(0)
        self.scaleless: dict[int, bool] = {}

    def _coefficients(self, coefficients: tuple[Coefficient, ...], values: tuple[int, ...]) -> np.ndarray:
        row = np.zeros(self.family.n + 1, np.int64)
        for i, numerator, denominator in coefficients:
            below = self._value(denominator, values)
            if below == 0:
                raise CertificateError(f"an identity is degenerate at this point modulo {self.p}")
            row[i] = self._value(numerator, values) * pow(below, -1, self.p) % self.p
        return row

    def _value(self, polynomial: Polynomial, values: tuple[int, ...]) -> int:
        powers = (factor * math.prod(pow(v, k, self.p) for v, k in zip(values, exponents)) for exponents, factor in polynomial)
        return sum(powers) % self.p

    @cached_property
    def digest(self) -> str:
        return identities_digest((k, shift, row) for k, operator in enumerate(self.terms) for shift, row in operator)

    def check(self, claim: Expression, operator: np.ndarray, seed: np.ndarray, multiplier: np.ndarray, cut: int = 0) -> int:
        """Number of terms that were added up, if sum of multiplier * identity(operator, seed) is the claim, a linear combination.

        Integrals of scaleless sectors are zero, and so are those without the lines of a cut.
        Raises CertificateError with an integral that the two sides do not share.
        """
        if len(operator) and not 0 <= operator.min() <= operator.max() < len(self.terms):
            raise CertificateError(f"operator {operator.max()} is used; there are {len(self.terms)}")
        integrals, p = np.array(list(claim), np.int64).reshape(-1, self.family.n), self.p
        low = np.minimum(seed.min(0, initial=0) + self.reach[0], integrals.min(0, initial=0))
        spans = (np.maximum(seed.max(0, initial=0) + self.reach[1], integrals.max(0, initial=0)) - low + 1).tolist()
        places = list(itertools.accumulate(spans[:0:-1], lambda a, b: a * b, initial=1))[::-1]
        place = np.array(places, np.int64 if places[0] * spans[0] < 2**62 else object)  # index tuples as numbers
        keys = [(integrals - low) @ place]
        values = [np.array([-value % p for value in claim.values()], np.int64)]
        waiting = count = 0
        for number, terms in enumerate(self.terms):
            there = np.flatnonzero(operator == number)
            seeds, factors = seed[there].astype(np.int64), multiplier[there]
            base = (seeds - low) @ place
            for shift, row in terms:
                keys.append(base + shift @ place)
                values.append((seeds @ row[1:] + row[0]) % p * factors % p)
                waiting, count = waiting + len(base), count + len(base)
                if waiting > TERMS_AT_ONCE:
                    keys, values, waiting = *_added_up(keys, values, p), 0
        (keys,), (values,) = _added_up(keys, values, p)
        left = np.column_stack([keys // a % span for a, span in zip(places, spans)]).astype(np.int64) + low
        for integral, value in zip(map(tuple, left.tolist()), values.tolist()):
            bits = sum(1 << i for i, a in enumerate(integral) if a > 0)
            if bits & cut == cut and not self.is_scaleless(bits):
                raise CertificateError(f"{show(integral)} is left with coefficient {value} modulo {p}")
        return count

    def is_scaleless(self, bits: int) -> bool:
        """Whether all integrals of a sector vanish: Lee's criterion (arXiv:1405.5616).

        With the polynomials U and F of the sector, G = U + F, they do if sum_i k_i x_i dG/dx_i = G has a solution k, that is, if
        k . e = 1 for the exponents e of all its monomials.
        """
        from sympy import QQ
        from sympy.polys.matrices import DomainMatrix

        if bits not in self.scaleless:
            lines = [i for i in range(self.family.n) if bits >> i & 1]
            inside = [e for e in self._exponents if all(not power or bits >> i & 1 for i, power in enumerate(e))]
            rows = [[QQ(a) for a in (*(e[i] for i in lines), 1)] for e in inside]
            self.scaleless[bits] = len(lines) not in DomainMatrix(rows, (len(rows), len(lines) + 1), QQ).rref()[1]
        return self.scaleless[bits]

    @cached_property
    def _exponents(self) -> list[tuple[int, ...]]:
        """Of the monomials of U + F with all n propagators, at the rational point itself; a sector has those of its own variables."""
        from sympy import QQ
        from sympy.polys.rings import ring

        family, where = self.family, f"family {self.family.name}"
        loops, momenta = len(family.loop_momenta), [*family.loop_momenta, *family.external_momenta]
        numbers = dict(self.point.invariants) | {"1": Fraction(1)}

        def rational(value: Fraction) -> Any:
            return QQ(value.numerator, value.denominator)

        gram = np.full((len(family.external_momenta),) * 2, QQ(0), object)
        for pair, value in external_products(family, numbers, rational, where).items():
            gram[pair] = value
        momenta_ring, *vectors = ring(momenta, QQ)
        parameters, *x = ring([f"x{i}" for i in range(family.n)], QQ)
        symbols = {name: momenta_ring(rational(value)) for name, value in numbers.items()} | dict(zip(momenta, vectors))
        total, constant = np.full((len(momenta),) * 2, parameters.zero, object), parameters.zero
        for variable, (text, mass) in zip(x, family.propagators):
            for powers, value in propagator_form(text, symbols, {}, momenta_ring, where).terms():
                i, j = (k for k, power in enumerate(powers) for _ in range(power))
                total[i, j] += variable * value / 2
                total[j, i] += variable * value / 2
            constant -= variable * rational(evaluate(mass, numbers, where))
        constant += (total[loops:, loops:] * gram).sum()
        return [monomial for polynomial in symanzik(total, constant, gram, loops, parameters.one) for monomial in polynomial.itermonoms()]


def _added_up(keys: list[np.ndarray], values: list[np.ndarray], p: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Values of equal keys added up modulo p, without zeros."""
    key, total = sum_by_key(np.concatenate(keys), np.concatenate(values)[:, None], p)
    return [key], [total[:, 0]]


def verify_certificate(certificate: Certificate, verifier: Verifier | None = None) -> int:
    """Number of terms that were added up. Raises CertificateError where the certificate does not prove its reductions.

    verifier: of the same family and point, to spare deriving the identities again.
    """
    own = certificate
    built_in = BUILT_IN_FAMILIES.get(own.family.name)
    if built_in is not None and built_in.identifier != own.family.identifier:
        raise CertificateError(f"its family {own.family.name} is not the built-in one of that name")
    try:
        verifier = verifier or Verifier(own.family, own.point)
    except InputError as error:
        raise CertificateError(str(error)) from None
    if verifier.digest != own.digest:
        raise CertificateError("it was made with other identities than those that follow from its family and point")
    allowed, count = {*own.masters, *own.unreduced}, 0
    for k, (target, expression) in enumerate(own.reductions.items()):
        if foreign := [term for term in expression if term not in allowed]:
            raise CertificateError(f"{show_target(target)}: {show(foreign[0])} is not in its list of masters")
        lines = slice(own.start[k], own.start[k + 1])
        used = own.identity[lines]
        try:
            whole = Combination(target, own.combinations[target]).at(own.point) if isinstance(target, str) else {target: 1}
            claim = difference(whole, expression, own.point.prime)
            count += verifier.check(claim, own.operator[used], own.seed[used], own.multiplier[lines])
        except (CertificateError, InputError) as error:
            raise CertificateError(f"{show_target(target)} is not proven: {error}") from None
    return count


def check_certificate(content: bytes) -> str:
    """What the certificate in a file's content was found to prove, in words. Raises CertificateError."""
    own = unpack_certificate(content)
    terms = verify_certificate(own)
    used = {term for expression in own.reductions.values() for term in expression}
    left = f" and {len(own.unreduced)} that nothing reduces" if own.unreduced else ""
    of, proof = f"{own.family.name} at {show_point(own.point)}", f"{len(own.operator):,} identities with {terms:,} terms"
    return f"{show_targets(own.reductions)} of {of} through {len(used)} of {len(own.masters)} masters{left}, by {proof}"
