"""Integrals and their masters as numbers, by pySecDec."""

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from fractions import Fraction

import pytest
from support import P31, point_of
from support_oracles import OTHER_PRIMES, Kinematics, needs_stored_rules

from ibp.families import BUILT_IN_FAMILIES

# values of integrals at a point, as JSON on stdout: [value, error] for each
PYSECDEC = """
import json, os, subprocess, sys
import pySecDec
from pySecDec.integral_interface import DistevalLibrary

if __name__ == "__main__":
    job = json.loads(sys.stdin.read())
    values = []
    for number, powers in enumerate(job["integrals"]):
        integral = pySecDec.LoopIntegralFromPropagators(
            propagators=job["propagators"], loop_momenta=job["loops"], external_momenta=job["legs"], powerlist=powers,
            replacement_rules=job["products"], dimensionality=job["dimension"],
        )
        name = f"i{number}"
        pySecDec.loop_package(name=name, loop_integral=integral, requested_orders=[0], contour_deformation=False)
        subprocess.run(["make", "-C", name, "disteval.done"], stdout=sys.stderr, check=True)
        result = DistevalLibrary(f"{name}/disteval/{name}.json", verbose=False)(epsrel=1e-6, format="json", timeout=20)
        values.append([part.real for part in result["sums"][name][(0,)]])
    print("VALUES", json.dumps(values))
"""
# family, target, d, invariants of a Euclidean point; in these dimensions all integrals are finite
NUMERICAL = [
    ("bubble", (3, 2), "3", {"s": "-2", "m": "1"}),
    ("bubble", (2, -2), "3", {"s": "-2", "m": "1"}),
    ("box", (2, 1, 2, 1), "7", {"s": "-3", "t": "-5/2"}),
    ("sunrise", (2, 1, 1, -1, 0), "7/2", {"s": "-2", "m": "1"}),
    ("trianglebox", (2, 1, 1, 1, 0, 0, -1), "7/2", {"m1": "-2", "m2": "-3", "m3": "-5"}),
    ("trianglebox", (1, 1, 0, 2, 1, 1, 0), "7/2", {"m1": "-2", "m2": "-3", "m3": "-5"}),
]


def rational(residues, primes):
    """The fraction with these residues, by Chinese remainders and the extended Euclidean algorithm (Wang 1981)."""
    modulus = math.prod(primes)
    value = sum(r * (modulus // p) * pow(modulus // p, -1, p) for r, p in zip(residues, primes)) % modulus
    (a, x), (b, y) = (modulus, 0), (value, 1)
    while b * b * 2 > modulus:
        (a, x), (b, y) = (b, y), (a % b, x - a // b * y)
    return Fraction(b, y)


@pytest.mark.slow
@needs_stored_rules
@pytest.mark.parametrize("family, target, d, invariants", NUMERICAL)
def test_numbers_of_pysecdec(family, target, d, invariants, reduce_at, tmp_path):
    """An integral and its masters, integrated by sector decomposition, satisfy the reduction within the error of the integration."""
    for tool in ("make", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"pySecDec needs {tool}")
    if importlib.util.find_spec("pySecDec") is None:
        pytest.skip("pySecDec is not installed; pip install pySecDec")
    family = BUILT_IN_FAMILIES[family]
    primes = (P31, *OTHER_PRIMES)
    runs = [reduce_at(family, [target], p, point_of(family, p, d, **invariants)).reductions[target] for p in primes]
    exact = {term: rational([run[term] for run in runs], primes) for term in runs[0]}
    assert all(set(run) == set(exact) for run in runs) and exact
    kinematics = Kinematics(family, **invariants)
    job = {
        "propagators": [f"({text})**2 - ({mass})" for (text, _), mass in zip(family.propagators, kinematics.masses)],
        "loops": family.loop_momenta,
        "legs": family.external_momenta,
        "products": [(f"{a}*{b}", str(value)) for (a, b), value in kinematics.products.items() if a <= b],
        "dimension": f"{d}-2*eps",
        "integrals": [target, *exact],
    }
    (tmp_path / "job.py").write_text(PYSECDEC)
    done = subprocess.run([sys.executable, "job.py"], input=json.dumps(job), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    values = json.loads(done.stdout.partition("VALUES")[2])
    factors = [Fraction(-1), *exact.values()]
    total = sum(float(factor) * value for factor, (value, _) in zip(factors, values))
    error = math.sqrt(sum((float(factor) * error) ** 2 for factor, (_, error) in zip(factors, values)))
    largest = max(abs(float(factor) * value) for factor, (value, _) in zip(factors, values))
    assert error < 1e-4 * largest and abs(total) <= 5 * error + 1e-10 * largest
