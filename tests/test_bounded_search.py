"""Search by bounds against all distances in double precision."""

import pytest
import torch

from deepneighbors import data
from deepneighbors.bounded_search import BoundedDeepKNN, BoundedNeighbors, _largest
from deepneighbors.dknn import DeepKNN
from deepneighbors.dknn_training import other_neighbors
from deepneighbors.errors import InputError
from deepneighbors.neighbors import METRICS, NearestNeighbors
from deepneighbors.networks import MnistCNN

AXES, ROWS, WIDTH = 6, 700, 40


def _near_a_plane(count, seed, noise=0.05):
    """Points whose distances are mostly those in six dimensions, of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    plane = torch.randn(AXES, WIDTH, generator=torch.Generator().manual_seed(9))
    points = torch.randn(count, AXES, generator=generator) @ plane
    return points + noise * torch.randn(count, WIDTH, generator=generator)


def _brute(rows, queries, k, metric):
    rows, queries = rows.double(), queries.double()
    if metric == "cosine":
        rows, queries = (part / part.norm(dim=1, keepdim=True) for part in (rows, queries))
    distances, indices = torch.cdist(queries, rows, compute_mode="donot_use_mm_for_euclid_dist").sort(dim=1, stable=True)
    return distances[:, :k], indices[:, :k]


def _check(found, rows, queries, metric):
    """Each place holds a row as near as the one that belongs there, and no row comes twice."""
    k = found.indices.shape[1]
    wanted, _ = _brute(rows, queries, k, metric)
    everything, order = _brute(rows, queries, len(rows), metric)
    reached = everything.gather(1, order.argsort(1).gather(1, found.indices))
    torch.testing.assert_close(reached, wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.distances.double(), wanted, rtol=1e-4, atol=2e-3)
    assert all(len(set(row)) == k for row in found.indices.tolist())


def _index(metric, **options):
    return BoundedNeighbors(metric=metric, axes=AXES, least_rows=100, **options)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 20, 650])
def test_neighbors_are_those_of_all_distances(metric, k):
    rows, queries = _near_a_plane(ROWS, 0), _near_a_plane(90, 1)
    index = _index(metric, memory_gib=1e-4).fit(rows)  # several blocks of queries
    found = index.kneighbors(queries, k)
    assert index.bounded
    _check(found, rows, queries, metric)
    if k == 20:
        assert k < index.compared < 0.2 * ROWS  # the bounds do rule out most rows


@pytest.mark.parametrize("metric", METRICS)
def test_where_bounds_rule_out_too_little_all_rows_are_compared(metric):
    generator = torch.Generator().manual_seed(2)
    rows, queries = torch.randn(ROWS, WIDTH, generator=generator), torch.randn(30, WIDTH, generator=generator)
    index = _index(metric).fit(rows)
    _check(index.kneighbors(queries, 5), rows, queries, metric)
    assert index.compared > ROWS / 2


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 5])
def test_a_query_far_outside_of_the_subspace_is_found_too(metric, k):
    """Rows all but in the subspace differ along the query's own direction by little more than their rounding."""
    generator = torch.Generator().manual_seed(4)
    basis, _ = torch.linalg.qr(torch.randn(WIDTH, AXES + 1, generator=generator))
    plane, out = basis[:, :AXES].T, basis[:, AXES]
    rows = torch.randn(ROWS, AXES, generator=generator)
    rows[:40] = rows[0] + 1e-4 * rows[:40]
    rows = torch.nn.functional.normalize(rows @ plane, dim=1) + 3e-4 * torch.rand(ROWS, 1, generator=generator) * out
    query = (rows[:1] + 3 * out).contiguous()
    reached = _brute(rows, query, k, metric)[0]
    found = _index(metric).fit(rows).kneighbors(query, k)
    exact = torch.cat([_brute(rows[i][None], query, 1, metric)[0] for i in found.indices[0]], 1)
    torch.testing.assert_close(exact, reached, rtol=0, atol=2e-6)


def test_some_queries_are_settled_by_bounds_and_others_by_all_distances():
    rows = torch.cat([_near_a_plane(ROWS, 0), torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(5)) * 3])
    queries = torch.cat([_near_a_plane(20, 1), rows[-20:] + 0.3])
    index = _index("l2").fit(rows)
    _check(index.kneighbors(queries, 5), rows, queries, "l2")
    assert len(rows) / 4 < index.compared < len(rows) * 3 / 4


