"""Detectors against loops, closed forms, scikit-learn and autograd; and the invariants of pairing, order and scale."""

import math

import numpy as np
import pytest
import torch
from conftest import blobs
from sklearn.covariance import EmpiricalCovariance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn

from deepneighbors.detectors import (
    LID,
    NNIF,
    ClassGaussians,
    DkNN,
    LogisticStage,
    Mahalanobis,
    NearestOfPredictedClass,
    PredictedLabelInfluence,
    RandomOfPredictedClass,
    SingleFeature,
    TrainingActivations,
    class_mean_distance,
    lid,
    logit_margin,
    max_softmax,
    off_grid,
    rank_and_distance,
    ranks_and_distances,
    select_hyperparameter,
)
from deepneighbors.detectors.ranks import check_distinct
from deepneighbors.dknn import DeepKNN
from deepneighbors.errors import InputError
from deepneighbors.networks import ThinResNet, activations

LAYERS = ("relu2", "embedding", "fc")


class Small(nn.Module):
    """Two convolutions and an 8-dimensional embedding; weights that differ for each label of the blobs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 6, 5, stride=3), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(6, 8, 3, stride=2), nn.ReLU()
        self.embedding = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU())
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.embedding(self.relu2(self.conv2(self.relu1(self.conv1(x))))))


@pytest.fixture(scope="module")
def training(train) -> TrainingActivations:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Small()
        network(train[0][:1])
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(train[0]), train[1]).backward()
            optimizer.step()
    network.eval().requires_grad_(False)
    assert (network(train[0]).argmax(1) == train[1]).all()
    return TrainingActivations.compute(network, *train, LAYERS, batch_size=50)


@pytest.fixture(scope="module")
def clean() -> torch.Tensor:
    return (blobs(48, seed=3)[0] * 255).round() / 255


@pytest.fixture(scope="module")
def adversarial(clean) -> torch.Tensor:
    """Moved half the way to the image of another class, which changes some predictions."""
    return torch.lerp(clean, clean.roll(1, 0), 0.45)


def detectors(training):
    helpful = RandomOfPredictedClass(training, seed=5)
    return {
        "DkNN": DkNN(training, k=70),
        "DkNN, faithful": DkNN(training, k=70, mode="faithful"),
        "LID": LID(training, LAYERS, k=10, minibatch=40),
        "LID, faithful": LID(training, LAYERS, k=10, mode="faithful", minibatch=20),
        "Mahalanobis": Mahalanobis(training, LAYERS, epsilon=0.01, scale=(0.3,)),
        "Mahalanobis, faithful": Mahalanobis(training, LAYERS, epsilon=0.01, scale=(0.3,), mode="faithful"),
        "NNIF": NNIF(training, helpful, LAYERS, m=7),
        "margin": SingleFeature(lambda x: logit_margin(training, x)),
    }


FEATURES = {"DkNN": 3, "LID": 3, "Mahalanobis": 3, "NNIF": 12, "margin": 1}


@pytest.mark.parametrize("name", ["DkNN", "DkNN, faithful", "LID", "LID, faithful", "Mahalanobis", "Mahalanobis, faithful",
                                  "NNIF", "margin"])  # fmt: skip
def test_every_detector_fits_and_scores(name, training, clean, adversarial):
    detector = detectors(training)[name].fit(clean, adversarial)
    rows = [detector.features(x, reference=clean) for x in (clean, adversarial)]
    for x, features in zip((clean, adversarial), rows, strict=True):
        assert features.shape == (48, FEATURES[name.split(",")[0]]) and features.dtype == np.float64
        assert np.isfinite(features).all()
        scores = detector.score_samples(x, reference=clean)
        assert scores.shape == (48,) and ((scores >= 0) & (scores <= 1)).all()
        assert np.array_equal(scores, detector.score_features(features))
    both = np.concatenate([detector.score_features(features) for features in rows])
    assert roc_auc_score(np.repeat([0, 1], 48), both) > 0.6
    if not name.startswith("DkNN"):  # which keeps some rows for calibration
        refitted = detectors(training)[name].fit_features(*rows)
        assert np.array_equal(refitted.score_features(rows[1]), detector.score_features(rows[1]))
    again = detectors(training)[name].fit(clean, adversarial)
    assert np.array_equal(again.score_samples(clean, reference=clean), detector.score_samples(clean, reference=clean))


# The logistic stage


def test_stage_scales_without_clipping_and_chooses_the_smallest_best_c():
    generator = np.random.default_rng(1)
    clean, adversarial = generator.random((60, 2)), generator.random((60, 2)) + [0.4, 0]
    stage = LogisticStage().fit(clean, adversarial)
    rows = np.concatenate([adversarial, clean])
    low, high = rows.min(0), rows.max(0)
    y, scaled = np.repeat([1, 0], 60), (rows - low) / (high - low)
    accuracy = []
    for c in np.logspace(-4, 4, 10):
        hits = []
        for fold in range(3):
            held = np.zeros(120, dtype=bool)
            held[20 * fold : 20 * fold + 20] = held[60 + 20 * fold : 80 + 20 * fold] = True
            model = LogisticRegression(C=c, max_iter=20_000).fit(scaled[~held], y[~held])
            hits.append(model.score(scaled[held], y[held]))
        accuracy.append(np.mean(hits))
    best = LogisticRegression(C=np.logspace(-4, 4, 10)[int(np.argmax(accuracy))], max_iter=20_000).fit(scaled, y)
    far = np.array([[9.0, -4.0], [0.5, 0.5]])
    expected = best.predict_proba((far - low) / (high - low))[:, 1]
    np.testing.assert_allclose(stage.score(far), expected, rtol=1e-3)


def test_one_feature_keeps_its_auc_up_to_the_sign():
    generator = np.random.default_rng(1)
    clean, adversarial = generator.normal(size=(80, 1)), generator.normal(size=(80, 1)) - 1
    scores = LogisticStage().fit(clean, adversarial).score(np.concatenate([clean, adversarial]))
    y = np.repeat([0, 1], 80)
    assert roc_auc_score(y, scores) == pytest.approx(roc_auc_score(y, -np.concatenate([clean, adversarial])[:, 0]))


# Activations of the training images


def test_activations_are_pooled_in_batches_of_the_given_size(train):
    """With the statistics of the batch the batches matter: training images and queries must be cut alike."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ThinResNet(classes=3, channels=1, statistics="batch", blocks=1).eval()
    x, y = train[0][:10], train[1][:10]
    found = TrainingActivations.compute(network, x, y, ("relu", "embedding"), batch_size=4)
    with torch.no_grad():
        first = activations(network, x[:4], ("relu", "embedding"))
        last = activations(network, x[8:], ("relu", "embedding"))
    torch.testing.assert_close(found.pooled["relu"][:4], first["relu"].mean((2, 3)))
    torch.testing.assert_close(found.pooled["embedding"][8:], last["embedding"])
    for layer, rows in found.query(x, ("relu", "embedding")).items():
        torch.testing.assert_close(rows, found.pooled[layer])
    assert found.layers == ("relu", "embedding") and found.classes == 3


