"""Fast NNIF against brute force, loops and closed forms; and its experiment on a small problem."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import blobs, small_run
from sklearn.metrics import roc_auc_score
from test_nnif_experiments import SMALL, select
from torch import nn

from deepneighbors.detectors import (
    NNIF,
    HelpfulDistance,
    MahalanobisActivations,
    NeighborInfluence,
    PredictedLabelInfluence,
    TrainingActivations,
    class_shares,
    nnif_by_class,
)
from deepneighbors.detectors.fast import conformal_threshold
from deepneighbors.errors import InputError
from deepneighbors.experiments.nnif_detection import fast
from deepneighbors.influence import Identity, InfluenceIndex, LastLayerInfluence, fit_softmax, recall
from deepneighbors.influence import index as index_module

CLASSES, WIDTH = 3, 8
LAYER = ("embedding",)


class Small(nn.Module):
    """A linear embedding with a rectifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Sequential(nn.Flatten(), nn.Linear(784, WIDTH), nn.ReLU())
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.fc(self.embedding(x))


@pytest.fixture(scope="module")
def training(train) -> TrainingActivations:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = Small().eval().requires_grad_(False)
    return TrainingActivations.compute(network, *train, ("embedding", "fc"))


@pytest.fixture(scope="module")
def model(training) -> LastLayerInfluence:
    fc = training.network.fc
    return LastLayerInfluence(fc.weight, fc.bias, smoothing=0.1).fit(training.pooled["embedding"], training.labels)


@pytest.fixture(scope="module")
def queries() -> tuple[torch.Tensor, torch.Tensor]:
    """Images between classes, so that helpful images are not all alike."""
    x, _ = blobs(40, seed=5)
    return (0.6 * x + 0.4 * x.roll(1, 0)).clamp(0, 1), torch.arange(40) % CLASSES


def embed(training, x):
    return training.query(x, LAYER)["embedding"]


def sorted_scores(model, features, labels, indices):
    """Scores of found images; places may differ where two scores are equal up to rounding."""
    return model.scores(features, labels).gather(1, indices)


