"""Attacks on a plain classifier: JSMA against a search over all pairs, the others against closed forms and invariants."""

import numpy as np
import pytest
import torch
from conftest import fitted
from scipy.stats import chisquare
from torch import Tensor, nn
from torch.nn import functional

from deepneighbors.attacks.classifier import SETTINGS, draw_targets, perturbation_norms, run_attack
from deepneighbors.attacks.jsma import JSMA, best_pair
from deepneighbors.errors import InputError

CLASSES, SIDE = 4, 6
SHORT = {
    "fgsm": {"epsilon": 0.3},
    "jsma": {"gamma": 0.3},
    "deepfool": {},
    "cw": {"steps": 60, "stepsize": 0.05},
    "pgd": {"epsilon": 0.3, "stepsize": 0.06},
    "ead": {"steps": 40, "binary_search_steps": 4, "stepsize": 0.05},
}
# The share of the small problem that each must fool at least.
LEAST = {"fgsm": 0.7, "jsma": 0.9, "deepfool": 1.0, "cw": 1.0, "pgd": 0.9, "ead": 1.0}


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Blobs ``(count, 1, 6, 6)`` around one random image a class."""
    centres = torch.rand(CLASSES, SIDE * SIDE, generator=torch.Generator().manual_seed(5))
    y = torch.arange(count) % CLASSES
    noise = torch.randn(count, SIDE * SIDE, generator=torch.Generator().manual_seed(seed))
    return (centres[y] + 0.15 * noise).clamp(0, 1).view(-1, 1, SIDE, SIDE), y


def small_network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 16), nn.Tanh(), nn.Linear(16, CLASSES)).eval()


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return fitted(small_network(0), *images(200, 1), steps=150, least=0.95)


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    return images(20, 2)


@pytest.fixture(scope="module", params=list(SETTINGS))
def attacked(request, trained, batch):
    return request.param, run_attack(request.param, trained, *batch, seed=3, **SHORT[request.param])


def all_pairs(alpha: list[float], beta: list[float], domain: list[bool]) -> list[tuple[float, int, int]]:
    """Score and indices of every admissible pair, by the rule as Papernot et al. write it."""
    found = []
    for p in range(len(alpha)):
        for q in range(p + 1, len(alpha)):
            a, b = alpha[p] + alpha[q], beta[p] + beta[q]
            if domain[p] and domain[q] and a > 0 and b < 0:
                found.append((-a * b, p, q))
    return found


def slow_jsma(network: nn.Module, x: Tensor, target: int, *, theta: float, gamma: float) -> tuple[Tensor, int, float]:
    """One image by the pair matrix and the whole Jacobian; also the steps taken, and the closest call between two pairs."""
    image, domain, closest = x.flatten().clone(), (x.flatten() < 1).tolist(), float("inf")
    limit = int(np.floor(image.numel() * gamma / 2))
    for step in range(limit):
        if int(network(image.view(1, *x.shape)).argmax()) == target or sum(domain) < 2:
            return image.view_as(x), step, closest
        jacobian = torch.autograd.functional.jacobian(lambda v: network(v.view(1, *x.shape)).softmax(1)[0], image)
        others = [c for c in range(CLASSES) if c != target]
        ranked = sorted(all_pairs(jacobian[target].tolist(), jacobian[others].sum(0).tolist(), domain), reverse=True)
        if not ranked:
            return image.view_as(x), step, closest
        if len(ranked) > 1:
            closest = min(closest, 1 - ranked[1][0] / ranked[0][0])
        for feature in ranked[0][1:]:
            image[feature] = min(1.0, float(image[feature]) + theta)
            domain[feature] = False
    return image.view_as(x), limit, closest


@pytest.mark.parametrize("theta", [1.0, 0.4])
@pytest.mark.parametrize("seed", range(4))
def test_jsma_is_the_search_over_all_pairs(seed, theta):
    network, (x, _) = small_network(seed), images(6, 20 + seed)
    x[0, 0, :2] = 1.0  # outside the search from the start
    targets = torch.randint(0, CLASSES, (len(x),), generator=torch.Generator().manual_seed(seed))
    found = JSMA(theta=theta, gamma=0.6)(network, x, targets)
    slow = [slow_jsma(network, image, int(t), theta=theta, gamma=0.6) for image, t in zip(x, targets, strict=True)]
    assert min(closest for _, _, closest in slow) > 1e-5  # no two pairs so close that rounding decides
    assert len({steps for _, steps, _ in slow}) > 2  # images leave the batch at different times
    torch.testing.assert_close(found, torch.stack([image for image, _, _ in slow]), atol=1e-6, rtol=0)


def test_best_pair_takes_the_lowest_of_tied_pairs():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randint(-3, 3, (800, 7), generator=generator).float()  # small integers: sums are exact, ties many
    domain = torch.rand(800, 7, generator=generator) < 0.5
    pairs, admissible = best_pair(gradient, domain)
    tied = 0
    for row in range(len(gradient)):
        found = all_pairs(gradient[row].tolist(), (-gradient[row]).tolist(), domain[row].tolist())
        assert bool(admissible[row]) == bool(found)
        if found:
            best = max(score for score, _, _ in found)
            equal = [(p, q) for score, p, q in found if score == best]
            assert tuple(pairs[row].tolist()) == min(equal)
            tied += len(equal) > 1
    assert tied > 50
    assert int((domain.sum(1) < 2).sum()) > 10 and not admissible[domain.sum(1) < 2].any()


def test_jsma_only_saturates_and_keeps_its_budget(trained, batch):
    x, y = batch
    targets = draw_targets(y, CLASSES, 0)
    attack = JSMA(gamma=0.3)
    assert attack.steps(SIDE * SIDE) == 5 and JSMA().steps(3072) == 153
    found = attack(trained, x, targets)
    changed = found != x
    assert (found[changed] == 1.0).all() and (x[changed] < 1).all()
    count = changed.flatten(1).sum(1)
    assert (count % 2 == 0).all() and count.max() == 10 and count.min() < 10
    reached = trained(found).argmax(1) == targets
    assert (reached | (count == 10)).all()


def test_jsma_leaves_alone_what_it_cannot_help():
    """Two logits, of which the second falls with every feature, or rises but stays behind."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    attack, first, second = JSMA(gamma=1.0), torch.tensor([0]), torch.tensor([1])
    with torch.no_grad():
        network[1].bias[:] = torch.tensor([9.0, 0.0])
        network[1].weight[:] = torch.tensor([[0.0] * 4, [-1.0] * 4])
    x = torch.full((1, 1, 2, 2), 0.5)
    assert torch.equal(attack(network, x, second), x)  # no pair is admissible
    with torch.no_grad():
        network[1].weight[1] = 1.0
    assert torch.equal(attack(network, x, first), x)  # the target is reached
    assert torch.equal(attack(network, x, second), torch.ones_like(x))
    single = torch.ones_like(x)
    single[0, 0, 0, 0] = 0.5
    assert torch.equal(attack(network, single, second), single)  # one feature is no pair