# DkNN


def test_dknn_p_values_match_deep_knn(training, clean, adversarial):
    """The same p-values as the classifier's, with the first third of the clean images as its calibration set."""
    detector = DkNN(training, k=20, mode="faithful").fit(clean, adversarial)
    truth = training.logits(clean).argmax(1)
    other = DeepKNN(training.network, ("embedding",), k=20, metric="l2").fit(training.images, training.labels)
    other.calibrate(clean[:16], truth[:16])
    np.testing.assert_allclose(detector.features(adversarial), other.p_values(adversarial).numpy(), atol=1e-6)
    rest = LogisticStage().fit(detector.features(clean)[16:], detector.features(adversarial)[16:])
    assert np.array_equal(rest.score(detector.features(clean)), detector.score_samples(clean))


def test_dknn_p_values_by_hand(training):
    detector = DkNN(training, k=4, mode="faithful")
    votes = torch.tensor([[4, 0, 0], [2, 2, 0], [1, 3, 0], [0, 0, 4]]).repeat_interleave(3, 0)[:12]
    rest = detector.calibrate(votes, torch.zeros(12, dtype=torch.int64))
    assert rest.tolist() == [False] * 4 + [True] * 8
    assert detector.calibration_.tolist() == [0, 0, 0, 2]
    assert detector.p_values(torch.tensor([[4, 0, 0], [2, 1, 1]])).tolist() == [[1, 0, 0], [0.25, 0, 0]]


