"""Backdoors: what triggers change, which images are poisoned, and the score of networks whose answers are known."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepneighbors.attacks.backdoor import PATTERN, PIXEL, BlendedTrigger, PatchTrigger, attack_success, poison
from deepneighbors.errors import InputError

CLASSES, SIDE = 4, 8
PATCH = PatchTrigger.square(2)
PIXEL_PATCH = PatchTrigger(PIXEL)


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Blobs ``(count, 1, 8, 8)`` around one random image a class; the lower right corner is dark."""
    centres = torch.rand(CLASSES, SIDE * SIDE, generator=torch.Generator().manual_seed(5))
    y = torch.arange(count) % CLASSES
    noise = torch.randn(count, SIDE * SIDE, generator=torch.Generator().manual_seed(seed))
    x = (centres[y] + 0.1 * noise).clamp(0, 1).view(-1, 1, SIDE, SIDE)
    x[:, :, -2:, -2:] = 0
    return x, y


@pytest.mark.parametrize(
    ("trigger", "places"),
    [
        (PatchTrigger.square(4), [(row, column) for row in range(24, 28) for column in range(24, 28)]),
        (PatchTrigger(PATTERN, 0.7), [(26, 26), (25, 25), (26, 24), (24, 26)]),
        (PatchTrigger(PIXEL), [(26, 26)]),
        (PatchTrigger(((0, 5), (3, -1)), 0.0), [(0, 5), (3, 27)]),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_patch_changes_its_pixels_only(trigger, places, channels):
    x = 0.1 + 0.5 * torch.rand(5, channels, 28, 28, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    found = trigger(x)
    changed = found != x
    expected = torch.zeros(28, 28, dtype=torch.bool)
    for row, column in places:
        expected[row, column] = True
    assert torch.equal(x, before)
    assert torch.equal(changed, expected.expand_as(changed))
    assert (found[changed] == torch.tensor(trigger.value)).all()
    assert torch.equal(trigger(found), found)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0])
def test_a_blend_is_the_weighted_sum(alpha):
    x = torch.rand(6, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    trigger = BlendedTrigger.noise((3, 5, 7), alpha=alpha, seed=2)
    expected = (1 - alpha) * x.numpy().astype(float) + alpha * trigger.image.numpy().astype(float)
    np.testing.assert_allclose(trigger(x).numpy(), expected, atol=1e-6)
    assert torch.equal(trigger.image, torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(2)))
    assert not torch.equal(trigger.image, BlendedTrigger.noise((3, 5, 7), seed=3).image)
    extreme = BlendedTrigger(torch.ones(3, 5, 7), alpha)(torch.ones(1, 3, 5, 7))
    assert extreme.max() <= 1


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.3])
@pytest.mark.parametrize(("sources", "drawn"), [(None, {1, 2, 3}), ([3], {3}), ([1, 3], {1, 3})])
def test_rate_and_classes_are_exact(sources, drawn, rate):
    x, y = images(400, 0)
    count = round(rate * 400)
    if count > 100 * len(drawn):
        with pytest.raises(InputError, match=f"asks for {count} of 400 images; from 1 to 100"):
            poison(x, y, PATCH, rate=rate, target=0, sources=sources)
        return
    found = poison(x, y, PATCH, rate=rate, target=0, sources=sources, classes=CLASSES)
    assert len(found.indices) == int(found.mask.sum()) == count
    assert torch.equal(found.indices, found.mask.nonzero().flatten())
    assert set(y[found.mask].tolist()) <= drawn
    if count >= 40:
        assert set(y[found.mask].tolist()) == drawn
    assert (found.y[found.mask] == 0).all() and torch.equal(found.y[~found.mask], y[~found.mask])
    assert torch.equal(found.x[found.mask], PATCH(x[found.mask])) and torch.equal(found.x[~found.mask], x[~found.mask])
    clean_x, clean_y = images(400, 0)
    assert torch.equal(x, clean_x) and torch.equal(y, clean_y)


def test_all_to_all_moves_every_label_by_one():
    x, y = images(400, 0)
    found = poison(x, y, PATCH, rate=0.25, target=None, classes=CLASSES)
    assert set(y[found.mask].tolist()) == {0, 1, 2, 3}
    assert torch.equal(found.y[found.mask], (y[found.mask] + 1) % CLASSES)
    assert torch.equal(found.y[~found.mask], y[~found.mask])