def test_invariants(attacked, trained, batch):
    name, found = attacked
    x, y = batch
    assert found.x.shape == x.shape and found.x.dtype == x.dtype
    assert found.x.min() >= 0 and found.x.max() <= 1
    again, clean = trained(found.x).argmax(1), trained(x).argmax(1)
    assert torch.equal(found.predictions, again)
    if SETTINGS[name].targets == "drawn":
        assert torch.equal(found.targets, draw_targets(y, CLASSES, 3))
        assert torch.equal(found.success, again == found.targets)
    else:
        assert found.targets is None
        assert torch.equal(found.success, again != clean)
    assert found.success.float().mean() >= LEAST[name]
    if "epsilon" in SETTINGS[name].values:
        epsilon = {**SETTINGS[name].values, **SHORT[name]}["epsilon"]
        assert (perturbation_norms(x, found.x)["linf"] <= epsilon * (1 + 1e-5)).all()


def test_attacks_repeat_and_leave_no_trace(attacked, trained, batch):
    name, first = attacked
    numpy_before = np.random.get_state()[1].tolist()
    with torch.random.fork_rng():
        torch.manual_seed(77)  # a state that no attack would leave by seeding
        before = torch.get_rng_state()
        second = run_attack(name, trained, *batch, seed=3, **SHORT[name])
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.x, second.x)
    assert np.random.get_state()[1].tolist() == numpy_before
    assert all(p.requires_grad and p.grad is None for p in trained.parameters())


