"""Deep kNN on its training points: brute force without the point itself, copies and ties, shares, and what self costs."""

import pytest
import torch
from torch import nn

from deepneighbors.dknn import DeepKNN
from deepneighbors.dknn_training import (
    neighbor_share,
    network_labels,
    other_neighbors,
    training_credibility,
    training_neighbors,
    votes_by_layer,
    with_self,
)
from deepneighbors.errors import InputError
from deepneighbors.knn import KNNClassifier
from deepneighbors.networks import MnistCNN


def brute_force(rows, points, k):
    """Distances and indices of the nearest others, ties by index, in double precision."""
    rows = rows.double()
    distances = torch.cdist(rows[points], rows, compute_mode="donot_use_mm_for_euclid_dist")
    distances[torch.arange(len(points)), points] = torch.inf
    values, order = distances.sort(dim=1, stable=True)
    return values[:, :k], order[:, :k]


@pytest.fixture(scope="module")
def grid():
    """Points of a small grid of levels with many copies and ties, on which sums of squares are exact."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(0, 3, (150, 4), generator=generator).float() / 4
    return x, torch.randint(0, 3, (150,), generator=generator)


@pytest.mark.parametrize("memory_gib", [0.5, 2e-6])  # the second in blocks of 11 rows
def test_copies_and_ties_are_ordered_by_index_and_only_the_point_itself_is_left_out(grid, memory_gib):
    x, y = grid
    knn = KNNClassifier(k=12, metric="l2", memory_gib=memory_gib).fit(x, y)
    distances, indices = brute_force(x, torch.arange(150), 12)
    assert int((distances == 0).sum(1).max()) > 1  # there are copies
    everything = other_neighbors(knn)["pixels"]
    assert torch.equal(everything.indices, indices)
    torch.testing.assert_close(everything.distances, distances.float())
    points = torch.tensor([7, 149, 0, 7])
    some = other_neighbors(knn, points)["pixels"]
    assert torch.equal(some.indices, indices[points])
    torch.testing.assert_close(some.distances, distances[points].float(), atol=1e-6, rtol=1e-6)


def test_a_point_with_more_copies_than_k_still_gets_k_others():
    x = torch.cat([torch.full((9, 2), 0.5), torch.rand(6, 2, generator=torch.Generator().manual_seed(0))])
    knn = KNNClassifier(k=4, metric="l2").fit(x, torch.arange(15) % 2)
    for points in (None, torch.arange(15)):
        found = other_neighbors(knn, points)["pixels"]
        assert found.indices[8].tolist() == [0, 1, 2, 3]
        assert found.indices[2].tolist() == [0, 1, 3, 4]
        assert (found.distances[8] == 0).all()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_every_layer_agrees_with_brute_force(train, network, metric):
    x, y = train
    dknn = DeepKNN(network, MnistCNN.layers, k=7, metric=metric, memory_gib=1e-4).fit(x, y)
    points = torch.arange(0, 180, 5)
    everything, some = other_neighbors(dknn), other_neighbors(dknn, points)
    for layer, rows in dknn.features(x).items():
        distances, _ = brute_force(rows, points, 7)
        # A distance near 0 is the root of a small difference of large numbers, so squares are compared.
        scale = float(rows.square().sum(1).max())
        for found in (everything[layer].distances[points], some[layer].distances):
            torch.testing.assert_close(found.double() ** 2 / scale, distances**2 / scale, atol=2e-6, rtol=0)
        assert not (everything[layer].indices == torch.arange(180)[:, None]).any()
        assert not (some[layer].indices == points[:, None]).any()
        assert all(len(set(row)) == 7 for row in everything[layer].indices.tolist())


def test_with_self_is_an_ordinary_search_of_the_training_points(dknn, train):
    points = torch.tensor([3, 50, 179])
    ordinary = dknn.kneighbors(train[0][points])
    found = training_neighbors(dknn, points, leave_self_out=False)
    for layer in dknn.layers:
        assert found[layer].indices[:, 0].tolist() == points.tolist()
        assert torch.equal(found[layer].indices.sort(1).values, ordinary[layer].indices.sort(1).values)
    assert torch.equal(dknn.votes(found), dknn.votes(ordinary))
    whole = with_self(other_neighbors(dknn))
    assert all(torch.equal(whole[layer].indices[points], found[layer].indices) for layer in dknn.layers)


def test_layers_vote_for_themselves_and_add_up(dknn):
    found = other_neighbors(dknn, torch.tensor([0, 1, 2]))
    layers = votes_by_layer(dknn, found)
    assert all(votes.sum(1).tolist() == [7, 7, 7] for votes in layers.values())
    assert torch.equal(sum(layers.values()), dknn.votes(found))


def test_shares_agree_with_a_loop(dknn):
    marked = torch.arange(180) % 4 == 0
    points = torch.tensor([5, 8, 100])
    for leave_self_out in (True, False):
        found = training_neighbors(dknn, points, leave_self_out=leave_self_out)
        for layer, shares in neighbor_share(found, marked).items():
            expected = [sum(i % 4 == 0 for i in row) / 7 for row in found[layer].indices.tolist()]
            assert shares.tolist() == pytest.approx(expected)


def test_the_share_of_points_marked_at_random_is_the_base_rate():
    angles = torch.arange(400) / 400 * 2 * torch.pi  # on a ring each point is a neighbour of 20 others, none a hub
    knn = KNNClassifier(k=20, metric="l2").fit(
        0.5 + 0.4 * torch.stack([angles.cos(), angles.sin()], 1), torch.arange(400) % 2
    )
    marked = torch.zeros(400, dtype=torch.bool)
    marked[torch.randperm(400, generator=torch.Generator().manual_seed(1))[:100]] = True
    (share,) = neighbor_share(other_neighbors(knn), marked).values()
    assert float(share.mean()) == pytest.approx(0.25)
    # Over all points of a set in which every point is found by every other, the share is exact.
    (exact,) = neighbor_share(other_neighbors(knn, k=399), marked).values()
    assert exact[marked].unique().tolist() == pytest.approx([99 / 399])
    assert exact[~marked].unique().tolist() == pytest.approx([100 / 399])


class OneLayer(nn.Module):
    """The picture's mean in each of two halves: a network whose only layer is easy to follow."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 2, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.eye(2).repeat_interleave(392, 1) / 392)

    def forward(self, x):
        return self.fc(x.flatten(1))


