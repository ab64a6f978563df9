"""Exact 1-NN perturbations and the bound for k neighbours: against closed forms, grids, and a general solver."""

import numpy as np
import pytest
from scipy.optimize import minimize

from deepneighbors.errors import InputError
from deepneighbors.voronoi import exact, lower_bound_knn, minimum_perturbation, minimum_perturbations

EVERYWHERE = (-np.inf, np.inf)
METRICS = ("l2", "cosine")


def problem(seed: int, *, n: int = 20, dimensions: int = 4, classes: int = 3):
    rng = np.random.default_rng(seed)
    x = np.round(rng.random((n, dimensions)) ** 2, 2) + 0.001
    y = np.arange(n) % classes
    return rng.random(dimensions) ** 2, int(rng.integers(classes)), x.clip(0, 1), y


def distances(points, x, metric: str):
    """Distances (n, N), by definition and not by the scores of the module."""
    if metric == "cosine":
        points, x = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (points, x))
    return np.linalg.norm(points[:, None] - x[None], axis=2)


def votes_for(points, x, y, metric: str, k: int = 1):
    """Plurality label of the k nearest; ties of votes go to the smallest label."""
    near = np.argsort(distances(points, x, metric), axis=1, kind="stable")[:, :k]
    return np.stack([(y[near] == c).sum(1) for c in range(y.max() + 1)], axis=1).argmax(1)


def by_general_solver(query, label, x, y, metric: str) -> float:
    """The optimum by SLSQP, one program a point of another class, all constraints at once."""
    p = x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x
    c = np.zeros(len(x)) if metric == "cosine" else (x**2).sum(1) / 2
    best = np.inf
    for j in np.flatnonzero(y != label):
        normals, room = p[y == label] - p[j], c[y == label] - c[j]
        cell = {"type": "ineq", "fun": lambda z, a=normals, r=room: r - a @ z, "jac": lambda z, a=normals: -a}
        found = minimize(
            lambda z: 0.5 * ((z - query) ** 2).sum(), x[j], jac=lambda z: z - query, method="SLSQP",
            bounds=[(0, 1)] * len(query), constraints=[cell], options={"maxiter": 500, "ftol": 1e-14},
        )  # fmt: skip
        assert (normals @ found.x - room).max() < 1e-7
        best = min(best, float(np.linalg.norm(found.x - query)))
    return best


def test_two_points_give_the_distance_to_their_bisector():
    x, y = np.array([[0.2, 0.5], [0.8, 0.5]]), np.array([0, 1])
    answer = minimum_perturbation(np.array([0.1, 0.3]), 0, x, y, margin=1e-9)
    assert answer.distance == pytest.approx(0.4, abs=1e-6)
    assert answer.x_adv == pytest.approx([0.5, 0.3], abs=1e-5)
    assert answer.certified and answer.n_programs == answer.n_candidates == 1


def test_box_makes_the_optimum_larger():
    """The way straight to the bisector leaves the box at the left wall; inside, only the height can change."""
    x, y, query = np.array([[0.5, 0.0], [0.0, 1.0]]), np.array([0, 1]), np.array([0.0, 0.1])
    free = minimum_perturbation(query, 0, x, y, box=EVERYWHERE, margin=1e-9)
    inside = minimum_perturbation(query, 0, x, y, margin=1e-9)
    assert free.distance == pytest.approx(0.275 / np.hypot(0.5, 1), abs=1e-6) and free.x_adv[0] < 0
    assert inside.distance == pytest.approx(0.275, abs=1e-6)
    assert inside.x_adv == pytest.approx([0, 0.375], abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(4))
def test_no_point_of_a_fine_grid_is_nearer(metric, seed):
    query, label, x, y = problem(seed, dimensions=2)
    answer = minimum_perturbation(query, label, x, y, metric=metric, margin=1e-9)
    axis = np.linspace(0, 1, 401)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)[1:]
    wrong = grid[votes_for(grid, x, y, metric) != label]
    nearest = np.linalg.norm(wrong - query, axis=1).min()
    assert answer.lower_bound <= answer.distance <= nearest + 1e-6
    assert nearest <= answer.distance + 2 * np.sqrt(2) / 400 + 1e-6


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dimensions", (3, 4, 5))
def test_agrees_with_a_general_solver(metric, dimensions):
    moved = 0
    for seed in range(8):
        query, label, x, y = problem(100 * dimensions + seed, dimensions=dimensions)
        answer = minimum_perturbation(query, label, x, y, metric=metric, margin=1e-9)
        right = votes_for(query[None], x, y, metric)[0] == label
        expected = by_general_solver(query, label, x, y, metric) if right else 0.0
        assert answer.distance == pytest.approx(expected, abs=2e-5)
        assert answer.certified and answer.lower_bound <= expected + 1e-6
        moved += right
    assert moved >= 1


