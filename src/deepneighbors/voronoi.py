"""Certified answers about nearest-neighbour classifiers: the exact optimum for one neighbour, a lower bound for k.

The 1-NN classifier errs on x' exactly where x' lies in the Voronoi cell of a training point of another class. The
smallest perturbation is therefore the least, over those points j, of a convex quadratic program: the distance from
the query to the box cut by the half-spaces "x' is nearer to j than to i", one for each training point i of the
query's own class (Wang et al. 2019, primal-dual; Yang et al. 2020, RBA-Exact).

With p_i the training points and c_i = norm(p_i)^2 / 2, the score s_i(x') = c_i - p_i . x' orders the points as their
Euclidean distance does. With unit vectors p_i and c_i = 0 it orders them as the cosine does. Both problems are thus
the same linear one: j wins over i where (p_i - p_j) . x' <= c_i - c_j.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from deepneighbors import checks
from deepneighbors.errors import InputError

METRICS = ("l2", "cosine")
Array = NDArray[np.float64]

_TIE = 1e-11  # scores this close, relative to the largest, are one distance; rounding in float64 is below it
_NEAR = 16  # same-class points that the first bound of a candidate looks at
_FIRST, _MORE = 30, 50  # constraints of a program at the start, and at most added in each round
_ROUNDS = 60
_QUERIES = 128  # queries whose scores are computed in one product


@dataclass(frozen=True)
class ExactAnswer:
    """The smallest perturbation of one query.

    Attributes
    ----------
    x_adv
        Point (D,) in the box, float64, that the classifier gets wrong; the query where that is wrong already.
    distance
        L2 distance from the query to ``x_adv``: an upper bound on the optimum. Infinite where no point is misclassified:
        every training point of another class is the duplicate of an earlier one of the query's class.
    lower_bound
        No point nearer than this is misclassified, by weak duality.
    certified
        ``distance - lower_bound`` is at most the tolerance.
    n_programs
        Quadratic programs begun.
    n_candidates
        Training points of other classes whose half-space bound is below ``distance``.
    """

    x_adv: Array
    distance: float
    lower_bound: float
    certified: bool
    n_programs: int
    n_candidates: int


@dataclass(frozen=True)
class _Cells:
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


def minimum_perturbation(query: Any, label: int, x_train: Any, y_train: Any, **options: Any) -> ExactAnswer:
    """The smallest L2 perturbation of one query (D,); arguments as in :func:`minimum_perturbations`."""
    return minimum_perturbations(_matrix("query", query, 1)[None], np.array([label]), x_train, y_train, **options)[0]


def minimum_perturbations(
    queries: Any,
    labels: Any,
    x_train: Any,
    y_train: Any,
    *,
    metric: str = "l2",
    box: tuple[float, float] = (0.0, 1.0),
    tolerance: float = 1e-3,
    margin: float = 1e-4,
) -> list[ExactAnswer]:
    """The smallest L2 perturbations, inside the box, that a 1-NN classifier gets wrong.

    Candidates are taken in increasing order of the half-space bound max(0, s_j - s_i) / norm(p_i - p_j), which is a lower
    bound with and without the box, until it exceeds the best distance found. Each program is solved by its dual
    (L-BFGS-B; delta = clip(-A' lambda) to the box) over constraints that are added as they are violated. A candidate
    whose dual value already exceeds the best distance is given up.

    The solution lies on the border up to the solver's error, so it is moved along the segment to x_j, the least part
    of the way after which j's score is below every other by ``margin``. It is then classified again; ties go to the
    lowest index.

    Parameters
    ----------
    queries, labels
        Points (B, D) inside the box and their true labels (B,).
    x_train, y_train
        Training points (N, D) inside the box with labels (N,). Cosine normalises them; the queries stay as they are.
    metric
        Distance of the classifier: ``l2`` or ``cosine``. The perturbation is always measured in L2.
    box
        Lowest and highest value of a coordinate; infinite ends are allowed.
    tolerance
        Largest gap between distance and lower bound that counts as certified.
    margin
        How far to pass the border, in units of the score (half a squared distance for ``l2``), and at most half as far
        as x_j lies. The default lets digits stored in float32 stay misclassified and costs about 1e-5 of distance.

    Returns
    -------
    One answer a query, in their order. A query that is wrong already has distance 0. Cost: about 60,000 x D x 40
    multiplications a query, and float64 copies of the training points, twice for ``cosine``.

    Raises
    ------
    InputError
        Wrong shapes, NaN, values outside the box, an unknown metric, or training points of one class only.
    """
    x, y, cells = _prepare(queries, labels, x_train, y_train, metric, box)
    checks.positive("tolerance", tolerance)
    checks.positive("margin", margin)
    if len(np.unique(cells.labels)) < 2:
        raise InputError("y_train has one class only; a second one is needed for a point to be misclassified")
    answers: dict[int, ExactAnswer] = {}
    for label in np.unique(y):
        own = _OwnClass(cells, int(label), box, tolerance, margin)
        chosen = np.flatnonzero(y == label)
        for part in np.split(chosen, range(_QUERIES, len(chosen), _QUERIES)):
            answers |= {int(i): own.answer(x[i], row) for i, row in zip(part, cells.scores(x[part]), strict=True)}
    return [answers[i] for i in range(len(x))]


class _OwnClass:
    """Solves queries of one label; keeps the training points of that class together."""

    def __init__(self, cells: _Cells, label: int, box: tuple[float, float], tolerance: float, margin: float):
        self.cells, self.label, self.box, self.tolerance, self.margin = cells, label, box, tolerance, margin
        self.same, self.other = np.flatnonzero(cells.labels == label), np.flatnonzero(cells.labels != label)
        self.points, self.offsets = cells.points[self.same], cells.offsets[self.same]

    def answer(self, x: Array, scores: Array) -> ExactAnswer:
        """The smallest perturbation of ``x``, whose scores against all training points are given."""
        if self.cells.labels[self.cells.nearest(scores)] != self.label:
            return ExactAnswer(x.copy(), 0.0, 0.0, True, 0, 0)
        bounds = self.bounds(scores)
        best, best_distance, lowest, programs = x, np.inf, np.inf, 0
        for candidate in np.argsort(bounds, kind="stable"):
            if bounds[candidate] >= best_distance:
                break
            found, bound = self.program(x, scores, int(self.other[candidate]), best_distance)
            programs, lowest = programs + 1, min(lowest, max(bound, float(bounds[candidate])))
            if found is not None and np.linalg.norm(found - x) < best_distance:
                best, best_distance = found, float(np.linalg.norm(found - x))
        lowest = min(lowest, best_distance)
        certified = best_distance - lowest <= self.tolerance
        return ExactAnswer(best, best_distance, lowest, certified, programs, int((bounds < best_distance).sum()))

    def bounds(self, scores: Array) -> Array:
        """Half-space bound (other,) of each candidate from the nearest points of the own class."""
        near = self.same[_smallest(scores[self.same], _NEAR)]
        gaps = _pair_bounds(self.cells, near, self.other, scores)
        return gaps.max(0).clip(0)

    def program(self, x: Array, scores: Array, j: int, limit: float) -> tuple[Array | None, float]:
        """Nearest point of the cell of ``j`` that is misclassified, and a lower bound on the distance to the cell.

        The point is None where the bound reaches ``limit``, and where j never wins (it duplicates an earlier point).
        """
        point = self.cells.points[j]
        norms = _distances(self.points, self.cells.squares[self.same], point[None], self.cells.squares[[j]])[:, 0]
        apart = norms > np.sqrt(self.cells.rounding)
        norms[~apart] = 1.0
        twins = np.abs(self.points[~apart] - point).max(1, initial=0) < 1e-12
        if (self.same[~apart][twins] < j).any():  # a tie with an earlier point of the own class at best
            return None, np.inf

        def violation(at: Array) -> Array:
            """How far beyond each half-space, as a distance; negative inside."""
            ahead = (self.cells.offsets[j] - point @ at) - (self.offsets - self.points @ at)
            return np.where(apart, ahead / norms, -np.inf)

        start = violation(x)
        chosen = _smallest(-start, _FIRST)
        chosen = chosen[np.isfinite(start[chosen])]
        if len(chosen) == 0:
            return self.cross(x, j, norms * apart), 0.0
        delta, multipliers, bound = np.zeros_like(x), np.zeros(0), 0.0
        for _ in range(_ROUNDS):
            normals = (self.points[chosen] - point) / norms[chosen, None]
            warm = np.concatenate([multipliers, np.zeros(len(chosen) - len(multipliers))])
            delta, multipliers, value = _dual(normals, -start[chosen], self.box[0] - x, self.box[1] - x, warm, limit)
            bound = max(bound, value)
            if bound >= limit:
                return None, bound
            beyond = violation(x + delta)
            beyond[chosen] = -np.inf
            new = _smallest(-beyond, _MORE)
            new = new[beyond[new] > 1e-3 * self.tolerance]
            if len(new) == 0:
                break
            chosen = np.concatenate([chosen, new])
        return self.cross(np.clip(x + delta, *self.box), j, norms * apart), bound

    def cross(self, at: Array, j: int, norms: Array) -> Array | None:
        """``at`` moved towards x_j until j is nearest by the margin, verified; None where that cannot be.

        Scores are linear, so the part of the way that each point of the own class asks for has a closed form.
        """
        anchor, apart = self.cells.anchors[j], norms > 0
        gap_here, gap_there = (self._lead(point, j)[apart] for point in (at, anchor))
        margin = np.minimum(self.margin, gap_there / 2)
        short = margin - gap_here
        part = np.max(short / np.maximum(short + gap_there - margin, 1e-300), initial=0.0, where=short > 0)
        for attempt in range(20):
            moved = at + min(1.0, part * 2**attempt) * (anchor - at)
            if moved.any() and self.cells.labels[self.cells.nearest(self.cells.scores(moved))] != self.label:
                return moved
        return None

    def _lead(self, at: Array, j: int) -> Array:
        """Scores of the own class less that of ``j``."""
        return (self.offsets - self.points @ at) - (self.cells.offsets[j] - self.cells.points[j] @ at)


def _dual(normals: Array, room: Array, lower: Array, upper: Array, start: Array, limit: float) -> tuple[Array, Array, float]:
    """min norm(delta) with normals @ delta <= room and lower <= delta <= upper, by its dual: delta, multipliers, bound.

    For multipliers lambda >= 0 the Lagrangian norm(delta)^2 / 2 + lambda . (normals @ delta - room) is least at
    delta = clip(-normals' lambda), and its value there bounds the optimum norm(delta)^2 / 2 from below.
    """

    def value(multipliers: Array) -> tuple[float, Array]:
        delta = np.clip(-(multipliers @ normals), lower, upper)
        slack = normals @ delta - room
        return -float(0.5 * delta @ delta + multipliers @ slack), -slack

    def enough(intermediate_result: Any) -> None:
        if -2 * intermediate_result.fun > limit**2:
            raise StopIteration

    solver: dict[str, Any] = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-7, "maxcor": 20}
    bounds = [(0, None)] * len(start)
    found = minimize(value, start, jac=True, method="L-BFGS-B", bounds=bounds, callback=enough, options=solver)
    multipliers = np.maximum(found.x, 0)
    delta = np.clip(-(multipliers @ normals), lower, upper)
    return delta, multipliers, float(np.sqrt(max(0.0, -2 * value(multipliers)[0])))


def lower_bound_knn(
    queries: Any,
    labels: Any,
    x_train: Any,
    y_train: Any,
    k: int,
    *,
    metric: str = "l2",
    box: tuple[float, float] = (0.0, 1.0),
    n_same: int | None = None,
    n_other: int = 8192,
) -> Array:
    """A certified lower bound (B,) on any L2 perturbation that changes the plurality vote of k neighbours.

    Let B_ij = max(0, s_j - s_i) / norm(p_i - p_j) be the distance to the half-space where j (another class) is at least
    as near as i (the query's class). Suppose that the vote at x + delta is not the label. Then a of the k neighbours,
    a <= floor(k / 2), are of the label: with more, no other class could reach as many votes, however many classes
    there are and however ties are broken. So k - a >= ceil(k / 2) neighbours j are of other classes, and each of them
    is at least as near as all points i of the label except those a. Hence norm(delta) >= B_ij for all i but at most
    floor(k / 2), that is norm(delta) >= B_j, the (floor(k / 2) + 1)-th largest B_ij over i; and this holds for at least
    ceil(k / 2) points j. The bound is the ceil(k / 2)-th smallest B_j. For odd k both ranks are (k + 1) / 2. Votes
    that split over several classes only make a smaller and both ranks stricter.

    Looking at ``n_same`` of the i lowers B_j, which is safe; leaving out j is not. But norm(p_i - p_j) <= d_i + d_j, so
    B_ij >= (d_j - d_i) / 2, which bounds from below all j beyond the ``n_other`` nearest; the smaller of the two is
    returned. Cosine is the Euclidean bound between unit vectors, times the norm of the query.

    Parameters
    ----------
    queries, labels, x_train, y_train, metric, box
        As in :func:`minimum_perturbations`; the box only serves to check the input.
    k
        Neighbours that vote, each once.
    n_same
        Nearest points of the label that are looked at, at least floor(k / 2) + 1; by default half as many more.
    n_other
        Points of other classes that are looked at, nearest first; the work ends earlier where the rest cannot matter.

    Returns
    -------
    0 where the vote may be wrong already; infinity where too few points of other classes exist.

    Raises
    ------
    InputError
        As :func:`minimum_perturbations`, and ``k`` larger than the training set.
    """
    x, y, cells = _prepare(queries, labels, x_train, y_train, metric, box)
    checks.whole("k", k, 1, len(cells.points))
    rank = k // 2 + 1
    checks.whole("n_other", n_other, 1)
    checks.whole("n_same", rank if n_same is None else n_same, rank)
    size = n_same or rank + rank // 2
    lengths = np.linalg.norm(x, axis=1) if metric == "cosine" else np.ones(len(x))
    x = x / np.where(lengths > 0, lengths, 1)[:, None] if metric == "cosine" else x
    bounds = np.empty(len(x))
    for part in np.split(np.arange(len(x)), range(_QUERIES, len(x), _QUERIES)):
        for i, scores in zip(part, cells.scores(x[part]), strict=True):
            bounds[i] = _vote_bound(cells, x[i], int(y[i]), scores, (k + 1) // 2, rank, size, n_other)
    return bounds * lengths


def _vote_bound(
    cells: _Cells, x: Array, label: int, scores: Array, crossing: int, rank: int, n_same: int, n_other: int
) -> float:
    same, other = np.flatnonzero(cells.labels == label), np.flatnonzero(cells.labels != label)
    if len(other) < crossing:
        return float("inf")
    if len(same) < rank:
        return 0.0
    same = same[_smallest(scores[same], n_same)]
    other = other[np.argsort(scores[other], kind="stable")]
    # Unit vectors have c_i = 0, so their squared distance to x has the constant |p|^2 = 1 apart.
    constant = x @ x + (cells.squares[0] if not cells.offsets.any() else 0.0)
    away = np.sqrt(np.maximum(constant + 2 * scores, 0))
    kth, step, found = away[same[rank - 1]], max(512, 2 * crossing), np.empty(0)
    for start in range(0, min(n_other, len(other)), step):
        stop = min(start + step, n_other, len(other))
        pairs = _pair_bounds(cells, same, other[start:stop], scores)
        found = np.concatenate([found, np.partition(pairs, len(same) - rank, axis=0)[len(same) - rank]])
        rest = max(0.0, (away[other[stop]] - kth) / 2) if stop < len(other) else np.inf
        reached = np.partition(found, crossing - 1)[crossing - 1] if len(found) >= crossing else np.inf
        if rest >= reached:
            break
    return float(max(0.0, min(reached, rest)))


def _pair_bounds(cells: _Cells, same: NDArray, other: NDArray, scores: Array) -> Array:
    """Signed distance (same, other) to the half-space where the other point wins; 0 for points that coincide."""
    apart = _distances(cells.points[same], cells.squares[same], cells.points[other], cells.squares[other])
    gaps = scores[other][None, :] - scores[same][:, None]
    return np.where(apart > np.sqrt(cells.rounding), gaps / np.maximum(apart, 1e-300), 0.0)


def _distances(left: Array, left_squares: Array, right: Array, right_squares: Array) -> Array:
    squares = left_squares[:, None] + right_squares[None, :] - 2 * (left @ right.T)
    return np.sqrt(np.maximum(squares, 0))


def _smallest(values: Array, count: int) -> NDArray[np.int64]:
    """Indices of the ``count`` smallest values, in order."""
    chosen = np.argpartition(values, count - 1)[:count] if count < len(values) else np.arange(len(values))
    return chosen[np.argsort(values[chosen], kind="stable")]


def _prepare(
    queries: Any, labels: Any, x_train: Any, y_train: Any, metric: str, box: tuple[float, float]
) -> tuple[Array, NDArray[np.int64], _Cells]:
    checks.one_of("metric", metric, METRICS)
    x, train = _matrix("queries", queries, 2), _matrix("x_train", x_train, 2)
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


def _cells(train: Array, labels: NDArray[np.int64], metric: str) -> _Cells:
    if metric == "l2":
        squares = np.einsum("nd,nd->n", train, train)
        return _Cells(train, squares / 2, squares, train, labels)
    lengths = np.linalg.norm(train, axis=1)
    if not lengths.all():
        raise InputError(f"x_train has a point of length 0 at {int(lengths.argmin())}; its cosine is not defined")
    return _Cells(train / lengths[:, None], np.zeros(len(train)), np.ones(len(train)), train, labels)


def _matrix(name: str, values: Any, dimensions: int) -> Array:
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