def halves(y, seed):
    """Images bright in the half of their class."""
    noise = torch.rand(len(y), 784, generator=torch.Generator().manual_seed(seed))
    bright = torch.eye(2).repeat_interleave(392, 1)[y]
    return (0.3 * noise + 0.7 * bright).view(-1, 1, 28, 28)


def test_a_flipped_copy_has_no_credibility_in_its_stored_label_and_self_caps_the_others():
    y = torch.arange(100) % 2
    stored = y.clone()
    stored[0] = 1  # shown as 0, stored as 1
    y_calibration = torch.arange(40) % 2
    dknn = DeepKNN(OneLayer().eval(), ("fc",), k=5).fit(halves(y, 0), stored)
    dknn.calibrate(halves(y_calibration, 1), y_calibration)
    point = torch.tensor([0])
    out, own = (training_credibility(dknn, point, leave_self_out=leave) for leave in (True, False))
    # Alone among neighbours of the other label: all 5 disagree, and no calibration image is that nonconforming.
    assert float(out.c_label) == 0 and float(own.c_label) <= 1 / 41
    assert out.labels.tolist() == own.labels.tolist() == out.network_labels.tolist() == [0]
    # Self is one of the 5 neighbours and votes for its stored label, so label 0 has nonconformity 1 at best.
    assert float(out.c_pred) == float((dknn.calibration_ >= 0).float().mean()) == 1
    assert float(own.c_pred) == pytest.approx(float((dknn.calibration_ >= 1).float().mean())) and own.c_pred < 1
    assert torch.equal(own["c_dnn"], own.c_pred)


def test_the_three_credibilities_are_p_values_of_three_labels(dknn, train):
    found = training_credibility(dknn)
    p = dknn.conclude(dknn.votes(other_neighbors(dknn))).p_values
    rows = torch.arange(180)
    assert torch.equal(found.c_pred, p.max(1).values)
    assert torch.equal(found.c_label, p[rows, train[1]])
    labels = dknn.network(train[0]).argmax(1)
    assert torch.equal(found.network_labels, labels) and torch.equal(found.c_dnn, p[rows, labels])
    known = training_credibility(dknn, neighbors=other_neighbors(dknn))
    assert torch.equal(known.c_label, found.c_label)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: other_neighbors(d, torch.tensor([180])), "from 180 to 180; allowed are 0 to 179"),
        (lambda d: other_neighbors(d, torch.tensor([0.5])), "vector of indices"),
        (lambda d: other_neighbors(d, k=180), "k .of other training points. is 180; .* from 1 to 179"),
        (lambda d: neighbor_share(other_neighbors(d), torch.ones(180)), "vector of bool"),
        (lambda d: neighbor_share(other_neighbors(d), torch.ones(9, dtype=torch.bool)), "marked has 9 entries"),
        (lambda d: training_credibility(d)["c_true"], "credibility is 'c_true'; allowed are c_pred, c_dnn, c_label"),
        (lambda d: other_neighbors(KNNClassifier()), "asked before fit"),
    ],
)
def test_bad_input_is_refused(dknn, call, message):
    with pytest.raises(InputError, match=message):
        call(dknn)


def test_a_network_with_more_classes_than_the_labels_is_refused(train):
    torch.manual_seed(0)
    network = MnistCNN(classes=10).eval()
    with torch.no_grad():
        network.fc.bias[9] = 1e3
    dknn = DeepKNN(network, ("fc",), k=3).fit(*train)
    with pytest.raises(InputError, match="the network says class 9, but the training labels end at 2"):
        network_labels(dknn, torch.arange(3))
