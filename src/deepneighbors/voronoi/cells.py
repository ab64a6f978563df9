"""Training points as linear scores, which order them as a distance does; what both certified answers share.

With p_i the training points and c_i = norm(p_i)^2 / 2, the score s_i(x') = c_i - p_i . x' orders the points as their
Euclidean distance does. With unit vectors p_i and c_i = 0 it orders them as the cosine does. Both problems are thus
the same linear one: j wins over i where (p_i - p_j) . x' <= c_i - c_j.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepneighbors import checks
from deepneighbors.errors import InputError

METRICS = ("l2", "cosine")
QUERIES = 128  # queries whose scores are computed in one product
Array = NDArray[np.float64]

_TIE = 1e-11  # scores this close, relative to the largest, are one distance; rounding in float64 is below it


@dataclass(frozen=True)
class Cells:
    """Training points as linear scores; ``anchors`` are the points themselves, each inside its own cell."""

    points: Array
    offsets: Array
    squares: Array
    anchors: Array
    labels: NDArray[np.int64]

    @property
    def rounding(self) -> float:
        return _TIE * float(self.squares.max())

    def scores(self, queries: Array) -> Array:
        """Scores (N,) or (B, N): the nearest point has the smallest."""
        return self.offsets - queries @ self.points.T

    def nearest(self, scores: Array) -> int:
        """Index of the nearest point, the lowest of those at the same distance."""
        return int(np.flatnonzero(scores <= scores.min() + self.rounding)[0])


def pair_bounds(cells: Cells, same: NDArray, other: NDArray, scores: Array) -> Array:
    """Signed distance (same, other) to the half-space where the other point wins; 0 for points that coincide."""
    apart = distances(cells.points[same], cells.squares[same], cells.points[other], cells.squares[other])
    gaps = scores[other][None, :] - scores[same][:, None]
    return np.where(apart > np.sqrt(cells.rounding), gaps / np.maximum(apart, 1e-300), 0.0)


def distances(left: Array, left_squares: Array, right: Array, right_squares: Array) -> Array:
    squares = left_squares[:, None] + right_squares[None, :] - 2 * (left @ right.T)
    return np.sqrt(np.maximum(squares, 0))


def smallest(values: Array, count: int) -> NDArray[np.int64]:
    """Indices of the ``count`` smallest values, in order."""
    chosen = np.argpartition(values, count - 1)[:count] if count < len(values) else np.arange(len(values))
    return chosen[np.argsort(values[chosen], kind="stable")]


def prepare(
    queries: Any, labels: Any, x_train: Any, y_train: Any, metric: str, box: tuple[float, float]
) -> tuple[Array, NDArray[np.int64], Cells]:
    checks.one_of("metric", metric, METRICS)
    x, train = matrix("queries", queries, 2), matrix("x_train", x_train, 2)
    if x.shape[1] != train.shape[1]:
        raise InputError(f"queries have {x.shape[1]} columns and x_train {train.shape[1]}; they must be the same")
    if not box[0] < box[1]:
        raise InputError(f"box is {box}; its first end must be below its second")
    for name, values in (("queries", x), ("x_train", train)):
        if values.min() < box[0] or values.max() > box[1]:
            raise InputError(f"{name} has values from {values.min():.4g} to {values.max():.4g}; the box is {box}")
    if metric == "cosine" and not x.any(1).all():
        raise InputError(f"queries has a point of length 0 at {int(x.any(1).argmin())}; its cosine is not defined")
    return x, _labels("labels", labels, len(x)), _cells(train, _labels("y_train", y_train, len(train)), metric)


def _cells(train: Array, labels: NDArray[np.int64], metric: str) -> Cells:
    if metric == "l2":
        squares = np.einsum("nd,nd->n", train, train)
        return Cells(train, squares / 2, squares, train, labels)
    lengths = np.linalg.norm(train, axis=1)
    if not lengths.all():
        raise InputError(f"x_train has a point of length 0 at {int(lengths.argmin())}; its cosine is not defined")
    return Cells(train / lengths[:, None], np.zeros(len(train)), np.ones(len(train)), train, labels)


def matrix(name: str, values: Any, dimensions: int) -> Array:
    made = np.asarray(values, dtype=np.float64)
    if made.ndim != dimensions or made.size == 0:
        shape = "(D,)" if dimensions == 1 else "(n, D)"
        raise InputError(f"{name} has shape {made.shape}; it must be {shape} and not empty")
    if not np.isfinite(made).all():
        raise InputError(f"{name} has values that are NaN or infinite; only finite numbers are allowed")
    return made


def _labels(name: str, values: Any, count: int) -> NDArray[np.int64]:
    made = np.asarray(values)
    if made.shape != (count,) or not np.issubdtype(made.dtype, np.integer):
        raise InputError(f"{name} has shape {made.shape} and type {made.dtype}; it must be {count} whole numbers")
    return made.astype(np.int64)