def test_general_solver_agrees_where_the_box_is_active():
    """Queries on the walls: at least one optimum stays there, and differs from the optimum without the box."""
    active = 0
    for seed in range(12):
        _, _, x, y = problem(seed, dimensions=5, n=15)
        query = np.round(np.random.default_rng(seed).random(5))
        label = int(votes_for(query[None], x, y, "l2")[0])
        answer = minimum_perturbation(query, label, x, y, margin=1e-9)
        free = minimum_perturbation(query, label, x, y, box=EVERYWHERE, margin=1e-9)
        assert answer.distance == pytest.approx(by_general_solver(query, label, x, y, "l2"), abs=2e-5)
        active += answer.distance > free.distance + 1e-3
    assert active >= 3


@pytest.mark.parametrize("metric", METRICS)
def test_many_queries_at_once_flip_verified_and_in_order(metric):
    rng = np.random.default_rng(5)
    x, y = rng.random((1500, 30)), np.arange(1500) % 4  # hundreds of constraints a program
    queries = rng.random((12, 30))
    labels = votes_for(queries, x, y, metric)
    labels[0] = (labels[0] + 1) % 4  # already wrong
    answers = minimum_perturbations(queries, labels, x, y, metric=metric)
    found = np.stack([a.x_adv for a in answers])
    assert (votes_for(found, x, y, metric) != labels).all()
    assert found.min() >= 0 and found.max() <= 1
    assert answers[0].distance == 0 and np.array_equal(found[0], queries[0])
    for answer, query, label in zip(answers, queries, labels, strict=True):
        assert answer.distance == pytest.approx(np.linalg.norm(answer.x_adv - query), abs=1e-12)
        assert 0 <= answer.lower_bound <= answer.distance <= answer.lower_bound + 1e-3
        assert minimum_perturbation(query, label, x, y, metric=metric).distance == pytest.approx(answer.distance)
    assert all(a.distance > 0 and a.n_candidates >= 1 for a in answers[1:])


def test_constraints_are_added_until_none_is_violated(monkeypatch):
    monkeypatch.setattr(exact, "_FIRST", 1)
    monkeypatch.setattr(exact, "_MORE", 2)
    for seed in range(6):
        _, _, x, y = problem(seed, n=60, dimensions=5)
        query = np.random.default_rng(seed).random(5)
        label = int(votes_for(query[None], x, y, "l2")[0])
        answer = minimum_perturbation(query, label, x, y, margin=1e-9)
        assert answer.distance == pytest.approx(by_general_solver(query, label, x, y, "l2"), abs=2e-5)


def test_points_stay_misclassified_in_float32():
    rng = np.random.default_rng(6)
    x, y, queries = rng.random((200, 40)), np.arange(200) % 3, rng.random((10, 40))
    labels = votes_for(queries, x, y, "l2")
    stored = np.stack([a.x_adv for a in minimum_perturbations(queries, labels, x, y)]).astype(np.float32)
    assert (votes_for(stored.astype(np.float64), x.astype(np.float32), y, "l2") != labels).all()


def test_cosine_does_not_see_the_length_of_training_points():
    query, label, x, y = problem(3, n=30, dimensions=5)
    scales = np.random.default_rng(0).uniform(0.2, 1, (len(x), 1))
    same = minimum_perturbation(query, label, x, y, metric="cosine", margin=1e-9)
    scaled = minimum_perturbation(query, label, x * scales, y, metric="cosine", margin=1e-9)
    assert scaled.distance == pytest.approx(same.distance, abs=1e-5)
    assert minimum_perturbation(query, label, x * scales, y).distance != pytest.approx(same.distance, abs=1e-3)


def test_cosine_optimum_scales_with_the_query():
    query, _, x, y = problem(3, n=30, dimensions=5)
    label, options = int(votes_for(query[None], x, y, "cosine")[0]), {"metric": "cosine", "margin": 1e-9, "box": (0, np.inf)}
    whole, half = (minimum_perturbation(s * query, label, x, y, **options).distance for s in (1, 0.5))
    assert whole > 0 and half == pytest.approx(whole / 2, abs=1e-6)


def test_ties_go_to_the_lowest_index():
    """A duplicate of another class wins at its place only if it comes first."""
    x = np.array([[0.2], [0.2], [0.9]])
    query = np.array([0.2])
    assert minimum_perturbation(query, 0, x, np.array([1, 0, 1])).distance == 0
    later = minimum_perturbation(query, 0, x, np.array([0, 1, 1]), margin=1e-9)
    assert later.distance == pytest.approx(0.35, abs=1e-6) and later.certified
    never = minimum_perturbation(query, 0, x[:2], np.array([0, 1]))
    assert never.distance == np.inf and not never.certified