@pytest.mark.parametrize("block", [7, 50, 2048])
def test_the_exact_index_is_brute_force(training, model, queries, block, monkeypatch):
    monkeypatch.setattr("deepneighbors.influence.index._BLOCK", block)
    features, labels = embed(training, queries[0]), queries[1]
    index = InfluenceIndex(model, memory_gib=1e-5)  # a few queries at a time
    scores = model.scores(features, labels)
    torch.testing.assert_close(model.whitened(features, labels) @ index.vectors_.T, scores, rtol=1e-3, atol=1e-4)
    helpful, harmful = index.extremes(features, labels, 20)
    ordered = scores.sort(dim=1, descending=True).values
    torch.testing.assert_close(scores.gather(1, helpful), ordered[:, :20], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(scores.gather(1, harmful), ordered.flip(1)[:, :20], rtol=1e-3, atol=1e-4)
    assert all(len(set(row)) == 20 for row in (*helpful.tolist(), *harmful.tolist()))


def test_vectors_have_a_column_for_each_weight_and_a_smaller_rank(model):
    vectors = InfluenceIndex(model).vectors_
    assert vectors.shape == (180, CLASSES * (WIDTH + 1))
    assert torch.linalg.matrix_rank(vectors.double(), rtol=1e-5) <= (CLASSES - 1) * (WIDTH + 1)


@pytest.mark.parametrize("backend", ["inverted_file", "faiss_ivf"])
def test_all_lists_probed_find_everything(training, model, queries, backend):
    if backend == "faiss_ivf":
        pytest.importorskip("faiss")
    features, labels = embed(training, queries[0]), queries[1]
    exact = InfluenceIndex(model).extremes(features, labels, 15)
    shares = []
    for probes in (1, 4):
        found = InfluenceIndex(model, backend=backend, lists=4, probes=probes).extremes(features, labels, 15)
        shares.append([float(recall(*pair).mean()) for pair in zip(found, exact, strict=True)])
        # Whatever is found is in order and distinct, and no score beats the best.
        scores = sorted_scores(model, features, labels, found[0])
        assert (scores.diff(dim=1) <= 1e-3).all() and all(len(set(row)) == 15 for row in found[0].tolist())
    assert min(shares[1]) > 0.999 and min(shares[0]) < 0.95


def test_one_list_probed_is_the_best_of_that_list(training, model, queries):
    """A search of one list by hand: the centre with the largest inner product, then the best of its images."""
    features, labels = embed(training, queries[0]), queries[1]
    index = InfluenceIndex(model, backend="inverted_file", lists=3, probes=1)
    helpful, harmful = index.extremes(features, labels, 5)
    whitened, members = model.whitened(features, labels), index.members_
    centres = torch.stack([index.vectors_[members == place].mean(0) for place in range(3)])
    assert min(torch.bincount(members).tolist()) >= 5
    for found, sign in ((helpful, 1), (harmful, -1)):
        for query, row in zip(sign * whitened, found, strict=True):
            own = (members == (centres @ query).argmax()).nonzero().flatten()
            best = own[(index.vectors_[own] @ query).argsort(descending=True)[:5]]
            assert set(row.tolist()) == set(best.tolist())


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_longest_vectors_are_searched_and_no_others(training, model, queries, share):
    features, labels = embed(training, queries[0]), queries[1]
    index = InfluenceIndex(model, backend="longest", share=share)
    known = index.vectors_.norm(dim=1).topk(round(share * 180)).indices
    scores = model.whitened(features, labels) @ index.vectors_[known].T
    for found, places in zip(index.extremes(features, labels, 6), (scores.topk(6), (-scores).topk(6)), strict=True):
        assert (recall(found, known[places.indices]) > 0.99).all()
    # More than are known are still found.
    assert index.extremes(features, labels, 60)[0].shape == (40, 60)


def test_an_exact_search_stops_once_no_image_can_be_better(training, queries, monkeypatch):
    """Most images of a fitted last layer have short gradients: fewer pairs are scored than there are, to the same answer."""
    monkeypatch.setattr("deepneighbors.influence.index._BLOCK", 10)
    features, labels = embed(training, queries[0]), queries[1]
    theta = fit_softmax(training.pooled["embedding"], training.labels, CLASSES, weight_decay=1e-3)
    fitted = LastLayerInfluence(theta[:, :-1], theta[:, -1]).fit(training.pooled["embedding"], training.labels)
    index, scores = InfluenceIndex(fitted), fitted.scores(features, labels)
    seen, add = [], index_module._RunningTop.add
    monkeypatch.setattr(index_module._RunningTop, "add", lambda top, q, s, p: seen.append(s.numel()) or add(top, q, s, p))
    helpful, harmful = index.extremes(features, labels, 3)
    torch.testing.assert_close(scores.gather(1, helpful), scores.topk(3).values, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(scores.gather(1, harmful), scores.topk(3, largest=False).values, rtol=1e-3, atol=1e-4)
    assert sum(seen) < 0.9 * 2 * 180 * 40  # in both directions


def test_too_few_in_the_lists_are_searched_exactly(training, model, queries):
    features, labels = embed(training, queries[0]), queries[1]
    index = InfluenceIndex(model, backend="inverted_file", lists=12, probes=1)
    smallest = int(torch.bincount(index.members_).max()) + 1
    found, exact = (i.extremes(features, labels, smallest) for i in (index, InfluenceIndex(model)))
    assert all((recall(*pair) > 0.99).all() for pair in zip(found, exact, strict=True))


def test_known_clusters_are_taken(training, model, queries):
    features, labels = embed(training, queries[0]), queries[1]
    first = InfluenceIndex(model, backend="inverted_file", lists=6, probes=2)
    again = InfluenceIndex(model, backend="inverted_file", lists=6, probes=2, seed=9, members=first.members_)
    assert torch.equal(*(index.extremes(features, labels, 9)[0] for index in (first, again)))


def test_recall_counts_what_both_have():
    found, exact = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[3, 9, 1], [7, 8, 9]])
    assert recall(found, exact).tolist() == pytest.approx([2 / 3, 0])


