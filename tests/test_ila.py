"""ILA and the sign attacks that it starts from: hand-written steps by autograd, closed forms and invariants."""

import numpy as np
import pytest
import torch
from conftest import fitted
from torch import Tensor, nn
from torch.nn import functional

from deepneighbors.attacks.feature_importance import FIA, NAA, layer_gradient
from deepneighbors.attacks.ila import ILAF, ILAP, regression_guide
from deepneighbors.attacks.iterated import IteratedFGSM, diverse, sign_noise
from deepneighbors.errors import InputError

CLASSES, SIDE, EPSILON, LAYER = 3, 8, 0.1, "relu1"


class Small(nn.Module):
    """Two convolutions with batch norm and ReLU in place, and logits; ``unused`` is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1, self.relu1 = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(6, 6, 3, stride=2), nn.ReLU(inplace=True)
        self.fc = nn.Linear(54, CLASSES)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.norm1(self.conv1(x)))
        return self.fc(self.relu2(self.conv2(x)).flatten(1))


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Blobs ``(count, 1, 8, 8)`` around one random image a class; a tenth of the pixels lie on the border of the box."""
    centres = torch.rand(CLASSES, SIDE * SIDE, generator=torch.Generator().manual_seed(5))
    y = torch.arange(count) % CLASSES
    noise = torch.randn(count, SIDE * SIDE, generator=torch.Generator().manual_seed(seed))
    return (centres[y] + 0.2 * noise).clamp(0, 1).view(-1, 1, SIDE, SIDE), y


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = Small()
    return fitted(small, *images(120, 1), steps=40, least=0.95)


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    return images(30, 2)


@pytest.fixture(scope="module")
def guide(network, batch) -> Tensor:
    return IteratedFGSM(epsilon=EPSILON)(network, *batch)


def relu1(network: nn.Module, x: Tensor) -> Tensor:
    """The layer by hand, ``(n, D)``."""
    return network.norm1(network.conv1(x)).relu().flatten(1)


def ball(z: Tensor, x: Tensor, epsilon: float = EPSILON) -> Tensor:
    return torch.minimum(torch.maximum(z, x - epsilon), x + epsilon).clamp(0, 1)


def sign_step(loss, z: Tensor, size: float) -> Tensor:
    z = z.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(z), z)
    return (z + size * gradient.sign()).detach()


def in_ball(z: Tensor, x: Tensor, epsilon: float = EPSILON) -> bool:
    return bool(z.min() >= 0 and z.max() <= 1 and (z - x).abs().max() <= epsilon * (1 + 1e-5))


ATTACKS = {
    "fgsm": IteratedFGSM(epsilon=EPSILON, steps=1),
    "ifgsm": IteratedFGSM(epsilon=EPSILON, steps=6, step_size=0.03),
    "mifgsm": IteratedFGSM(epsilon=EPSILON, steps=6, momentum=1.0),
    "midi": IteratedFGSM(epsilon=EPSILON, steps=6, momentum=1.0, diversity=0.5),
    "fia": FIA(LAYER, epsilon=EPSILON, samples=8, steps=6),
    "naa": NAA(LAYER, epsilon=EPSILON, samples=8, steps=6),
}
DRAWS = ("midi", "fia", "naa")


@pytest.mark.parametrize("name", ATTACKS)
def test_sign_attacks_stay_in_the_ball_and_raise_the_loss(name, network, batch):
    x, y = batch
    path = ATTACKS[name].path(network, x, y)
    assert path.shape == (ATTACKS[name].steps, *x.shape) and not path.requires_grad
    assert all(in_ball(z, x) for z in path)
    assert torch.equal(ATTACKS[name](network, x, y), path[-1])
    noise = sign_noise(x, EPSILON)
    clean, noisy, found = (functional.cross_entropy(network(z), y, reduction="none") for z in (x, noise, path[-1]))
    assert (found > clean).float().mean() >= 0.9
    assert found.mean() > 2 * noisy.mean()


