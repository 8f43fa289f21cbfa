"""Topological charge and chirality of textures that are known."""

import numpy as np
import pytest

from phases.ideal_states import ideal_state
from phases.textures import topological_charge, triangle_chirality


def skyrmion(L, radius):
    """A down core in an up background on both sublattices; 2 pi turns are complete well inside the lattice."""
    i, j, s = np.unravel_index(np.arange(2 * L * L), (L, L, 2))
    x, y = i + j / 2 - 0.75 * L, j * np.sqrt(0.75) + s / np.sqrt(3) - 0.4330127 * L
    theta = np.pi * np.clip(1 - np.hypot(x, y) / radius, 0, 1)
    phi = np.arctan2(y, x)
    return np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=1)


def test_topological_charge():
    rng, spins = np.random.default_rng(3), skyrmion(24, 8.3)
    density, totals = topological_charge(spins, 24)
    assert abs(totals) == pytest.approx([1, 1], abs=1e-9) and density.sum() == pytest.approx(totals.sum())
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    assert topological_charge(spins @ rotation, 24)[0] == pytest.approx(density, abs=1e-9)
    assert topological_charge(-spins, 24)[0] == pytest.approx(-density, abs=1e-9)
    wild = topological_charge(ideal_state("random", 12, rng=rng), 12)[1]
    assert wild == pytest.approx(np.round(wild), abs=1e-9)


def test_coplanar_states_have_no_charge():
    for name, options in (
        ("double_q", {"q": (1 / 6, 0), "q2": (0, 1 / 12)}),
        ("order_120", {}),
        ("spiral", {"q": (1 / 4, 1 / 6)}),
        ("zigzag", {}),
    ):
        spins = ideal_state(name, 12, **options)
        assert max(np.abs(x).max() for x in triangle_chirality(spins, 12)) < 1e-9
