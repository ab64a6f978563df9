"""k-nearest-neighbour classification on pixels, and the vote that Deep kNN shares with it."""

from collections.abc import Iterator

import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor
from torch.nn.functional import normalize

from deepneighbors import checks
from deepneighbors.errors import InputError
from deepneighbors.neighbors import NearestNeighbors, Neighbors

WEIGHTS = ("uniform", "distance")


class KNNClassifier(ClassifierMixin, BaseEstimator):
    """Plurality vote of the ``k`` nearest training images; ties go to the smallest label.

    Parameters
    ----------
    k
        Number of neighbours, 75 in Sitawarin & Wagner (2019).
    metric
        ``cosine`` (chord distance between unit vectors, the paper's) or ``l2``.
    weights
        ``uniform``, or ``distance``: a neighbour at distance d weighs ``exp(-d^2 / (temperature * d_k^2))``, d_k being the
        distance of the k-th, scaled so that the weights of a query add up to ``k``. A large temperature is uniform.
    backend, memory_gib
        As in :class:`deepneighbors.neighbors.NearestNeighbors`.

    Attributes
    ----------
    x_, labels_
        Training images and labels. ``classes_``: number of classes. ``indexes_``: one search index a layer.
    """

    layers: tuple[str, ...] = ("pixels",)

    def __init__(self, *, k: int = 75, metric: str = "cosine", weights: str = "uniform", temperature: float = 0.1,
                 backend: str = "torch", memory_gib: float = 0.5):  # fmt: skip
        self.k, self.metric, self.weights, self.temperature = k, metric, weights, temperature
        self.backend, self.memory_gib = backend, memory_gib

    def fit(self, x: Tensor, y: Tensor) -> "KNNClassifier":
        """Store the training images ``(N, ...)`` in [0, 1] with labels ``(N,)``, on the device where they lie."""
        checks.images("x", x)
        checks.labels("y", y, len(x))
        checks.whole("k", self.k, 1, len(x))
        checks.one_of("weights", self.weights, WEIGHTS)
        checks.positive("temperature", self.temperature)
        self._index()  # refuses a bad metric, backend or memory before features are computed
        self.x_, self.labels_, self.classes_ = x, y.to(x.device), int(y.max()) + 1
        self.indexes_: dict[str, NearestNeighbors] = {}
        for layer, rows in self._databases(x):
            self.indexes_[layer] = self._index().fit(rows)
        return self

    def _index(self) -> NearestNeighbors:
        return NearestNeighbors(metric=self.metric, backend=self.backend, memory_gib=self.memory_gib, copy=False)

    def _databases(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Layer names with their rows (N, D); the index may change the rows in place."""
        yield "pixels", x.flatten(1).clone()

    def features(self, x: Tensor, layers: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """Representation ``(n, D)`` of images by layer, unit rows for cosine; differentiable with respect to ``x``."""
        return {layer: self._scale(rows.flatten(1)) for layer, rows in self._activations(x, layers or self.layers).items()}

    def _activations(self, x: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        return {layer: x for layer in layers}

    def _scale(self, rows: Tensor) -> Tensor:
        return normalize(rows, dim=1) if self.metric == "cosine" else rows

    @torch.no_grad()
    def kneighbors(self, x: Tensor, *, k: int | None = None) -> dict[str, Neighbors]:
        """The ``k`` nearest training points by layer, nearest first."""
        self._check_fitted()
        checks.images("x", x)
        wanted = self.k if k is None else k
        checks.whole("k", wanted, 1, len(self.x_))
        parts = [self._search(part, wanted) for part in x.split(self._batch)]
        return {
            layer: Neighbors(
                torch.cat([part[layer].distances for part in parts]),
                torch.cat([part[layer].indices for part in parts]),
            )
            for layer in self.layers
        }

    def _search(self, x: Tensor, k: int) -> dict[str, Neighbors]:
        features = self.features(x.to(self.x_))
        return {layer: self.indexes_[layer].kneighbors(rows, k) for layer, rows in features.items()}

    @property
    def _batch(self) -> int:
        """Queries at a time: their features take about a tenth of the scratch memory."""
        width = sum(index.database_.shape[1] for index in self.indexes_.values())
        return max(1, min(1000, int(self.memory_gib * 2**30 / (40 * width))))

    def votes(self, neighbors: dict[str, Neighbors]) -> Tensor:
        """Weight of the votes for each class, summed over the layers: ``(n, classes)``, each row adds up to k * layers."""
        return sum(self._layer_votes(found) for found in neighbors.values())  # type: ignore[return-value]

    def _layer_votes(self, found: Neighbors) -> Tensor:
        votes = torch.zeros(len(found.indices), self.classes_, device=found.distances.device)
        votes.scatter_add_(1, self.labels_[found.indices], self._weights(found.distances))
        # Rounded so that equal votes compare equal whatever the order of the sum.
        return votes if self.weights == "uniform" else (votes * 1e4).round() / 1e4

    def _weights(self, distances: Tensor) -> Tensor:
        if self.weights == "uniform":
            return torch.ones_like(distances)
        squares = distances**2
        scale = self.temperature * squares[:, -1:].clamp(min=1e-12)
        weights = torch.exp((squares[:, :1] - squares) / scale)
        return weights * (distances.shape[1] / weights.sum(1, keepdim=True))

    def decide(self, votes: Tensor) -> Tensor:
        """Label ``(n,)`` for votes ``(n, classes)``; ties go to the smallest."""
        return votes.argmax(1)

    def predict(self, x: Tensor) -> Tensor:
        """Labels ``(n,)`` of images."""
        return self.decide(self.votes(self.kneighbors(x)))

    def score(self, x: Tensor, y: Tensor) -> float:
        """Accuracy, 0 to 1."""
        checks.labels("y", y, len(x))
        return float((self.predict(x).cpu() == y.cpu()).float().mean())

    def radii(self, x: Tensor) -> dict[str, float]:
        """Mean distance from images to their k-th neighbour by layer: the paper's eta."""
        return {layer: float(found.distances[:, -1].mean()) for layer, found in self.kneighbors(x).items()}

    def check_ready(self) -> None:
        """Refuse a classifier that cannot predict yet."""
        self._check_fitted()

    def _check_fitted(self) -> None:
        if not hasattr(self, "indexes_"):
            raise InputError(f"{type(self).__name__} was asked before fit; call fit with training images first")