@pytest.mark.parametrize("name", ATTACKS)
def test_sign_attacks_repeat_and_leave_no_trace(name, network, batch):
    x, y = batch
    first = ATTACKS[name](network, x, y)
    numpy_before = np.random.get_state()[1].tolist()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(77)
        before = torch.get_rng_state()
        second = ATTACKS[name](network, x, y)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert np.random.get_state()[1].tolist() == numpy_before
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_seed_moves_only_what_draws(network, batch):
    def attacks(seed: int) -> dict[str, Tensor]:
        settings = {"epsilon": EPSILON, "seed": seed, "steps": 4}
        return {
            "ifgsm": IteratedFGSM(**settings)(network, *batch),
            "midi": IteratedFGSM(**settings, diversity=0.5)(network, *batch),
            "fia": FIA(LAYER, **settings, samples=4)(network, *batch),
            "naa": NAA(LAYER, **settings, samples=4)(network, *batch),
            "noise": sign_noise(batch[0], EPSILON, seed=seed),
        }

    first, second = attacks(0), attacks(1)
    assert {name for name in first if torch.equal(first[name], second[name])} == {"ifgsm"}


def test_batches_do_not_change_what_does_not_draw(network, batch, guide):
    x, y = batch
    for momentum in (0.0, 1.0):
        whole, parts = (IteratedFGSM(epsilon=EPSILON, momentum=momentum, batch_size=n)(network, x, y) for n in (30, 7))
        torch.testing.assert_close(whole, parts, atol=1e-6, rtol=0)
    for attack in (ILAP, ILAF):
        whole, parts = (attack(LAYER, epsilon=EPSILON, batch_size=n)(network, x, guide=guide) for n in (30, 7))
        torch.testing.assert_close(whole.x, parts.x, atol=1e-6, rtol=0)
        torch.testing.assert_close(whole.projection, parts.projection, atol=1e-5, rtol=1e-5)


def test_fgsm_and_ifgsm_follow_the_sign_of_the_gradient(network, batch):
    x, y = batch

    def loss(z: Tensor) -> Tensor:
        return functional.cross_entropy(network(z), y)

    torch.testing.assert_close(ATTACKS["fgsm"](network, x, y), sign_step(loss, x, EPSILON).clamp(0, 1))
    z = x
    for _ in range(6):
        z = ball(sign_step(loss, z, 0.03), x)
    torch.testing.assert_close(ATTACKS["ifgsm"](network, x, y), z)


