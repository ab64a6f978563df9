"""Rank and distance of chosen rows of a database as seen from a query, without the order of all the others."""

import numpy as np
import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.errors import InputError


def ranks_and_distances(
    queries: Tensor, database: Tensor, chosen: Tensor, *, memory_gib: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Rank and L2 distance ``(Q, M)`` of the rows ``chosen`` (Q, M) of a database ``(N, D)`` among all its rows.

    A rank counts the rows that are nearer to the query, 0 for the nearest. Of rows at the same distance the one with the
    lower index counts as nearer, as in a stable sort. Distances are computed in double precision from differences, so that
    copies of one row are exactly as far and rounding makes no other ties. Memory: about ``memory_gib`` for pairs of a
    query and a row. Time: ``Q N D`` operations, and a sort of N numbers for each query.

    Returns
    -------
    Ranks (int64, from 0 to N - 1) and distances (float64), on the database's device.

    Raises
    ------
    InputError
        Rows that are not in the database, or shapes that do not fit.
    """
    _check(queries, database, chosen, memory_gib)
    database = database.double()
    size = max(1, int(memory_gib * 2**30 / (4 * 8 * len(database))))
    pairs = zip(queries.to(database).split(size), chosen.to(database.device).split(size), strict=True)
    parts = [_part(rows, database, columns) for rows, columns in pairs]
    return torch.cat([ranks for ranks, _ in parts]), torch.cat([distances for _, distances in parts])


def rank_and_distance(
    queries: Tensor, database: Tensor, chosen: Tensor, *, memory_gib: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Mean rank and mean distance ``(Q,)``, float64, of the chosen rows; see :func:`ranks_and_distances`."""
    ranks, distances = ranks_and_distances(queries, database, chosen, memory_gib=memory_gib)
    return ranks.double().mean(1), distances.mean(1)


def _part(queries: Tensor, database: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    distances = torch.cdist(queries, database, compute_mode="donot_use_mm_for_euclid_dist")
    own = distances.gather(1, chosen)
    ordered = _sorted(distances)
    ranks = torch.searchsorted(ordered, own)
    tied = torch.searchsorted(ordered, own, right=True) - ranks > 1
    if tied.any():
        rows, columns = torch.nonzero(tied, as_tuple=True)
        ranks[rows, columns] += _earlier(distances, rows, chosen[rows, columns])
    return ranks, own


def _sorted(distances: Tensor) -> Tensor:
    # NumPy sorts numbers without their places, with vector instructions: several times faster than torch on a CPU.
    if distances.device.type == "cpu":
        return torch.from_numpy(np.sort(distances.numpy(), axis=1))
    return distances.sort(dim=1).values


def _earlier(distances: Tensor, rows: Tensor, chosen: Tensor) -> Tensor:
    """How many database rows of lower index are exactly as far from query ``rows[i]`` as row ``chosen[i]``."""
    index = torch.arange(distances.shape[1], device=distances.device)
    counts = []
    # As many pairs at a time as there are queries, so that this takes no more memory than the distances.
    for row, column in zip(rows.split(len(distances)), chosen.split(len(distances)), strict=True):
        far = distances[row]
        counts.append(((far == far.gather(1, column[:, None])) & (index < column[:, None])).sum(1))
    return torch.cat(counts)


def _check(queries: Tensor, database: Tensor, chosen: Tensor, memory_gib: float) -> None:
    checks.points("queries", queries)
    checks.points("database", database)
    checks.positive("memory_gib", memory_gib)
    if queries.ndim != 2 or database.ndim != 2 or queries.shape[1] != database.shape[1]:
        raise InputError(
            f"queries have shape {tuple(queries.shape)}, the database {tuple(database.shape)}; columns must agree"
        )
    check_chosen("chosen", chosen, len(queries), len(database))


def check_chosen(name: str, chosen: Tensor, queries: int, rows: int) -> None:
    """Refuse what are not rows of a database, as many for each query."""
    if not isinstance(chosen, Tensor) or chosen.dtype != torch.int64 or chosen.ndim != 2 or len(chosen) != queries:
        raise InputError(f"{name} must be a tensor of indices (int64) with one row for each of the {queries} queries")
    if chosen.shape[1] == 0 or int(chosen.min()) < 0 or int(chosen.max()) >= rows:
        raise InputError(f"{name} must hold at least one index a query, from 0 to {rows - 1}")


def check_distinct(name: str, chosen: Tensor) -> None:
    """Refuse a row that is chosen twice for one query."""
    if bool((chosen.sort(1).values.diff(dim=1) == 0).any()):
        raise InputError(f"{name} names a row twice for one query; each may be chosen once")