def test_seed_moves_targets_and_random_start(trained, batch):
    x, y = batch
    targets = draw_targets(y, CLASSES, 0)
    same = [run_attack("pgd", trained, x, y, targets=targets, seed=seed).x for seed in (0, 1)]
    assert not torch.equal(*same)
    assert not torch.equal(draw_targets(y, CLASSES, 0), draw_targets(y, CLASSES, 1))
    fixed = [run_attack("pgd", trained, x, y, targets=targets, seed=seed, random_start=False).x for seed in (0, 1)]
    assert torch.equal(*fixed)


def test_batches_do_not_change_a_deterministic_attack(trained, batch):
    for name in ("fgsm", "jsma", "deepfool"):
        whole, parts = (run_attack(name, trained, *batch, batch_size=size).x for size in (125, 3))
        torch.testing.assert_close(whole, parts, atol=1e-5, rtol=0)


def test_fgsm_and_pgd_follow_the_sign_of_the_gradient(trained, batch):
    x, y = batch
    targets = draw_targets(y, CLASSES, 0)

    def step(image: Tensor, size: float) -> Tensor:
        image = image.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(functional.cross_entropy(trained(image), targets), image)
        return (image - size * gradient.sign()).detach()

    torch.testing.assert_close(run_attack("fgsm", trained, x, y, targets=targets).x, step(x, 0.1).clamp(0, 1))
    image = x
    for _ in range(10):
        image = torch.minimum(torch.maximum(step(image, 0.004), x - 0.02), x + 0.02).clamp(0, 1)
    found = run_attack("pgd", trained, x, y, targets=targets, random_start=False, stepsize=0.004)
    torch.testing.assert_close(found.x, image)