def random_adversary(query, label, x, y, metric: str, k: int, rng) -> float:
    """Least distance among many random points in the box that change the vote; infinite if none does."""
    steps = rng.normal(size=(4000, len(query))) * rng.uniform(0.02, 0.6, (4000, 1))
    points = np.concatenate([np.clip(query + steps, 0, 1), x])
    points = points[points.any(1)]
    wrong = points[votes_for(points, x, y, metric, k) != label]
    return float(np.linalg.norm(wrong - query, axis=1).min(initial=np.inf))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", (1, 2, 3, 4, 5))
def test_bound_for_k_is_below_every_adversary_with_three_classes(metric, k):
    rng, positive = np.random.default_rng(k), 0
    for seed in range(12):
        _, _, x, y = problem(seed, n=24, dimensions=3)
        query = np.clip(x[seed] + 0.02, 0, 1)
        label = int(votes_for(query[None], x, y, metric, k)[0])
        bound = lower_bound_knn(query[None], np.array([label]), x, y, k, metric=metric)[0]
        assert bound <= random_adversary(query, label, x, y, metric, k, rng) + 1e-9
        positive += bound > 0.01
    assert positive >= 2  # not vacuous


@pytest.mark.parametrize("metric", METRICS)
def test_bound_for_one_neighbour_is_below_the_optimum(metric):
    rng = np.random.default_rng(1)
    x, y, queries = rng.random((200, 6)), np.arange(200) % 3, rng.random((15, 6))
    labels = votes_for(queries, x, y, metric)
    bound = lower_bound_knn(queries, labels, x, y, 1, metric=metric)
    exact = np.array([a.distance for a in minimum_perturbations(queries, labels, x, y, metric=metric)])
    assert (bound <= exact + 1e-9).all() and bound.mean() > 0.3 * exact.mean()


@pytest.mark.parametrize("metric", METRICS)
def test_bound_for_k_is_its_definition_and_caps_only_lower_it(metric):
    rng = np.random.default_rng(2)
    x, y, queries = rng.random((120, 4)), np.arange(120) % 3, rng.random((6, 4))
    labels = votes_for(queries, x, y, metric, 5)
    full = lower_bound_knn(queries, labels, x, y, 5, metric=metric, n_same=40, n_other=1000)
    for query, label, bound in zip(queries, labels, full, strict=True):
        scale = np.linalg.norm(query) if metric == "cosine" else 1.0
        p = x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x
        squared = ((query / scale - p) ** 2).sum(1) if metric == "cosine" else ((query - p) ** 2).sum(1)
        same, other = p[y == label], p[y != label]
        apart = np.linalg.norm(same[:, None] - other[None], axis=2)
        pairs = np.maximum(0, squared[y != label][None] - squared[y == label][:, None]) / (2 * apart)
        assert bound == pytest.approx(scale * np.sort(np.sort(pairs, axis=0)[-3])[2], abs=1e-9)
    for caps in ({"n_same": 3}, {"n_other": 3}, {"n_other": 1}):
        assert (lower_bound_knn(queries, labels, x, y, 5, metric=metric, **caps) <= full + 1e-12).all()


def test_bound_is_zero_for_what_is_wrong_already_and_infinite_without_enough_others():
    x, y = np.array([[0.1], [0.2], [0.3], [0.9]]), np.array([0, 0, 0, 1])
    assert lower_bound_knn([[0.9]], np.array([0]), x, y, 1)[0] == 0
    assert lower_bound_knn([[0.15]], np.array([0]), x, y, 3)[0] == np.inf


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metric": "l1"}, "metric is 'l1'"),
        ({"query": np.array([0.5, np.nan])}, "NaN"),
        ({"query": np.array([0.5, 1.5])}, "the box is"),
        ({"query": np.array([0.5])}, "columns"),
        ({"x_train": np.zeros((0, 2))}, "not empty"),
        ({"y_train": np.array([0, 0])}, "one class"),
        ({"y_train": np.array([0, 1, 1])}, "2 whole numbers"),
        ({"y_train": np.array([0.0, 1.0])}, "whole numbers"),
        ({"query": np.zeros(2), "metric": "cosine"}, "length 0"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
    ],
)
def test_bad_input_is_refused(change, words):
    good = {"query": np.array([0.5, 0.5]), "label": 0, "x_train": np.eye(2), "y_train": np.array([0, 1])}
    with pytest.raises(InputError, match=words):
        minimum_perturbation(**good | change)


def test_k_beyond_the_training_set_is_refused():
    with pytest.raises(InputError, match="k is 3"):
        lower_bound_knn(np.zeros((1, 2)), np.array([0]), np.eye(2), np.array([0, 1]), 3)
