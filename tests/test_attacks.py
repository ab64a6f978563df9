"""Every attack keeps its invariants: box, ball, verified flips; and parts are checked against loops and autograd."""

import pytest
import torch

from deepneighbors.attacks import (
    CredibleAttack,
    FeatureAdversary,
    GradientAttack,
    MeanAttack,
    MinimumNormAttack,
    Schedule,
    VoteMarginAttack,
)
from deepneighbors.attacks.guides import Guides, nearest_class_guides
from deepneighbors.attacks.mean import class_means
from deepneighbors.attacks.penalty import Adam, ConstantSearch, TanhBox
from deepneighbors.attacks.vote_margin import SoftVote, search
from deepneighbors.dknn import DeepKNN
from deepneighbors.errors import InputError
from deepneighbors.knn import KNNClassifier

SHORT = Schedule(search_steps=3, steps=60, check_every=20)
RELEASED = Schedule(search_steps=3, steps=60, released=True)
MARGIN = {"steps": 60, "guides": 12}

# attack, classifiers, the share of the small problem that it must fool at least
TARGETS = {
    "mean": (MeanAttack(steps=8), ("knn", "dknn"), 1.0),
    "mean, votes": (MeanAttack(oracle="votes"), ("dknn",), 0.8),
    "mean, linf": (MeanAttack(norm="linf"), ("knn",), 1.0),
    "gradient": (GradientAttack(guides=7, constant=10, schedule=SHORT), ("knn",), 1.0),
    "gradient on layers": (GradientAttack(guides=7, constant=10, schedule=SHORT), ("dknn",), 0.9),
    "gradient, released": (GradientAttack(guides=7, constant=100, schedule=RELEASED), ("knn",), 0.9),
    "gradient, linf": (GradientAttack(norm="linf", epsilon=0.25, guides=7, schedule=SHORT), ("dknn",), 0.5),
    "feature adversary": (FeatureAdversary(schedule=SHORT), ("knn", "dknn"), 0.9),
    "feature adversary, linf": (FeatureAdversary(norm="linf", epsilon=0.2), ("dknn",), 0.0),
    "minimum norm": (MinimumNormAttack(guides=14, search_steps=3, steps=60, refresh=20), ("knn",), 1.0),
    "vote margin": (VoteMarginAttack(**MARGIN), ("knn", "dknn"), 0.8),
    "vote margin, linf": (VoteMarginAttack(norm="linf", **MARGIN), ("knn", "dknn"), 0.8),
    "credible": (CredibleAttack(epsilon=0.3, steps=40, guides=12), ("dknn",), 0.4),
    "credible, l2": (CredibleAttack(norm="l2", epsilon=6.0, steps=40, guides=12), ("dknn",), 0.4),
}
CASES = [(name, victim) for name, (_, victims, _) in TARGETS.items() for victim in victims]


@pytest.mark.parametrize(("name", "victim"), CASES, ids=[f"{n} on {v}" for n, v in CASES])
def test_invariants(name, victim, request, test):
    attack, _, least = TARGETS[name]
    classifier, (x, y) = request.getfixturevalue(victim), test
    found = attack(classifier, x, y)
    assert found.x.shape == x.shape
    assert found.x.min() >= 0 and found.x.max() <= 1
    assert torch.equal(found.success, classifier.predict(found.x) != y)
    size = (found.x - x).flatten(1)
    expected = size.norm(dim=1) if attack.norm == "l2" else size.abs().amax(1)
    torch.testing.assert_close(found.distance, expected)
    if getattr(attack, "epsilon", None):
        assert (expected <= attack.epsilon * (1 + 1e-5)).all()
    assert found.success.float().mean() >= least


def test_attacks_are_deterministic(knn, test):
    first, second = (VoteMarginAttack(**MARGIN)(knn, *test).x for _ in range(2))
    assert torch.equal(first, second)


def test_ours_is_no_larger_than_the_others(knn, test):
    smallest = VoteMarginAttack(targets=2, steps=120, guides=12)(knn, *test).distance.mean()
    for attack in (MeanAttack(steps=8), TARGETS["gradient"][0], TARGETS["minimum norm"][0]):
        assert smallest <= attack(knn, *test).distance.mean() * 1.02