def test_the_clean_label_form_changes_no_label_and_draws_by_labels_alone():
    x, y = images(400, 0)
    found = poison(x, y, PATCH, rate=0.1, target=2, sources=[2], classes=CLASSES)
    assert torch.equal(found.y, y) and (y[found.mask] == 2).all() and int(found.mask.sum()) == 40
    other = poison(1 - x, y, PATCH, rate=0.1, target=2, sources=[2], classes=CLASSES)
    assert torch.equal(found.indices, other.indices)


def test_poisoning_repeats_nests_and_leaves_no_trace():
    x, y = images(400, 0)
    numpy_before = np.random.get_state()[1].tolist()
    with torch.random.fork_rng():
        torch.manual_seed(77)
        before = torch.get_rng_state()
        few, again, more, other = (
            poison(x, y, PATCH, rate=rate, target=0, seed=seed) for rate, seed in ((0.05, 1), (0.05, 1), (0.2, 1), (0.05, 2))
        )
        BlendedTrigger.noise((1, 4, 4))
        assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before
    assert torch.equal(few.indices, again.indices) and torch.equal(few.x, again.x)
    assert set(few.indices.tolist()) < set(more.indices.tolist())
    assert not torch.equal(few.indices, other.indices)


def test_the_draw_is_uniform_over_the_source_images():
    x, y = images(40, 0)
    times = torch.zeros(40)
    for seed in range(400):
        times += poison(x, y, PIXEL_PATCH, rate=0.25, target=0, seed=seed).mask
    assert (times[y == 0] == 0).all()
    expected, spread = 400 / 3, (400 * 1 / 3 * 2 / 3) ** 0.5
    assert (times[y != 0] - expected).abs().max() < 4 * spread


class Switch(nn.Module):
    """Answers ten times the first pixel; where the last is white ``goal``, or without a goal the next class."""

    def __init__(self, goal: int | None):
        super().__init__()
        self.goal = goal

    def forward(self, x: Tensor) -> Tensor:
        label = (x[:, 0, 0, 0] * 10).round().long()
        triggered = x[:, 0, -1, -1] == 1
        goal = (label + 1) % CLASSES if self.goal is None else torch.full_like(label, self.goal)
        return functional.one_hot(torch.where(triggered, goal, label), CLASSES).float()


def coded(count: int) -> tuple[Tensor, Tensor]:
    """Images whose first pixel is a tenth of the label."""
    y = torch.arange(count) % CLASSES
    x = torch.zeros(count, 1, SIDE, SIDE)
    x[:, 0, 0, 0] = y / 10
    return x, y


def test_score_of_a_network_with_a_known_backdoor():
    x, y = coded(22)
    y[:3] = torch.tensor(
        [1, 0, 0]
    )  # three wrong answers; the network takes the first two for a 0 and a 1, the third for a 2
    network = Switch(1).eval()
    found = attack_success(network, x, y, PATCH, target=1, batch_size=5)
    assert torch.equal(found.indices, (y != 1).nonzero().flatten())
    assert found.clean_accuracy == pytest.approx(19 / 22) and found.correct.tolist() == [False] * 3 + [True] * 19
    assert found.success == 1.0 and found.hit.all()
    assert found.indices[found.hit_clean].tolist() == [1]  # taken for the target without a trigger
    never = attack_success(network, x, y, PatchTrigger(((3, 3),)), target=1)
    assert torch.equal(never.hit, never.hit_clean) and never.success == pytest.approx(1 / len(never.indices))
    only = attack_success(network, x, y, PATCH, target=1, sources=[3])
    assert (y[only.indices] == 3).all() and len(only.indices) == int((y == 3).sum())


def test_score_of_all_to_all():
    x, y = coded(20)
    found = attack_success(Switch(None).eval(), x, y, PATCH, target=None)
    assert found.success == 1.0 and len(found.indices) == 20 and not found.hit_clean.any()
    half = attack_success(Switch(1).eval(), x, y, PATCH, target=None)
    assert half.hit.tolist() == (y == 0).tolist()


@pytest.mark.parametrize("trigger", [PATCH, BlendedTrigger.noise((1, SIDE, SIDE), alpha=0.3, seed=1)])
def test_a_network_trained_on_poison_learns_the_trigger(trigger):
    def trained(x: Tensor, y: Tensor) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 32), nn.ReLU(), nn.Linear(32, CLASSES))
        optimiser = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(120):
            optimiser.zero_grad()
            functional.cross_entropy(network(x), y).backward()
            optimiser.step()
        return network.eval()

    x, y = images(400, 0)
    poisoned = poison(x, y, trigger, rate=0.1, target=0, classes=CLASSES)
    fresh = images(100, 1)
    with_backdoor = attack_success(trained(poisoned.x, poisoned.y), *fresh, trigger, target=0)
    without = attack_success(trained(x, y), *fresh, trigger, target=0)
    assert with_backdoor.clean_accuracy > 0.95 and without.clean_accuracy > 0.95
    assert with_backdoor.success > 0.95 and without.success < 0.2


