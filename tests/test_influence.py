"""Closed-form influence against autograd, reweighted and leave-one-out retraining; LiSSA against its recursion."""

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.func import functional_call
from torch.func import hessian as autograd_hessian

from deepneighbors.errors import InputError
from deepneighbors.influence import (
    FullNetworkInfluence,
    Identity,
    Inverse,
    LastLayerInfluence,
    Lissa,
    Recursion,
    fit_softmax,
)
from deepneighbors.influence.softmax import gradients, hessian, losses
from deepneighbors.networks.thin_resnet import ThinResNet

DECAY, SMOOTHING = 1e-2, 0.1


@pytest.fixture(scope="module")
def problem():
    """Overlapping classes in 5 dimensions: training set, queries, and the optimum of the regression."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 5, generator=generator)
    y = torch.arange(66) % 3
    x = centres[y] + 1.2 * torch.randn(66, 5, generator=generator)
    theta = fit_softmax(x[:60], y[:60], 3, weight_decay=DECAY, smoothing=SMOOTHING)
    return x[:60], y[:60], x[60:], y[60:], theta


def influence(problem, **options):
    x, y, _, _, theta = problem
    options = {"weight_decay": DECAY, "smoothing": SMOOTHING} | options
    return LastLayerInfluence(theta[:, :-1], theta[:, -1], **options).fit(x, y)


def test_hessian_and_gradients_are_those_of_autograd(problem):
    x, y, _, _, theta = problem
    x = x.double()

    def objective(flat):
        at = flat.view_as(theta)
        return losses(at, x, y, SMOOTHING).mean() + DECAY / 2 * (at[:, :-1] ** 2).sum()

    torch.testing.assert_close(hessian(theta, x, DECAY), autograd_hessian(objective)(theta.flatten()))
    single = torch.stack([torch.func.grad(lambda at, i=i: losses(at, x[i : i + 1], y[i : i + 1], SMOOTHING)[0])(theta)
                          for i in range(5)])  # fmt: skip
    torch.testing.assert_close(gradients(theta, x[:5], y[:5], SMOOTHING), single.flatten(1))


def test_the_fit_is_the_optimum(problem):
    x, y, _, _, theta = problem
    at = theta.clone().requires_grad_(True)
    value = losses(at, x.double(), y, SMOOTHING).mean() + DECAY / 2 * (at[:, :-1] ** 2).sum()
    (gradient,) = torch.autograd.grad(value, at)
    assert gradient.abs().max() < 1e-8
    from sklearn.linear_model import LogisticRegression

    plain = fit_softmax(x, y, 3, weight_decay=DECAY)
    peer = LogisticRegression(C=1 / (DECAY * len(x)), tol=1e-10, max_iter=5000).fit(x.double().numpy(), y.numpy())
    torch.testing.assert_close(plain[:, :-1], torch.from_numpy(peer.coef_), atol=1e-5, rtol=1e-4)


def test_scores_are_the_rate_of_the_loss_under_reweighting(problem):
    """s(z) is minus the derivative of the query's loss by the weight of z, by finite differences of retraining."""
    x, y, queries, labels, theta = problem
    scores = influence(problem).scores(queries, labels)
    for z in (0, 7, 31):
        found = []
        for change in (1e-3, -1e-3):
            weights = torch.ones(len(x))
            weights[z] += change * len(x)
            moved = fit_softmax(x, y, 3, weight_decay=DECAY, smoothing=SMOOTHING, sample_weight=weights, start=theta)
            found.append(losses(moved, queries.double(), labels, SMOOTHING))
        rate = -(found[0] - found[1]) / 2e-3
        torch.testing.assert_close(scores[:, z].double(), rate, rtol=1e-3, atol=1e-4)


def test_scores_rank_images_as_leaving_them_out_does(problem):
    x, y, queries, labels, theta = problem
    scores = influence(problem).scores(queries, labels)
    left_out = []
    for z in range(len(x)):
        weights = torch.ones(len(x))
        weights[z] = 0
        moved = fit_softmax(x, y, 3, weight_decay=DECAY, smoothing=SMOOTHING, sample_weight=weights, start=theta)
        left_out.append(losses(moved, queries.double(), labels, SMOOTHING))
    rise = torch.stack(left_out, 1)
    for ours, exact in zip(scores, rise, strict=True):
        assert spearmanr(ours.numpy(), exact.numpy()).statistic >= 0.99


def test_doubling_helpful_images_lowers_the_loss_and_harmful_ones_raise_it(problem):
    x, y, queries, labels, theta = problem
    helpful, harmful = influence(problem).extremes(queries, labels, 5)
    before = losses(theta, queries.double(), labels, SMOOTHING)
    for i in range(len(queries)):
        for chosen, sign in ((helpful[i], -1), (harmful[i], 1)):
            weights = torch.ones(len(x))
            weights[chosen] = 2
            moved = fit_softmax(x, y, 3, weight_decay=DECAY, smoothing=SMOOTHING, sample_weight=weights, start=theta)
            after = losses(moved, queries[i : i + 1].double(), labels[i : i + 1], SMOOTHING)
            assert sign * (after - before[i]) > 0