def test_one_neighbor_reaches_the_closed_form():
    """With one training image a class the boundary is a plane, so the smallest L2 change is half the gap, projected."""
    x = torch.full((2, 1, 28, 28), 0.5)
    x[0, 0, :14], x[1, 0, 14:] = 0.3, 0.7
    classifier = KNNClassifier(k=1, metric="l2").fit(x, torch.tensor([0, 1]))
    query = torch.lerp(x[:1], x[1:], 0.25)
    exact = 0.25 * float((x[0] - x[1]).norm())
    found = VoteMarginAttack(guides=1, steps=200, softness=0.5, polish=12)(classifier, query, torch.tensor([0]))
    assert found.success.all()
    assert exact <= float(found.distance) <= exact * 1.01


def test_guides_are_the_nearest_of_the_nearest_other_class(knn, test):
    x, y = test
    found = nearest_class_guides(knn, x, y, 5)
    rows, database = knn.features(x)["pixels"], knn.indexes_["pixels"].database_
    for i in range(len(x)):
        squares = ((rows[i] - database) ** 2).sum(1)
        means = {c: squares[knn.labels_ == c].sort().values[:5].mean() for c in range(3) if c != y[i]}
        best = min(means, key=lambda c: float(means[c]))
        members = torch.nonzero(knn.labels_ == best).flatten()
        assert found[i].tolist() == members[squares[members].argsort()[:5]].tolist()


def test_guide_distances_and_their_gradient(dknn, test):
    indices = torch.arange(8).expand(len(test[0]), 8)
    guides = Guides(dknn, "relu3", indices)
    rows = dknn.features(test[0])["relu3"].requires_grad_(True)
    direct = ((rows[:, None] - guides.rows) ** 2).sum(2)
    torch.testing.assert_close(guides(rows), direct, atol=1e-5, rtol=1e-4)
    ours, theirs = (torch.autograd.grad(part.sqrt().sum(), rows)[0] for part in (guides(rows), direct))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_search_finds_the_classifiers_own_votes(dknn, test):
    found = search(dknn, test[0], 12)
    assert torch.equal(found.votes, dknn.votes(dknn.kneighbors(test[0])))


def test_linear_vote_loss_has_the_gradient_of_the_soft_vote(knn, test):
    x, y = test
    found = search(knn, x, 12)
    target = found.votes.scatter(1, y[:, None], -1).argmax(1)
    vote = SoftVote(knn, "pixels", found, y, target, softness=0.3)
    rows = knn.features(x)["pixels"].requires_grad_(True)
    vote.weigh(rows)
    (linear,) = torch.autograd.grad(vote(rows).sum(), rows)

    squares = vote.guides(rows)
    border = vote.border(squares.detach())
    soft = (vote.sign * torch.sigmoid((border - squares) / (0.3 * border))).sum()
    (true,) = torch.autograd.grad(soft, rows)
    torch.testing.assert_close(linear, true, atol=1e-5, rtol=1e-3)


def test_adam_follows_tensorflows_formula():
    variable, gradient = torch.tensor([1.0]), torch.tensor([1e-7])
    adam, mean, square, expected = Adam(variable, 0.1), 0.0, 0.0, 1.0
    for t in range(1, 4):
        adam.step(variable, gradient)
        mean, square = 0.9 * mean + 0.1 * 1e-7, 0.999 * square + 0.001 * 1e-14
        expected -= 0.1 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * mean / (square**0.5 + 1e-8)
    assert float(variable) == pytest.approx(expected, rel=1e-5)


def test_constant_search_brackets():
    search_ = ConstantSearch(3, 1.0, device=torch.device("cpu"))
    search_.update(torch.tensor([True, False, False]))
    assert search_.value.tolist() == [0.5, 10.0, 10.0]
    search_.update(torch.tensor([False, True, False]))
    assert search_.value.tolist() == [0.75, 5.5, 100.0]


def test_tanh_box_starts_at_the_image_and_stays_inside():
    x = torch.rand(4, 10, generator=torch.Generator().manual_seed(0))
    box = TanhBox(x, (x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1))
    torch.testing.assert_close(box(torch.zeros_like(x)), x, atol=1e-5, rtol=0)
    far = box(torch.full_like(x, 50.0))
    assert ((far - x) <= 0.1 + 1e-6).all() and (far <= 1).all()


def test_released_schedule_tests_three_times():
    assert [s for s in range(200) if Schedule(released=True).tests(s)] == [160, 180, 199]


def test_class_means_follow_both_conventions(knn):
    raw, unit = class_means(knn), class_means(knn, unit=True)
    rows = knn.x_.flatten(1)[knn.labels_ == 1]
    torch.testing.assert_close(raw[1], rows.mean(0))
    expected = torch.nn.functional.normalize(rows, dim=1).mean(0)
    torch.testing.assert_close(unit[1], expected / expected.norm())


