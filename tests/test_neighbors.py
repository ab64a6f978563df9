"""Exact search against brute force in float64, ties, memory limits, and bad input."""

import pytest
import torch

from deepneighbors import checks
from deepneighbors.errors import InputError
from deepneighbors.neighbors import NearestNeighbors


def brute(x, q, metric):
    x, q = x.double(), q.double()
    if metric == "cosine":
        x, q = (torch.nn.functional.normalize(part, dim=1) for part in (x, q))
    return (q[:, None] - x[None]).norm(dim=2)


@pytest.fixture(scope="module")
def points():
    generator = torch.Generator().manual_seed(3)
    return torch.rand(400, 20, generator=generator), torch.rand(33, 20, generator=generator)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("memory_gib", [0.5, 1e-5])
def test_neighbors_are_those_of_brute_force(points, metric, backend, memory_gib):
    x, q = points
    found = NearestNeighbors(metric=metric, backend=backend, memory_gib=memory_gib).fit(x).kneighbors(q, 15)
    expected = brute(x, q, metric).sort(dim=1)
    assert torch.equal(found.indices, expected.indices[:, :15])
    torch.testing.assert_close(found.distances.double(), expected.values[:, :15], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_class_neighbors_are_those_of_each_class(points, metric):
    x, q = points
    labels = torch.arange(len(x)) % 3
    found = NearestNeighbors(metric=metric).fit(x).class_kneighbors(q, 6, labels, 3)
    distances = brute(x, q, metric)
    for c in range(3):
        members = torch.nonzero(labels == c).flatten()
        expected = members[distances[:, members].argsort(dim=1)[:, :6]]
        assert torch.equal(found.indices[:, c], expected)


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_equal_distances_are_ordered_by_index(backend):
    x = torch.eye(4).repeat(30, 1)  # 30 copies of 4 points: ties reach far beyond any spare candidates
    found = NearestNeighbors(backend=backend).fit(x).kneighbors(torch.eye(4)[:1], 6)
    assert found.indices.tolist() == [[0, 4, 8, 12, 16, 20]]
    assert (found.distances == 0).all()


def test_approximate_index_finds_most(points):
    x, q = points
    exact = NearestNeighbors().fit(x).kneighbors(q, 10).indices
    near = NearestNeighbors(backend="faiss_ivf", lists=8, probes=4).fit(x).kneighbors(q, 10).indices
    recall = torch.stack([torch.isin(a, b).float().mean() for a, b in zip(exact, near, strict=True)]).mean()
    assert 0.6 < recall <= 1


def test_approximate_index_answers_where_its_lists_are_too_short(points):
    x, q = points
    near = NearestNeighbors(backend="faiss_ivf", lists=8, probes=1).fit(x).kneighbors(q, 200)  # a list holds about 50
    assert torch.equal(near.indices, NearestNeighbors().fit(x).kneighbors(q, 200).indices)


def test_cosine_copy_leaves_the_database_alone(points):
    x = points[0].clone()
    NearestNeighbors(metric="cosine").fit(x)
    assert torch.equal(x, points[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: NearestNeighbors(metric="l3"), "metric is 'l3'; allowed are l2, cosine"),
        (lambda x: NearestNeighbors(backend="annoy"), "backend is 'annoy'"),
        (lambda x: NearestNeighbors().kneighbors(x, 1), "before fit"),
        (lambda x: NearestNeighbors().fit(x).kneighbors(x, 401), "k is 401; it must be a whole number from 1 to 400"),
        (lambda x: NearestNeighbors().fit(x).kneighbors(x[:0], 1), "empty batch"),
        (lambda x: NearestNeighbors().fit(x).kneighbors(x * float("nan"), 1), "NaN"),
        (lambda x: NearestNeighbors().fit(x).kneighbors(x[:, :5], 1), "queries have 5 columns; the database has 20"),
        (lambda x: NearestNeighbors().fit(x / 0), "NaN or infinite"),
        (lambda x: NearestNeighbors(lists=4, probes=5), "probes is 5; it must be a whole number from 1 to 4"),
        (lambda x: NearestNeighbors(backend="faiss_ivf", lists=401).fit(x), "lists is 401"),
        (lambda x: NearestNeighbors().fit(x).class_kneighbors(x, 1, torch.zeros(5).long(), 1), "5 labels for 400 samples"),
        (lambda x: NearestNeighbors().fit(x).class_kneighbors(x, 1, torch.zeros(400).long(), 2), "class 1 has only 0 rows"),
    ],
)
def test_bad_input_is_refused(points, call, message):
    with pytest.raises(InputError, match=message):
        call(points[0])


def test_points_are_tested_in_parts(monkeypatch):
    monkeypatch.setattr(checks, "_TESTED", 8)
    x = torch.zeros(7, 3)
    checks.points("x", x)
    checks.points("x", torch.zeros(3, 0))  # no numbers, so none that is wrong
    for place in (0, 10, 20):
        wrong = x.flatten().index_fill(0, torch.tensor(place), torch.nan).view_as(x)
        with pytest.raises(InputError, match="NaN or infinite"):
            checks.points("x", wrong)