def test_fgsm_of_a_linear_network_is_its_weights():
    """Of two classes the loss of class 0 rises along w_1 - w_0, whatever the image."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    weight = torch.tensor([[1.0, 2.0, -1.0, 0.0], [0.0, 3.0, 1.0, 0.0]])
    with torch.no_grad():
        linear[1].weight[:] = weight
        linear[1].bias.zero_()
    x = torch.tensor([0.5, 0.95, 0.5, 0.5]).view(1, 1, 2, 2)
    found = IteratedFGSM(epsilon=0.1, steps=1)(linear, x, torch.tensor([0]))
    torch.testing.assert_close(found.flatten(), torch.tensor([0.4, 1.0, 0.6, 0.5]))


def test_momentum_is_the_hand_written_loop(network, batch):
    x, y = batch
    expected = []
    for image, label in zip(x, y, strict=True):  # one image at a time: the norm is that of an image
        z, direction = image[None], torch.zeros_like(image[None])
        for _ in range(6):
            z = z.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(functional.cross_entropy(network(z), label[None]), z)
            direction = 0.7 * direction + gradient / gradient.abs().sum()
            z = ball(z.detach() + 0.04 * direction.sign(), image[None])
        expected.append(z)
    settings = {"epsilon": EPSILON, "steps": 6, "step_size": 0.04}
    found = IteratedFGSM(**settings, momentum=0.7)(network, x, y)
    torch.testing.assert_close(found, torch.cat(expected))
    assert not torch.equal(found, IteratedFGSM(**settings)(network, x, y))


def test_an_image_without_slope_stays_where_it_is():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        flat[1].weight.zero_()
    x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1])
    for momentum in (0.0, 1.0):
        assert torch.equal(IteratedFGSM(epsilon=0.1, momentum=momentum)(flat, x, y), x)


def test_input_diversity_shrinks_and_shifts_a_white_image():
    x = torch.ones(1, 1, 28, 28)
    shares, centres = [], []
    rows = torch.arange(28.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        z = diverse(x, 4, generator)
        assert z.shape == x.shape and z.min() >= 0 and z.max() <= 1 + 1e-6
        profile = z[0, 0].sum(1)
        shares.append(float(z.mean()))
        centres.append(float((profile * rows).sum() / profile.sum()))
    # The content covers between 28 and 31 of 32 pixels each way, and its centre moves by at most 2 of 32 from the middle.
    assert {round(32 * share**0.5) for share in shares} == {28, 29, 30, 31}
    assert max(abs(share - (round(32 * share**0.5) / 32) ** 2) for share in shares) < 0.01
    assert min(centres) < 12.5 and max(centres) > 14.5 and max(abs(c - 13.5) for c in centres) <= 2 * 28 / 32 + 0.1


def test_certain_diversity_is_a_loop_over_transformed_images(network, batch):
    """With probability 1 every step draws one number for the decision, then transforms."""
    x, y = batch
    generator, z = torch.Generator().manual_seed(3), x
    for _ in range(4):
        torch.rand((), generator=generator)
        z = ball(sign_step(lambda v: functional.cross_entropy(network(diverse(v, 3, generator)), y), z, 0.02), x)
    found = IteratedFGSM(epsilon=EPSILON, steps=4, step_size=0.02, diversity=1.0, growth=3, seed=3)(network, x, y)
    torch.testing.assert_close(found, z)


def test_sign_noise_has_equal_signs_and_full_size():
    x = torch.full((20, 1, 28, 28), 0.5)
    delta = sign_noise(x, 0.2) - x
    torch.testing.assert_close(delta.abs(), torch.full_like(x, 0.2))
    assert abs(float((delta > 0).float().mean()) - 0.5) < 4 * 0.5 / x.numel() ** 0.5
    assert in_ball(sign_noise(images(5, 0)[0], 0.3), images(5, 0)[0], 0.3)


@pytest.mark.parametrize("probability", [True, False])
def test_layer_gradient_is_that_of_the_rest_of_the_network(probability, network, batch):
    x, y = batch
    inner = relu1(network, x).detach().view(-1, 6, SIDE, SIDE).requires_grad_(True)
    outputs = network.fc(network.conv2(inner).relu().flatten(1))
    outputs = outputs.softmax(1) if probability else outputs
    (expected,) = torch.autograd.grad(outputs[torch.arange(len(y)), y].sum(), inner)
    found = layer_gradient(network, x, y, LAYER, probability=probability)
    torch.testing.assert_close(found, expected.flatten(1))
    before_in_place = layer_gradient(network, x, y, "conv2", probability=probability)  # the next module overwrites it
    assert before_in_place.shape == (len(x), 54) and before_in_place.abs().sum() > 0


def gradient_of_probability(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    inner = relu1(network, x).detach().view(-1, 6, SIDE, SIDE).requires_grad_(True)
    probabilities = network.fc(network.conv2(inner).relu().flatten(1)).softmax(1)
    return torch.autograd.grad(probabilities.gather(1, y[:, None]).sum(), inner)[0].flatten(1)


@pytest.mark.parametrize("negative", [1.0, 0.3])
def test_naa_is_its_definition(negative, network, batch):
    x, y = batch
    generator = torch.Generator().manual_seed(4)
    weights = torch.zeros(len(x), 6 * SIDE * SIDE)
    for step in range(5):
        noisy = x + 0.2 * torch.randn(x.shape, generator=generator)
        weights += gradient_of_probability(network, noisy * (1 - step / 5), y) / 5
    black = relu1(network, torch.zeros_like(x)).detach()
    attack = NAA(LAYER, epsilon=EPSILON, samples=5, steps=3, negative=negative, momentum=0.0, seed=4)
    attribution = attack.attribution(network, x, y, torch.Generator().manual_seed(4))
    torch.testing.assert_close(attribution(x), (relu1(network, x) - black) * weights, atol=1e-7, rtol=1e-4)

    def importance(z: Tensor) -> Tensor:
        parts = (relu1(network, z) - black) * weights
        return torch.where(parts > 0, parts, negative * parts).sum()

    z = x
    for _ in range(3):
        z = ball(sign_step(lambda v: -importance(v), z, EPSILON / 3), x)
    agree = (attack(network, x, y) - z).abs() < 1e-6  # a slope of rounding size may have either sign
    assert agree.float().mean() > 0.999


def test_attribution_adds_up_to_the_change_of_a_probability(batch):
    """Integrated gradients are complete where features are linear in the pixels and the noise is left out."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        linear = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 7), nn.Linear(7, CLASSES)).eval()
    x, y = batch
    attack = NAA("1", epsilon=EPSILON, samples=2000, noise=0.0)
    total = attack.attribution(linear, x, y, torch.Generator())(x).sum(1)
    change = (linear(x).softmax(1) - linear(torch.zeros_like(x)).softmax(1)).gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(total, change, atol=1e-3, rtol=0)


