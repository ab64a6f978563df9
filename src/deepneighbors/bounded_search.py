"""Exact neighbours in wide layers by bounds: a projection rules out nearly all points, and the others are compared in full.

Split a query and a point into their parts in and orthogonal to a subspace. The orthogonal parts have an inner product of at
most the product of their lengths (Cauchy and Schwarz), so the parts inside and two lengths bound it. On principal axes the
bound is tight: in the first layer of the report's network, 12,544 numbers wide, 256 axes leave 142 of 60,000 digits, on
average, to be compared for the 75 nearest (``benchmarks/poisoning_speed.py``). Cost of ``Q`` queries: ``2 Q N m`` operations
for ``m`` axes in place of ``2 Q N D``, and ``2 N D m`` to begin with.
"""

import warnings

import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.dknn import DeepKNN
from deepneighbors.neighbors import _SPARE, NearestNeighbors, Neighbors, _order, _top

_DRAWN = 2_000  # rows from which the axes are found
# Candidates by their bounds, in multiples of k and at least so many: most queries are settled by the first number of them,
# nearly all others by the second, and what is left is compared with all rows.
_WIDTHS = ((4, 256), (32, 2048))
_ROUNDING = 1e-5  # of a product of two lengths, in single precision, with a margin


class BoundedNeighbors(NearestNeighbors):
    """:class:`NearestNeighbors` of the torch backend that compares a query with few rows in full, for wide databases.

    The answers are the same up to rounding: rows whose distances differ by no more, equal ones among them, may change
    places. Databases of fewer than ``least_rows`` rows or less than four times as wide as there are axes, and those on a
    GPU, gain nothing from bounds and are compared in full; so is a query whose bounds rule out too little, or for ``k``
    beyond a quarter of the rows. Takes ``N (m + 1)`` floats beside the database. No gradients flow through it.

    Parameters
    ----------
    axes
        Dimension ``m`` of the subspace: more make the bounds tighter, and cost more for each pair.
    least_rows
        Of a database that is searched by bounds.
    metric, memory_gib, copy
        As in :class:`NearestNeighbors`.
    """

    _low: Tensor | None = None  # coordinates of the rows on the axes

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

    @property
    def bounded(self) -> bool:
        """Whether bounds serve the database."""
        return self._low is not None

    @property
    def selects(self) -> bool:
        """Whether a product costs so little here that comparing each pair once, for both of its rows, gains nothing."""
        return self.bounded or (self.database_.device.type == "cpu" and self.database_.shape[1] < 4 * self.axes)

    @property
    def compared(self) -> float:
        """Rows that a query was compared with in full since ``fit``, on average; NaN before the first query."""
        return self._pairs / self._asked if self._asked else float("nan")

    def kneighbors(self, queries: Tensor, k: int) -> Neighbors:
        """The ``k`` nearest rows for each query ``(Q, D)``, as :meth:`NearestNeighbors.kneighbors` finds them."""
        queries = self._prepare(queries.detach(), k)
        self._asked += len(queries)
        by_bounds = self.bounded and _WIDTHS[0][0] * k < len(self.database_)
        parts = [(self._bounded if by_bounds else self._whole)(part, k) for part in queries.split(self._rows())]
        return Neighbors(torch.cat([part.distances for part in parts]), torch.cat([part.indices for part in parts]))

    def _whole(self, queries: Tensor, k: int) -> Neighbors:
        """All rows compared in full; equal distances by index."""
        self._pairs += len(queries) * len(self.database_)
        scores = self._scores(queries)
        best, columns = _order(*_largest(scores, min(k + _SPARE, scores.shape[1])))
        tied = best[:, k - 1] == best[:, -1]
        best, columns = best[:, :k], columns[:, :k]
        if tied.any():  # rows of equal distance may lie beyond what was selected
            best[tied], columns[tied] = _top(scores[tied], k)
        return Neighbors(self._distances(queries, best), columns)

    def _bounded(self, queries: Tensor, k: int) -> Neighbors:
        assert self._low is not None
        low = self._project(queries)
        bounds = low @ self._low.T if self.squares_ is None else torch.addmm(self.squares_, low, self._low.T, beta=-0.5)
        found = Neighbors(queries.new_empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.int64))
        left = torch.arange(len(queries))
        for times, least in _WIDTHS:
            width = min(max(times * k, least), len(self.database_))
            upper, columns = _largest(bounds if len(left) == len(bounds) else bounds[left], width)
            scores, settled = self._candidates(queries[left], low[left], upper, columns, k)
            scores, columns = (part[settled, :k] for part in _order(scores, columns))
            done = left[settled]
            found.distances[done], found.indices[done] = self._distances(queries[done], scores), columns
            left = left[~settled]
            if not len(left):
                return found
        whole = self._whole(queries[left], k)
        found.distances[left], found.indices[left] = whole.distances, whole.indices
        return found

    def _candidates(self, queries: Tensor, low: Tensor, upper: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores of the candidates that can be among the k nearest, -inf of the others, and which queries are settled.

        ``columns`` are candidates ``(Q, width)`` by descending bounds ``upper``.
        """
        scores = torch.full_like(upper, -torch.inf)
        margin = _ROUNDING * self._longest * torch.maximum(low.norm(dim=1), self._longest)

        def needed() -> Tensor:
            # A row whose bound is below the k-th score so far cannot be among the k nearest.
            reached = scores.topk(k, dim=1).values[:, -1]
            return (upper >= (reached - margin)[:, None]).sum(1).clamp(min=k)

        start = torch.zeros(len(queries), dtype=torch.int64)
        some = torch.full_like(start, k)
        self._compare(queries, columns, scores, start, some)
        more = needed().clamp(max=2 * k)  # their scores tell better which others are needed
        self._compare(queries, columns, scores, some, more)
        stop, width = needed(), upper.shape[1]
        # Where all candidates are needed, rows of as large a bound may lie beyond.
        settled = (stop < width) | (width == len(self.database_))
        self._compare(queries, columns, scores, more, torch.where(settled, stop, more).maximum(more))
        return scores, settled

    def _project(self, rows: Tensor) -> Tensor:
        """Coordinates on the axes and, last, no less than the length of what is orthogonal to them: ``(n, m + 1)``."""
        inside = rows @ self._axes
        squares = (rows * rows).sum(1, dtype=torch.float64)
        # The difference loses all digits of a short rest, and a bound must not be too low.
        rest = (squares - (inside * inside).sum(1, dtype=torch.float64)).clamp(min=0) + 1e-6 * squares
        return torch.cat([inside, rest.sqrt().to(inside)[:, None]], 1)

    def _compare(self, queries: Tensor, columns: Tensor, scores: Tensor, starts: Tensor, stops: Tensor) -> None:
        """Fill in the scores of each query from its start to its stop."""
        places = torch.arange(columns.shape[1])
        wanted = (places >= starts[:, None]) & (places < stops[:, None])
        rows, ends = columns[wanted], torch.cat([starts.new_zeros(1), wanted.sum(1).cumsum(0)])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            pattern = torch.sparse_csr_tensor(
                ends, rows, queries.new_zeros(len(rows)), (len(queries), len(self.database_)), check_invariants=False
            )
        # The products of these pairs alone; rows gathered for a matrix product would be read twice and written once.
        found = torch.sparse.sampled_addmm(pattern, queries, self.database_.T, beta=0.0).values()
        scores[wanted] = found if self.squares_ is None else found - self.squares_[rows] / 2
        self._pairs += len(rows)


class BoundedDeepKNN(DeepKNN):
    """Deep kNN whose wide layers are searched by bounds: the same neighbours, with a fraction of the operations.

    ``backend`` must be ``torch``.
    """

    def _index(self) -> BoundedNeighbors:
        checks.one_of("backend", self.backend, ("torch",))
        return BoundedNeighbors(metric=self.metric, memory_gib=self.memory_gib, copy=False)


def _largest(scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The largest ``width`` of each row of ``scores`` (Q, N), descending, and their columns; of equal ones any.

    On a CPU ``topk`` visits each number with a branch. Of columns laid in groups, those with the ``width`` largest maxima
    hold all that is looked for, and maxima are found by vector instructions.
    """
    count = scores.shape[1]
    each = int((count / width) ** 0.5)  # columns a group: as many maxima as candidates are left to select from
    if scores.device.type != "cpu" or each < 4:
        return scores.topk(width, dim=1)
    groups = count // each
    maxima = scores[:, : each * groups].unflatten(1, (each, groups)).amax(1)
    chosen = maxima.topk(width, dim=1, sorted=False).indices
    columns = (chosen[:, None] + groups * torch.arange(each)[:, None]).flatten(1)
    rest = torch.arange(each * groups, count).expand(len(scores), -1)
    columns = torch.cat([columns, rest], 1)
    best, places = scores.gather(1, columns).topk(width, dim=1)
    return best, columns.gather(1, places)
