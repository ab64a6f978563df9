"""A certified lower bound on the perturbation that changes the vote of k neighbours."""

from typing import Any

import numpy as np

from deepneighbors import checks
from deepneighbors.voronoi.cells import QUERIES, Array, Cells, pair_bounds, prepare, smallest


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
        As in :func:`deepneighbors.voronoi.minimum_perturbations`; the box only serves to check the input.
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
        As :func:`deepneighbors.voronoi.minimum_perturbations`, and ``k`` larger than the training set.
    """
    x, y, cells = prepare(queries, labels, x_train, y_train, metric, box)
    checks.whole("k", k, 1, len(cells.points))
    rank = k // 2 + 1
    checks.whole("n_other", n_other, 1)
    checks.whole("n_same", rank if n_same is None else n_same, rank)
    size = n_same or rank + rank // 2
    lengths = np.linalg.norm(x, axis=1) if metric == "cosine" else np.ones(len(x))
    x = x / np.where(lengths > 0, lengths, 1)[:, None] if metric == "cosine" else x
    bounds = np.empty(len(x))
    for part in np.split(np.arange(len(x)), range(QUERIES, len(x), QUERIES)):
        for i, scores in zip(part, cells.scores(x[part]), strict=True):
            bounds[i] = _vote_bound(cells, x[i], int(y[i]), scores, (k + 1) // 2, rank, size, n_other)
    return bounds * lengths


def _vote_bound(
    cells: Cells, x: Array, label: int, scores: Array, crossing: int, rank: int, n_same: int, n_other: int
) -> float:
    same, other = np.flatnonzero(cells.labels == label), np.flatnonzero(cells.labels != label)
    if len(other) < crossing:
        return float("inf")
    if len(same) < rank:
        return 0.0
    same = same[smallest(scores[same], n_same)]
    other = other[np.argsort(scores[other], kind="stable")]
    # Unit vectors have c_i = 0, so their squared distance to x has the constant |p|^2 = 1 apart.
    constant = x @ x + (cells.squares[0] if not cells.offsets.any() else 0.0)
    away = np.sqrt(np.maximum(constant + 2 * scores, 0))
    kth, step, found = away[same[rank - 1]], max(512, 2 * crossing), np.empty(0)
    for start in range(0, min(n_other, len(other)), step):
        stop = min(start + step, n_other, len(other))
        pairs = pair_bounds(cells, same, other[start:stop], scores)
        found = np.concatenate([found, np.partition(pairs, len(same) - rank, axis=0)[len(same) - rank]])
        rest = max(0.0, (away[other[stop]] - kth) / 2) if stop < len(other) else np.inf
        reached = np.partition(found, crossing - 1)[crossing - 1] if len(found) >= crossing else np.inf
        if rest >= reached:
            break
    return float(max(0.0, min(reached, rest)))