def test_dknn_draws_its_calibration_images_by_seed(training, clean, adversarial):
    votes, labels = DkNN(training, k=20).votes(clean), training.logits(clean).argmax(1)
    masks = [DkNN(training, k=20, seed=seed).calibrate(votes, labels) for seed in (0, 0, 1)]
    assert all(mask.sum() == 32 for mask in masks)
    assert np.array_equal(masks[0], masks[1]) and not np.array_equal(masks[0], masks[2])


# LID


@pytest.mark.parametrize("dimension", [2, 8, 32])
def test_lid_of_a_uniform_ball(dimension):
    """Distances to the centre of a ball are u^(1/D), which makes LID inverse-gamma with mean D k / (k - 2)."""
    k, repeats = 20, 4000
    uniform = torch.rand(repeats, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = lid((uniform ** (1 / dimension)).sort(1).values[:, :k])
    mean, deviation = dimension * k / (k - 2), dimension * k / ((k - 2) * math.sqrt(k - 3))
    assert float(found.mean()) == pytest.approx(mean, abs=4 * deviation / math.sqrt(repeats))
    assert float(found.std()) == pytest.approx(deviation, rel=0.1)


def test_lid_stays_finite_where_its_formula_does_not():
    found = lid(torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    assert found[0] == 0 and found[2] == 0
    assert 1e6 < float(found[1]) < 1e7


def loop_lid(query, references, k, *, drop):
    distances = sorted(float((query - other).double().norm()) for other in references)[int(drop) :][:k]
    return -k / sum(math.log(d / distances[-1]) for d in distances)


def test_faithful_lid_is_the_loop_over_its_minibatch(training, clean, adversarial):
    detector = LID(training, ("relu2", "embedding"), k=6, mode="faithful", minibatch=20)
    maps = [activations(training.network, x, detector.layers) for x in (clean, adversarial)]
    for x, queries in zip((clean, adversarial), maps, strict=True):
        found = detector.features(x, reference=clean)
        for column, layer in enumerate(detector.layers):
            for i, own in ((0, slice(0, 20)), (25, slice(20, 40)), (47, slice(28, 48))):  # the last one is filled up
                query, references = queries[layer].flatten(1)[i], maps[0][layer].flatten(1)[own]
                assert found[i, column] == pytest.approx(loop_lid(query, references, 6, drop=True), rel=1e-4)


def test_clean_lid_looks_at_training_images_and_drops_none(training, clean):
    detector = LID(training, ("embedding",), k=6, minibatch=40, seed=3)
    chosen = torch.randperm(180, generator=torch.Generator().manual_seed(3))[:40]
    references = training.pooled["embedding"][chosen]
    queries = training.query(clean, ("embedding",))["embedding"]
    expected = [loop_lid(query, references, 6, drop=False) for query in queries]
    np.testing.assert_allclose(detector.features(clean)[:, 0], expected, rtol=1e-4)
    np.testing.assert_allclose(detector.features(clean[30:]), detector.features(clean)[30:], rtol=1e-4)


def test_distances_serve_every_smaller_k(training, clean):
    detector = LID(training, LAYERS, k=5)
    wide = detector.distances(clean, 12)
    np.testing.assert_array_equal(lid(wide[..., :5]).numpy(), detector.features(clean))


# Mahalanobis


def test_class_gaussians_match_scikit_learn(training):
    rows, labels = training.pooled["embedding"].double().numpy(), training.labels.numpy()
    means = np.stack([rows[labels == c].mean(0) for c in range(3)])
    theirs = EmpiricalCovariance(assume_centered=True).fit(rows - means[labels])
    queries = rows[:30] + 0.1
    squares = np.stack([theirs.mahalanobis(queries - mean) for mean in means], 1)
    ours = ClassGaussians(training.pooled["embedding"], training.labels)
    np.testing.assert_allclose(ours.score(torch.from_numpy(queries)).numpy(), -0.5 * squares.min(1), rtol=1e-6)


def test_a_missing_class_and_a_dead_channel_do_no_harm():
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    rows[:, 2] = 0
    labels = torch.arange(40) % 2 * 2
    full, reduced = ClassGaussians(rows, labels), ClassGaussians(rows[:, :2], labels)
    assert full.means_.shape == (2, 3)
    torch.testing.assert_close(full.score(rows), reduced.score(rows[:, :2]))


@pytest.mark.parametrize("mode", ["clean", "faithful"])
def test_step_follows_the_gradient(mode, training, clean):
    """The gradient of half the squared distance to the nearest class, against finite differences, and both forms of g."""
    detector = Mahalanobis(training, ("embedding",), epsilon=0.02, scale=(0.3,), mode=mode)
    x = clean[:5]

    def mean(images):
        rows = activations(training.network, images, ("embedding",))["embedding"]
        return -detector.gaussians["embedding"].score(rows).mean()

    gradient = torch.func.grad(mean)(x)
    direction = torch.zeros_like(x)
    place = tuple(int(i) for i in np.unravel_index(int(gradient.abs().argmax()), x.shape))
    direction[place] = 1e-2
    assert float(gradient[place]) == pytest.approx(float(mean(x + direction) - mean(x - direction)) / 2e-2, rel=0.05)
    g = torch.sign(gradient) if mode == "clean" else 2 * (gradient.clamp(min=0) - 0.5)
    torch.testing.assert_close(dict(detector.directions(x))["embedding"], g)
    moved = activations(training.network, x - 0.02 * g / 0.3, ("embedding",))["embedding"]
    expected = detector.gaussians["embedding"].score(moved).numpy()
    np.testing.assert_allclose(detector.features(x)[:, 0], expected, rtol=1e-5)


def test_layers_together_give_what_each_gives_alone(training, clean):
    together = Mahalanobis(training, LAYERS, scale=(0.3,)).grid(clean, (1e-4, 1e-2))
    for place, layer in enumerate(LAYERS):
        alone = Mahalanobis(training, (layer,), scale=(0.3,)).grid(clean, (1e-4, 1e-2))
        for epsilon, rows in alone.items():
            np.testing.assert_allclose(together[epsilon][:, place], rows[:, 0], rtol=1e-4)


def test_a_small_clean_step_comes_nearer_and_no_step_is_the_plain_score(training, clean):
    detector = Mahalanobis(training, LAYERS, scale=(0.3,))
    found = detector.grid(clean, (0.0, 1e-4))
    plain = [detector.gaussians[layer].score(rows) for layer, rows in training.query(clean, LAYERS).items()]
    np.testing.assert_allclose(found[0.0], torch.stack(plain, 1).numpy(), rtol=1e-5)
    assert (found[1e-4] > found[0.0]).mean() > 0.95


# NNIF and its controls


def random_choice(queries, rows, m, seed=0):
    return torch.rand(queries, rows, generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :m]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("memory_gib", [0.5, 1e-6])
def test_ranks_are_those_of_a_stable_sort(ties, memory_gib):
    generator = torch.Generator().manual_seed(0)
    queries, database = torch.rand(9, 4, generator=generator), torch.rand(150, 4, generator=generator)
    if ties:  # a coarse grid, and copies of rows that are on none
        queries, database = (queries * 3).round(), (database * 3).round()
        database[100:] = torch.rand(5, 4, generator=generator).repeat(10, 1)
    chosen = random_choice(9, 150, 40)
    ranks, distances = ranks_and_distances(queries, database, chosen, memory_gib=memory_gib)
    for q in range(9):
        exact = ((queries[q].double() - database.double()) ** 2).sum(1).sqrt()
        order = np.argsort(exact.numpy(), kind="stable").tolist()
        assert ranks[q].tolist() == [order.index(i) for i in chosen[q].tolist()]
        torch.testing.assert_close(distances[q], exact[chosen[q]])
    assert (len(torch.unique(exact)) < 150) == ties
    means = rank_and_distance(queries, database, chosen)
    torch.testing.assert_close(means[0], ranks.double().mean(1))
    torch.testing.assert_close(means[1], distances.mean(1))


def test_all_rows_have_all_ranks():
    database = torch.ones(30, 2)
    ranks, _ = ranks_and_distances(torch.zeros(2, 2), database, torch.arange(30).flip(0).expand(2, 30).contiguous())
    assert ranks.tolist() == [list(range(29, -1, -1))] * 2


class Fixed:
    """Always the same helpful and harmful images."""

    def __init__(self, helpful, harmful):
        self.found = helpful, harmful

    def extremes(self, x, m):
        return tuple(indices[: len(x), :m] for indices in self.found)


def test_nnif_columns_mask_and_scale(training, clean):
    helpful, harmful = random_choice(48, 180, 9, seed=1), random_choice(48, 180, 9, seed=2)
    nnif = NNIF(training, Fixed(helpful, harmful), ("embedding", "fc"), m=9, rank_scale=9.8)
    found, queries = nnif.features(clean), training.query(clean, ("embedding", "fc"))
    for i, layer in enumerate(("embedding", "fc")):
        up, down = (rank_and_distance(queries[layer], training.pooled[layer], chosen) for chosen in (helpful, harmful))
        expected = torch.stack([9.8 * up[0], up[1], 9.8 * down[0], down[1]], 1)
        np.testing.assert_allclose(found[:, 4 * i : 4 * i + 4], expected.numpy())
    masked = NNIF(training, Fixed(helpful, harmful), ("embedding", "fc"), m=9, mask="0110", rank_scale=9.8).features(clean)
    np.testing.assert_array_equal(masked, found[:, [1, 2, 5, 6]])
    np.testing.assert_allclose(nnif.values(clean).mean(3).flatten(1).numpy(), found)
    smaller = NNIF(training, Fixed(helpful, harmful), ("embedding", "fc"), m=4, rank_scale=9.8).features(clean)
    np.testing.assert_allclose(nnif.grid(clean, (4, 9))[4], smaller)


def test_predicted_label_influence_passes_features_and_predictions(training, clean):
    class Nearness:
        """Helpful are the nearest rows of the label."""

        def extremes(self, features, labels, m):
            keys = torch.cdist(features, training.pooled["embedding"]) + 100.0 * (labels[:, None] != training.labels)
            return keys.argsort(1)[:, :m], keys.argsort(1, descending=True)[:, :m]

    found = PredictedLabelInfluence(training, Nearness()).extremes(clean, 5)[0]
    expected = NearestOfPredictedClass(training).extremes(clean, 5)[0]
    assert torch.equal(found.sort(1).values, expected.sort(1).values)


def test_random_of_predicted_class(training, clean, adversarial):
    control = RandomOfPredictedClass(training, seed=4)
    for x in (clean, adversarial):
        predicted = training.logits(x).argmax(1)
        helpful, harmful = control.extremes(x, 12)
        assert (training.labels[helpful] == predicted[:, None]).all()
        assert (training.labels[harmful] != predicted[:, None]).all()
        assert all(len(set(row)) == 12 for row in (*helpful.tolist(), *harmful.tolist()))
        assert torch.equal(control.extremes(x, 12)[0], helpful)
    everyone = control.extremes(clean, 60)[0].sort(1).values
    members = torch.nonzero(training.labels == training.logits(clean).argmax(1)[0]).flatten()
    assert torch.equal(everyone[0], members)
    other = RandomOfPredictedClass(training, seed=5).extremes(clean, 12)[0]
    assert not torch.equal(other, control.extremes(clean, 12)[0])
    assert len(torch.unique(control.extremes(clean, 12)[0])) > 140  # 48 x 12 draws reach most of the 180


def test_nearest_of_predicted_class_is_the_loop(training, clean):
    helpful, harmful = NearestOfPredictedClass(training, layer="fc").extremes(clean, 6)
    predicted, rows = training.logits(clean).argmax(1), training.query(clean, ("fc",))["fc"]
    for i in range(len(clean)):
        distances = (rows[i] - training.pooled["fc"]).norm(dim=1)
        for found, allowed in ((helpful, training.labels == predicted[i]), (harmful, training.labels != predicted[i])):
            members = torch.nonzero(allowed).flatten()
            assert found[i].tolist() == members[distances[members].argsort()[:6]].tolist()


def test_single_numbers_by_hand(training, clean):
    logits, rows = training.logits(clean).double(), training.query(clean, ("embedding",))["embedding"]
    distance, margin, confidence = (f(training, clean) for f in (class_mean_distance, logit_margin, max_softmax))
    for i in range(0, 48, 7):
        first, second = sorted(logits[i].tolist(), reverse=True)[:2]
        members = training.pooled["embedding"][training.labels == int(logits[i].argmax())]
        assert float(distance[i]) == pytest.approx(float((rows[i] - members.mean(0)).norm()), rel=1e-4)
        assert float(margin[i]) == pytest.approx(first - second, rel=1e-4)
        expected = math.exp(first) / sum(math.exp(z) for z in logits[i].tolist())
        assert float(confidence[i]) == pytest.approx(expected, rel=1e-4)


def test_off_grid_counts_values_between_grey_levels(clean, adversarial):
    every_level = (torch.arange(256).float() / 255).view(1, 1, 16, 16)
    assert off_grid(every_level).tolist() == [0] and off_grid(clean).max() == 0
    moved = every_level.clone()
    moved[0, 0, 0, :4] += 0.3 / 255
    assert off_grid(moved).tolist() == [4 / 256]
    detector = SingleFeature(off_grid).fit(clean, adversarial)
    assert detector.score_samples(clean).max() < detector.score_samples(adversarial).min()


# Choice of hyper-parameters


def test_selection_takes_the_informative_value_and_the_first_of_equals():
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(40, 1)), generator.normal(size=(40, 1))
    good = generator.normal(size=(40, 1)), generator.normal(size=(40, 1)) + 2
    found = select_hyperparameter({"noise": noise, 10: good, 20: (2 * good[0], 2 * good[1])})
    assert found.best == 10
    assert found.table["value"].tolist() == ["noise", 10, 20]
    assert found.table["auc"][1] == found.table["auc"][2] > 0.85 > found.table["auc"][0]
    assert select_hyperparameter({20: good, 10: good}).best == 20


def test_twins_share_a_fold():
    """Each image has a feature of its own, equal in its clean and adversarial row: only a leak could use it, wrongly."""
    rows = np.eye(30)
    assert select_hyperparameter({1: (rows, rows)}).table["auc"][0] == 0.5
    clean, adversarial = rows[::2], rows[1::2]
    leaky = (
        LogisticStage().fit(clean, adversarial).score(np.concatenate([clean, adversarial]))
    )  # the twins of what it learnt
    assert roc_auc_score(np.repeat([1, 0], 15), leaky) == 0


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, c, a: TrainingActivations.compute(t.network, c, t.labels, LAYERS), "labels has 180 labels for 48"),
        (lambda t, c, a: TrainingActivations.compute(t.network, t.images, t.labels, ("relu9",)), "layer is 'relu9'"),
        (lambda t, c, a: TrainingActivations.compute(nn.Sequential(nn.ReLU()), t.images, t.labels, ("0",)), "training mode"),
        (lambda t, c, a: TrainingActivations(t.network, c, t.labels[:48], t.pooled), "one vector for each of the 48"),
        (lambda t, c, a: t.query(c[:, :, :9], LAYERS), "x has images of shape \\(1, 9, 28\\)"),
        (lambda t, c, a: DkNN(t, k=181), "k is 181; it must be a whole number from 1 to 180"),
        (lambda t, c, a: DkNN(t, k=5, layer="relu1"), "layer is 'relu1'; allowed are relu2, embedding, fc"),
        (lambda t, c, a: DkNN(t, k=5, mode="dirty"), "mode is 'dirty'; allowed are clean, faithful"),
        (lambda t, c, a: DkNN(t, k=5).features(c), "DkNN was asked before fit"),
        (lambda t, c, a: DkNN(t, k=5).fit(c[:3], a[:3]), "clean has 3 rows; at least 4"),
        (lambda t, c, a: DkNN(t, k=5).fit(c, a, t.labels), "labels has 180 labels for 48"),
        (lambda t, c, a: LID(t, ()), "layers is empty"),
        (lambda t, c, a: LID(t, LAYERS, mode="paper"), "mode is 'paper'"),
        (lambda t, c, a: LID(t, LAYERS, k=1), "k is 1; it must be a whole number from 2 to 100"),
        (lambda t, c, a: LID(t, LAYERS, k=100, mode="faithful"), "k is 100; it must be a whole number from 2 to 99"),
        (lambda t, c, a: LID(t, LAYERS, minibatch=181), "minibatch is 181"),
        (lambda t, c, a: LID(t, LAYERS, mode="faithful").features(a), "reference is None"),
        (lambda t, c, a: LID(t, LAYERS, mode="faithful").features(a, reference=c[:9]), "reference has 9 images for 48"),
        (lambda t, c, a: LID(t, LAYERS, k=48, mode="faithful").features(a, reference=c), "k is 48"),
        (lambda t, c, a: Mahalanobis(t, LAYERS), "scale has 3 numbers; images have 1 channels"),
        (lambda t, c, a: Mahalanobis(t, LAYERS, scale=(0.0,)), "scale is 0.0"),
        (lambda t, c, a: Mahalanobis(t, LAYERS, scale=(0.3,), epsilon=-1.0), "epsilon is -1.0"),
        (lambda t, c, a: Mahalanobis(t, ("conv1",), scale=(0.3,)), "layer is 'conv1'"),
        (lambda t, c, a: Mahalanobis(t, LAYERS, scale=(0.3,), mode=""), "mode is ''"),
        (lambda t, c, a: Mahalanobis(t, LAYERS, scale=(0.3,)).score_samples(c), "Mahalanobis was asked before fit"),
        (lambda t, c, a: NNIF(t, RandomOfPredictedClass(t), LAYERS, m=181), "m is 181"),
        (lambda t, c, a: NNIF(t, RandomOfPredictedClass(t), LAYERS, mask="0000"), "mask is '0000'"),
        (lambda t, c, a: NNIF(t, RandomOfPredictedClass(t), LAYERS, mask="12"), "mask is '12'"),
        (lambda t, c, a: NNIF(t, RandomOfPredictedClass(t), LAYERS, rank_scale=0.0), "rank_scale is 0.0"),
        (lambda t, c, a: NNIF(t, RandomOfPredictedClass(t), LAYERS, m=61).features(c), "m is 61; .* from 1 to 60"),
        (lambda t, c, a: NNIF(t, Fixed(*[random_choice(48, 180, 3)] * 2), LAYERS, m=4).features(c), "helpful has 3 images"),
        (lambda t, c, a: NNIF(t, Fixed(*[random_choice(9, 180, 4)] * 2), LAYERS, m=4).features(c), "each of the 48"),
        (lambda t, c, a: RandomOfPredictedClass(t, seed=-1), "seed is -1"),
        (lambda t, c, a: NearestOfPredictedClass(t, layer="relu1"), "layer is 'relu1'"),
        (lambda t, c, a: class_mean_distance(t, c, layer="relu1"), "layer is 'relu1'"),
        (lambda t, c, a: SingleFeature(off_grid).fit(c, a[:40]), "they must be pairs"),
        (lambda t, c, a: SingleFeature(off_grid).fit(c[:2], a[:2]), "clean has 2 rows"),
        (lambda t, c, a: SingleFeature(off_grid).fit(c, a * 2), "adversarial has pixels from"),
        (lambda t, c, a: SingleFeature(off_grid).score_features(np.ones((2, 1))), "SingleFeature was asked before fit"),
        (lambda t, c, a: LogisticStage().score(np.ones((2, 1))), "before fit"),
        (lambda t, c, a: LogisticStage().fit(np.eye(5), np.eye(5)).score(np.ones((2, 3))), "features has 3 columns"),
        (lambda t, c, a: LogisticStage().fit(np.eye(5), np.eye(5) * np.nan), "adversarial has features that are NaN"),
        (lambda t, c, a: LogisticStage().fit(np.ones(5), np.ones(5)), "clean must be an array of shape"),
        (lambda t, c, a: ranks_and_distances(torch.ones(2, 3), torch.ones(5, 2), random_choice(2, 5, 1)), "must agree"),
        (lambda t, c, a: ranks_and_distances(torch.ones(2, 3), torch.ones(5, 3), random_choice(2, 6, 6)), "from 0 to 4"),
        (lambda t, c, a: check_distinct("helpful", torch.tensor([[0, 1], [2, 2]])), "helpful names a row twice"),
        (lambda t, c, a: select_hyperparameter({}), "features is empty"),
        (lambda t, c, a: select_hyperparameter({1: (np.eye(9), np.eye(9))}, folds=10), "folds is 10"),
        (lambda t, c, a: select_hyperparameter({1: (np.eye(4), np.eye(4))}, folds=2), "too few to learn from"),
        (lambda t, c, a: select_hyperparameter({1: (np.eye(9), np.eye(9)), 2: (np.eye(8), np.eye(8))}), "8 to 9 images"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(training, clean, adversarial, call, message):
    with pytest.raises(InputError, match=message):
        call(training, clean, adversarial)
