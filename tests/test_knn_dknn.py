"""The vote and the conformal part, against loops, a known distribution, and closed forms."""

import pytest
import torch
from conftest import blobs
from scipy import stats
from torch import nn

from deepneighbors.dknn import DeepKNN
from deepneighbors.errors import InputError
from deepneighbors.knn import KNNClassifier
from deepneighbors.neighbors import Neighbors
from deepneighbors.networks import MnistCNN, activations


def test_knn_agrees_with_scikit_learn(train):
    from sklearn.neighbors import KNeighborsClassifier

    x, y = train
    queries = torch.rand(50, 1, 28, 28, generator=torch.Generator().manual_seed(5))
    for metric, peer in (("l2", "euclidean"), ("cosine", "cosine")):
        ours = KNNClassifier(k=9, metric=metric).fit(x, y).predict(queries)
        theirs = KNeighborsClassifier(9, metric=peer, algorithm="brute").fit(x.flatten(1), y)
        assert ours.tolist() == theirs.predict(queries.flatten(1)).tolist()


def test_vote_ties_go_to_the_smallest_label(knn):
    assert knn.decide(torch.tensor([[2.0, 3.0, 3.0], [0.0, 1.0, 3.0]])).tolist() == [1, 2]


def test_votes_add_up_to_k_times_layers(dknn, test):
    assert dknn.votes(dknn.kneighbors(test[0])).sum(1).unique().tolist() == [28]


def test_weights_follow_their_formula(train):
    weighted = KNNClassifier(k=3, weights="distance", temperature=0.5).fit(*train)
    distances = torch.tensor([[0.1, 0.2, 0.4]])
    raw = torch.exp(-(distances**2) / (0.5 * 0.16))
    expected = torch.zeros(1, 3).scatter_add_(1, weighted.labels_[torch.tensor([[0, 1, 3]])], raw * 3 / raw.sum())
    votes = weighted.votes({"pixels": Neighbors(distances, torch.tensor([[0, 1, 3]]))})
    torch.testing.assert_close(votes, expected, atol=1e-4, rtol=0)


def test_a_large_temperature_votes_like_uniform_weights(train, test):
    uniform = KNNClassifier(k=7).fit(*train)
    weighted = KNNClassifier(k=7, weights="distance", temperature=1e6).fit(*train)
    torch.testing.assert_close(
        weighted.votes(weighted.kneighbors(test[0])), uniform.votes(uniform.kneighbors(test[0])), atol=1e-3, rtol=0
    )


def test_p_values_follow_the_definition(dknn, test):
    votes = dknn.votes(dknn.kneighbors(test[0]))
    calibration = dknn.calibration_.tolist()
    for row, p in zip(dknn.nonconformity(votes), dknn.conformal_p_values(votes), strict=True):
        expected = [sum(a >= alpha for a in calibration) / len(calibration) for alpha in row.tolist()]
        assert p.tolist() == pytest.approx(expected)


def test_calibration_counts_neighbors_of_other_labels(dknn):
    x, y = blobs(60, seed=2)
    found = dknn.kneighbors(x)
    scores = [sum(int((dknn.labels_[near.indices[i]] != y[i]).sum()) for near in found.values()) for i in range(len(x))]
    assert dknn.calibration_.tolist() == sorted(scores)


