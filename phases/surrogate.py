"""Phase probabilities learnt from labelled points: a Gaussian-process classifier.

A softmax classifier with one Matérn-5/2 kernel for all phases. Three quick steps instead of one slow Laplace evidence: length scales from
the evidence of a regression on one-hot labels (Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, 5.4.1 and 6.5), latent
functions by the softmax mode, amplitude and temperature by leave-one-out log loss (Vehtari et al., arXiv:1412.7461, the linear-response
cavity). `fit_labels` makes a `Surrogate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

HYPER_POINTS = 1000  # length scales, amplitude and temperature are learnt from at most so many points
AMPLITUDES = (2.0, 5.0, 12.0, 30.0)  # of the latent functions, compared by leave-one-out
SHARPNESSES = np.exp(np.linspace(-2, 2, 25))  # inverse temperatures, compared likewise
LEAST_WEIGHT = 0.1  # of a label with confidence 0


@dataclass(frozen=True)
class Surrogate:
    """Phase probabilities of unit points, learnt from labelled ones.

    >>> surrogate = fit_labels(np.array([[0.1], [0.2], [0.8], [0.9]]), ["FM", "FM", "AFM", "AFM"], np.ones(4))
    >>> surrogate.labels, surrogate.probabilities(np.array([[0.15], [0.5]])).shape
    (('AFM', 'FM'), (2, 2))
    """

    labels: tuple[str, ...]  # the C phases, sorted
    points: np.ndarray  # (n, d)
    scales: np.ndarray  # (d,) length scales in unit coordinates
    coefficients: np.ndarray  # (n, C), of the kernels around the points
    doubt: float  # probability given to all phases alike: what n points cannot exclude

    def probabilities(self, points: np.ndarray) -> np.ndarray:
        """Shape (m, C), each row sums to 1, for unit points (m, d)."""
        kernel, _ = matern(squared_distances(points, self.points, self.scales))
        return (1 - self.doubt) * softmax(kernel @ self.coefficients) + self.doubt / len(self.labels)

    def predict(self, points: np.ndarray) -> np.ndarray:
        """The most probable label of each unit point, shape (m,)."""
        return np.array(self.labels)[self.probabilities(points).argmax(axis=1)]


def fit_labels(points: np.ndarray, labels: Sequence[str], weights: np.ndarray) -> Surrogate:
    """The surrogate of n >= 1 labelled unit points (n, d), whatever their order; weights (n,) in (0, 1] say how sure a label is.

    >>> fit_labels(np.array([[0.1], [0.2], [0.9]]), ["FM", "FM", "AFM"], np.ones(3)).predict(np.array([[0.0], [1.0]])).tolist()
    ['FM', 'AFM']
    """
    order = np.lexsort(points.T)
    points, weights = points[order], weights[order]
    names, classes = np.unique(np.array(labels)[order], return_inverse=True)
    onehot = np.eye(len(names))[classes]
    n, d = points.shape
    doubt = 1 / (n + 1)
    if len(names) == 1:
        return Surrogate(tuple(names.tolist()), points, np.full(d, default_scale(d)), np.zeros((n, 1)), doubt)
    some = np.sort(np.random.default_rng(0).permutation(n)[:HYPER_POINTS])
    scales = evidence_scales(points[some], onehot[some], weights[some])
    kernel = matern(squared_distances(points[some], points[some], scales))[0]
    amplitude, sharpness, alpha = best_mode(kernel, onehot[some], weights[some])
    if len(some) < n:
        kernel = amplitude**2 * matern(squared_distances(points, points, scales))[0]
        _, alpha = latent_mode(kernel, onehot, weights)
    return Surrogate(tuple(names.tolist()), points, scales, sharpness * amplitude**2 * alpha, doubt)


def default_scale(d):
    return 0.3 * math.sqrt(d)


def squared_distances(a: np.ndarray, b: np.ndarray, scales: np.ndarray | float) -> np.ndarray:
    a, b = a / scales, b / scales
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)


def matern(r2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Matérn-5/2 kernel of squared scaled distances, and its derivative by them."""
    root = np.sqrt(5 * r2)
    decay = np.exp(-root)
    return (1 + root + root**2 / 3) * decay, -5 / 6 * (1 + root) * decay


def softmax(z: np.ndarray) -> np.ndarray:
    z = np.exp(z - z.max(axis=-1, keepdims=True))
    return z / z.sum(axis=-1, keepdims=True)


