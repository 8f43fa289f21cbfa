"""What a run is asked for, in a person's words, as requests to families at a point.

`Asked` holds the words; `read_requests` and `read_corners` make requests of them, `parse_point` makes the point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ibp.arithmetic import parse_number
from ibp.errors import InputError
from ibp.families import Family, Index, check_common, load_families, load_one_family
from ibp.identities import Point
from ibp.primes import MAX_PRIME, is_usable_prime
from ibp.sectors import corner, r_and_s
from ibp.targets import Request, family_of, parse_integral, read_targets

SEED_FAMILY, SEED_INTEGRAL = "trianglebox", "3,2,1,3,2,2,-6"
DEFAULT_PRIME = 1009


@dataclass(frozen=True)
class Asked:
    """families: names and files 'A,B,…', None for all of a project; integral: one of them; integrals, masters: files with one a line.

    Raises InputError.
    """

    families: str | None = SEED_FAMILY
    integral: str | None = None
    integrals: str | None = None
    masters: str | None = None
    symmetries: bool = False

    def __post_init__(self) -> None:
        if self.integral is not None and self.integrals is not None:
            raise InputError("--integral and --integrals contradict each other: give one of them")

    @property
    def names_integrals(self) -> bool:
        return self.integral is not None or self.integrals is not None

    def given(self, families: Sequence[Family]) -> list[Request]:
        """What is wanted of these families. Raises InputError."""
        if self.integrals is not None:
            return read_targets(self.integrals, families, "--integrals")
        text = SEED_INTEGRAL if self.integral is None else self.integral
        family = family_of(text, families, "--integral")
        return [Request(family, (parse_integral(text, family, "--integral"),))]

    def complete(self, requests: Sequence[Request], families: Sequence[Family], preferred: Sequence[Request] = ()) -> list[Request]:
        """With the preferred masters; with symmetries, families of a list of which nothing is wanted lend their masters to later ones.

        preferred: masters where no file of them is given. Raises InputError.
        """
        if self.masters is not None:
            preferred = read_targets(self.masters, families, "--masters", combinations=False)
        if self.symmetries and self.families is not None:
            own = {request.family.name: request for request in requests}
            requests = [own.get(family.name, Request(family)) for family in families]

        def masters(family: Family) -> tuple[Index, ...]:
            return tuple(dict.fromkeys(m for other in preferred if other.family is family for m in other.targets))

        return [replace(request, preferred=masters(request.family), symmetries=self.symmetries) for request in requests]


def read_requests(asked: Asked) -> list[Request]:
    """By family. Raises InputError."""
    families = load_families(asked.families)
    check_common(families, asked.families)
    if not asked.names_integrals and [family.name for family in families] != [SEED_FAMILY]:
        raise InputError(f"--family {asked.families} needs --integral or --integrals: there is no default integral for it")
    return asked.complete(asked.given(families), families)


def read_corners(asked: Asked) -> Request:
    """The integral that all lines of the family make, each once. Raises InputError."""
    family = load_one_family(asked.families)
    (request,) = asked.complete([Request(family, (corner((1 << family.lines) - 1, family.n),))], [family])
    return request


def parse_point(
    family: Family, targets: Sequence[Index], d: str | None = None, kinematics: str | None = None, prime: int | None = None
) -> Point:
    """Where to reduce these: 'NAME=VALUE,…', the family's defaults for what is not given.

    Raises InputError for unknown invariants, unreadable numbers and unusable primes.
    """
    values = dict(family.point)
    given: set[str] = set()
    for item in kinematics.split(",") if kinematics is not None else ():
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or name not in values or name in given:
            raise InputError(f"--kinematics {item!r}: expected NAME=VALUE once for each NAME out of {', '.join(values) or '(none)'}")
        values[name] = value
        given.add(name)
    prime, largest = check_prime(prime), max((max(r_and_s(target)) for target in targets), default=0)
    if prime <= largest:
        raise InputError(f"--prime {prime}: not above the largest index in play, {largest}; take a larger prime")
    number = parse_number(family.d if d is None else d, "d")
    point = Point(number, tuple((name, parse_number(value, name)) for name, value in values.items()), prime)
    point.residues()
    return point


def check_prime(prime: int | None) -> int:
    """The prime of a run modulo one. Raises InputError."""
    prime = DEFAULT_PRIME if prime is None else prime
    if not is_usable_prime(prime):
        raise InputError(f"--prime {prime}: expected a prime number from 3 to {MAX_PRIME}")
    return prime
