"""The smallest perturbation that a 1-NN classifier gets wrong, by quadratic programming over Voronoi cells.

The 1-NN classifier errs on x' exactly where x' lies in the Voronoi cell of a training point of another class. The
smallest perturbation is therefore the least, over those points j, of a convex quadratic program: the distance from
the query to the box cut by the half-spaces "x' is nearer to j than to i", one for each training point i of the
query's own class (Wang et al. 2019, primal-dual; Yang et al. 2020, RBA-Exact).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from deepneighbors import checks
from deepneighbors.errors import InputError
from deepneighbors.voronoi.cells import QUERIES, Array, Cells, distances, matrix, pair_bounds, prepare, smallest

_NEAR = 16  # same-class points that the first bound of a candidate looks at
_FIRST, _MORE = 30, 50  # constraints of a program at the start, and at most added in each round
_ROUNDS = 60


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


def minimum_perturbation(query: Any, label: int, x_train: Any, y_train: Any, **options: Any) -> ExactAnswer:
    """The smallest L2 perturbation of one query (D,); arguments as in :func:`minimum_perturbations`."""
    return minimum_perturbations(matrix("query", query, 1)[None], np.array([label]), x_train, y_train, **options)[0]


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
        as x_j lies. The default lets digits stored in float32 stay misclassified; it costs a digit about 1e-5 of distance
        for ``l2`` and 3e-4 for ``cosine``, whose scores are smaller.

    Returns
    -------
    One answer a query, in their order. A query that is wrong already has distance 0. Cost: about 60,000 x D x 40
    multiplications a query, and float64 copies of the training points, twice for ``cosine``.

    Raises
    ------
    InputError
        Wrong shapes, NaN, values outside the box, an unknown metric, or training points of one class only.
    """
    x, y, cells = prepare(queries, labels, x_train, y_train, metric, box)
    checks.positive("tolerance", tolerance)
    checks.positive("margin", margin)
    if len(np.unique(cells.labels)) < 2:
        raise InputError("y_train has one class only; a second one is needed for a point to be misclassified")
    answers: dict[int, ExactAnswer] = {}
    for label in np.unique(y):
        own = _OwnClass(cells, int(label), box, tolerance, margin)
        chosen = np.flatnonzero(y == label)
        for part in np.split(chosen, range(QUERIES, len(chosen), QUERIES)):
            answers |= {int(i): own.answer(x[i], row) for i, row in zip(part, cells.scores(x[part]), strict=True)}
    return [answers[i] for i in range(len(x))]


class _OwnClass:
    """Solves queries of one label; keeps the training points of that class together."""

    def __init__(self, cells: Cells, label: int, box: tuple[float, float], tolerance: float, margin: float):
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
        near = self.same[smallest(scores[self.same], _NEAR)]
        gaps = pair_bounds(self.cells, near, self.other, scores)
        return gaps.max(0).clip(0)

    def program(self, x: Array, scores: Array, j: int, limit: float) -> tuple[Array | None, float]:
        """Nearest point of the cell of ``j`` that is misclassified, and a lower bound on the distance to the cell.

        The point is None where the bound reaches ``limit``, and where j never wins (it duplicates an earlier point).
        """
        point = self.cells.points[j]
        norms = distances(self.points, self.cells.squares[self.same], point[None], self.cells.squares[[j]])[:, 0]
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
        chosen = smallest(-start, _FIRST)
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
            new = smallest(-beyond, _MORE)
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
