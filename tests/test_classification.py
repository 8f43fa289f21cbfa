"""Names of states that are known, under symmetries, tilings and noise; what the confidence is worth."""

import numpy as np
import pytest

from phases.classification import classify
from phases.errors import InputError
from phases.ideal_states import ideal_state
from phases.model import unit
from phases.names import PhaseType
from phases.reciprocal import structure_factor

P = PhaseType
SIZES = (6, 8, 9, 12, 15, 24)


def ideal_cases(L):
    """(name, options, expected phase, expected description or None) of all ideal states that fit L."""
    step = 1 / L
    yield "ferromagnet", {}, P.FM, "ferromagnet"
    yield "neel", {}, P.AFM, "Néel"
    for domain in range(3) if L % 2 == 0 else ():
        yield "zigzag", {"domain": domain}, P.ZIGZAG, "zigzag"
        yield "stripy", {"domain": domain}, P.SINGLE_Q, "stripy"
        if L % 4 == 0:
            yield "double_zigzag", {"domain": domain}, P.SINGLE_Q, "double zigzag"
    if L % 2 == 0:
        yield "triple_q", {"q": (0, 0.5), "q2": (0.5, 0), "q3": (0.5, 0.5)}, P.TRIPLE_Q, None
        yield "double_q", {"q": (0, 0.5), "q2": (0.5, 0)}, P.ZIGZAG, "zigzag, two domains"
        yield "double_q", {"q": (0, 0.5), "q2": (0.5, 0), "antiferro": True}, P.SINGLE_Q, "stripy, two domains"
    if L % 6 == 0:
        yield "double_q", {"q": (0, 0.5), "q2": (1 / 3, 2 / 3)}, P.UNKNOWN, None
    for handedness in (1, -1) if L % 3 == 0 else ():
        yield "order_120", {"handedness": handedness}, P.ORDER_120, None
    for m in range(1, (L + 1) // 2):
        for q in ((m, 0), (0, m), (m, m)):
            yield "spiral", {"q": np.array(q) * step, "antiferro": m % 2 == 1}, P.INCOMM_GAMMA_M, None
    for m in range(1, -(-L // 3)):
        for q in ((m, -m), (2 * m, m), (m, 2 * m)):
            yield "spiral", {"q": np.array(q) * step, "handedness": -1}, P.INCOMM_GAMMA_K, None
    for m in sorted({1, 2, L // 6, L // 4}):
        a, b, c = np.array([[m, 0], [0, m], [-m, -m]]) * step
        yield "meron", {"q": a, "q2": b}, P.MERON_ANTIMERON, None
        yield "chiral_stripe", {"q": b, "q2": c}, P.MERON_ANTIMERON, None
        yield "double_q", {"q": a, "q2": c}, P.INCOMMENSURATE, None
        yield "triple_q", {"q": a, "q2": b, "q3": c}, P.TRIPLE_Q, None
        yield "conical", {"q": a}, P.INCOMM_GAMMA_M, None
        if 2 * m < L // 2:
            yield "collinear", {"q": a}, P.SINGLE_Q, None
    for m, n in ((1, 3), (1, 4), (2, 4), (2, 5), (5, 2)):
        if max(m, n) < L // 2:
            yield "beating", {"q": (m * step, 0), "q2": (n * step, 0)}, P.BEATING, None


def tilted(spins, degrees, rng):
    """Each spin turned about a random axis at right angles by a normally distributed angle with this root mean square."""
    sideways = unit(np.cross(spins, rng.normal(size=spins.shape)), axis=1)
    angle = np.radians(degrees) * rng.normal(size=(len(spins), 1))
    return np.cos(angle) * spins + np.sin(angle) * sideways


def random_ideal_state(L, rng):
    """Any ideal state, randomly turned as a whole: every name is equally likely, then its domain and its wave vectors."""
    names = ["ferromagnet", "neel", "random", "spiral", "spiral", "collinear", "conical", "double_q", "meron", "chiral_stripe", "triple_q"]
    names += ["beating"] * (L >= 8) + ["zigzag", "stripy"] * (L % 2 == 0) + ["double_zigzag"] * (L % 4 == 0) + ["order_120"] * (L % 3 == 0)
    name = names[rng.integers(len(names))]
    m = int(rng.integers(1, max(2, L // (6 if name in ("meron", "chiral_stripe") else 3))))
    first, second, third = np.array([[m, 0], [0, m], [-m, -m]])[rng.permutation(3)] / L
    if name == "beating":
        second = first / m * int(rng.integers(m + 2, max(m + 3, L // 2)))
    if name == "spiral" and rng.random() < 0.5:
        first = np.array([[m, -m], [2 * m, m], [m, 2 * m]])[rng.integers(3)] / L
    domain, handedness = int(rng.integers(3)), int(rng.choice([1, -1]))
    spins = ideal_state(name, L, domain=domain, q=first, q2=second, q3=third, antiferro=rng.random() < 0.5, handedness=handedness, rng=rng)
    return spins @ np.linalg.qr(rng.normal(size=(3, 3)))[0]


def calibration(rng, states, sizes=(8, 12, 24)):
    """(confidence, margin, 1 if the label is that of the clean state) of as many spoilt ideal states of each size, shape (., 3).

    Spoilt: one ideal state mixed with up to 40 % of another at each site, then tilted by up to 45 degrees. UNKNOWN states are left out.
    """
    rows = []
    for L in np.repeat(sizes, states).tolist():
        clean, other = random_ideal_state(L, rng), random_ideal_state(L, rng)
        share = 0.4 * rng.random()
        found = classify(tilted(unit((1 - share) * clean + share * other, axis=1), 45 * rng.random(), rng), L)
        if found.confidence > 0:
            rows.append((found.confidence, found.margin, found.phase == classify(clean, L).phase))
    return np.array(rows, dtype=float)


def check(spins, L, phase, what):
    found = classify(spins, L)
    assert found.phase is phase, (what, found)
    assert 0 <= found.confidence <= 1 and found.path and found.description
    return found


def site_permutation(L, image):
    """Permutation of the sites by a symmetry of the lattice: image maps positions (N, 2), relative to the centre of a hexagon."""
    i, j, s = np.unravel_index(np.arange(2 * L * L), (L, L, 2))
    xy = np.stack([i + j / 2, j * np.sqrt(0.75) + (s + 1) / np.sqrt(3)], axis=1)  # centre: one bond length below an A site
    x, y = image(xy).T
    for sub in (0, 1):
        b = (y - (sub + 1) / np.sqrt(3)) / np.sqrt(0.75)
        a = x - b / 2
        fits = np.abs(a - np.round(a)) + np.abs(b - np.round(b)) < 1e-6
        s = np.where(fits, sub, s)
        i, j = np.where(fits, np.round(a), i).astype(int), np.where(fits, np.round(b), j).astype(int)
    to = ((i % L) * L + j % L) * 2 + s
    assert sorted(to) == list(range(2 * L * L))
    return to


def symmetries(L):
    c, s = 0.5, np.sqrt(0.75)
    return [site_permutation(L, lambda xy: xy @ np.array([[c, s], [-s, c]])), site_permutation(L, lambda xy: xy * [-1, 1])]


@pytest.mark.parametrize("L", SIZES)
def test_ideal_states_are_named(L):
    for name, options, phase, description in ideal_cases(L):
        found = check(ideal_state(name, L, **options), L, phase, (name, options))
        assert description in (None, found.description) and found.confidence > 0.85, (name, options, found)


@pytest.mark.parametrize("L", SIZES)
@pytest.mark.parametrize("degrees", [0, 10])
def test_labels_obey_the_symmetries(L, degrees):
    rng, generators = np.random.default_rng(L), symmetries(L)
    for name, options, phase, _ in ideal_cases(L):
        spins = tilted(ideal_state(name, L, **options), degrees, rng)
        for _ in range(3):
            spins = np.roll(spins.reshape(L, L, 2, 3), rng.integers(L, size=2), axis=(0, 1)).reshape(-1, 3)
            moved = np.empty_like(spins)
            moved[generators[rng.integers(2)]] = spins
            spins = moved @ np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.choice([-1, 1])
            check(spins, L, phase, (name, options))


def test_each_symmetry_alone_changes_no_number():
    rng, L = np.random.default_rng(1), 12
    for name, options in (("meron", {"q": (1 / 12, 0), "q2": (0, 1 / 6)}), ("zigzag", {}), ("spiral", {"q": (1 / 3, 1 / 6)})):
        spins = tilted(ideal_state(name, L, **options), 10, rng)
        rotated = np.empty((2, *spins.shape))
        for moved, to in zip(rotated, symmetries(L)):
            moved[to] = spins
        translated = np.roll(spins.reshape(L, L, 2, 3), (3, 5), axis=(0, 1)).reshape(-1, 3)
        for other in (*rotated, translated, -spins, spins @ np.linalg.qr(rng.normal(size=(3, 3)))[0]):
            a, b = classify(spins, L), classify(other, L)
            assert a.phase is b.phase and a.margin == pytest.approx(b.margin, abs=1e-6)
            assert [w.weight for w in a.wave_vectors] == pytest.approx([w.weight for w in b.wave_vectors], abs=1e-9)


@pytest.mark.parametrize("L", [6, 8, 9, 12])
def test_tilings_have_the_same_label(L):
    rng = np.random.default_rng(L)
    states = [(n, tilted(ideal_state(n, L, **o), d, rng), p) for n, o, p, _ in ideal_cases(L) for d in (0, 10)]
    states += [("random", ideal_state("random", L, rng=rng), P.DISORDERED) for _ in range(5)]
    for name, spins, phase in states:
        for times in (2, 3):
            tiled = np.tile(spins.reshape(L, L, 2, 3), (times, times, 1, 1)).reshape(-1, 3)
            found = check(tiled, L * times, phase, name)
            if times == 2:
                noisy = classify(tilted(tiled, 5, rng), 2 * L)
                assert noisy.phase is phase or name == "random", (name, noisy)
            assert found.confidence == pytest.approx(classify(spins, L).confidence, abs=1e-6)


@pytest.mark.parametrize("L", [*SIZES, 36])
def test_random_spins_are_disordered(L):
    rng = np.random.default_rng(L)
    found = [classify(ideal_state("random", L, rng=rng), L).phase for _ in range(100 if L < 24 else 30)]
    assert found.count(P.DISORDERED) == len(found)


@pytest.mark.parametrize("L", [8, 12, 15, 24])
def test_spirals_that_do_not_fit(L):
    rng = np.random.default_rng(L)
    for h in np.linspace(1.3, L / 2 - 1.3, 25) / L:
        for q in ((h, 0), (0, h), (h, h)):
            check(tilted(ideal_state("spiral", L, q=q), 5, rng), L, P.INCOMM_GAMMA_M, q)
    for h in np.linspace(1.3, L / 3 - 0.9, 25) / L:
        check(tilted(ideal_state("spiral", L, q=(h, -h)), 5, rng), L, P.INCOMM_GAMMA_K, h)


def test_distorted_spiral_is_one_wave_vector():
    """Angles that bunch up with strength a make harmonics 2q, 3q, ... (a = 0.6: 21 % of the weight outside q)."""
    for L, m in ((12, 2), (24, 3), (24, 5)):
        theta = 2 * np.pi * m / L * np.arange(L)
        for order in (1, 2, 3, 4):
            bent = theta + 0.6 * np.sin(order * theta)
            row = np.stack([np.cos(bent), np.sin(bent), 0 * bent], axis=1)
            spins = np.broadcast_to(row[:, None, None], (L, L, 2, 3)).reshape(-1, 3)
            check(spins, L, P.INCOMM_GAMMA_M, (L, m, order))


def test_parseval():
    rng = np.random.default_rng(0)
    for L in SIZES:
        intensity = structure_factor(ideal_state("random", L, rng=rng), L)
        assert intensity.sum() == pytest.approx(1, abs=1e-12)
        assert intensity == pytest.approx(np.roll(intensity[::-1, ::-1], 1, axis=(0, 1)))
    assert structure_factor(ideal_state("zigzag", 8, domain=1), 8)[4, 0] == pytest.approx(1)


def test_confidence_is_the_fraction_right():
    rows = calibration(np.random.default_rng(11), 200)
    assert len(rows) > 580
    for low, high, bound in ((0, 0.8, 0.2), (0.8, 0.95, 0.06), (0.95, 0.99, 0.02), (0.99, 1.01, 0.01)):
        some = rows[(rows[:, 0] >= low) & (rows[:, 0] < high)]
        assert abs(some[:, 0].mean() - some[:, 2].mean()) < bound, (low, len(some), some.mean(axis=0))


def test_bad_input_of_the_classifier():
    good = ideal_state("zigzag", 8)
    with_nan, long = good.copy(), good.copy()
    with_nan[5, 1], long[7] = np.nan, 1.1 * good[7]
    for spins, L, words in (
        (good, 9, "shape"),
        (good[:, :2], 8, "shape"),
        (with_nan, 8, "site 5"),
        (long, 8, "site 7"),
        (good[:18], 3, "L = 3"),
    ):
        with pytest.raises(InputError, match=words) as error:
            classify(spins, L)
        assert "\n" not in str(error.value)
    assert classify(good * (1 + 1e-5), 8).phase is P.ZIGZAG
    assert classify(good.tolist(), 8).phase is P.ZIGZAG


def test_the_path_can_be_read():
    path = classify(ideal_state("zigzag", 12, domain=1), 12).path
    assert any("100% at M (1/2, 0): one wave vector" in sentence for sentence in path), path