@pytest.mark.parametrize(("count", "width"), [(60_000, 83), (4_099, 100), (1_000, 20), (50, 50), (64, 4)])
def test_the_largest_of_long_rows_are_selected(count, width):
    scores = torch.randn(7, count, generator=torch.Generator().manual_seed(6))
    scores[3] = scores[3].round(decimals=1)  # many are equal
    scores[4] = scores[4].sort().values  # all of them at the end, where no group reaches
    best, columns = _largest(scores, width)
    assert torch.equal(best, scores.sort(dim=1, descending=True).values[:, :width])
    assert torch.equal(scores.gather(1, columns), best)
    assert all(len(set(row)) == width for row in columns.tolist())


def test_ties_in_a_narrow_database_are_ordered_by_index():
    rows = torch.randint(0, 2, (3_000, 3), generator=torch.Generator().manual_seed(7)).float()
    index = BoundedNeighbors().fit(rows)
    assert not index.bounded and index.selects
    expected = torch.cdist(rows[:9], rows, compute_mode="donot_use_mm_for_euclid_dist").sort(dim=1, stable=True).indices
    assert torch.equal(index.kneighbors(rows[:9], 30).indices, expected[:, :30])


def test_no_gradient_is_kept_and_a_smaller_database_takes_the_place_of_a_large_one():
    rows = _near_a_plane(ROWS, 0).requires_grad_(True)
    index = _index("l2").fit(rows)
    assert not index.kneighbors(rows[:3] * 1.0, 2).distances.requires_grad
    small = _near_a_plane(50, 0)
    assert index.bounded and not index.fit(small).bounded
    assert torch.equal(index.kneighbors(small, 1).indices.flatten(), torch.arange(50))


@pytest.mark.parametrize("metric", METRICS)
def test_a_row_finds_itself_and_its_copies(metric):
    rows = _near_a_plane(120, 3).repeat(3, 1)  # three copies of each
    found = _index(metric).fit(rows).kneighbors(rows[:120], 3)
    assert torch.equal(found.indices.sort(1).values, torch.arange(120)[:, None] + torch.tensor([0, 120, 240]))


def test_small_and_narrow_databases_are_searched_as_usual():
    few, narrow = _near_a_plane(99, 0), _near_a_plane(300, 0)[:, : 4 * AXES - 1].contiguous()
    for rows in (few, narrow):
        index = _index("l2").fit(rows)
        assert not index.bounded
        usual = NearestNeighbors().fit(rows).kneighbors(rows[:9], 4)
        assert torch.equal(index.kneighbors(rows[:9], 4).indices, usual.indices) and index.compared == len(rows)


@pytest.mark.parametrize(("wrong", "sentence"), [({"axes": 0}, "axes"), ({"least_rows": 0}, "least_rows")])
def test_bad_settings_are_refused(wrong, sentence):
    with pytest.raises(InputError, match=sentence):
        BoundedNeighbors(**wrong)


def test_deep_knn_by_bounds_has_one_backend():
    digits = data.load("mnist")
    with pytest.raises(InputError, match="backend is 'faiss'"):
        BoundedDeepKNN(MnistCNN().eval(), MnistCNN.layers, k=2, backend="faiss").fit(digits.x_train[:9], digits.y_train[:9])


def test_a_search_before_fit_or_with_too_many_neighbors_is_refused():
    with pytest.raises(InputError, match="before fit"):
        _index("l2").kneighbors(torch.rand(2, WIDTH), 1)
    with pytest.raises(InputError, match="k"):
        _index("l2").fit(_near_a_plane(ROWS, 0)).kneighbors(_near_a_plane(2, 1), ROWS + 1)


@pytest.mark.parametrize("metric", METRICS)
def test_deep_knn_finds_the_same_neighbors_of_digits(metric, monkeypatch):
    """In the network's own layers, of other digits and of the training digits themselves."""
    torch.manual_seed(0)
    network, digits = MnistCNN(conv2_padding=0).eval(), data.load("mnist")
    x, y = digits.x_train[:1200], digits.y_train[:1200]
    monkeypatch.setattr(
        BoundedDeepKNN, "_index", lambda self: BoundedNeighbors(metric=self.metric, axes=200, least_rows=1000, copy=False)
    )
    bounded, plain = (kind(network, MnistCNN.layers, k=10, metric=metric).fit(x, y) for kind in (BoundedDeepKNN, DeepKNN))
    assert [index.bounded for index in bounded.indexes_.values()] == [True, True, False, False]
    pairs = [(bounded.kneighbors(digits.x_test[:100]), plain.kneighbors(digits.x_test[:100]))]
    pairs.append((other_neighbors(bounded), other_neighbors(plain)))
    for found, wanted in pairs:
        for layer in MnistCNN.layers:
            torch.testing.assert_close(found[layer].distances, wanted[layer].distances, rtol=1e-3, atol=2e-3)
            # Distances that differ by rounding alone may change places.
            assert float((found[layer].indices == wanted[layer].indices).float().mean()) > 0.995
    assert bounded.indexes_["relu1"].compared < 100
