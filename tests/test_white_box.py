"""White-box attacks on a classifier with a detector: parts against loops and differences, results against plain attacks."""

import numpy as np
import pytest
import torch
from conftest import blobs, fitted
from torch import Tensor, nn

from deepneighbors.attacks.classifier import draw_targets, run_attack
from deepneighbors.attacks.cw_opt import CWOpt, anchor_distance, anchor_embeddings, deficit, logits_and_embedding
from deepneighbors.attacks.detector_evasion import DetectorEvasion, HelpfulAnchors, NearestAnchors, threshold_at_fpr
from deepneighbors.detectors import NNIF, PredictedLabelInfluence, SingleFeature, TrainingActivations, class_mean_distance
from deepneighbors.errors import InputError
from deepneighbors.influence import LastLayerInfluence

CLASSES, M = 3, 20
WEIGHTS = {"clean": 0.1, "faithful": 0.5}  # of D: enough that the attack fails for some images


class Small(nn.Module):
    """A 16-dimensional embedding of 28 x 28 images, with a linear layer on it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
        self.embedding = nn.Sequential(nn.Linear(49, 16), nn.ReLU())
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.embedding(self.pool(x)))


@pytest.fixture(scope="module")
def trained() -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Small()
    return fitted(network, *blobs(240, seed=0, spread=0.5), steps=60, least=0.97)


@pytest.fixture(scope="module")
def training(trained) -> TrainingActivations:
    return TrainingActivations.compute(trained, *blobs(240, seed=0, spread=0.5), ("embedding",))


@pytest.fixture(scope="module")
def influence(trained, training) -> LastLayerInfluence:
    return LastLayerInfluence(trained.fc.weight, trained.fc.bias).fit(training.pooled["embedding"], training.labels)


@pytest.fixture(scope="module")
def batch(trained) -> tuple[Tensor, Tensor]:
    """Clean images that the network gets right."""
    x, y = blobs(60, seed=1, spread=0.5)
    right = trained(x).argmax(1) == y
    return x[right][:36], y[right][:36]


@pytest.fixture(scope="module")
def targets(batch) -> Tensor:
    return draw_targets(batch[1], CLASSES, 4)


@pytest.fixture(scope="module")
def anchors(trained, training, influence, batch) -> Tensor:
    x, y = batch
    helpful, _ = influence.extremes(training.query(x, ("embedding",))["embedding"], y, M)
    return anchor_embeddings(trained, training.images, helpful)


def l2(x: Tensor, moved: Tensor) -> Tensor:
    return (moved - x).flatten(1).norm(dim=1)


@torch.no_grad()
def embed(network: nn.Module, x: Tensor) -> Tensor:
    return logits_and_embedding(network, x, "embedding")[1]


# The parts


@pytest.mark.parametrize("mode", ["clean", "faithful"])
def test_anchor_distance_is_the_sum_or_the_matrix_norm(mode):
    generator = torch.Generator().manual_seed(0)
    embedding, anchors = torch.rand(5, 4, generator=generator), torch.rand(5, 7, 4, generator=generator)
    found = anchor_distance(embedding, anchors, mode)
    for i in range(5):
        total, columns = 0.0, [0.0] * 4
        for anchor in anchors[i]:
            total += sum(abs(float(a) - float(b)) for a, b in zip(embedding[i], anchor, strict=True))
            columns = [c + abs(float(a) - float(b)) for c, a, b in zip(columns, embedding[i], anchor, strict=True)]
        assert float(found[i]) == pytest.approx(total if mode == "clean" else max(columns), rel=1e-5)
        if mode == "faithful":
            matrix = (anchors[i] - embedding[i]).numpy()
            assert float(found[i]) == pytest.approx(np.linalg.norm(matrix, ord=1), rel=1e-5)


@pytest.mark.parametrize("mode", ["clean", "faithful"])
def test_gradient_of_what_cw_opt_adds_matches_finite_differences(mode, trained, batch, targets, anchors):
    network = Small().double()
    network.load_state_dict(trained.state_dict())
    attack, x, t, points = CWOpt(mode=mode, weight=0.3), batch[0][:4].double(), targets[:4], anchors[:4].double()

    def penalty(image: Tensor) -> Tensor:
        return attack._penalty(*logits_and_embedding(network, image, "embedding"), t, points)

    (gradient,) = torch.autograd.grad(penalty(x.requires_grad_(True)).sum(), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-7
    with torch.no_grad():
        slope = (penalty(x + step * direction) - penalty(x - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), slope, rtol=1e-4, atol=1e-4)


def test_logits_and_embedding_come_from_one_pass(trained, training, batch):
    logits, embedding = logits_and_embedding(trained, batch[0], "embedding")
    assert torch.equal(logits, trained(batch[0]))
    torch.testing.assert_close(embedding, training.query(batch[0], ("embedding",))["embedding"])
    assert not trained.embedding._forward_hooks
    wanted = torch.zeros(len(logits), dtype=torch.int64)
    assert torch.equal(deficit(logits, wanted), logits[:, 1:].amax(1) - logits[:, 0])


def test_anchor_embeddings_are_training_embeddings_or_those_of_squashed_images(trained, training):
    indices = torch.randint(0, 240, (6, 5), generator=torch.Generator().manual_seed(0))
    found = anchor_embeddings(trained, training.images, indices, batch_size=7)
    torch.testing.assert_close(found, training.pooled["embedding"][indices])
    squashed = anchor_embeddings(trained, training.images, indices, mode="faithful")
    for i in range(6):
        expected = logits_and_embedding(trained, torch.tanh(training.images[indices[i]]) / 2 + 0.5, "embedding")[1]
        torch.testing.assert_close(squashed[i], expected)
    assert not torch.allclose(found, squashed, atol=0.1)


@pytest.mark.parametrize("fpr", [0.0, 0.05, 0.29, 0.5])
@pytest.mark.parametrize("levels", [0, 12])
def test_threshold_flags_as_many_clean_images_as_allowed(fpr, levels):
    scores = np.random.default_rng(0).random(100)
    if levels:
        scores = (scores * levels).round() / levels  # many equal scores
    threshold = threshold_at_fpr(scores, fpr)
    flagged = (scores >= threshold).mean()
    assert flagged <= fpr + 1e-12
    next_lower = scores[scores < threshold].max()  # a lower threshold flags at least this score too
    assert (scores >= next_lower).mean() > fpr + 1e-12
    if not levels:
        assert flagged == pytest.approx(fpr)


# CW-Opt


@pytest.mark.parametrize(("mode", "early"), [("clean", True), ("faithful", False)])
def test_cw_opt_without_its_own_term_is_plain_cw(mode, early, trained, batch, targets, anchors):
    # No pixel of 0 or 1: its gradient is as small as Adam's epsilon, which the two add in different places.
    x, y = 0.05 + 0.9 * batch[0], batch[1]
    common = dict(steps=100, abort_early=early, batch_size=20)
    plain = run_attack("cw", trained, x, y, targets=targets, stepsize=0.05, **common)
    found = CWOpt(mode=mode, weight=0.0, learning_rate=0.05, **common)(trained, x, y, anchors, targets=targets)
    assert torch.equal(found.success, plain.success) and found.success.all()
    torch.testing.assert_close(l2(x, found.x), l2(x, plain.x), rtol=1e-3, atol=0)


@pytest.mark.parametrize("mode", ["clean", "faithful"])
def test_cw_opt_trades_the_norm_for_nearness_and_keeps_its_promises(mode, trained, batch, targets, anchors):
    x, y = batch
    settings = dict(mode=mode, steps=100, learning_rate=0.05)
    plain, pulled = (
        CWOpt(weight=weight, **settings)(trained, x, y, anchors, targets=targets) for weight in (0.0, WEIGHTS[mode])
    )
    for found in (plain, pulled):
        assert found.x.min() >= 0 and found.x.max() <= 1
        assert torch.equal(found.predictions, trained(found.x).argmax(1))
        assert torch.equal(found.success, found.predictions == targets)
        changed = (found.x != x).flatten(1).any(1)
        assert torch.equal(changed, found.success)  # the clean image where the attack failed
        assert (deficit(trained(found.x), targets)[changed] <= -0.8 + 1e-4).all()
    both = plain.success & pulled.success
    assert 0.2 < both.float().mean() < 0.6
    near = [anchor_distance(embed(trained, found.x), anchors, mode) for found in (plain, pulled)]
    assert near[1][both].mean() < near[0][both].mean()
    assert l2(x, pulled.x)[both].mean() > l2(x, plain.x)[both].mean()
    assert all(parameter.grad is None for parameter in trained.parameters())


def test_a_failed_cw_opt_returns_the_clean_image(trained, batch, targets, anchors):
    x, y = batch
    found = CWOpt(steps=1, search_steps=1)(trained, x, y, anchors, targets=targets)
    assert torch.equal(found.x, x) and not found.success.any()
    drawn = CWOpt(steps=1, search_steps=1)(trained, x, y, anchors, seed=4)
    assert torch.equal(drawn.targets, targets)


# The adaptive attack


@pytest.fixture(scope="module", params=["NNIF", "distance"])
def guarded(request, trained, training, influence, batch, targets):
    """A detector fitted on a plain attack, its threshold at 5 % false positives, that attack, and the surrogate for it."""
    x, y = batch
    plain = run_attack("cw", trained, x, y, targets=targets, confidence=0.0, steps=150, stepsize=0.05).x
    if request.param == "NNIF":
        detector = NNIF(training, PredictedLabelInfluence(training, influence), ("embedding",), m=M)
        surrogate = HelpfulAnchors(training.pooled["embedding"], influence, m=M)
    else:
        detector = SingleFeature(lambda z: class_mean_distance(training, z))
        surrogate = NearestAnchors(training.pooled["embedding"], training.labels, m=M)
    detector.fit(x, plain)
    held_out, labels = blobs(200, seed=2, spread=0.5)
    held_out = held_out[trained(held_out).argmax(1) == labels]
    return detector, threshold_at_fpr(detector.score_samples(held_out)), plain, surrogate


@pytest.mark.parametrize("targeted", [True, False])
def test_adaptive_attack_passes_a_detector_that_catches_the_plain_one(targeted, guarded, trained, batch, targets):
    x, y = batch
    detector, threshold, plain, surrogate = guarded
    passed = torch.from_numpy(detector.score_samples(plain) < threshold)
    assert (trained(plain).argmax(1) == targets).all() and passed.float().mean() < 0.3
    attack = DetectorEvasion(surrogate, steps=100, refresh=5, batch_size=20)
    found = attack(trained, detector, threshold, x, y, targets=targets if targeted else None)
    assert found.evaded.float().mean() > 0.9

    assert found.x.min() >= 0 and found.x.max() <= 1
    predicted = trained(found.x).argmax(1)
    assert torch.equal(found.fooled, predicted == targets if targeted else predicted != y)
    np.testing.assert_array_equal(found.score.numpy(), detector.score_samples(found.x))
    assert torch.equal(found.evaded, found.fooled & (found.score < threshold))
    torch.testing.assert_close(found.l2, l2(x, found.x))
    assert all(parameter.grad is None for parameter in trained.parameters())


class Constant:
    """Gives every image the same score, and accepts only images."""

    def __init__(self, score: float):
        self.score = score

    def score_samples(self, x: Tensor) -> np.ndarray:
        assert x.isfinite().all() and x.min() >= 0 and x.max() <= 1
        return np.full(len(x), self.score)


def test_without_a_detector_in_the_way_it_is_a_minimum_norm_attack(trained, training, batch, targets):
    x, y = batch
    surrogate = NearestAnchors(training.pooled["embedding"], training.labels, m=M)
    attack = DetectorEvasion(surrogate, weights=(0.0,), steps=150)
    found = attack(trained, Constant(0.0), 0.5, x, y, targets=targets)
    plain = run_attack("cw", trained, x, y, targets=targets, confidence=0.0, steps=300, stepsize=0.02)
    assert found.evaded.all() and plain.success.all()
    assert float((found.l2 / l2(x, plain.x)).mean()) < 1.02


def test_what_cannot_pass_is_reported_as_such(trained, training, batch, targets):
    x, y = batch
    surrogate = NearestAnchors(training.pooled["embedding"], training.labels, m=M)
    attack = DetectorEvasion(surrogate, steps=30)
    found = attack(trained, Constant(0.7), 0.5, x, y, targets=targets)
    assert found.fooled.all() and not found.evaded.any() and (found.l2 > 0).all()
    blind = DetectorEvasion(surrogate, steps=1, polish=0)(trained, Constant(0.0), 0.5, x, y, targets=targets)
    assert torch.equal(blind.x[~blind.fooled], x[~blind.fooled]) and not blind.evaded[~blind.fooled].any()
    assert (~blind.fooled).any()
    wrong = (y + 1) % CLASSES  # the network already gives other labels than these
    free = attack(trained, Constant(0.0), 0.5, x, wrong)
    assert torch.equal(free.x, x) and free.evaded.all() and not free.l2.any()


def test_a_long_search_in_vain_stays_finite(trained, training, batch, targets):
    x, y = batch[0][:2], batch[1][:2]
    surrogate = NearestAnchors(training.pooled["embedding"], training.labels, m=M)
    attack = DetectorEvasion(surrogate, weights=(0.0,), confidence=0.0, steps=1000, refresh=100, polish=0)
    found = attack(trained, Constant(0.7), 0.5, x, y, targets=targets[:2])
    assert found.fooled.all() and not found.evaded.any()


def test_the_smallest_of_several_descents_counts(trained, training, influence, batch, targets):
    x, y = batch
    surrogate = HelpfulAnchors(training.pooled["embedding"], influence, m=M)
    both, pulled, bare = (
        DetectorEvasion(surrogate, weights=weights, confidence=2.0, steps=40, polish=0)(
            trained, Constant(0.0), 0.5, x, y, targets=targets
        )
        for weights in ((10.0, 0.0), (10.0,), (0.0,))
    )
    assert torch.equal(both.l2, torch.minimum(pulled.l2, bare.l2))
    assert not torch.equal(pulled.l2, bare.l2)


def test_it_keeps_the_fooling_image_of_lowest_score_where_none_passes(trained, training, batch, targets):
    x, y = batch
    surrogate = NearestAnchors(training.pooled["embedding"], training.labels, m=M)
    seen: list[tuple[Tensor, Tensor, np.ndarray]] = []

    class Recorder:
        def score_samples(self, z: Tensor) -> np.ndarray:
            score = 1 + np.abs(class_mean_distance(training, z).double().numpy())
            seen.append((trained(z).argmax(1) == targets, z.clone(), score))
            return score

    found = DetectorEvasion(surrogate, steps=40, polish=2)(trained, Recorder(), 0.5, x, y, targets=targets)
    lowest = np.min([np.where(fooled.numpy(), score, np.inf) for fooled, _, score in seen[:-1]], axis=0)
    np.testing.assert_array_equal(found.score.numpy(), lowest)


def test_surrogates_name_the_right_training_images(training, influence, batch):
    rows = training.query(batch[0], ("embedding",))["embedding"]
    wanted = (batch[1] + 1) % CLASSES
    database = training.pooled["embedding"]
    near = NearestAnchors(database, training.labels, m=4)(rows, wanted)
    helpful = HelpfulAnchors(database, influence, m=4)(rows, wanted)
    scores = influence.scores(rows, wanted)
    for i in range(len(rows)):
        own = database[training.labels == wanted[i]]
        expected = (own - rows[i]).norm(dim=1).sort().values[:4]
        torch.testing.assert_close((near[i] - rows[i]).norm(dim=1), expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(helpful[i], database[scores[i].argsort(descending=True)[:4]])


# Bad input

OPTIONS = {
    "mode": (CWOpt, dict(mode="paper"), "mode is 'paper'"),
    "negative weight": (CWOpt, dict(weight=-1.0), "weight is -1.0"),
    "constant": (CWOpt, dict(initial_const=0.0), "initial_const is 0.0"),
    "steps": (CWOpt, dict(steps=0), "steps is 0"),
    "early end": (CWOpt, dict(abort_early=3), "abort_early is 3"),
    "weight": (DetectorEvasion, dict(weights=(1.0, -2.0)), "weight is -2.0"),
    "no weights": (DetectorEvasion, dict(weights=()), r"weights is \(\)"),
    "refresh": (DetectorEvasion, dict(refresh=0), "refresh is 0"),
    "confidence": (DetectorEvasion, dict(confidence=-0.1), "confidence is -0.1"),
    "polish": (DetectorEvasion, dict(polish=-1), "polish is -1"),
    "surrogate": (DetectorEvasion, dict(surrogate=3), "surrogate is a int"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_options(case):
    attack, change, message = OPTIONS[case]
    given = {"surrogate": deficit, **change} if attack is DetectorEvasion else change
    with pytest.raises(InputError, match=message):
        attack(**given)


CALLS = {
    "pixels": (dict(x=torch.full((36, 1, 28, 28), 2.0)), "pixels from 2"),
    "label": (dict(y=torch.full((36,), 3)), "y has labels from 3 to 3"),
    "target": (dict(targets=torch.full((36,), 3)), "targets has labels from 3 to 3"),
    "layer": (dict(layer="conv"), "layer is 'conv'"),
    "training": (dict(network=Small().train()), "training mode"),
    "no module": (dict(network=torch.sum), "must be a torch module"),
    "anchors": (dict(anchors=torch.zeros(36, 4, 5)), "anchors have shape"),
    "threshold": (dict(threshold=float("nan")), "threshold is nan"),
}


@pytest.mark.parametrize("case", CALLS)
def test_bad_calls(case, trained, training, batch, anchors):
    change, message = CALLS[case]
    given = {"network": trained, "x": batch[0], "y": batch[1], "targets": None, "layer": "embedding", "anchors": anchors,
             "threshold": 0.5} | change  # fmt: skip
    network, x, y, wanted = given["network"], given["x"], given["y"], given["targets"]
    if case != "threshold":
        with pytest.raises(InputError, match=message):
            CWOpt(layer=given["layer"])(network, x, y, given["anchors"], targets=wanted)
    if case != "anchors":
        attack = DetectorEvasion(NearestAnchors(training.pooled["embedding"], training.labels), layer=given["layer"])
        with pytest.raises(InputError, match=message):
            attack(network, Constant(0.0), given["threshold"], x, y, targets=wanted)


def test_bad_input_of_the_parts(trained, training, influence, batch):
    images, rows = training.images, training.pooled["embedding"]
    with pytest.raises(InputError, match="indices are from 0 to 240"):
        anchor_embeddings(trained, images, torch.tensor([[0, 240]]))
    with pytest.raises(InputError, match="indices must be a tensor"):
        anchor_embeddings(trained, images, torch.tensor([0, 1]))
    with pytest.raises(InputError, match="mode is 'paper'"):
        anchor_embeddings(trained, images, torch.tensor([[0]]), mode="paper")
    with pytest.raises(InputError, match="targets has 36 true labels"):
        CWOpt()(trained, *batch, torch.zeros(36, 1, 16), targets=batch[1])
    with pytest.raises(InputError, match="m is 81"):
        NearestAnchors(rows, training.labels, m=81)
    with pytest.raises(InputError, match="m is 241"):
        HelpfulAnchors(rows, influence, m=241)
    with pytest.raises(InputError, match="clean_scores has shape"):
        threshold_at_fpr([])
    with pytest.raises(InputError, match="fpr is 1"):
        threshold_at_fpr([0.1], 1.0)
    with pytest.raises(InputError, match="fpr is -0.1"):
        threshold_at_fpr([0.1], -0.1)
    attack = DetectorEvasion(NearestAnchors(rows, training.labels))
    with pytest.raises(InputError, match="detector gives scores of shape"):
        attack(trained, SingleColumn(), 0.5, *batch)


class SingleColumn:
    """Scores of a wrong shape."""

    def score_samples(self, x: Tensor) -> np.ndarray:
        return np.zeros((len(x), 1))
