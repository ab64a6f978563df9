"""Exact neighbours in wide layers by bounds: a projection rules out nearly all points, and the others are compared in full.

Split a query and a point into their parts in and orthogonal to a subspace. The orthogonal parts have an inner product of at
most the product of their lengths (Cauchy and Schwarz), so the parts inside and two lengths bound it. On principal axes the
bound is tight: in the first layer of the report's network, 12,544 numbers wide, 256 axes leave some 140 of 60,000 digits as
candidates for the 75 nearest of a usual digit; about one in fifty is too unusual and compared with all. Cost of ``Q``
queries: ``2 Q N m`` operations for ``m`` axes in place of ``2 Q N D``, and ``2 N D m`` to begin with.
"""

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
    places. Databases of fewer than ``least_rows`` rows or less than four times as wide as there are axes, and those on a
    GPU, gain nothing and are searched as usual; so is a query whose bounds rule out too little, or for ``k`` beyond a
    quarter of the rows. Takes ``N (m + 1)`` floats beside the database. No gradients flow through it.

    Parameters
    ----------
    axes
        Dimension ``m`` of the subspace: more make the bounds tighter, and cost more for each pair.
    least_rows
        Of a database that is searched by bounds.
    metric, memory_gib, copy
        As in :class:`NearestNeighbors`.
    """

    def __init__(self, *, axes: int = 256, least_rows: int = 10_000, metric: str = "l2", memory_gib: float = 0.5,
                 copy: bool = True):  # fmt: skip
        super().__init__(metric=metric, backend="torch", memory_gib=memory_gib, copy=copy)
        checks.whole("axes", axes, 1)
        checks.whole("least_rows", least_rows, 1)
        self.axes, self.least_rows = axes, least_rows

    def fit(self, x: Tensor) -> "BoundedNeighbors":
        """Index the rows of ``x`` (N, D), float32, and find their axes."""
        super().fit(x.detach())
        rows, self._low, self._asked, self._pairs = self.database_, None, 0, 0
        if rows.device.type != "cpu" or rows.shape[1] < 4 * self.axes or len(rows) < self.least_rows:
            return self
        drawn = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:_DRAWN]]
        _, vectors = torch.linalg.eigh(drawn @ drawn.T)
        self._axes, _ = torch.linalg.qr(drawn.T @ vectors[:, -self.axes :])
        self._low = torch.cat([self._project(part) for part in rows.split(1000)])
        self._longest = self._low.norm(dim=1).max()
        return self

    _low: Tensor | None = None

    @property
    def bounded(self) -> bool:
        """Whether bounds serve the database."""
        return self._low is not None

    @property
    def compared(self) -> float:
        """Rows that a query was compared with in full since ``fit``, on average; NaN before the first query."""
        return self._pairs / self._asked if self._asked else float("nan")

    def kneighbors(self, queries: Tensor, k: int) -> Neighbors:
        """The ``k`` nearest rows for each query ``(Q, D)``, as :meth:`NearestNeighbors.kneighbors` finds them."""
        queries = self._prepare(queries.detach(), k)
        self._asked += len(queries)
        by_bounds = self.bounded and _WIDEST * k < len(self.database_)
        parts = [(self._bounded if by_bounds else self._whole)(part, k) for part in queries.split(self._rows())]
        return Neighbors(torch.cat([part.distances for part in parts]), torch.cat([part.indices for part in parts]))

    def _whole(self, queries: Tensor, k: int) -> Neighbors:
        self._pairs += len(queries) * len(self.database_)
        return self._torch_search(queries, k)

    def _bounded(self, queries: Tensor, k: int) -> Neighbors:
        low = self._project(queries)
        upper, columns = self._likeliest(low, k)
        scores = torch.full_like(upper, -torch.inf)
        self._compare(queries, columns, scores, 0, [k] * len(queries))
        # A row whose bound is below the k-th score so far cannot be among the k nearest.
        margin = _ROUNDING * self._longest * torch.maximum(low.norm(dim=1), self._longest)
        needed = (upper >= (scores[:, :k].amin(1) - margin)[:, None]).sum(1).clamp(min=k)
        unsure = needed == upper.shape[1]  # rows of as large a bound may lie beyond
        self._compare(queries, columns, scores, k, torch.where(unsure, k, needed).tolist())
        scores, columns = (part[:, :k] for part in _order(scores, columns))
        found = Neighbors(self._distances(queries, scores), columns)
        if unsure.any():
            whole = self._whole(queries[unsure], k)
            found.distances[unsure], found.indices[unsure] = whole.distances, whole.indices
        return found

    def _project(self, rows: Tensor) -> Tensor:
        """Coordinates on the axes and, last, no less than the length of what is orthogonal to them: ``(n, m + 1)``."""
        inside = rows @ self._axes
        squares = (rows * rows).sum(1, dtype=torch.float64)
        # The difference loses all digits of a short rest, and a bound must not be too low.
        rest = (squares - (inside * inside).sum(1, dtype=torch.float64)).clamp(min=0) + 1e-6 * squares
        return torch.cat([inside, rest.sqrt().to(inside)[:, None]], 1)

    def _likeliest(self, low: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Largest bounds of the scores of queries, descending, and their rows: some times ``k`` of each query."""
        assert self._low is not None
        bounds = low @ self._low.T if self.squares_ is None else torch.addmm(self.squares_, low, self._low.T, beta=-0.5)
        return bounds.topk(min(max(_WIDEST * k, _AT_LEAST), bounds.shape[1]), dim=1)

    def _compare(self, queries: Tensor, columns: Tensor, scores: Tensor, start: int, stops: list[int]) -> None:
        """Fill in the scores of each query from ``start`` to its stop."""
        # Query by query, from one buffer: a gather of all pairs at once would copy gigabytes.
        buffer = self.database_.new_empty(max(stops) - start, self.database_.shape[1])
        for query, rows, score, stop in zip(queries, columns, scores, stops, strict=True):
            if stop > start:
                near = rows[start:stop]
                found = torch.index_select(self.database_, 0, near, out=buffer[: len(near)]) @ query
                score[start:stop] = found if self.squares_ is None else found - self.squares_[near] / 2
        self._pairs += sum(stops) - start * len(stops)


class BoundedDeepKNN(DeepKNN):
    """Deep kNN whose wide layers are searched by bounds: the same neighbours, with a fraction of the operations.

    ``backend`` must be ``torch``.
    """

    def _index(self) -> BoundedNeighbors:
        checks.one_of("backend", self.backend, ("torch",))
        return BoundedNeighbors(metric=self.metric, memory_gib=self.memory_gib, copy=False)