def evidence_scales(points: np.ndarray, onehot: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Length scales (d,) of greatest evidence for a regression on one-hot labels, amplitude profiled out, noise fitted along."""
    (n, d), C = points.shape, onehot.shape[1]
    targets = onehot - 1 / C
    start = np.append(np.full(d, math.log(default_scale(d))), math.log(0.01))

    def loss(x):
        scales, noise = np.exp(x[:d]), np.exp(x[d])
        kernel, slope = matern(squared_distances(points, points, scales))
        root = np.linalg.cholesky(kernel + np.diag((noise + 1e-4) / weights))
        inverse = np.linalg.inv(root)
        inverse = inverse.T @ inverse
        alpha = inverse @ targets
        count = n * (C - 1)  # the C targets of a point sum to 0
        variance = (targets * alpha).sum() / count
        value = (0.5 * count * math.log(variance) + (C - 1) * np.log(np.diag(root)).sum()) / n
        by_kernel = (-0.5 / variance * alpha @ alpha.T + 0.5 * (C - 1) * inverse) / n
        by_r2, scaled = by_kernel * slope, points / scales
        by_scales = -4 * (by_r2.sum(1) @ scaled**2 - (scaled * (by_r2 @ scaled)).sum(0))
        gradient = np.append(by_scales, noise * (np.diag(by_kernel) / weights).sum())
        away, pull = x - start, 1 / n  # a prior a factor e wide; without it a parameter may drop out by chance while points are few
        return value + 0.5 * pull * away @ away, gradient + pull * away

    return np.exp(minimise(loss, start, steps=60, tolerance=1e-5)[:d])


def latent_mode(kernel: np.ndarray, onehot: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latent functions F (n, C) of greatest posterior probability, softmax likelihood, and alpha (n, C): F = kernel @ alpha.

    At the mode alpha is the residual onehot - p. Where the search stops that is not quite so: predictions by the residual may be far off.
    """
    n, C = onehot.shape
    root = np.linalg.cholesky(kernel + 1e-6 * kernel[0, 0] * np.eye(n))

    def loss(x):
        white = x.reshape(n, C)
        latent = root @ white
        top = latent.max(axis=1, keepdims=True)
        log_p = latent - top - np.log(np.exp(latent - top).sum(axis=1, keepdims=True))
        residual = weights[:, None] * (onehot - np.exp(log_p))
        return 0.5 * (white**2).sum() - (weights[:, None] * onehot * log_p).sum(), (white - root.T @ residual).ravel()

    white = minimise(loss, np.zeros(n * C), steps=200, tolerance=1e-6).reshape(n, C)
    return root @ white, np.linalg.solve(root.T, white)


def best_mode(kernel: np.ndarray, onehot: np.ndarray, weights: np.ndarray) -> tuple[float, float, np.ndarray]:
    """(amplitude, inverse temperature, alpha (n, C)) of least leave-one-out log loss."""
    best = (math.inf, 0.0, 0.0, np.zeros_like(onehot))
    for amplitude in AMPLITUDES:
        latent, alpha = latent_mode(amplitude**2 * kernel, onehot, weights)
        left_out = leave_one_out(amplitude**2 * kernel, latent, alpha, weights)
        for sharpness in SHARPNESSES:
            own = (softmax(sharpness * left_out) * onehot).sum(axis=1)
            loss = -(weights * np.log(np.maximum(own, 1e-300))).sum()
            if loss < best[0]:
                best = (loss, amplitude, float(sharpness), alpha)
    return best[1:]


def leave_one_out(kernel: np.ndarray, latent: np.ndarray, alpha: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Latent values (n, C) predicted for each point by the others, linearised about the mode, phases taken as independent."""
    p, left_out = softmax(latent), np.empty_like(latent)
    for c in range(latent.shape[1]):
        curvature = np.maximum(weights * p[:, c] * (1 - p[:, c]), 1e-8)
        root = np.sqrt(curvature)
        shrink = np.diag(np.linalg.inv(np.eye(len(p)) + root[:, None] * kernel * root))
        left_out[:, c] = latent[:, c] + alpha[:, c] * (1 - 1 / shrink) / curvature
    return left_out


def minimise(loss: Callable, x: np.ndarray, steps: int, tolerance: float, memory: int = 15, longest: float = 1.5) -> np.ndarray:
    """A local minimum of loss(x) -> (value, gradient) by L-BFGS with backtracking; no coordinate moves by more than `longest` in a step."""
    value, gradient = loss(x)
    moves: list[tuple[np.ndarray, np.ndarray]] = []  # the last (step, change of the gradient)
    for _ in range(steps):
        direction = quasi_newton(gradient, moves)
        direction *= min(1.0, longest / max(np.abs(direction).max(), 1e-300))
        slope, length = gradient @ direction, 1.0
        while True:
            new = x - length * direction
            new_value, new_gradient = loss(new)
            if new_value <= value - 1e-4 * length * slope:
                break
            length *= 0.4
            if length < 1e-4:
                return x
        if (new - x) @ (new_gradient - gradient) > 1e-10:
            moves = [*moves[1 - memory :], (new - x, new_gradient - gradient)]
        gained = value - new_value
        x, value, gradient = new, new_value, new_gradient
        if gained < tolerance * max(1.0, abs(value)):
            break
    return x


def quasi_newton(gradient, moves):
    """The inverse Hessian, as the moves show it, times the gradient (two-loop recursion)."""
    direction, factors = gradient.copy(), []
    for step, change in reversed(moves):
        factors.append(step @ direction / (step @ change))
        direction -= factors[-1] * change
    direction *= moves[-1][0] @ moves[-1][1] / (moves[-1][1] @ moves[-1][1]) if moves else 1 / max(1.0, np.abs(gradient).sum())
    for (step, change), factor in zip(moves, reversed(factors)):
        direction += step * (factor - change @ direction / (step @ change))
    return direction
