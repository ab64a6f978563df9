"""Deep kNN on its own training points: neighbours without the point itself, credibility, and shares of marked points.

A training point that is asked about finds itself, with its stored label, in every layer. That caps the p-value of every
other label: with ``L`` layers each other label has nonconformity ``L`` at least. So every function here says whether the
point itself is among its neighbours. One search of the others serves both: :func:`with_self` puts the point back.

Cost of a search over all ``N`` training points: each pair is compared once, ``N^2 D`` operations a layer, half of what a
search for ``N`` foreign points costs; scratch memory is the classifier's ``memory_gib``, and no layer is copied. Layers of a
:class:`BoundedDeepKNN` in which products are not what costs are searched as its indexes search them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.bounded_search import BoundedNeighbors
from deepneighbors.dknn import DeepKNN
from deepneighbors.errors import InputError
from deepneighbors.knn import KNNClassifier
from deepneighbors.neighbors import NearestNeighbors, Neighbors, _order, _top

CREDIBILITIES = ("c_pred", "c_dnn", "c_label")


@dataclass(frozen=True)
class TrainingCredibility:
    """p-values of training points by whose label they are, ``(n,)`` in [0, 1]; higher is more credible.

    Attributes
    ----------
    c_pred
        The largest p-value: that of the label which DkNN predicts. This is what Papernot & McDaniel call credibility.
    c_dnn
        p-value of the label which the network predicts.
    c_label
        p-value of the label stored in the training set.
    labels, network_labels
        Labels that DkNN and the network predict, ``(n,)``.
    """

    c_pred: Tensor
    c_dnn: Tensor
    c_label: Tensor
    labels: Tensor
    network_labels: Tensor

    def __getitem__(self, name: str) -> Tensor:
        """One of the three by its name."""
        checks.one_of("credibility", name, CREDIBILITIES)
        return getattr(self, name)


def other_neighbors(
    classifier: KNNClassifier, points: Tensor | None = None, *, k: int | None = None
) -> dict[str, Neighbors]:
    """The ``k`` nearest other training points of training points, by layer, nearest first.

    Equal distances are ordered as the classifier's indexes order them. Points that are equal to
    the one asked about stay: only the point itself is left out, by its index.

    Parameters
    ----------
    classifier
        kNN or Deep kNN, fitted.
    points
        Indices ``(n,)`` of training points; all of them when None.
    k
        Neighbours a layer, the classifier's by default; at most ``N - 1``.

    Raises
    ------
    InputError
        Before ``fit``, for indices that are no training points, and when there are fewer than ``k`` others.
    """
    if not hasattr(classifier, "indexes_"):
        raise InputError(f"{type(classifier).__name__} was asked before fit; call fit with training images first")
    count = len(classifier.x_)
    wanted = classifier.k if k is None else k
    checks.whole("k (of other training points)", wanted, 1, count - 1)
    if points is None:
        return {layer: _all_others(index, wanted) for layer, index in classifier.indexes_.items()}
    points = _checked(points, count).to(classifier.x_.device)
    return {layer: _others(index, points, wanted) for layer, index in classifier.indexes_.items()}


def with_self(neighbors: Mapping[str, Neighbors], points: Tensor | None = None) -> dict[str, Neighbors]:
    """What an ordinary search would find: each point itself first, at distance 0, then its nearest others; ``k`` in all.

    ``neighbors`` and ``points`` as given to and found by :func:`other_neighbors`.
    """
    found = {}
    for layer, near in neighbors.items():
        own = torch.arange(len(near.indices)) if points is None else points
        own = own.to(near.indices)[:, None]
        distances = torch.cat([torch.zeros_like(near.distances[:, :1]), near.distances[:, :-1]], 1)
        found[layer] = Neighbors(distances, torch.cat([own, near.indices[:, :-1]], 1))
    return found


def training_neighbors(
    classifier: KNNClassifier, points: Tensor | None = None, *, leave_self_out: bool = True, k: int | None = None
) -> dict[str, Neighbors]:
    """Neighbours of training points, with the point itself left out or put first."""
    found = other_neighbors(classifier, points, k=k)
    return found if leave_self_out else with_self(found, points)


def votes_by_layer(classifier: KNNClassifier, neighbors: Mapping[str, Neighbors]) -> dict[str, Tensor]:
    """Votes ``(n, classes)`` of each layer for itself; their sum is what DkNN decides by."""
    return {layer: classifier.votes({layer: near}) for layer, near in neighbors.items()}


def neighbor_share(neighbors: Mapping[str, Neighbors], marked: Tensor) -> dict[str, Tensor]:
    """Share of marked points among the neighbours of each query, by layer: ``(n,)`` in [0, 1].

    ``marked`` (N,) bool tells which points of the database count, for instance those that were poisoned. For neighbours
    drawn at random the share is ``marked.mean()`` on average: divide by it for the enrichment.
    """
    if marked.dtype != torch.bool or marked.ndim != 1:
        raise InputError(f"marked has type {marked.dtype} and shape {tuple(marked.shape)}; a vector of bool is needed")
    top = max(int(near.indices.max()) for near in neighbors.values())
    if top >= len(marked):
        raise InputError(f"marked has {len(marked)} entries, but a neighbour has index {top}; it needs one a point")
    return {layer: marked.to(near.indices.device)[near.indices].float().mean(1) for layer, near in neighbors.items()}


def training_credibility(
    dknn: DeepKNN,
    points: Tensor | None = None,
    *,
    leave_self_out: bool = True,
    neighbors: Mapping[str, Neighbors] | None = None,
) -> TrainingCredibility:
    """The three credibilities of training points.

    Parameters
    ----------
    dknn
        Fitted on the training points and calibrated on held-out ones.
    points
        Indices ``(n,)`` of training points; all of them when None.
    leave_self_out
        Whether the point is removed from its own neighbour lists.
    neighbors
        What :func:`other_neighbors` found for these points with the classifier's own ``k``; searched when None.
    """
    dknn.check_ready()
    others = other_neighbors(dknn, points) if neighbors is None else neighbors
    said = dknn.conclude(dknn.votes(dict(others if leave_self_out else with_self(others, points))))
    chosen = torch.arange(len(dknn.x_)) if points is None else _checked(points, len(dknn.x_))
    chosen = chosen.to(dknn.labels_.device)
    network = network_labels(dknn, chosen)
    return TrainingCredibility(
        c_pred=said.credibility,
        c_dnn=said.p_values.gather(1, network[:, None]).flatten(),
        c_label=said.p_values.gather(1, dknn.labels_[chosen][:, None]).flatten(),
        labels=said.labels,
        network_labels=network,
    )


@torch.no_grad()
def network_labels(dknn: DeepKNN, points: Tensor) -> Tensor:
    """Labels ``(n,)`` that the network itself gives to training points, by their indices.

    Raises
    ------
    InputError
        A network that answers with a class that the training labels do not have.
    """
    labels = torch.cat([dknn.network(dknn.x_[part]).argmax(1) for part in points.split(1000)])
    if int(labels.max()) >= dknn.classes_:
        raise InputError(
            f"the network says class {int(labels.max())}, but the training labels end at {dknn.classes_ - 1}; "
            "fit Deep kNN on labels of all the network's classes"
        )
    return labels


def _checked(points: Tensor, count: int) -> Tensor:
    if not isinstance(points, Tensor) or points.ndim != 1 or points.dtype != torch.int64 or len(points) == 0:
        raise InputError("points must be a vector of indices (int64) of training points, not empty")
    low, high = int(points.min()), int(points.max())
    if low < 0 or high >= count:
        raise InputError(f"points has indices from {low} to {high}; allowed are 0 to {count - 1}")
    return points


def _others(index: NearestNeighbors, points: Tensor, k: int) -> Neighbors:
    """One more than ``k`` are searched, and the point itself dropped."""
    step = max(1, min(1000, int(index.memory_gib * 2**30 / (8 * index.database_.shape[1]))))
    parts = [_without(index.kneighbors(index.database_[part], k + 1), part) for part in points.split(step)]
    return Neighbors(torch.cat([part.distances for part in parts]), torch.cat([part.indices for part in parts]))


def _without(found: Neighbors, points: Tensor) -> Neighbors:
    drop = found.indices == points[:, None]
    # A point with more than k copies of lower index is not in its own list: then the list is one too long at its end.
    drop[:, -1] |= ~drop.any(1)
    shape = (len(points), found.indices.shape[1] - 1)
    return Neighbors(found.distances[~drop].view(shape), found.indices[~drop].view(shape))


def _all_others(index: NearestNeighbors, k: int) -> Neighbors:
    """For every row of the index."""
    if isinstance(index, BoundedNeighbors) and index.selects:
        return _others(index, torch.arange(len(index.database_)), k)
    return _all_pairs(index, k)


def _all_pairs(index: NearestNeighbors, k: int) -> Neighbors:
    """The same, each pair compared once: the scores of a block serve its rows and, transposed, its columns."""
    rows = index.database_
    half = None if index.metric == "cosine" else (rows * rows).sum(1) / 2
    best = _Best(len(rows), k, rows)
    # A block of scores, its transpose, and what a selection needs besides.
    side = max(1, int((index.memory_gib * 2**30 / 16) ** 0.5))
    blocks = [slice(start, min(start + side, len(rows))) for start in range(0, len(rows), side)]
    for i, lower in enumerate(blocks):
        for upper in blocks[i:]:
            scores = rows[lower] @ rows[upper].T
            if half is not None:
                scores -= half[lower, None] + half[upper]
            if lower == upper:
                scores.fill_diagonal_(-torch.inf)
            else:
                best.add(upper, scores.T.contiguous(), lower.start)
            best.add(lower, scores, upper.start)
    constant = 2.0 if half is None else 0.0
    return Neighbors((constant - 2 * best.scores).clamp(min=0).sqrt(), best.indices)


class _Best:
    """The ``k`` best columns of every row so far."""

    def __init__(self, count: int, k: int, like: Tensor):
        self.k = k
        self.scores = like.new_full((count, k), -torch.inf)
        self.indices = torch.full((count, k), count, dtype=torch.int64, device=like.device)

    def add(self, rows: slice, scores: Tensor, offset: int) -> None:
        """Compare with a block of scores whose first column has the index ``offset``."""
        found, columns = _top(scores, min(self.k, scores.shape[1]))
        ranked = _order(torch.cat([self.scores[rows], found], 1), torch.cat([self.indices[rows], columns + offset], 1))
        self.scores[rows], self.indices[rows] = (part[:, : self.k] for part in ranked)