def test_nnif_with_the_exact_index_is_nnif(training, model, queries):
    one, other = (
        NNIF(training, PredictedLabelInfluence(training, estimator), LAYER, m=12).features(queries[0])
        for estimator in (model, InfluenceIndex(model))
    )
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_mahalanobis_distance_has_its_closed_form(training, queries):
    rows, labels = training.pooled["embedding"].double().numpy(), training.labels.numpy()
    centred = np.concatenate([rows[labels == c] - rows[labels == c].mean(0) for c in range(CLASSES)])
    precision = np.linalg.pinv(centred.T @ centred / len(rows), hermitian=True)
    other = MahalanobisActivations.of(training, LAYER)
    gaps = embed(training, queries[0]).double().numpy()[:, None] - rows
    wanted = np.sqrt(np.einsum("qni,ij,qnj->qn", gaps, precision, gaps))
    ours = torch.cdist(embed(other, queries[0]), other.pooled["embedding"]).numpy()
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(other.logits(queries[0]), training.logits(queries[0]))


def test_nnif_with_mahalanobis_distance_by_a_loop(training, model, queries):
    influence = PredictedLabelInfluence(training, model)
    other = MahalanobisActivations.of(training, LAYER)
    helpful, harmful = influence.extremes(queries[0], 6)
    found = NNIF(other, influence, LAYER, m=6).features(queries[0])
    database = other.pooled["embedding"]
    for features, query, up, down in zip(found, embed(other, queries[0]), helpful, harmful, strict=True):
        distances = (database - query).norm(dim=1)
        order = distances.argsort(stable=True).argsort()
        wanted = [order[up].double().mean(), distances[up].mean(), order[down].double().mean(), distances[down].mean()]
        np.testing.assert_allclose(features, np.array(wanted), rtol=1e-9)


