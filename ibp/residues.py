"""Prime moduli, and arithmetic in arrays of residues: modulo one prime, and modulo one for each of many points, on any device.

`Residues` has the latter; `null_vectors` finds vectors that small matrices take to zero at all its points, by an `elimination_plan`: how
the rows of a rule are combined to eliminate all integrals but one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ibp.errors import InputError, how_to_install

MAX_PRIME = 2**31 - 1  # products of two residues must fit an int64
GENERIC_PRIME = 2**31 - 1  # facts about a family and the search for rules use this prime at a pseudo-random point
OTHER_PRIME = 2**31 - 19  # a second large prime, where one alone could mislead
LARGEST_PROBE_PRIME = 2**31 - 2**16  # sums of two products of residues slightly above the prime fit an int64
SMALLEST_PROBE_PRIME = 2**30
Step = tuple[Any, Any, Any]  # rows and columns that the elimination of a pivot changes, and columns where its row is not zero


def is_prime(number: int) -> bool:
    """Right below 4,759,123,141 (Jaeschke, Math. Comp. 61 (1993) 915)."""
    if number < 4 or number % 2 == 0:
        return number in (2, 3)
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return number in (7, 61) or all(
        pow(base, odd, number) == 1 or any(pow(base, odd << k, number) == number - 1 for k in range(twos)) for base in (2, 7, 61)
    )


def is_usable_prime(number: Any) -> bool:
    return type(number) is int and 2 < number <= MAX_PRIME and is_prime(number)


def probe_primes(rng: np.random.Generator) -> Iterator[int]:
    """Different random primes that Residues can take."""
    seen: set[int] = set()
    while True:
        number = int(rng.integers(SMALLEST_PROBE_PRIME, LARGEST_PROBE_PRIME)) | 1
        if number not in seen and is_prime(number):
            seen.add(number)
            yield number


def invert(values: np.ndarray, p: int) -> np.ndarray:
    """Inverses modulo the prime p of non-zero residues [N], by Fermat's little theorem."""
    power, result, base = p - 2, np.ones_like(values), values
    while power:
        if power & 1:
            result = result * base % p
        base, power = base * base % p, power >> 1
    return result


class Residues:
    """Arithmetic modulo one prime for each point; points are the last axis of every array.

    Numbers are kept in -p … p (with a hair beyond, from a quotient that is rounded), so that a product, or the difference of two, fits an
    int64: p <= LARGEST_PROBE_PRIME. The quotient by p comes from a multiplication of floats, twice as fast as int64 division.
    """

    device = "cpu"

    def __init__(self, primes: np.ndarray):
        self.primes = primes
        self.prime = self.place(primes)
        self.inverse = self.place(1.0 / primes)

    def place(self, array: np.ndarray) -> Any:
        """An array where the arithmetic is done."""
        return array

    def bring(self, array: Any) -> np.ndarray:
        return array

    def integer(self, values: Any) -> Any:
        return values.astype(np.int64)

    def empty(self, *shape: int) -> Any:
        return np.empty(shape, np.int64)

    def zeros(self, *shape: int) -> Any:
        return np.zeros(shape, np.int64)

    def take(self, array: Any, index: Any) -> Any:
        return np.take(array, index, axis=0)

    def sums(self, values: Any, start: Any, axis: int = 0) -> Any:
        """Sums over the runs that begin at start."""
        return np.add.reduceat(values, start, axis=axis)

    def reduce(self, values: Any) -> Any:
        """Residues of integers below 2**63 in size, in place."""
        values -= self.integer(values * self.inverse) * self.prime
        return values

    def product(self, a: Any, b: Any) -> Any:
        return self.reduce(a * b)

    def is_zero(self, values: Any) -> Any:
        return (values == 0) | (abs(values) == self.prime)

    def canonical(self, values: Any) -> Any:
        """In 0 … p - 1."""
        return values % self.prime

    def invert(self, values: Any) -> Any:
        """Inverses of non-zero residues [N, P]: those of products of pairs, of pairs of these, …; only the last ones one by one."""
        if len(values) == 1:
            last = zip(self.bring(values)[0].tolist(), self.primes.tolist())
            return self.place(np.array([[pow(value, -1, prime) for value, prime in last]], np.int64))
        half = len(values) // 2
        even, odd = values[: 2 * half : 2], values[1 : 2 * half : 2]
        products = self.empty(len(values) - half, values.shape[1])
        products[:half] = self.product(even, odd)
        products[half:] = values[2 * half :]
        inverses = self.invert(products)
        result = self.empty(*values.shape)
        result[: 2 * half : 2] = self.product(inverses[:half], odd)
        result[1 : 2 * half : 2] = self.product(inverses[:half], even)
        result[2 * half :] = inverses[half:]
        return result