def test_fia_is_its_definition(network, batch):
    x, y = batch
    generator, weights = torch.Generator().manual_seed(4), torch.zeros(len(x), 6 * SIDE * SIDE)
    for _ in range(5):
        masked = x * (torch.rand(x.shape, generator=generator) < 0.8)
        inner = relu1(network, masked).detach().view(-1, 6, SIDE, SIDE).requires_grad_(True)
        logits = network.fc(network.conv2(inner).relu().flatten(1))
        weights += torch.autograd.grad(logits.gather(1, y[:, None]).sum(), inner)[0].flatten(1)
    step = sign_step(lambda z: -(weights * relu1(network, z)).sum(), x, EPSILON)
    found = FIA(LAYER, epsilon=EPSILON, keep=0.8, samples=5, steps=1, seed=4)(network, x, y)
    assert ((found - step.clamp(0, 1)).abs() < 1e-6).float().mean() > 0.999


def test_one_ilap_step_is_a_sign_step_up_the_projection(network, batch, guide):
    x, _ = batch
    aim = (relu1(network, guide) - relu1(network, x)).detach()
    step = sign_step(lambda z: ((relu1(network, z) - relu1(network, x).detach()) * aim).sum(), x, EPSILON).clamp(0, 1)
    found = ILAP(LAYER, epsilon=EPSILON, steps=1)(network, x, guide=guide)
    torch.testing.assert_close(found.x, step)
    projected = ((relu1(network, step) - relu1(network, x)) * aim).sum(1) / aim.norm(dim=1)
    torch.testing.assert_close(found.projection, projected[:, None].detach())
    torch.testing.assert_close(found.guide_norm, aim.norm(dim=1))