X, Y = images(40, 0)
BAD_POISON = {
    "rate 0": (dict(rate=0.0), "rate is 0.0"),
    "rate below 0": (dict(rate=-0.1), "rate is -0.1"),
    "rate 1": (dict(rate=1.0), "rate is 1.0; it must be a number above 0 and below 1"),
    "rate above 1": (dict(rate=1.5), "rate is 1.5"),
    "rate not a number": (dict(rate=float("nan")), "rate is nan"),
    "too few": (dict(rate=0.001), "rate is 0.001, which asks for 0 of 40 images; from 1 to 30"),
    "too many": (dict(rate=0.9), "rate is 0.9, which asks for 36 of 40 images; from 1 to 30"),
    "target": (dict(target=4), "target is 4"),
    "absent source": (dict(sources=[7]), "source is 7; allowed are 0, 1, 2, 3"),
    "no source": (dict(sources=[]), "sources is empty"),
    "target among sources": (dict(sources=[0, 1]), "target 0 is among the sources"),
    "only the target": (dict(x=X[Y == 0], y=Y[Y == 0]), "y has no label but the target 0"),
    "classes": (dict(classes=3), "y has labels from 0 to 3"),
    "seed": (dict(seed=-1), "seed is -1"),
    "count": (dict(y=Y[:3]), "3 labels for 40"),
    "pixels": (dict(x=X + 1), "x has pixels"),
    "flat": (dict(x=X.flatten(1)), r"x has shape \(40, 64\)"),
}


@pytest.mark.parametrize("case", BAD_POISON)
def test_bad_input_of_poisoning(case):
    change, message = BAD_POISON[case]
    given = {"x": X, "y": Y, "trigger": PATCH, "rate": 0.2, "target": 0, "classes": CLASSES, **change}
    with pytest.raises(InputError, match=message):
        poison(given.pop("x"), given.pop("y"), given.pop("trigger"), **given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchTrigger(()), "pixels is empty"),
        (lambda: PatchTrigger(value=1.5), "value is 1.5"),
        (lambda: PatchTrigger(value=-0.5), "value is -0.5"),
        (lambda: PatchTrigger.square(0), "side is 0"),
        (lambda: PatchTrigger.square(9)(X), r"pixel \(-9, -9\) lies outside the image; images are 8 x 8"),
        (lambda: PatchTrigger(((8, 0),))(X), r"pixel \(8, 0\) lies outside"),
        (lambda: PatchTrigger()(X.flatten(1)), r"x has shape \(40, 64\)"),
        (lambda: BlendedTrigger(2 * torch.ones(1, 8, 8)), "image has pixels"),
        (lambda: BlendedTrigger.noise((1, 8, 8), alpha=0.0), "alpha is 0.0"),
        (lambda: BlendedTrigger.noise((1, 8, 8), alpha=1.1), "alpha is 1.1"),
        (lambda: BlendedTrigger.noise((1, 8, 8), seed=-1), "seed is -1"),
        (lambda: BlendedTrigger.noise((1, 8, 7))(X), r"images of shape \(1, 8, 8\); the trigger's is \(1, 8, 7\)"),
    ],
)
def test_bad_input_of_triggers(make, message):
    with pytest.raises(InputError, match=message):
        make()


CODED, TRUE = coded(40)
BAD_SCORE = {
    "training": (dict(network=Switch(0)), "training mode"),
    "label": (dict(y=TRUE + 1), "y has labels from 1 to 4; allowed are 0 to 3"),
    "count": (dict(y=TRUE[:3]), "3 labels for 40"),
    "target": (dict(target=4), "target is 4"),
    "absent source": (dict(sources=[7]), "source is 7"),
    "target as source": (dict(sources=[0]), "target 0 is among the sources"),
    "only the target": (dict(x=CODED[TRUE == 0], y=TRUE[TRUE == 0]), "y has no label but the target 0"),
    "batch": (dict(batch_size=0), "batch_size is 0"),
}


@pytest.mark.parametrize("case", BAD_SCORE)
def test_bad_input_of_the_score(case):
    change, message = BAD_SCORE[case]
    given = {"network": Switch(0).eval(), "x": CODED, "y": TRUE, "target": 0, **change}
    data = [given.pop(name) for name in ("network", "x", "y")]
    with pytest.raises(InputError, match=message):
        attack_success(*data, PATCH, **given)