def test_class_shares_by_a_loop(training, model):
    index = InfluenceIndex(model)
    shares = class_shares(index.vectors_, training.labels)
    scores = model.scores(training.pooled["embedding"], training.labels)  # (query, training image)
    for image in (0, 17, 100):
        own = [scores[training.labels == label, image].mean().clamp(min=0) for label in range(CLASSES)]
        wanted = torch.tensor(own) / sum(own)
        torch.testing.assert_close(shares[image].float(), wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(shares.sum(1), torch.ones(180, dtype=torch.float64))


def test_an_image_that_helps_no_class_has_equal_shares():
    shares = class_shares(torch.tensor([[1.0, 0], [1, 0], [0, 0]]), torch.tensor([0, 1, 1]))
    assert shares[2].tolist() == [0.5, 0.5] and shares[0, 0] == pytest.approx(2 / 3)


def test_nnif_by_class_leaves_the_anchor_out(training, model):
    """An anchor's vector is NNIF of that image with the label given, among the training images without it."""
    anchors, m = torch.tensor([3, 50, 111]), 7
    vectors = nnif_by_class(training, model, anchors, m=m)
    rows = training.pooled["embedding"].double()
    for vector, anchor in zip(vectors, anchors.tolist(), strict=True):
        kept = [place for place in range(180) if place != anchor]
        distances = (rows[kept] - rows[anchor]).norm(dim=1)
        order = distances.argsort(stable=True).argsort()
        for label in range(CLASSES):
            scores = model.scores(rows[anchor : anchor + 1].float(), torch.tensor([label]))[0, kept]
            wanted = []
            for chosen in (scores.topk(m).indices, scores.topk(m, largest=False).indices):
                wanted += [float(order[chosen].double().mean()), float(distances[chosen].mean())]
            np.testing.assert_allclose(vector[label], wanted, rtol=1e-6)


def test_neighbour_averages_by_a_loop(training, queries):
    generator = torch.Generator().manual_seed(1)
    anchors = torch.randperm(180, generator=generator)[:90]
    vectors = torch.rand(90, CLASSES, 2, generator=generator)
    found = NeighborInfluence(training, vectors, anchors, k=4).features(queries[0])
    predicted = training.logits(queries[0]).argmax(1)
    rows = training.pooled["embedding"]
    for features, query, label in zip(found, embed(training, queries[0]), predicted, strict=True):
        nearest = (rows[anchors] - query).norm(dim=1).argsort()[:4]
        wanted = sum(vectors[place, label] for place in nearest.tolist()) / 4
        np.testing.assert_allclose(features, wanted.numpy(), rtol=1e-5)


@pytest.mark.parametrize(("n", "fpr"), [(19, 0.05), (99, 0.05), (60, 0.1), (250, 0.01)])
def test_the_threshold_has_the_asked_false_positive_rate(n, fpr):
    """Over many draws the mean rate on exchangeable scores is (flagged + 1) / (n + 1) for some whole number: at most fpr."""
    generator = np.random.default_rng(0)
    rates = []
    for _ in range(3000):
        limit = conformal_threshold(generator.normal(size=n), fpr)
        rates.append(0.5 * math.erfc(limit / math.sqrt(2)))
    expected = math.floor(fpr * (n + 1) + 1e-9) / (n + 1)
    assert expected <= fpr + 1e-12
    assert np.mean(rates) == pytest.approx(expected, abs=4 * np.std(rates) / math.sqrt(len(rates)))


def test_too_few_clean_images_flag_nothing():
    assert conformal_threshold(np.arange(18.0), 0.05) == math.inf and conformal_threshold(np.arange(19.0), 0.05) == 18


def test_one_feature_is_nnifs_second_and_its_threshold_knows_no_attack(training, model, queries):
    influence = PredictedLabelInfluence(training, model)
    detector = HelpfulDistance(training, influence, m=9, fpr=0.2)
    nnif = NNIF(training, influence, LAYER, m=9)
    np.testing.assert_allclose(detector.features(queries[0])[:, 0], nnif.features(queries[0])[:, 1], rtol=1e-12)
    clean, _ = blobs(39, seed=8)
    detector.fit(clean, torch.rand(39, 1, 28, 28))
    limit = detector.threshold_
    assert detector.fit(clean).threshold_ == limit == np.sort(detector.score_samples(clean))[31]
    assert detector.predict(clean).sum() == 7
    np.testing.assert_array_equal(detector.predict(queries[0]), detector.score_samples(queries[0]) > limit)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, m: InfluenceIndex(m, backend="hnsw"), "backend is 'hnsw'; allowed are exact, longest, inverted_file"),
        (lambda t, m: InfluenceIndex(m, backend="inverted_file", lists=4, probes=5), "probes is 5"),
        (lambda t, m: InfluenceIndex(m, share=0.5), "share is 0.5; it must"),
        (lambda t, m: InfluenceIndex(m, backend="inverted_file", lists=181), "lists is 181"),
        (lambda t, m: InfluenceIndex(LastLayerInfluence(torch.ones(2, 3), torch.ones(2))), "model was not fitted"),
        (lambda t, m: InfluenceIndex(m).extremes(t.pooled["embedding"], t.labels, 181), "m is 181"),
        (lambda t, m: recall(torch.ones(2, 3), torch.ones(2, 4)), r"found has shape \(2, 3\), exact \(2, 4\)"),
        (lambda t, m: MahalanobisActivations.of(t, ("conv9",)), "layer is 'conv9'"),
        (lambda t, m: nnif_by_class(t, m, torch.tensor([0, 180])), "anchors must hold at least one index a query"),
        (lambda t, m: NeighborInfluence(t, torch.ones(5, 2, 1), torch.arange(5)), r"it must be \(5, 3, F\)"),
        (lambda t, m: NeighborInfluence(t, torch.ones(5, 3, 1), torch.arange(5), k=6), "k is 6"),
        (lambda t, m: HelpfulDistance(t, PredictedLabelInfluence(t, m), fpr=1.0), "fpr is 1.0"),
        (lambda t, m: HelpfulDistance(t, PredictedLabelInfluence(t, m)).score_samples(t.images), "asked before fit"),
        (lambda t, m: class_shares(torch.ones(3, 2), torch.arange(2)), "labels has 2 labels for 3 samples"),
    ],
)
def test_bad_input_is_refused(training, model, call, message):
    with pytest.raises(InputError, match=message):
        call(training, model)


