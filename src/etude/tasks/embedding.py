"""Points of many dimensions drawn in two: principal components, and t-SNE (van der Maaten and Hinton, JMLR 2008)."""

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def plane(points: Points) -> tuple[Points, tuple[float, float]]:
    """Principal components: (n, d) -> (n, 2), and the shares of the variance that the two have. Of the two signs of a
    component the one that makes its largest weight positive."""
    centred = points - points.mean(0)
    _, singular, components = np.linalg.svd(centred, full_matrices=False)
    components = np.pad(components[:2], ((0, 2 - len(components[:2])), (0, 0)))
    largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], 1)
    variance = np.pad(singular**2, (0, 2))
    total = max(variance.sum(), 1e-300)
    shares = (float(variance[0] / total), float(variance[1] / total))
    return centred @ (components * np.where(largest < 0, -1.0, 1.0)).T, shares


def tsne(points: Points, *, perplexity: float = 30.0, steps: int = 400) -> Points:
    """(n, d) -> (n, 2): neighbours stay neighbours. Exact, O(n^2) a step, without chance: it begins at the principal
    components. Momentum, gains and early exaggeration are those of the authors' code."""
    size = len(points)
    y, _ = plane(points)
    if size < 4:
        return y
    p = _affinities(points, min(perplexity, (size - 1) / 3)).astype(np.float32)
    y = (y / max(y.std(), 1e-12) * 1e-4).astype(np.float32)
    velocity, gains, rate = np.zeros_like(y), np.ones_like(y), max(size / 48, 50.0)
    for step in range(steps):
        exaggeration, momentum = (12.0, 0.5) if step < steps // 4 else (1.0, 0.8)
        student = 1 / (1 + _squares(y))  # equation 4, before its sum
        np.fill_diagonal(student, 0)
        forces = (exaggeration * p - student / student.sum()) * student
        gradient = 4 * (forces.sum(1)[:, None] * y - forces @ y)  # equation 5
        gains = np.maximum(np.where((gradient > 0) == (velocity > 0), gains * 0.8, gains + 0.2), 0.01)
        velocity = momentum * velocity - rate * gains * gradient
        y = y + velocity
        y -= y.mean(0)
    return y.astype(np.float64)


def _squares(points: NDArray) -> NDArray:
    """Squared distances (n, n)."""
    norms = (points**2).sum(1)
    return np.maximum(norms[:, None] + norms - 2 * points @ points.T, 0)


def _affinities(points: Points, perplexity: float) -> Points:
    """Symmetric p_ij (n, n) that sum to one: Gaussians around each point, as wide as gives the perplexity (equation 1),
    found by bisection."""
    squares = _squares(points)
    squares /= max(squares.mean(), 1e-300)
    np.fill_diagonal(squares, np.inf)
    squares -= squares.min(1, keepdims=True)
    low, high = np.full(len(points), 1e-6), np.full(len(points), 1e6)
    p = np.zeros_like(squares)
    finite = np.where(np.isfinite(squares), squares, 0)
    for _ in range(60):
        beta = np.sqrt(low * high)
        p = np.exp(-squares * beta[:, None])
        total = p.sum(1)
        entropy = np.log(total) + beta * (p * finite).sum(1) / total
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, beta, low), np.where(wide, high, beta)
    p /= p.sum(1, keepdims=True)
    return np.maximum((p + p.T) / (2 * len(p)), 1e-12)