def test_ilaf_is_the_loop_over_single_images(network, batch, guide):
    expected = []
    for image, target in zip(batch[0], guide, strict=True):
        x = image[None]
        clean = relu1(network, x).detach()
        aim = (relu1(network, target[None]) - clean).detach()

        def flexible(z: Tensor, clean: Tensor = clean, aim: Tensor = aim) -> Tensor:
            change = relu1(network, z) - clean
            return 2.0 * change.norm() / aim.norm() + functional.cosine_similarity(change, aim).sum()

        z = ball(target[None], x)
        for _ in range(4):
            z = ball(sign_step(flexible, z, 0.03), x)
        expected.append(z)
    attack = ILAF(LAYER, epsilon=EPSILON, weight=2.0, steps=4, step_size=0.03, start="guide")
    found = attack(network, batch[0], guide=guide)
    agree = (found.x - torch.cat(expected)).abs() < 1e-6  # a slope of rounding size may have either sign
    assert agree.float().mean() > 0.999
    along = ILAP(LAYER, epsilon=EPSILON, steps=4, step_size=0.03, start="guide")(network, batch[0], guide=guide)
    assert not torch.equal(found.x, along.x)


def test_the_first_ilaf_step_from_the_clean_image_is_that_of_ilap(network, batch, guide):
    first, second = (attack(LAYER, epsilon=EPSILON, steps=1)(network, batch[0], guide=guide) for attack in (ILAP, ILAF))
    assert not torch.equal(first.x, batch[0])
    torch.testing.assert_close(first.x, second.x)


@pytest.mark.parametrize("start", ["clean", "guide"])
@pytest.mark.parametrize("layer", ["norm1", "relu1", "conv2", "relu2", "fc"])
@pytest.mark.parametrize("attack", [ILAP, ILAF])
def test_ila_stays_in_the_ball_and_moves_along_the_guide(attack, layer, start, network, batch, guide):
    x, _ = batch
    found = attack(layer, epsilon=EPSILON, start=start)(network, x, guide=guide)
    assert found.x.shape == x.shape and in_ball(found.x, x) and not found.x.requires_grad
    assert found.projection.shape == (len(x), 10) and found.guide_norm.shape == (len(x),)
    if attack is ILAP:
        begins = found.projection[:, 0] if start == "clean" else found.guide_norm
        grown = found.projection[:, -1] > begins
        assert grown.float().mean() >= 0.9 and found.projection[:, -1].mean() > begins.mean()
        assert (found.projection.diff(dim=1).mean(0)[:5] > 0).all()
    else:
        assert (found.projection[:, -1] > 0).all()


def test_a_layer_is_not_what_a_later_module_makes_of_it(network, batch, guide):
    found = ILAP("conv2", epsilon=EPSILON)(network, batch[0], guide=guide)
    aim, moved = (network.conv2(relu1(network, z).view(-1, 6, SIDE, SIDE)).flatten(1) for z in (guide, found.x))
    clean = network.conv2(relu1(network, batch[0]).view(-1, 6, SIDE, SIDE)).flatten(1)
    expected = functional.cosine_similarity(moved - clean, aim - clean) * (moved - clean).norm(dim=1)
    torch.testing.assert_close(found.projection[:, -1], expected.detach())