def plane() -> tuple[nn.Module, Tensor, float]:
    """A linear classifier of two classes, one image of class 0 inside the box, and its L2 distance to the border."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        network[1].weight[:] = torch.randn(2, SIDE * SIDE, generator=generator)
        network[1].bias[:] = 0
        x = torch.full((1, 1, SIDE, SIDE), 0.5)
        network[1].bias[0] += float(network(x) @ torch.tensor([-1.0, 1.0])) + 3.0
        slope = float((network[1].weight[0] - network[1].weight[1]).norm())
    return network, x, slope


def test_minimum_norm_attacks_reach_the_plane():
    network, x, slope = plane()
    y = torch.tensor([0])
    found = run_attack("deepfool", network, x, y)
    assert found.success.all()
    size = float(perturbation_norms(x, found.x)["l2"])
    assert size == pytest.approx(1.02 * (3.0 / slope + 1e-4), rel=1e-4)
    found = run_attack("cw", network, x, y, steps=300)  # the target can only be 1, and its logit must lead by 0.8
    size = float(perturbation_norms(x, found.x)["l2"])
    assert 3.8 / slope * (1 - 1e-5) <= size <= 3.8 / slope * 1.05


@pytest.mark.parametrize(("name", "steps", "constant"), [("cw", 60, 0.5), ("ead", 30, 2.0)])
def test_failed_searches_return_the_clean_image(name, steps, constant, trained, batch):
    x, y = batch
    targets = draw_targets(y, CLASSES, 0)
    once = {"targets": targets, "binary_search_steps": 1}
    found = run_attack(name, trained, x, y, steps=1, initial_const=1e-6, **once)
    assert torch.equal(found.x, x) and not found.success.any()
    some = run_attack(name, trained, x, y, steps=steps, initial_const=constant, **once)  # enough for some images only
    kept = (some.x == x).flatten(1).all(1)
    assert 0 < int(kept.sum()) < len(x)
    logits = trained(some.x)
    lead = logits.gather(1, targets[:, None]) - logits.scatter(1, targets[:, None], -float("inf")).amax(1, keepdim=True)
    assert (lead.flatten()[~kept] >= 0.8 - 1e-4).all()


def test_untargeted_attacks_leave_the_label_that_the_network_gives(trained, batch):
    x, y = batch
    wrong = (trained(x).argmax(1) + 1) % CLASSES
    right, other = (run_attack("deepfool", trained, x, labels) for labels in (y, wrong))
    assert torch.equal(right.x, other.x)
    assert right.success.all() and other.success.all()
    assert (other.predictions == wrong).any()  # which would not count if success went by the labels given


def test_targets_are_uniform_over_the_other_classes():
    y = torch.arange(9000) % 10
    targets = draw_targets(y, 10, 0)
    assert not (targets == y).any()
    offsets = torch.bincount((targets - y) % 10, minlength=10)[1:]
    assert chisquare(offsets.numpy()).pvalue > 0.001
    assert chisquare(torch.bincount(targets, minlength=10).numpy()).pvalue > 0.001
    assert torch.equal(targets, draw_targets(y, 10, 0))
    assert torch.equal(draw_targets(torch.tensor([0, 1]), 2, 5), torch.tensor([1, 0]))


def test_perturbation_norms():
    x = torch.zeros(2, 1, 2, 2)
    moved = x.clone()
    moved[0, 0, 0] = torch.tensor([0.3, 0.4])
    sizes = perturbation_norms(x, moved)
    for norm, expected in {"l0": 2, "l1": 0.7, "l2": 0.5, "linf": 0.4}.items():
        assert sizes[norm].tolist() == pytest.approx([expected, 0])


BAD = {
    "unknown attack": (dict(name="bim"), "name is 'bim'"),
    "unknown setting": (dict(steps=3), "a setting of fgsm is 'steps'"),
    "epsilon 0": (dict(epsilon=0.0), "epsilon is 0.0"),
    "steps 0": (dict(name="pgd", steps=0), "steps is 0"),
    "negative confidence": (dict(name="cw", confidence=-1.0), "confidence is -1.0"),
    "random start": (dict(name="pgd", random_start="yes"), "random_start is 'yes'"),
    "decision rule": (dict(name="ead", decision_rule="L2"), "decision_rule is 'L2'"),
    "one candidate": (dict(name="deepfool", candidates=1), "candidates is 1"),
    "gamma above 1": (dict(name="jsma", gamma=1.5), "gamma is 1.5"),
    "theta below 0": (dict(name="jsma", theta=-1.0), "theta is -1.0"),
    "pixels": (dict(x=torch.full((3, 1, SIDE, SIDE), 1.5)), "pixels from 1.5"),
    "count": (dict(y=torch.tensor([0, 1])), "2 labels for 3"),
    "label": (dict(y=torch.tensor([0, 1, 4])), "y has labels from 0 to 4"),
    "target is the label": (dict(targets=torch.tensor([1, 1, 0])), "targets has 1 true labels"),
    "no such target": (dict(targets=torch.tensor([1, 2, 4])), "targets has labels from 1 to 4"),
    "deepfool with targets": (dict(name="deepfool", targets=torch.tensor([1, 2, 3])), "deepfool takes none"),
    "batch": (dict(batch_size=0), "batch_size is 0"),
    "seed": (dict(seed=-1), "seed is -1"),
    "device": (dict(device="gpu"), "device is 'gpu'"),
    "training": (dict(network=small_network(0).train()), "training mode"),
    "no module": (dict(network=torch.sum), "must be a torch module"),
    "no logits": (dict(network=nn.Sequential(nn.Identity()).eval()), "network gives outputs of shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    change, message = BAD[case]
    x, y = images(3, 0)
    given = {"name": "fgsm", "network": small_network(0), "x": x, "y": y, **change}
    with pytest.raises(InputError, match=message):
        run_attack(given.pop("name"), given.pop("network"), given.pop("x"), given.pop("y"), **given)


def test_bad_input_of_the_parts(batch):
    x, y = batch
    with pytest.raises(InputError, match="classes is 1"):
        draw_targets(y, 1, 0)
    with pytest.raises(InputError, match="y has labels from 0 to 3"):
        draw_targets(y, 3, 0)
    with pytest.raises(InputError, match="x_adv has shape"):
        perturbation_norms(x, x[:2])
    with pytest.raises(InputError, match="targets has labels from 0 to 9"):
        JSMA()(small_network(0), x[:2], torch.tensor([0, 9]))
    with pytest.raises(InputError, match="gamma is 2"):
        JSMA(gamma=2)
