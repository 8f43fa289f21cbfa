"""Pictures of a run, as matplotlib figures; `draw_all` makes all of them as PNG. Every phase has one colour and one marker in all."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from phases.errors import InputError, PlotsMissing
from phases.history import Run, outcome
from phases.maps import check_map, slice_points
from phases.model import Lattice
from phases.names import FAILED, TIMEOUT
from phases.reciprocal import cartesian, structure_factor
from phases.surrogate import squared_distances

PHASE_STYLES = {  # a colour and a marker for each phase, the same in all pictures
    "FM": ("#4477aa", "o"),
    "AFM": ("#ee6677", "s"),
    "ZIGZAG": ("#228833", "^"),
    "ORDER_120": ("#ccbb44", "v"),
    "INCOMM_GAMMA_M": ("#66ccee", "D"),
    "INCOMM_GAMMA_K": ("#aa3377", "p"),
    "SINGLE_Q": ("#ee7733", "<"),
    "BEATING": ("#ffaabb", ">"),
    "MERON_ANTIMERON": ("#332288", "*"),
    "TRIPLE_Q": ("#7a4a1e", "h"),
    "INCOMMENSURATE": ("#44bb99", "P"),
    "DISORDERED": ("#bbbbbb", "X"),
    "UNKNOWN": ("#777777", "d"),
}
OTHER_STYLE = ("#000000", "x")  # failures
OUT_OF_PLANE = ("#1f6fe5", "#3a3a3a", "#e0301e")  # colours of S_z = -1, 0, 1: in-plane arrows must be seen on white
MAP_GRID = 120
PICTURE_DPI = 120


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches that no window or global state knows of. Raises PlotsMissing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotsMissing(f"no pictures: matplotlib is not installed ({error}); pip install 'ibp-reduce[plots]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def png_bytes(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PICTURE_DPI)
    return buffer.getvalue()


def phase_order(names: Iterable[str]) -> list[str]:
    """In the order of PHASE_STYLES, others after them."""
    known = list(PHASE_STYLES)
    return sorted(set(names), key=lambda name: (known.index(name) if name in known else len(known), name))


def phase_colour(name: str) -> str:
    return PHASE_STYLES.get(name, OTHER_STYLE)[0]


def plain(text: str) -> str:
    """For matplotlib, which takes a dollar sign for the start of a formula."""
    return text.replace("$", r"\$")


def draw_phase_map(run: Run, a: str, b: str, fixed: Mapping[str, float]) -> Any:
    """Regions and boundaries of the surrogate in a slice, sampled points over it, the nearer to the slice the larger."""
    figure, box, surrogate = new_figure(8.2, 6), run.explorer.box, run.explorer.surrogate()
    from matplotlib.colors import to_rgb

    axes = figure.add_subplot()
    points = slice_points(box, a, b, fixed, MAP_GRID)
    p = surrogate.probabilities(points.reshape(-1, len(box.names))).reshape(MAP_GRID, MAP_GRID, -1)
    extent = [bound for name in (a, b) for bound in box.bounds()[name]]
    best, colours = p.argmax(axis=2), np.array([to_rgb(phase_colour(label)) for label in surrogate.labels])
    strength = (0.15 + 0.45 * p.max(axis=2))[..., None]
    axes.imshow(1 - strength * (1 - colours[best]), origin="lower", extent=extent, aspect="auto", interpolation="nearest")
    for c in range(p.shape[2] if p.shape[2] > 1 else 0):
        margin = p[..., c] - np.delete(p, c, axis=2).max(axis=2)
        if margin.min() < 0 < margin.max():
            axes.contour(np.linspace(*extent[:2], MAP_GRID), np.linspace(*extent[2:], MAP_GRID), margin, [0], colors="k", linewidths=0.9)
    draw_map_points(axes, run, a, b, points[0, 0], surrogate.scales)
    shown = set(run.states()) | set(np.array(surrogate.labels)[np.unique(best)].tolist())
    add_phase_legend(figure, shown)
    axes.set(xlabel=plain(a), ylabel=plain(b), xlim=extent[:2], ylim=extent[2:])
    others = [f"{name} = {value:g}" for name, value in box.parameters(points[0, 0]).items() if name not in (a, b)]
    title = "Phases predicted where " + ", ".join(others) if others else "Predicted phases"
    axes.set_title(plain(title) + ("\npoints: the nearer to this slice, the larger" if others else ""), fontsize=10)
    return figure


def draw_map_points(axes: Any, run: Run, a: str, b: str, corner: np.ndarray, scales: np.ndarray) -> None:
    """The sampled points, by phase, sized by their distance from the slice through `corner` along a and b."""
    box = run.explorer.box
    away = np.array([name not in (a, b) for name in box.names])
    units = np.array([point.unit for point in run.explorer.points]).reshape(-1, len(box.names))
    apart = squared_distances(units * away, (corner * away)[None], scales)[:, 0]
    near = np.exp(-3 * apart)
    states = np.array([outcome(run.told[id]) if id in run.told else "pending" for id in range(len(units))])
    values = np.array([list(box.parameters(unit).values()) for unit in units]).reshape(units.shape)
    x, y = values[:, box.names.index(a)], values[:, box.names.index(b)]
    for state in phase_order(states):
        here = states == state
        colour, marker = PHASE_STYLES.get(state, OTHER_STYLE)
        edge = {} if marker == "x" else {"edgecolors": "k", "linewidths": 0.6}
        size = (8 + 60 * near[here]) * (1.8 if marker == "*" else 1)
        axes.scatter(x[here], y[here], size, c=colour, marker=marker, alpha=0.35 + 0.65 * near[here], zorder=3, clip_on=False, **edge)


def add_phase_legend(figure: Any, shown: Iterable[str]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for name in phase_order(shown):
        colour, marker = PHASE_STYLES.get(name, OTHER_STYLE)
        edge = colour if marker == "x" else "k"
        handles.append(
            Line2D([], [], color=colour, marker=marker, linestyle="", markeredgecolor=edge, markeredgewidth=0.6, markersize=7, label=name)
        )
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)


def draw_probability_line(run: Run) -> Any:
    """For a box of one parameter: the probability of each phase along it."""
    figure, box, surrogate = new_figure(8, 4), run.explorer.box, run.explorer.surrogate()
    axes, unit_line = figure.add_subplot(), np.linspace(0, 1, 400)[:, None]
    x = box.low[0] + unit_line[:, 0] * (box.high[0] - box.low[0])
    for label, p in zip(surrogate.labels, surrogate.probabilities(unit_line).T):
        axes.plot(x, p, color=phase_colour(label))
    for id, event in run.labelled.items():
        colour, marker = PHASE_STYLES.get(event["phase"], OTHER_STYLE)
        axes.plot(run.parameters(id)[box.names[0]], 1.03, marker, color=colour, markersize=5, clip_on=False)
    axes.set(xlabel=plain(box.names[0]), ylabel="probability", ylim=(0, 1.08), xlim=(box.low[0], box.high[0]))
    add_phase_legend(figure, run.states())
    return figure


def bar_chart(names: Sequence[str], values: Sequence[float], colours: Sequence[str], label: str, fmt: str = "%g", room: float = 1.1) -> Any:
    """The first name is the lowest; room: to the right of the longest bar, as its multiple."""
    figure = new_figure(7, 1 + 0.36 * max(len(names), 2))
    axes = figure.add_subplot()
    axes.bar_label(axes.barh([plain(name) for name in names], values, color=colours), fmt=fmt, padding=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel=label, xlim=(0, room * max(1e-9, *values)))
    return figure


def draw_counts(run: Run) -> Any:
    states = run.states()
    names = list(states)[::-1]
    colours = ["#dddddd" if name == "pending" else phase_colour(name) for name in names]
    return bar_chart(names, [states[name] for name in names], colours, "points")


def draw_timeline(run: Run) -> Any:
    """What came of the simulations, in the order of their ends: numbers of each phase, energies, and how the predictions settle."""
    figure, told = new_figure(8, 7.5), run.told
    upper, middle, lower = figure.subplots(3, height_ratios=(3, 3, 2))
    states = np.array([*map(outcome, told.values())])
    number, names = np.arange(1, len(states) + 1), phase_order(states)
    upper.stackplot(
        number, *(np.cumsum(states == name) for name in names), colors=[phase_colour(name) for name in names], alpha=0.75, step="post"
    )
    failed = int(np.isin(states, [FAILED, TIMEOUT]).sum())
    upper.set_title(f"{len(states) - failed} completed, {failed} failed", fontsize=10)
    upper.set(ylabel="points so far", xlim=(1, max(number[-1], 2)))
    energies = np.array([event.get("energy", np.nan) for event in told.values()], dtype=float)
    for name in names:
        here = (states == name) & np.isfinite(energies)
        colour, marker = PHASE_STYLES.get(name, OTHER_STYLE)
        middle.scatter(number[here], energies[here], 20, c=colour, marker=marker)
    middle.set(ylabel="energy per site", xlim=upper.get_xlim(), xlabel="simulations, in the order of their ends")
    draw_convergence(lower, run.explorer.iterations)
    add_phase_legend(figure, names)
    for axes in (upper, middle, lower):
        axes.spines[["top"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    return figure


def draw_convergence(axes: Any, iterations: Sequence[Any]) -> None:
    """Changed labels and entropy of the predictions after each iteration."""
    known = [iteration for iteration in iterations if iteration.entropy is not None]
    axes.plot([i.number for i in known], [i.entropy for i in known], "o-", color="#4477aa", markersize=4)
    axes.set(xlabel="iteration", ylim=(0, None))
    axes.set_ylabel("entropy of the\npredictions, nats", color="#4477aa")
    axes.xaxis.get_major_locator().set_params(integer=True)
    other, moved = axes.twinx(), [i for i in known if i.changed is not None]
    other.plot([i.number for i in moved], [100 * i.changed for i in moved], "s--", color="#ee7733", markersize=4)
    other.set_ylabel("labels changed, %", color="#ee7733")
    other.set_ylim(0, None)
    other.spines[["top"]].set_visible(False)


def draw_importance(run: Run) -> Any:
    ranked = sorted(run.explorer.importances().items(), key=lambda item: item[1])
    shares, label = [100 * share for _, share in ranked], "share of the changes of phase when it alone changes, %"
    return bar_chart([name for name, _ in ranked], shares, ["#4477aa"] * len(ranked), label, "%.0f %%", 1.12)


def draw_point(run: Run, id: int) -> Any:
    """Spin texture and structure factor of a point."""
    spins, positions = run.spins(id)
    figure, event = new_figure(11, 5.6), run.told[id]
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    draw_texture(left, figure, spins, positions)
    draw_structure_factor(right, figure, spins, math.isqrt(len(spins) // 2))
    figure.suptitle(
        f"point {id}: {event['phase']}, confidence {event['confidence']:.2f}, energy per site {event['energy']:.6f}", fontsize=11
    )
    return figure


def draw_texture(axes: Any, figure: Any, spins: np.ndarray, positions: np.ndarray) -> None:
    """In-plane components as arrows, out-of-plane ones as colour, over the bonds; the periodic lattice is cut to a rectangle."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap

    lattice = Lattice.of(math.isqrt(len(spins) // 2))
    if np.allclose(positions, lattice.positions, atol=1e-4):
        positions = positions * 1.0
        positions[:, 0] = (positions[:, 0] + 0.01) % lattice.L
    pairs, colours = lattice.bonds[:3].reshape(-1, 2), LinearSegmentedColormap.from_list("out of plane", OUT_OF_PLANE)
    segments = positions[pairs]
    inside = np.linalg.norm(segments[:, 0] - segments[:, 1], axis=1) < 0.7  # not those across the border
    axes.add_collection(LineCollection(segments[inside], colors="#cccccc", linewidths=0.8, zorder=1))
    x, y = positions.T
    arrows = axes.quiver(
        x, y, spins[:, 0], spins[:, 1], spins[:, 2], cmap=colours, clim=(-1, 1), pivot="mid", units="x", scale=1.7, width=0.09, zorder=3
    )
    upright = np.hypot(spins[:, 0], spins[:, 1]) < 0.3  # arrows too short to be seen
    axes.scatter(x[upright], y[upright], 18, c=spins[upright, 2], cmap=colours, vmin=-1, vmax=1, zorder=2)
    axes.set(aspect="equal", xlim=(x.min() - 0.7, x.max() + 0.7), ylim=(y.min() - 0.7, y.max() + 0.7))
    axes.axis("off")
    bar = {"location": "bottom", "shrink": 0.6, "aspect": 40, "pad": 0.02, "ticks": [-1, -0.5, 0, 0.5, 1]}
    figure.colorbar(arrows, ax=axes, label="out-of-plane component", **bar)


def draw_structure_factor(axes: Any, figure: Any, spins: np.ndarray, L: int) -> None:
    """Intensity on the allowed q, area and colour, with the Brillouin zone; b1 and b2 as the reciprocals of a1 and a2 on paper."""
    intensity = structure_factor(spins, L).ravel()
    m, n = np.divmod(np.arange(L * L), L)
    images = np.array([(h, k) for h in (-2, -1, 0, 1) for k in (-2, -1, 0, 1)])
    q = cartesian(np.stack([m, n], 1)[None] / L + images[:, None]).ravel() * np.exp(-1j * np.pi / 6)
    weight = np.tile(intensity, len(images))
    inside = np.abs(q) < 0.8
    q, weight = q[inside], weight[inside]
    axes.scatter(q.real, q.imag, 2, c="#bbbbbb", zorder=1)
    order = np.argsort(weight)
    spots = axes.scatter(
        q.real[order], q.imag[order], 320 * weight[order] / weight.max() + 1e-9, c=weight[order], cmap="plasma_r", vmin=0, zorder=3
    )
    corners = np.exp(1j * np.pi / 3 * np.arange(7)) / math.sqrt(3)
    axes.plot(corners.real, corners.imag, color="k", linewidth=1, zorder=2)
    for name, place in (("Γ", 0), ("M", 0.5 * np.exp(1j * np.pi / 6)), ("K", corners[0])):
        axes.annotate(name, (np.real(place), np.imag(place)), (9, 7), textcoords="offset points", fontsize=11, zorder=4)
    axes.set(aspect="equal", xlim=(-0.86, 0.86), ylim=(-0.86, 0.86))
    axes.axis("off")
    figure.colorbar(spots, ax=axes, location="bottom", shrink=0.6, aspect=40, pad=0.02, label="share of the intensity at q")


def example_points(run: Run) -> list[int]:
    """For each phase the point that was named with most confidence."""
    best: dict[str, int] = {}
    for id, event in sorted(run.labelled.items()):
        other = best.get(event["phase"])
        if other is None or event["confidence"] > run.told[other]["confidence"] + 1e-3:
            best[event["phase"]] = id
    return [best[name] for name in phase_order(best)]


def draw_all(
    run: Run, wanted: Sequence[str] | None = None, fixed: Mapping[str, float] | None = None
) -> tuple[dict[str, tuple[str, bytes]], list[str]]:
    """All pictures of a run, {file name: (caption, PNG)}, and why some are missing. wanted, fixed: axes and cut of the map.

    Raises PlotsMissing where there is no matplotlib, InputError for a map that the box does not have.
    """
    figures: dict[str, tuple[str, Any]] = {}
    core, complaints = run.explorer, []
    check_map(core.box, wanted, fixed or {})
    new_figure(1, 1)  # without any picture to draw, say so all the same where there is no matplotlib
    several = len(core.box.names) > 1
    if core.has_labels and several:
        shares = core.importances()
        a, b = wanted or sorted(shares, key=lambda name: -shares[name])[:2]
        figures["map_" + re.sub(r"[^\w.-]", "_", f"{a}_{b}")] = (f"Phase map of {a} and {b}", draw_phase_map(run, a, b, fixed or {}))
    elif core.has_labels:
        figures["map"] = (f"Phases along {core.box.names[0]}", draw_probability_line(run))
    if run.told:
        figures["counts"] = ("Points of each phase", draw_counts(run))
        figures["timeline"] = ("Timeline", draw_timeline(run))
    if core.has_labels and several:
        figures["importance"] = ("Importance of the parameters", draw_importance(run))
    for id in example_points(run):
        try:
            figures[f"point-{id}"] = (f"{run.told[id]['phase']}: point {id}", draw_point(run, id))
        except InputError as error:  # its spins are gone: no reason to withhold the others
            complaints.append(str(error))
    return {name: (caption, png_bytes(figure)) for name, (caption, figure) in figures.items()}, complaints