def test_an_index_counts_in_the_metric_of_its_operator(training, queries):
    fc = training.network.fc
    plain = LastLayerInfluence(fc.weight, fc.bias, operator=Identity()).fit(training.pooled["embedding"], training.labels)
    features, labels = embed(training, queries[0]), queries[1]
    scores = plain.scores(features, labels)
    found = scores.gather(1, InfluenceIndex(plain).extremes(features, labels, 5)[0])
    torch.testing.assert_close(found, scores.topk(5).values, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory, on_few_test_digits):
    """A run of the small problem with a store of its own."""
    with small_run("nnif_detection", replace(SMALL, modes=("clean",)), tmp_path_factory.mktemp("artifacts")) as small:
        yield small


@pytest.fixture(scope="module")
def outcome(run):
    found = {key: run.store.get(node, run.context) for key, node in fast.FAST.nodes(run).items()}
    return found, *fast.FAST.summarise(run, found)


def test_the_experiment_has_a_line_for_each_method(outcome):
    _, table, arrays = outcome
    for detector, setting in fast.METHODS:
        names = {"detector": detector, "setting": setting}
        for metric in ("preparation_seconds", "seconds_per_query", "auc", "tpr_at_fpr_5"):
            (row,) = select(table, metric=metric, **names).to_dict("records")
            assert row["n"] > 0 and row["layer"] == "embedding" and row["network"] == "thin_resnet34/clean"
        clean, attacked = (arrays[f"{detector}|{setting}|fgsm|{shown}"] for shown in ("clean", "attacked"))
        (value,) = select(table, metric="auc", **names)["value"]
        labels = np.repeat([0, 1], [len(clean), len(attacked)])
        assert value == pytest.approx(roc_auc_score(labels, np.concatenate([clean, attacked])), abs=5e-3)


def test_indices_report_their_recall(outcome):
    table = select(outcome[1], metric="recall")
    assert set(table["detector"]) == {fast.INDEX, fast.APPROXIMATE} and len(table) == 4
    values = table.set_index("setting")["value"]
    assert values[""] > 0.99 and ((values > 0.1) & (values <= 1)).all() and values.min() < 0.99


def test_the_exact_index_gives_the_features_of_nnif(outcome):
    found = outcome[0]
    one, other = (found[f"{name}|fgsm|attacked"].tensors["20"] for name in (f"{fast.EXACT}|{fast.ALONE}", f"{fast.INDEX}|"))
    # A tie of two scores, up to rounding, at the border of the M images moves a mean by 1 / M of a difference.
    np.testing.assert_allclose(one[:, 1], other[:, 1], rtol=0.02)


def test_the_threshold_row_counts_what_lies_above_it(run, outcome):
    found, table, _ = outcome
    scores = found[f"{fast.THRESHOLD}||fgsm"]
    limit = scores.values["threshold"]
    for metric, shown in (("tpr_at_fpr_5", "attacked"), ("false_positive_rate", "clean")):
        (value,) = select(table, metric=metric, detector=fast.THRESHOLD)["value"]
        assert value == pytest.approx(float((scores.tensors[shown] > limit).double().mean()))
    nnif = found[f"{fast.EXACT}|{fast.ALONE}|fgsm|attacked"].tensors["20"]
    np.testing.assert_allclose(scores.tensors["attacked"], nnif[:, 1], rtol=0.02)
