"""The blind rule for ILA's layer: curves against a loop over images and layers, and the rule on curves written by hand."""

import pytest
import torch
from torch import nn

from deepneighbors.attacks import ILAP, IteratedFGSM, layer_choice
from deepneighbors.attacks.layer_choice import choose_layer, disturbance_curves
from deepneighbors.errors import InputError

EPSILON, LAYERS = 0.1, ("relu1", "relu2", "fc")


class Small(nn.Module):
    """Two convolutions with ReLU, the second in place, and logits, for 8 x 8 images."""

    def __init__(self):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(inplace=True)
        self.fc = nn.Linear(54, 3)

    def forward(self, x):
        return self.fc(self.relu2(self.conv2(self.relu1(self.conv1(x)))).flatten(1))


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Small().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def x():
    return torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def guide(network, x):
    return IteratedFGSM(epsilon=EPSILON, steps=3)(network, x, network(x).argmax(1))


def by_hand(network, x):
    """Features of one image, layer by layer."""
    first = network.conv1(x).relu()
    second = network.conv2(first).relu()
    return {"relu1": first, "relu2": second, "fc": network.fc(second.flatten(1))}


def looped(network, x, guide, candidates, steps):
    """Mean ratios by a loop over candidates, layers and images."""
    rows = []
    for candidate in candidates:
        z = ILAP(candidate, epsilon=EPSILON, steps=steps)(network, x, guide=guide).x
        row = []
        for layer in LAYERS:
            ratios = []
            for i in range(len(x)):
                clean, moved, guided = (by_hand(network, images[i : i + 1])[layer] for images in (x, z, guide))
                if (guided - clean).norm() > 0:
                    ratios.append(float((moved - clean).norm() / (guided - clean).norm()))
            row.append(sum(ratios) / len(ratios))
        rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize("candidates", [LAYERS, ("relu2",), ("relu2", "relu1")])
def test_curves_are_those_of_a_loop(network, x, guide, candidates):
    found = disturbance_curves(network, x, guide, LAYERS, candidates=candidates, epsilon=EPSILON, steps=3, batch_size=3)
    torch.testing.assert_close(found, looped(network, x, guide, candidates, 3))


def test_images_that_the_guide_leaves_alone_are_left_out(network, x, guide):
    still = torch.cat([guide[:4], x[4:]])
    found = disturbance_curves(network, x, still, LAYERS, epsilon=EPSILON, steps=3)
    torch.testing.assert_close(found, looped(network, x[:4], guide[:4], LAYERS, 3))


def test_the_choice_follows_from_the_curves(network, x, guide):
    curves = looped(network, x, guide, LAYERS, 3)
    peaks = [layer for place, layer in enumerate(LAYERS) if int(curves[place].argmax()) == place]
    choice = choose_layer(network, x, guide, LAYERS, epsilon=EPSILON, steps=3)
    assert peaks and choice.peaks == tuple(peaks) and choice.layer == peaks[-1]
    torch.testing.assert_close(choice.curves, curves)


@pytest.mark.parametrize(
    ("curves", "layer", "peaks"),
    [
        ([[3.0, 2.0, 1.0], [1.0, 2.0, 1.0], [1.0, 4.0, 3.0]], "relu2", ("relu1", "relu2")),
        ([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]], "relu1", ("relu1",)),
        ([[2.0, 2.0, 2.0], [2.0, 2.0, 2.0], [2.0, 2.0, 2.0]], "fc", LAYERS),
        # None peaks at itself: 1/2, 3/4 and 2/3 of the peak, the second comes nearest.
        ([[1.0, 2.0, 1.0], [1.0, 3.0, 4.0], [1.0, 3.0, 2.0]], "relu2", ()),
    ],
)
def test_the_latest_layer_whose_curve_peaks_at_itself_is_chosen(monkeypatch, network, x, guide, curves, layer, peaks):
    monkeypatch.setattr(layer_choice, "disturbance_curves", lambda *arguments, **options: torch.tensor(curves))
    choice = choose_layer(network, x, guide, LAYERS, epsilon=EPSILON)
    assert (choice.layer, choice.peaks) == (layer, peaks)


def test_candidates_limit_the_choice_but_not_the_curves(monkeypatch, network, x, guide):
    curves = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 5.0]])  # the second peaks at the logits, which are no candidate
    monkeypatch.setattr(layer_choice, "disturbance_curves", lambda *arguments, **options: curves)
    choice = choose_layer(network, x, guide, LAYERS, candidates=LAYERS[:2], epsilon=EPSILON)
    assert choice.layer == "relu1" and choice.candidates == LAYERS[:2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": ("relu3",)}, "candidate is 'relu3'; allowed are relu1, relu2, fc"),
        ({"candidates": ()}, "candidates is empty; name at least one of relu1, relu2, fc"),
        ({"layers": ("relu1", "pool")}, "layer is 'pool'"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"still": True}, "the guide changes nothing in layer 'relu1'; give images that differ from x"),
    ],
)
def test_bad_input_is_refused(network, x, guide, change, message):
    change = {"layers": LAYERS, "epsilon": EPSILON, "steps": 2, **change}
    given = x if change.pop("still", False) else guide
    with pytest.raises(InputError, match=message):
        choose_layer(network, x, given, **change)
