"""Influence as a search: the training images that matter most to a prediction, without scoring all of them."""

from typing import Any

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from deepneighbors import checks
from deepneighbors.errors import InputError
from deepneighbors.influence.last_layer import LastLayerInfluence

BACKENDS = ("exact", "longest", "inverted_file", "faiss_ivf")
_BLOCK = 2048  # training images that an exact search scores at once
_ROUNDING = 1e-4  # relative error of a score in single precision, with a margin


class InfluenceIndex:
    """Most helpful and most harmful training images by a maximum-inner-product search.

    With last-layer gradients g (residual (x) [embedding; 1]) and H = L L^T, the score ``g(z)^T H^-1 g(x)`` is the inner
    product of ``L^-1 g(z)`` and ``L^-1 g(x)``; any square root of H^-1 does, here the symmetric one in its eigenbasis. The
    vectors have K (d + 1) columns, 650 for 10 classes and 64 dimensions; residuals add up to 0, so their rank is at most
    (K - 1) (d + 1). Scoring all images takes ``2 N K (d + 1)`` operations a query. The exact search goes from the longest
    vector to the shortest and stops where no later one can be among the answers, by the Cauchy-Schwarz inequality; it may
    also stop early, after a share of the images. With an inverted file only the images in some clusters of k-means are
    scored: those whose centres have the largest inner product with the query.

    It takes the place of the estimator in ``deepneighbors.detectors.PredictedLabelInfluence``.

    Parameters
    ----------
    model
        Fitted estimator, whose operator has no negative gain. Its training images are the indexed ones.
    backend
        ``exact``; or approximate: ``longest``, a share of the images; ``inverted_file``, with clusters from scikit-learn;
        ``faiss_ivf``, the same in faiss.
    share
        Share in (0, 1] of the images, those with the longest vectors, that ``longest`` knows.
    lists, probes
        Clusters, and how many of them a query visits, of inverted files. Where they hold fewer images than asked for,
        that query is searched exactly.
    seed
        Of k-means; faiss has its own fixed seed.
    members
        Cluster ``(N,)`` of each training image, where k-means has run before; of ``inverted_file``.
    memory_gib
        Limit of scratch memory for scores.

    Attributes
    ----------
    vectors_
        Whitened gradients of the training images, ``(N, K (d + 1))``, float32: ``4 N K (d + 1)`` bytes.
    members_
        Cluster ``(N,)`` of each training image, for ``inverted_file``.
    """

    def __init__(self, model: LastLayerInfluence, *, backend: str = "exact", share: float = 1.0, lists: int = 256,
                 probes: int = 16, seed: int = 0, members: Tensor | None = None, memory_gib: float = 0.5):  # fmt: skip
        checks.one_of("backend", backend, BACKENDS)
        checks.positive("memory_gib", memory_gib)
        if not hasattr(model, "features_"):
            raise InputError("model was not fitted; call fit with training embeddings before it is indexed")
        self.model, self.backend, self.lists, self.probes, self.memory_gib = model, backend, lists, probes, memory_gib
        count = len(model.features_)
        checks.positive("share", share)
        if share > 1 or (backend != "longest" and share < 1):
            raise InputError(f"share is {share!r}; it must lie above 0 and at most at 1, and be 1 unless backend is longest")
        if backend in ("inverted_file", "faiss_ivf"):
            checks.whole("lists", lists, 1, count)
            checks.whole("probes", probes, 1, lists)
        parts = zip(model.features_.split(_BLOCK), model.labels_.split(_BLOCK), strict=True)
        self.vectors_ = torch.cat([model.whitened(features, labels) for features, labels in parts])
        self._norms, self._order = self.vectors_.norm(dim=1).sort(descending=True)
        self._known = max(1, round(share * count))
        if backend == "inverted_file":
            self.members_ = _clusters(self.vectors_, lists, seed) if members is None else members.to(self.vectors_.device)
            checks.labels("members", self.members_, count, lists)
            self._rows = [(self.members_ == place).nonzero().flatten() for place in range(lists)]
            self._blocks = [self.vectors_[rows] for rows in self._rows]  # a cluster's rows lie together
            empty = self.vectors_.new_full((self.vectors_.shape[1],), 0.0)
            self._centres = torch.stack([block.mean(0) if len(block) else empty for block in self._blocks])
        elif backend == "faiss_ivf":
            self._faiss = _faiss_index(self.vectors_, lists, probes)

    def extremes(self, features: Tensor, labels: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """The ``m`` most helpful and most harmful training images of each query: two ``(T, m)``, most extreme first.

        ``features`` (T, d) are embeddings and ``labels`` (T,) those of their loss, as for
        :meth:`LastLayerInfluence.extremes <deepneighbors.influence.LastLayerInfluence.extremes>`.
        """
        checks.whole("m", m, 1, len(self.vectors_))
        # A query has, in each direction, its running best and the scores of a block, with their places in int64.
        size = max(1, int(self.memory_gib * 2**30 / (2 * 12 * (2 * m + min(_BLOCK, len(self.vectors_))))))
        parts = [self._part(part, m) for part in self.model.whitened(features, labels).split(size)]
        return torch.cat([helpful for helpful, _ in parts]), torch.cat([harmful for _, harmful in parts])

    def _part(self, queries: Tensor, m: int) -> tuple[Tensor, Tensor]:
        if self.backend in ("exact", "longest"):
            return self._exact(queries, m, max(m, self._known))
        search = self._inverted if self.backend == "inverted_file" else self._faiss_search
        found = search(queries, m), search(-queries, m)
        for own, indices in enumerate(found):
            short = (indices < 0).any(1)  # too few images in the clusters visited
            if short.any():
                indices[short] = self._exact(queries[short], m, len(self.vectors_))[own]
        return found

    def _exact(self, queries: Tensor, m: int, known: int) -> tuple[Tensor, Tensor]:
        """The answers among the ``known`` longest vectors."""
        best, worst = (_RunningTop(len(queries), m, queries.device) for _ in range(2))
        lengths = queries.norm(dim=1) * (1 + _ROUNDING)
        for start in range(0, known, _BLOCK):
            border = torch.minimum(best.values[:, -1], worst.values[:, -1])
            open_ = (lengths * self._norms[start] >= border).nonzero().flatten()
            if len(open_) == 0:
                break
            places = self._order[start : min(start + _BLOCK, known)]
            scores = queries[open_] @ self.vectors_[places].T
            best.add(open_, scores, places)
            worst.add(open_, -scores, places)
        return best.indices, worst.indices

    def _inverted(self, queries: Tensor, m: int) -> Tensor:
        best = _RunningTop(len(queries), m, queries.device)
        visited = (queries @ self._centres.T).topk(self.probes, dim=1).indices
        for place, rows in enumerate(self._rows):
            visitors = (visited == place).any(1).nonzero().flatten()
            if len(visitors) and len(rows):
                best.add(visitors, queries[visitors] @ self._blocks[place].T, rows)
        return best.indices

    def _faiss_search(self, queries: Tensor, m: int) -> Tensor:
        _, indices = self._faiss.search(queries.cpu().contiguous().numpy(), m)
        return torch.from_numpy(indices).to(queries.device)


class _RunningTop:
    """The ``m`` largest scores of each query so far, in order, and their places; -1 where there are fewer."""

    def __init__(self, queries: int, m: int, device: torch.device):
        self.values = torch.full((queries, m), -torch.inf, device=device)
        self.indices = torch.full((queries, m), -1, device=device)

    def add(self, queries: Tensor, scores: Tensor, places: Tensor) -> None:
        """Take in scores ``(q, b)`` of some queries ``(q,)`` with the rows at ``places`` (b,)."""
        # The largest of a block first: to join it whole to the running ones would copy all its places for each query.
        scores, columns = scores.topk(min(self.values.shape[1], scores.shape[1]), dim=1)
        values, order = torch.cat([self.values[queries], scores], 1).topk(self.values.shape[1], dim=1)
        self.values[queries] = values
        self.indices[queries] = torch.cat([self.indices[queries], places[columns]], 1).gather(1, order)


def _clusters(vectors: Tensor, lists: int, seed: int) -> Tensor:
    # Their norms differ by orders of magnitude, and the long ones are what is looked for: k-means by L2 keeps those apart.
    means = MiniBatchKMeans(lists, random_state=seed, batch_size=max(2048, 4 * lists), n_init=1, max_iter=30)
    return torch.from_numpy(means.fit_predict(vectors.cpu().numpy()).astype(np.int64)).to(vectors.device)


def _faiss_index(vectors: Tensor, lists: int, probes: int) -> Any:
    try:
        import faiss
    except ImportError:
        raise InputError("backend is 'faiss_ivf', but faiss is not installed; use inverted_file") from None
    index: Any = faiss.index_factory(vectors.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    rows = vectors.cpu().numpy()
    index.train(rows)
    index.add(rows)
    index.nprobe = probes
    return index


def recall(found: Tensor, exact: Tensor) -> Tensor:
    """Share ``(T,)``, float64, of the exact answer ``(T, M)`` that is in what an approximate search found ``(T, M)``."""
    if found.shape != exact.shape or found.ndim != 2:
        raise InputError(f"found has shape {tuple(found.shape)}, exact {tuple(exact.shape)}; both must be (queries, M)")
    # Two sorted lists without repeats: a place in both is next to itself in their union.
    merged = torch.cat([found, exact.to(found.device)], 1).sort(dim=1).values
    return (merged.diff(dim=1) == 0).double().sum(1) / exact.shape[1]