def test_guides_of_three_kinds_agree(network, batch, guide):
    x, _ = batch
    attack = ILAP(LAYER, epsilon=EPSILON)
    first = attack(network, x, guide=guide)
    second = attack(network, x, delta=guide - x)
    third = attack(network, x, direction=3 * (relu1(network, guide) - relu1(network, x)))
    for other in (second, third):
        assert ((first.x - other.x).abs() < 1e-6).float().mean() > 0.999
        torch.testing.assert_close(first.projection, other.projection, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(3 * first.guide_norm, third.guide_norm)


def test_a_guide_outside_the_ball_starts_inside(network, batch):
    x, y = batch
    far = IteratedFGSM(epsilon=3 * EPSILON)(network, x, y)
    found = ILAP(LAYER, epsilon=EPSILON, start="guide")(network, x, guide=far)
    assert (far - x).abs().max() > 2 * EPSILON and in_ball(found.x, x)
    outside = ILAP(LAYER, epsilon=EPSILON, start="guide")(network, x, delta=5 * (far - x))
    assert in_ball(outside.x, x)


@pytest.mark.parametrize("attack", [ILAP, ILAF])
def test_a_guide_that_changes_nothing_moves_nothing(attack, network, batch, guide):
    x, some = batch[0], guide.clone()
    some[4:9] = x[4:9]
    found = attack(LAYER, epsilon=EPSILON)(network, x, guide=some)
    same = (found.x == x).flatten(1).all(1)
    assert same.nonzero().flatten().tolist() == [4, 5, 6, 7, 8]
    assert torch.equal(found.guide_norm == 0, same) and found.projection.isfinite().all()


def test_a_random_guide_moves_elsewhere(network, batch, guide):
    x, y = batch
    attack = ILAP(LAYER, epsilon=EPSILON)
    random = attack(network, x, guide=sign_noise(x, EPSILON, seed=1))
    directed = attack(network, x, guide=guide)
    assert random.projection[:, -1].mean() > random.projection[:, 0].mean()
    losses = [functional.cross_entropy(network(found.x), y) for found in (random, directed)]
    assert losses[1] > 2 * losses[0]


@pytest.mark.parametrize("ridge", [None, 0.5, 1e6])
def test_regression_guide_is_the_hand_written_regression(ridge, network, batch):
    x, y = batch
    path = ATTACKS["ifgsm"].path(network, x, y)
    rows = []
    for i in range(len(x)):
        moves = relu1(network, path[:, i]) - relu1(network, x[i : i + 1])
        h = (moves / moves.norm(dim=1, keepdim=True)).detach().double()
        r = functional.cross_entropy(network(path[:, i]), y[i].repeat(6), reduction="none").detach().double()
        if ridge is None:
            rows.append(h.T @ r / 6)
        else:
            rows.append(torch.linalg.solve(h.T @ h + ridge * torch.eye(h.shape[1], dtype=h.dtype), h.T @ r))
    found = regression_guide(network, LAYER, x, y, path, ridge=ridge, batch_size=7)
    expected = torch.stack(rows).float()
    torch.testing.assert_close(found / found.norm(), expected / expected.norm(), atol=1e-5, rtol=1e-3)
    if ridge == 1e6:  # the limit is the mean
        mean = regression_guide(network, LAYER, x, y, path)
        torch.testing.assert_close(found * ridge / 6, mean, atol=1e-6, rtol=1e-3)
    assert (ILAP(LAYER, epsilon=EPSILON)(network, x, direction=found).projection[:, -1] > 0).all()


X, Y = images(3, 0)
BAD_SIGN = {
    "epsilon 0": (dict(epsilon=0.0), "epsilon is 0.0"),
    "epsilon below 0": (dict(epsilon=-0.1), "epsilon is -0.1"),
    "steps": (dict(steps=0), "steps is 0"),
    "step size": (dict(step_size=-1.0), "step_size is -1.0"),
    "momentum": (dict(momentum=-0.1), "momentum is -0.1"),
    "diversity": (dict(diversity=1.5), "diversity is 1.5"),
    "growth": (dict(growth=0), "growth is 0"),
    "seed": (dict(seed=-1), "seed is -1"),
    "batch": (dict(batch_size=0), "batch_size is 0"),
    "pixels": (dict(x=X + 1), "pixels from 1"),
    "label": (dict(y=torch.tensor([0, 1, 3])), "y has labels from 0 to 3"),
    "count": (dict(y=Y[:2]), "2 labels for 3"),
    "training": (dict(network=Small()), "training mode"),
    "no module": (dict(network=torch.sum), "must be a torch module"),
    "flat images": (dict(network=nn.Linear(64, 3).eval(), x=X.flatten(1), diversity=0.5), r"x has shape \(3, 64\)"),
}


@pytest.mark.parametrize("case", BAD_SIGN)
def test_bad_input_of_the_sign_attacks(case):
    change, message = BAD_SIGN[case]
    given = {"network": Small().eval(), "x": X, "y": Y, "epsilon": EPSILON, **change}
    data = [given.pop(name) for name in ("network", "x", "y")]
    with pytest.raises(InputError, match=message):
        IteratedFGSM(**given)(*data)


@pytest.mark.parametrize(
    ("attack", "change", "message"),
    [
        (FIA, dict(keep=1.1), "keep is 1.1"),
        (FIA, dict(layer="relu9"), "layer is 'relu9'; allowed are conv1"),
        (NAA, dict(layer="unused"), "layer 'unused' is never called"),
        (NAA, dict(samples=0), "samples is 0"),
        (NAA, dict(negative=-1.0), "negative is -1.0"),
        (NAA, dict(noise=-1.0), "noise is -1.0"),
    ],
)
def test_bad_input_of_the_feature_attacks(attack, change, message):
    with pytest.raises(InputError, match=message):
        attack(**{"layer": LAYER, "epsilon": EPSILON, **change})(Small().eval(), X, Y)


BAD_ILA = {
    "epsilon 0": (dict(epsilon=0.0), "epsilon is 0.0"),
    "steps": (dict(steps=0), "steps is 0"),
    "step size": (dict(step_size=0.0), "step_size is 0.0"),
    "start": (dict(start="random"), "start is 'random'"),
    "batch": (dict(batch_size=0), "batch_size is 0"),
    "weight": (dict(weight=0.0), "weight is 0.0"),
    "unknown layer": (dict(layer="relu9"), "layer is 'relu9'; allowed are conv1"),
    "uncalled layer": (dict(layer="unused"), "layer 'unused' is never called"),
    "no guide": (dict(guide=None), "no guide given"),
    "two guides": (dict(delta=X), "guide and delta given"),
    "guide of another shape": (dict(guide=X[:2]), r"guide has shape \(2, 1, 8, 8\); it must be \(3, 1, 8, 8\)"),
    "guide outside the box": (dict(guide=X + 1), "guide has pixels"),
    "delta not finite": (dict(guide=None, delta=X / 0), "delta has values"),
    "direction of another width": (dict(guide=None, direction=torch.ones(3, 5)), r"must be \(3, 384\)"),
    "direction as start": (dict(guide=None, direction=torch.ones(3, 384), start="guide"), "start is 'guide'"),
    "pixels": (dict(x=X - 1), "x has pixels"),
    "training": (dict(network=Small()), "training mode"),
}


@pytest.mark.parametrize("case", BAD_ILA)
def test_bad_input_of_ila(case):
    change, message = BAD_ILA[case]
    given = {"network": Small().eval(), "x": X, "guide": X, "delta": None, "direction": None}
    given |= {name: value for name, value in change.items() if name in given}
    settings = {"layer": LAYER, "epsilon": EPSILON, **{n: v for n, v in change.items() if n not in given}}
    with pytest.raises(InputError, match=message):
        ILAF(**settings)(given.pop("network"), given.pop("x"), **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(path=X), r"path has shape \(3, 1, 8, 8\)"),
        (dict(path=X[None, :2]), "path has shape"),
        (dict(ridge=0.0), "ridge is 0.0"),
        (dict(layer="relu9"), "layer is 'relu9'"),
        (dict(y=Y[:2]), "2 labels for 3"),
        (dict(batch_size=0), "batch_size is 0"),
    ],
)
def test_bad_input_of_the_regression_guide(change, message):
    given = {"layer": LAYER, "x": X, "y": Y, "path": X[None], **change}
    with pytest.raises(InputError, match=message):
        regression_guide(Small().eval(), **given)


@pytest.mark.parametrize(("change", "message"), [(dict(epsilon=0.0), "epsilon is 0.0"), (dict(seed=-1), "seed is -1")])
def test_bad_input_of_sign_noise(change, message):
    with pytest.raises(InputError, match=message):
        sign_noise(**{"x": X, "epsilon": 0.1, **change})