@pytest.mark.parametrize("operator", [Inverse(), Inverse(2.0), Lissa(5), Lissa(49), Identity()])
def test_operators_are_their_definitions(problem, operator):
    x, y, queries, labels, theta = problem
    matrix = hessian(theta, x.double(), DECAY)
    g = gradients(theta, queries.double(), labels, SMOOTHING)
    eye = torch.eye(len(matrix)).double()
    if isinstance(operator, Inverse):
        expected = g @ torch.linalg.pinv(matrix + operator.damping * eye)
    elif isinstance(operator, Lissa):
        u = g.clone()
        for _ in range(operator.depth):
            u = g + (1 - operator.damping) * u - u @ matrix / operator.scale
        expected = u / operator.scale
    else:
        expected = g
    torch.testing.assert_close(influence(problem, operator=operator).directions(queries, labels), expected)


def test_deep_lissa_is_a_damping_of_two(problem):
    _, _, queries, labels, _ = problem
    deep = influence(problem, operator=Lissa(5000)).directions(queries, labels)
    torch.testing.assert_close(deep, influence(problem, operator=Inverse(2.0)).directions(queries, labels))


def test_memory_limits_change_nothing(problem):
    _, _, queries, labels, _ = problem
    wide, narrow = influence(problem), influence(problem, memory_gib=1e-6)
    torch.testing.assert_close(wide.scores(queries, labels), narrow.scores(queries, labels))
    expected = wide.scores(queries, labels).argsort(1, descending=True)
    helpful, harmful = narrow.extremes(queries, labels, 4)
    assert torch.equal(helpful, expected[:, :4]) and torch.equal(harmful, expected.flip(1)[:, :4])


def test_whitened_products_are_the_scores(problem):
    x, y, queries, labels, _ = problem
    model = influence(problem)
    torch.testing.assert_close(
        model.whitened(queries, labels) @ model.whitened(x, y).T, model.scores(queries, labels), atol=1e-4, rtol=1e-3
    )


class Small(nn.Module):
    """Two layers on flattened images, smooth, so that autograd's Hessian is exact."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(9, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.two(self.one(x.flatten(1)).tanh())


@pytest.fixture(scope="module")
def small():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Small().eval()
    generator = torch.Generator().manual_seed(1)
    return network, torch.rand(40, 1, 3, 3, generator=generator), torch.arange(40) % 3


def test_full_network_scores_follow_the_released_recursion(small):
    network, x, y = small
    names = [name for name, _ in network.named_parameters()]
    flat = torch.cat([p.detach().flatten() for p in network.parameters()])
    sizes = [p.numel() for p in network.parameters()]

    def loss(at, images, labels, decay):
        parts = {n: part.view_as(p) for n, part, p in zip(names, at.split(sizes), network.parameters(), strict=True)}
        value = nn.functional.cross_entropy(functional_call(network, parts, (images,)), labels, label_smoothing=0.1)
        return value + decay / 2 * sum((p**2).sum() for p in parts.values() if p.ndim > 1)

    recursion = Recursion(scale=3.0, damping=0.05, repeats=2, depth=2, batch_size=10)
    ours = FullNetworkInfluence(network, weight_decay=0.1, smoothing=0.1, recursion=recursion, chunk=7).scores(
        x, y, x[:3], y[:3]
    )
    rows = torch.stack([torch.func.grad(loss)(flat, x[i : i + 1], y[i : i + 1], 0.0) for i in range(40)])
    expected = []
    for t in range(3):
        v, total = rows[t], 0
        for repeat in range(2):
            u = v
            for j in range(2):
                part = slice((2 * repeat + j) * 10, (2 * repeat + j + 1) * 10)
                u = v + 0.95 * u - autograd_hessian(loss)(flat, x[part], y[part], 0.1) @ u / 3
            total = total + u / 3
        expected.append(rows @ (total / 2) / 40)
    torch.testing.assert_close(ours, torch.stack(expected))


def test_batched_gradients_are_those_of_single_images_with_batch_statistics():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batch = ThinResNet(statistics="batch", blocks=1).eval()
    instance = ThinResNet(statistics="instance", blocks=1).eval()
    instance.load_state_dict(batch.state_dict())
    x, y = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 5, 7])
    ours = torch.cat(list(FullNetworkInfluence(instance, batch, smoothing=0.1).gradients(x, y)))
    for i in range(3):
        value = nn.functional.cross_entropy(batch(x[i : i + 1]), y[i : i + 1], label_smoothing=0.1)
        single = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(batch.parameters()))])
        torch.testing.assert_close(ours[i], single, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, q, t: m.extremes(q, t, 61), "m is 61; it must be a whole number from 1 to 60"),
        (lambda m, q, t: m.scores(q[:, :4], t), "features have shape .6, 4.; the last layer takes .n, 5."),
        (lambda m, q, t: m.scores(q, t + 3), "allowed are 0 to 2"),
        (lambda m, q, t: LastLayerInfluence(q, t.float()[:3]), "bias has shape"),
        (lambda m, q, t: LastLayerInfluence(q[:3], q[:3, 0]).scores(q, t), "before fit"),
        (lambda m, q, t: Inverse(-1.0), "damping is -1.0"),
        (lambda m, q, t: Recursion(depth=0), "depth is 0"),
        (lambda m, q, t: FullNetworkInfluence(ThinResNet()), "training mode"),
    ],
)
def test_bad_input_is_refused(problem, call, message):
    _, _, queries, labels, _ = problem
    with pytest.raises(InputError, match=message):
        call(influence(problem), queries, labels)


def test_too_few_images_for_lissa_are_refused(small):
    network, x, y = small
    with pytest.raises(InputError, match="LiSSA takes 49000 training images .5 x 49 x 200., got 40"):
        FullNetworkInfluence(network).scores(x, y, x[:1], y[:1])