def test_an_uncalibrated_classifier_is_refused_before_the_attack(train, network, test):
    with pytest.raises(InputError, match="before calibrate"):
        CredibleAttack(guides=7)(DeepKNN(network, ("fc",), k=7).fit(*train), *test)


def test_the_mean_attack_skips_a_label_without_images(train, test):
    (x, y), kept = train, train[1] != 1
    found = MeanAttack(steps=8)(KNNClassifier(k=7).fit(x[kept], y[kept]), test[0][test[1] != 1], test[1][test[1] != 1])
    assert found.success.all() and found.x.isfinite().all()


def test_the_search_of_an_attack_orders_ties_as_the_classifier():
    """Copies of one image under three labels: the k nearest are the copies of lowest index, whatever their class."""
    x = torch.ones(12, 1, 2, 2)
    y = torch.tensor([2, 2, 2, 0, 1, 0, 1, 0, 1, 0, 1, 2])
    classifier = KNNClassifier(k=3, metric="l2").fit(x, y)
    assert (
        search(classifier, x[:1], 4).votes.tolist() == classifier.votes(classifier.kneighbors(x[:1])).tolist() == [[0, 0, 3]]
    )


def test_credible_attack_raises_credibility(dknn, test):
    x, y = test
    plain = VoteMarginAttack(norm="linf", **MARGIN)(dknn, x, y)
    bold = CredibleAttack(epsilon=0.5, steps=60, guides=12)(dknn, x, y)
    both = plain.success & bold.success
    assert both.any()
    assert dknn.credibility(bold.x[both]).mean() >= dknn.credibility(plain.x[both]).mean()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k, x, y: MeanAttack(norm="l1"), "norm is 'l1'; allowed are l2, linf"),
        (lambda k, x, y: MeanAttack(means="median"), "means is 'median'"),
        (lambda k, x, y: GradientAttack(norm="linf"), "epsilon is None"),
        (lambda k, x, y: GradientAttack(epsilon=0.2), "takes no epsilon"),
        (lambda k, x, y: FeatureAdversary(norm="linf", epsilon=-1.0), "epsilon is -1.0"),
        (lambda k, x, y: MeanAttack()(KNNClassifier(), x, y), "before fit"),
        (lambda k, x, y: GradientAttack(eta={"fc": 1.0}, guides=7)(k, x, y), "eta has no threshold for layer 'pixels'"),
        (lambda k, x, y: GradientAttack(guides=61)(k, x, y), "guides is 61; it must be a whole number from 1 to 60"),
        (lambda k, x, y: VoteMarginAttack(guides=6)(k, x, y), "guides is 6; it must be a whole number from 7"),
        (lambda k, x, y: VoteMarginAttack(guides=9)(KNNClassifier(k=3).fit(x, 2 * y), x, y), "class 1 has no training"),
        (lambda k, x, y: CredibleAttack(softness=0.0), "softness is 0.0"),
        (lambda k, x, y: CredibleAttack(guides=7)(k, x, y), "needs a DeepKNN"),
        (lambda k, x, y: MeanAttack(batch_size=0)(k, x, y), "batch_size is 0"),
        (lambda k, x, y: Schedule(check_every=0), "check_every is 0"),
        (lambda k, x, y: MeanAttack()(k, x - 1, y), "must lie in \\[0, 1\\]"),
        (lambda k, x, y: MeanAttack()(k, x[:0], y[:0]), "empty batch"),
        (lambda k, x, y: MeanAttack()(k, x * float("nan"), y), "NaN"),
        (lambda k, x, y: MeanAttack()(k, x, y + 2), "allowed are 0 to 2"),
        (lambda k, x, y: MeanAttack()(k, x, y[1:]), "11 labels for 12 samples"),
        (lambda k, x, y: GradientAttack(guides=61)(k, x, y), "guides is 61; it must be a whole number from 1 to 60"),
        (lambda k, x, y: VoteMarginAttack(guides=6)(k, x, y), "guides is 6; it must be a whole number from 7 to 60"),
        (lambda k, x, y: VoteMarginAttack(guides=7, targets=3)(k, x, y), "targets is 3"),
        (lambda k, x, y: CredibleAttack(guides=7)(k, x, y), "needs a DeepKNN"),
    ],
)
def test_bad_input_is_refused(knn, test, call, message):
    with pytest.raises(InputError, match=message):
        call(knn, *test)
