"""Exact neighbours in wide layers by bounds: a projection rules out nearly all points, and the others are compared in full.

Split a query and a point into their parts in and orthogonal to a subspace. The orthogonal parts have an inner product of at
most the product of their lengths (Cauchy and Schwarz), so the parts inside and two lengths bound it. On principal axes the
bound is tight: in the first layer of the report's network, 12,544 numbers wide, 256 axes leave about 140 of 60,000 digits as
candidates for the 75 nearest. Cost of ``Q`` queries: ``2 Q N m`` operations for ``m`` axes in place of ``2 Q N D``, and
``2 N D m`` to begin with.
"""

from typing import Any

import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.dknn import DeepKNN
from deepneighbors.neighbors import NearestNeighbors, Neighbors, _order

_DRAWN = 2_000  # rows from which the axes are found
_WIDEST, _AT_LEAST = 4, 256  # candidates by their bounds, in multiples of k, before a query is compared with all rows
_ROUNDING = 1e-5  # of a product of two lengths, in single precision, with a margin


class BoundedNeighbors(NearestNeighbors):
    """:class:`NearestNeighbors` of the torch backend that compares a query with few rows in full, for wide databases.

    The answers are the same up to rounding: rows whose distances differ by no more, equal ones among them, may change
    places. Databases of fewer than ``least_rows`` rows or less than four times as wide as
    there are axes, and those on a GPU, gain nothing and are searched as usual.

    Parameters
    ----------
    axes
        Dimension ``m`` of the subspace: more make the bounds tighter, and cost more for each pair.
    least_rows
        Of a database that is searched by bounds.
    metric, memory_gib, copy
        As in :class:`NearestNeighbors`.

    Attributes
    ----------
    compared_
        Rows that the last search compared with a query in full, on average; the size of the database where all were.
    """

    def __init__(self, *, axes: int = 256, least_rows: int = 10_000, **options: Any):
        super().__init__(backend="torch", **options)
        checks.whole("axes", axes, 1)
        checks.whole("least_rows", least_rows, 1)
        self.axes, self.least_rows = axes, least_rows

    def fit(self, x: Tensor) -> "BoundedNeighbors":
        """Index the rows of ``x`` (N, D), float32, and find their axes."""
        super().fit(x)
        rows, wide = self.database_, x.shape[1] >= 4 * self.axes
        self._low: Tensor | None = None
        if rows.is_cuda or not wide or len(rows) < self.least_rows:
            return self
        drawn = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:_DRAWN]]
        _, vectors = torch.linalg.eigh(drawn @ drawn.T)
        self._axes, _ = torch.linalg.qr(drawn.T @ vectors[:, -self.axes :])
        self._low = torch.cat([self._project(part) for part in rows.split(1000)])
        self._longest = float(self._low.norm(dim=1).max())
        return self

    @property
    def bounded(self) -> bool:
        """Whether bounds serve this database."""
        return getattr(self, "_low", None) is not None

    def kneighbors(self, queries: Tensor, k: int) -> Neighbors:
        """The ``k`` nearest rows for each query ``(Q, D)``, as :meth:`NearestNeighbors.kneighbors` finds them."""
        if not self.bounded:
            found = super().kneighbors(queries, k)
            self.compared_ = float(len(self.database_))
            return found
        parts, compared = [], 0
        for part in self._prepare(queries, k).split(self._rows()):
            found, count = self._bounded(part, k)
            parts.append(found)
            compared += count
        self.compared_ = compared / len(queries)
        return Neighbors(torch.cat([part.distances for part in parts]), torch.cat([part.indices for part in parts]))

    def _project(self, rows: Tensor) -> Tensor:
        """Coordinates on the axes and, last, the length of what is orthogonal to them: ``(n, m + 1)``."""
        inside = rows @ self._axes
        squares = (rows * rows).sum(1, dtype=torch.float64) - (inside * inside).sum(1, dtype=torch.float64)
        return torch.cat([inside, squares.clamp(min=0).sqrt().to(inside)[:, None]], 1)

    def _bounded(self, queries: Tensor, k: int) -> tuple[Neighbors, int]:
        """Neighbours, and how many pairs were compared in full."""
        assert self._low is not None
        rows, low = self.database_, self._project(queries)
        bounds = low @ self._low.T if self.squares_ is None else torch.addmm(self.squares_, low, self._low.T, beta=-0.5)
        width = min(max(_WIDEST * k, _AT_LEAST), len(rows))
        upper, columns = bounds.topk(width, dim=1)
        scores = torch.full_like(upper, -torch.inf)
        # One query after the other into one buffer: its rows are read once, and their copy does not leave the cache.
        buffer = rows.new_empty(width, rows.shape[1])
        for query, near, score in zip(queries, columns, scores, strict=True):
            score[:k] = self._compare(query, near[:k], buffer)
        # Of the rows whose bound is below the k-th score so far none can be among the k nearest.
        least = scores[:, :k].amin(1) - _ROUNDING * self._longest * low.norm(dim=1)
        needed = (upper >= least[:, None]).sum(1).clamp(min=k)
        for query, near, score, count in zip(queries, columns, scores, needed.tolist(), strict=True):
            if count > k:
                score[k:count] = self._compare(query, near[k:count], buffer)
        scores, columns = _order(scores, columns)
        found = Neighbors(self._distances(queries, scores[:, :k]), columns[:, :k])
        unbounded = ((needed == width) & (width < len(rows))).nonzero().flatten()
        if len(unbounded):
            whole = super().kneighbors(queries[unbounded], k)
            found.distances[unbounded], found.indices[unbounded] = whole.distances, whole.indices
        return found, int(needed.sum()) + len(unbounded) * len(rows)

    def _compare(self, query: Tensor, rows: Tensor, buffer: Tensor) -> Tensor:
        found = torch.index_select(self.database_, 0, rows, out=buffer[: len(rows)]) @ query
        return found if self.squares_ is None else found - self.squares_[rows] / 2


class BoundedDeepKNN(DeepKNN):
    """Deep kNN whose wide layers are searched by bounds: the same neighbours, with a fraction of the operations."""

    def _index(self) -> BoundedNeighbors:
        return BoundedNeighbors(metric=self.metric, memory_gib=self.memory_gib, copy=False)
