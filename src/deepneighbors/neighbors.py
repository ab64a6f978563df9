"""Exact k-nearest-neighbour search, batched, by one matrix product and a running top-k.

Two backends give the same answers up to rounding: ``torch`` (CPU or GPU, no copy of the database) and ``faiss`` (CPU).
Equal distances are ordered by index. Cost: ``2 Q N D`` operations and at most ``memory_gib`` of scratch memory.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.errors import InputError

METRICS = ("l2", "cosine")
BACKENDS = ("torch", "faiss", "faiss_ivf")
_SPARE = 8  # candidates fetched beyond k, so that ties at the border are usually settled without a second pass


@dataclass(frozen=True)
class Neighbors:
    """Distances ``(Q, k)`` ascending and indices ``(Q, k)`` into the database."""

    distances: Tensor
    indices: Tensor


class NearestNeighbors:
    """Index of a database ``(N, D)`` for k-nearest-neighbour queries.

    Parameters
    ----------
    metric
        ``l2``, or ``cosine``: the chord distance ``sqrt(2 - 2 cos)`` between unit vectors, in [0, 2].
    backend
        ``torch`` or ``faiss`` (both exact), or ``faiss_ivf``: approximate, it visits ``probes`` of the inverted lists.
    memory_gib
        Limit of scratch memory for similarities, in GiB.
    copy
        False lets ``fit`` normalise a cosine database in place.
    lists, probes
        Of ``faiss_ivf``: inverted lists, and how many of them a query visits. Where they hold fewer than ``k`` rows, that
        query is searched exactly.
    """

    def __init__(self, *, metric: str = "l2", backend: str = "torch", memory_gib: float = 0.5, copy: bool = True,
                 lists: int = 256, probes: int = 16):  # fmt: skip
        checks.one_of("metric", metric, METRICS)
        checks.one_of("backend", backend, BACKENDS)
        checks.positive("memory_gib", memory_gib)
        checks.whole("lists", lists, 1)
        checks.whole("probes", probes, 1, lists)
        if backend != "torch":
            _import_faiss(backend)
        self.metric, self.backend, self.memory_gib, self.copy = metric, backend, memory_gib, copy
        self.lists, self.probes = lists, probes

    def fit(self, x: Tensor) -> "NearestNeighbors":
        """Index the rows of ``x`` (N, D), float32, on the device where they lie."""
        checks.points("the database", x)
        if self.metric == "cosine":
            norms = x.norm(dim=1, keepdim=True).clamp(min=1e-12)
            x = x / norms if self.copy else x.div_(norms)
        self.database_ = x
        self.squares_ = None if self.metric == "cosine" else (x * x).sum(1)
        self.index_: Any = None if self.backend == "torch" else self._faiss(x)
        return self

    def kneighbors(self, queries: Tensor, k: int) -> Neighbors:
        """The ``k`` nearest rows for each query ``(Q, D)``.

        Raises
        ------
        InputError
            Before ``fit``, on NaN or an empty batch, and when ``k`` is larger than the database.
        """
        queries = self._prepare(queries, k)
        if self.index_ is not None:
            return self._faiss_search(queries, k)
        found = [self._torch_search(part, k) for part in queries.split(self._rows())]
        return Neighbors(*(torch.cat([getattr(f, name) for f in found]) for name in ("distances", "indices")))

    def class_kneighbors(self, queries: Tensor, k: int, labels: Tensor, classes: int) -> Neighbors:
        """The ``k`` nearest rows of each class: distances and indices ``(Q, classes, k)``.

        ``labels`` (N,) are those of the database; every class needs at least ``k`` rows. Uses the torch product whatever
        the backend.
        """
        queries = self._prepare(queries, k)
        checks.labels("labels", labels, len(self.database_), classes)
        counts = torch.bincount(labels, minlength=classes)
        if int(counts.min()) < k:
            raise InputError(f"k is {k}, but class {int(counts.argmin())} has only {int(counts.min())} rows in the database")
        members = [torch.nonzero(labels == c).squeeze(1) for c in range(classes)]
        parts = []
        for part in queries.split(self._rows()):
            scores = self._scores(part)
            found = [_top(scores[:, rows], k) for rows in members]
            indices = torch.stack([rows[i] for rows, (_, i) in zip(members, found, strict=True)], 1)
            parts.append((self._distances(part[:, None], torch.stack([s for s, _ in found], 1)), indices))
        return Neighbors(torch.cat([d for d, _ in parts]), torch.cat([i for _, i in parts]))

    def _prepare(self, queries: Tensor, k: int) -> Tensor:
        if not hasattr(self, "database_"):
            raise InputError("the index was asked before fit; call fit with a database first")
        checks.points("the queries", queries)
        checks.whole("k", k, 1, len(self.database_))
        if queries.shape[1] != self.database_.shape[1]:
            raise InputError(f"queries have {queries.shape[1]} columns; the database has {self.database_.shape[1]}")
        queries = queries.to(self.database_)
        return torch.nn.functional.normalize(queries, dim=1) if self.metric == "cosine" else queries

    def _rows(self) -> int:
        return max(1, int(self.memory_gib * 2**30 / (4 * len(self.database_))))

    def _scores(self, queries: Tensor) -> Tensor:
        """Larger is nearer: the inner product, or for L2 ``q.x - |x|^2 / 2`` (the distance up to a constant a query)."""
        if self.squares_ is None:
            return queries @ self.database_.T
        return torch.addmm(self.squares_, queries, self.database_.T, beta=-0.5)

    def _distances(self, queries: Tensor, scores: Tensor) -> Tensor:
        constant = 2.0 if self.squares_ is None else (queries * queries).sum(-1, keepdim=True)
        return (constant - 2 * scores).clamp(min=0).sqrt()

    def _torch_search(self, queries: Tensor, k: int) -> Neighbors:
        scores, indices = _top(self._scores(queries), k)
        return Neighbors(self._distances(queries, scores), indices)

    def _faiss(self, x: Tensor) -> Any:
        faiss = _import_faiss(self.backend)
        if self.backend == "faiss_ivf":
            checks.whole("lists", self.lists, 1, len(x))
        kind = faiss.METRIC_INNER_PRODUCT if self.metric == "cosine" else faiss.METRIC_L2
        index: Any = faiss.index_factory(x.shape[1], "Flat" if self.backend == "faiss" else f"IVF{self.lists},Flat", kind)
        data = x.cpu().float().contiguous().numpy()
        if not index.is_trained:
            index.train(data)
            index.nprobe = self.probes
        index.add(data)
        return index

    def _faiss_search(self, queries: Tensor, k: int, spare: int = _SPARE) -> Neighbors:
        width = min(k + spare, len(self.database_))
        values, columns = map(torch.from_numpy, self.index_.search(queries.cpu().contiguous().numpy(), width))
        scores, columns = _order(values if self.metric == "cosine" else -0.5 * values, columns)
        constant = 2.0 if self.metric == "cosine" else 0.0
        distances = (constant - 2 * scores[:, :k]).clamp(min=0).sqrt().to(queries)
        indices = columns[:, :k].to(queries.device)
        short = (indices < 0).any(1)  # too few rows in the lists that an approximate search visits
        tied = scores[:, k - 1] == scores[:, -1]  # rows of equal distance may lie beyond what was fetched
        if short.any():
            exact = self._torch_search(queries[short], k)
            distances[short], indices[short] = exact.distances, exact.indices
        elif self.backend == "faiss" and width < len(self.database_) and tied.any():
            wider = self._faiss_search(queries[tied.to(queries.device)], k, 8 * spare)
            distances[tied], indices[tied] = wider.distances, wider.indices
        return Neighbors(distances, indices)


def _import_faiss(backend: str) -> Any:
    try:
        import faiss
    except ImportError:
        raise InputError(f"backend is {backend!r}, but faiss is not installed; use torch") from None
    return faiss


def _order(scores: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Sort rows by score, descending, equal scores by index, ascending."""
    indices, by_index = indices.sort(dim=1)
    scores, by_score = scores.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    return scores, indices.gather(1, by_score)


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Largest ``k`` of each row of ``scores`` (Q, N) and their columns; equal scores by column, lowest first."""
    width = min(k + _SPARE, scores.shape[1])
    values, columns = _order(*scores.topk(width, dim=1))
    if width == scores.shape[1]:
        return values[:, :k], columns[:, :k]
    # topk picks any of the equal scores: where ties reach beyond the spare candidates, take the lowest columns by hand.
    for row in torch.nonzero(values[:, k - 1] == values[:, -1]).flatten().tolist():
        border = values[row, k - 1]
        above = int((values[row] > border).sum())
        columns[row, above:k] = torch.nonzero(scores[row] == border).flatten()[: k - above]
    return values[:, :k], columns[:, :k]