def test_true_label_p_values_of_exchangeable_data_are_uniform():
    """p of the true label is uniform on {1/n, .., 1} up to ties, for data exchangeable with the calibration set."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(3000, 1, 4, 4, generator=generator), torch.randint(0, 2, (3000,), generator=generator)
    flat = nn.Sequential(nn.Flatten(), nn.Identity()).eval()
    model = DeepKNN(flat, ("1",), k=201).fit(x[:1000], y[:1000]).calibrate(x[1000:2000], y[1000:2000])
    p = model.p_values(x[2000:]).gather(1, y[2000:, None]).flatten()
    # Smooth the ties: uniform within the jump to the next larger score, as in Vovk's smoothed p-values.
    scores = torch.unique(torch.cat([torch.zeros(1), p]))
    below = scores[torch.searchsorted(scores, p) - 1]
    smooth = below + (p - below) * torch.rand(len(p), generator=generator)
    assert stats.kstest(smooth.numpy(), "uniform").pvalue > 0.01
    shifted = model.p_values(x[2000:]).gather(1, 1 - y[2000:, None]).flatten()
    assert p.mean() == pytest.approx(0.5, abs=0.05) and abs(float(shifted.mean()) - 0.5) < 0.1


def test_credibility_and_confidence_are_the_two_largest_p_values(dknn, test):
    said = dknn.evaluate(test[0])
    ordered = said.p_values.sort(dim=1, descending=True).values
    assert torch.equal(said.credibility, ordered[:, 0])
    assert torch.equal(said.confidence, 1 - ordered[:, 1])
    assert torch.equal(said.labels, said.p_values.argmax(1))


def test_trimming_zeros_follows_cleverhans(train, network):
    x, y = blobs(60, seed=2)
    full = DeepKNN(network, MnistCNN.layers, k=7).fit(*train).calibrate(x, y)
    if not (full.calibration_ > 0).any():
        pytest.fail("the test problem has no calibration point with a score above 0")
    trimmed = DeepKNN(network, MnistCNN.layers, k=7, trim_zeros=True).fit(*train).calibrate(x, y)
    assert torch.equal(trimmed.calibration_, full.calibration_[full.calibration_ > 0])


def test_activations_are_the_modules_outputs(network, test):
    x = test[0]
    found = activations(network, x, ("relu1", "relu3", "fc"))
    assert list(found) == ["relu1", "relu3", "fc"]
    torch.testing.assert_close(found["fc"], network(x))
    torch.testing.assert_close(found["relu1"], network.conv1(x).relu())
    assert found["relu1"].shape[1:] == (64, 14, 14) and found["relu3"].shape[1:] == (128, 3, 3)


class Shared(nn.Module):
    """One ReLU called twice, then changed in place, and a module that is never called or returns a pair."""

    def __init__(self):
        super().__init__()
        self.linear, self.relu, self.negate = nn.Linear(4, 4), nn.ReLU(), nn.Threshold(2.0, -1.0, inplace=True)
        self.unused, self.pair = nn.Identity(), nn.LSTM(4, 4)

    def forward(self, x):
        x = self.negate(self.relu(self.linear(x)))
        return self.relu(x) + self.pair(x)[0]


def test_an_activation_does_not_depend_on_the_others_asked_for():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, x = Shared().eval(), 3 * torch.randn(5, 4)
    first = network.linear(x).relu()
    for layers in (("relu",), ("relu", "negate"), ("linear", "relu", "negate")):
        torch.testing.assert_close(activations(network, x, layers)["relu"], first, rtol=0, atol=0)
    assert (activations(network, x, ("relu", "negate"))["negate"] != first).any()
    with pytest.raises(InputError, match="layer 'unused' is never called"):
        activations(network, x, ("relu", "unused"))
    with pytest.raises(InputError, match="layer 'pair' returns a tuple"):
        activations(network, x, ("pair",))


def test_activations_pass_gradients_of_each_layer(network, test):
    x = test[0][:2].clone().requires_grad_(True)
    found = activations(network, x, ("relu1", "fc"))
    (ours,) = torch.autograd.grad(found["relu1"].sum() + found["fc"].sum(), x)
    (theirs,) = torch.autograd.grad(network.conv1(x).relu().sum() + network(x).sum(), x)
    torch.testing.assert_close(ours, theirs)


def test_a_p_value_of_a_tenth_is_not_above_it(dknn):
    model = DeepKNN(dknn.network, ("fc",), k=10)
    model.indexes_, model.calibration_ = {}, torch.arange(750.0)
    p = model.conformal_p_values(torch.tensor([[10.0 - 675.0, 10.0 - 674.0]]))  # nonconformity 675: 75 of 750 are left
    assert (p > 0.1).tolist() == [[False, True]]


def test_a_second_fit_forgets_the_calibration(train, network):
    model = DeepKNN(network, ("fc",), k=7).fit(*train).calibrate(*blobs(60, seed=2)).fit(*train)
    with pytest.raises(InputError, match="before calibrate"):
        model.predict(train[0])


def test_a_label_without_images_gets_no_votes(train, network):
    x, y = train
    kept = y != 1
    model = DeepKNN(network, ("fc",), k=7).fit(x[kept], y[kept]).calibrate(x[kept], y[kept])
    assert set(model.predict(x).tolist()) == {0, 2}


def test_the_reports_network_has_its_sizes():
    found = activations(MnistCNN(conv2_padding=0), torch.zeros(1, 1, 28, 28), ("relu2", "relu3"))
    assert found["relu2"].shape[1:] == (128, 5, 5) and found["relu3"].shape[1:] == (128, 1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y, net: KNNClassifier(k=181).fit(x, y), "k is 181; it must be a whole number from 1 to 180"),
        (lambda x, y, net: KNNClassifier().fit(x * 2, y), "pixels from"),
        (lambda x, y, net: KNNClassifier().fit(x, y[:-1]), "179 labels for 180 samples"),
        (lambda x, y, net: KNNClassifier().fit(x, y.float()), "integer labels"),
        (lambda x, y, net: KNNClassifier(metric="ip").fit(x, y), "metric is 'ip'"),
        (lambda x, y, net: KNNClassifier(weights="rank").fit(x, y), "weights is 'rank'"),
        (lambda x, y, net: KNNClassifier().predict(x), "before fit"),
        (lambda x, y, net: DeepKNN(net, ("relu9",)), "layer is 'relu9'; allowed are conv1, relu1"),
        (lambda x, y, net: DeepKNN(net, ()), "layers is empty"),
        (lambda x, y, net: DeepKNN(net, ("fc", "fc")), "layer 'fc' is named twice"),
        (lambda x, y, net: DeepKNN(MnistCNN(), ("fc",), k=7).fit(x, y), "in training mode .the network itself."),
        (lambda x, y, net: DeepKNN(net, ("fc",), k=7).fit(x, 0 * y), "has the label 0 only"),
        (lambda x, y, net: DeepKNN(net, ("fc",), k=7, backend="annoy").fit(x, y), "backend is 'annoy'"),
        (lambda x, y, net: KNNClassifier(k=7).fit(x, y).kneighbors(x, k=0), "k is 0"),
        (lambda x, y, net: DeepKNN(net, ("fc",), k=7).fit(x, y).predict(x), "before calibrate"),
    ],
)
def test_bad_input_is_refused(train, network, call, message):
    with pytest.raises(InputError, match=message):
        call(*train, network)