class TorchResidues(Residues):
    """The same on tensors of a device."""

    def __init__(self, primes: np.ndarray, device: str):
        import torch

        self.torch, self.device = torch, device
        super().__init__(primes)

    def place(self, array: np.ndarray) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def bring(self, array: Any) -> np.ndarray:
        return array.cpu().numpy()

    def integer(self, values: Any) -> Any:
        return values.to(self.torch.int64)

    def empty(self, *shape: int) -> Any:
        return self.torch.empty(shape, dtype=self.torch.int64, device=self.device)

    def zeros(self, *shape: int) -> Any:
        return self.torch.zeros(shape, dtype=self.torch.int64, device=self.device)

    def take(self, array: Any, index: Any) -> Any:
        return array.index_select(0, index)

    def sums(self, values: Any, start: Any, axis: int = 0) -> Any:
        ends = self.torch.cat([start[1:], start.new_tensor([values.shape[axis]])])
        run = self.torch.repeat_interleave(self.torch.arange(len(start), device=self.device), ends - start)
        shape = list(values.shape)
        shape[axis] = len(start)
        return self.zeros(*shape).index_add_(axis, run, values)


def make_residues(primes: np.ndarray, device: str) -> Residues:
    return Residues(primes) if device in ("auto", "cpu") else TorchResidues(primes, device.removeprefix("torch:"))


def check_device(device: str) -> None:
    """Raises InputError where this machine has no such device. 'torch:cpu' is for tests of the tensor path."""
    if device not in ("auto", "cpu"):
        try:
            import torch
        except ImportError:
            raise InputError(f"--device {device} needs torch: {how_to_install('torch')}") from None
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: torch finds no GPU here; leave the option out to compute on the processor")


def null_vector(matrix: np.ndarray, p: int) -> np.ndarray:
    """x [N, m+1] with matrix [N, m, m+1] @ x = 0 modulo p, without divisions; pivots on the diagonal, zero pivots give a useless x.

    Overwrites the matrix. A useless x is harmless: the rows combined with it are still a true equation, rejected if it does not reduce.
    """
    size = matrix.shape[1]
    for c in range(size - 1):
        below = matrix[:, c + 1 :, c + 1 :] * matrix[:, c, c, None, None] - matrix[:, c + 1 :, c, None] * matrix[:, c, None, c + 1 :]
        matrix[:, c + 1 :, c + 1 :] = below % p
    x = np.zeros((len(matrix), size + 1), np.int64)
    x[:, size] = 1
    for c in range(size - 1, -1, -1):
        x[:, c] = -(matrix[:, c, c + 1 :] * x[:, c + 1 :] % p).sum(1) % p
        x[:, c + 1 :] = x[:, c + 1 :] * matrix[:, c, c, None] % p
    return x


def elimination_plan(pattern: np.ndarray) -> tuple[Step, ...]:
    """How `null_vectors` eliminates a matrix that is zero outside a pattern, bool [m, m+1].

    Index arrays where they spare at least half of the work, else slices. (A third of the time on rules of the pentabox, of up to 136 rows.)
    """
    filled, plan = pattern.copy(), []
    for c in range(len(pattern)):
        rows, columns = c + 1 + np.flatnonzero(filled[c + 1 :, c]), c + 1 + np.flatnonzero(filled[c, c + 1 :])
        changed = c + 1 + np.flatnonzero(filled[[c, *rows.tolist()], c + 1 :].any(0))
        filled[np.ix_(rows, columns)] = True
        later, below = pattern.shape[1] - c - 1, len(pattern) - c - 1
        sparse = 2 * len(rows) * len(changed) < below * later
        block = (rows[:, None], changed[None]) if sparse else (slice(c + 1, None), slice(c + 1, None))
        plan.append((*block, columns if 2 * len(columns) < later else slice(c + 1, None)))
    return tuple(plan)


def null_vectors(matrix: Any, plan: Sequence[Step], ring: Residues) -> Any:
    """x [N, m+1, P] with matrix [N, m, m+1, P] @ x = 0 at every point, as `null_vector`; overwrites the matrix."""
    size = matrix.shape[1]
    for c, (rows, columns, _) in enumerate(plan[:-1]):
        if isinstance(rows, slice):
            above, left = matrix[:, c : c + 1, columns], matrix[:, rows, c : c + 1]
        elif len(rows):
            rows, columns = ring.place(rows), ring.place(columns)
            above, left = matrix[:, c, columns[0]][:, None], matrix[:, rows[:, 0], c][:, :, None]
        else:
            continue
        below = matrix[:, rows, columns] * matrix[:, c : c + 1, c : c + 1]
        below -= left * above
        matrix[:, rows, columns] = ring.reduce(below)
    x = ring.empty(len(matrix), size + 1, matrix.shape[3])
    x[:, size] = 1
    for c in range(size - 1, -1, -1):
        columns = plan[c][2] if isinstance(plan[c][2], slice) else ring.place(plan[c][2])
        x[:, c] = ring.reduce(-ring.product(matrix[:, c, columns], x[:, columns]).sum(1))
        x[:, c + 1 :] = ring.product(x[:, c + 1 :], matrix[:, c, c : c + 1])
    return x
