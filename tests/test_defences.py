"""Defences on planted poison, where the answer is known; against scikit-learn and closed forms; refusals."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn.functional import cross_entropy

from deepneighbors import defences
from deepneighbors.dknn import DeepKNN
from deepneighbors.dknn_training import training_credibility
from deepneighbors.errors import InputError
from deepneighbors.networks import MnistCNN


class Flat(nn.Module):
    """Pixels as the features of its layer ``flat``, and the first three as logits."""

    def __init__(self):
        super().__init__()
        self.flat = nn.Flatten()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * self.flat(x)[:, :3]


@pytest.fixture(scope="module")
def network():
    return Flat().eval().requires_grad_(False)


def planted(shift, *, poisoned=30, count=600, seed=0):
    """Images (count, 12) of three classes; the last ``poisoned`` come from class 1, bear label 0 and a mark in column 11."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.3 + 0.04 * torch.randn(count, 12, generator=generator)
    truth = torch.arange(count) % 3
    truth[-poisoned:] = 1
    x[torch.arange(count), truth] += 0.4
    x[-poisoned:, 11] += shift
    stored = truth.clone()
    stored[-poisoned:] = 0
    mask = torch.arange(count) >= count - poisoned
    return x.clamp(0, 1), stored, mask


def auc(scores, mask):
    return roc_auc_score(mask.numpy(), scores.numpy())


def test_a_planted_backdoor_is_found_by_every_defence_and_not_by_chance(network):
    x, y, mask = planted(0.3)
    held, truth, _ = planted(0, poisoned=1, seed=1)
    made = {
        "credibility": defences.CredibilityDefence(network, ("flat",), (held[:-1], truth[:-1]), k=20),
        "deep_knn": defences.DeepKNNDefence(network, "flat", k=75),
        "pca": defences.ActivationClustering(network, "flat", reduction="pca"),
        "ica": defences.ActivationClustering(network, "flat", components=2, reduction="ica"),
        "spectral": defences.SpectralSignatures(network, "flat"),
    }
    found = {name: auc(defence.scores(x, y), mask) for name, defence in made.items()}
    # The mark gathers the poison, so k must exceed their number for the label's credibility to fall.
    assert found.pop("credibility") < 0.9
    assert auc(defences.CredibilityDefence(network, ("flat",), (held[:-1], truth[:-1]), k=90).scores(x, y), mask) > 0.9
    assert all(value > 0.9 for value in found.values()), found
    assert 0.3 < auc(defences.RandomScores().scores(x, y), mask) < 0.7


def test_spectral_scores_are_squared_projections_of_each_class(network):
    x, y, _ = planted(0.2)
    scores = defences.SpectralSignatures(network, "flat").scores(x, y)
    uncentred = defences.SpectralSignatures(network, "flat", centred=False).scores(x, y)
    for label in range(3):
        rows = x[y == label].double().numpy()
        pca = PCA(1).fit(rows)
        np.testing.assert_allclose(scores[y == label], pca.transform(rows)[:, 0] ** 2, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(uncentred[y == label], (rows @ pca.components_[0]) ** 2, rtol=1e-6)


def test_deep_knn_removes_what_scikit_learn_labels_otherwise(network):
    x, y, mask = planted(0.0)
    defence = defences.DeepKNNDefence(network, "flat", k=25)
    scores = defence.scores(x, y)
    said = KNeighborsClassifier(25, algorithm="brute").fit(x, y).predict(x)
    # An odd k of two labels has no ties; the third label is far away.
    assert torch.equal(defence.flags(scores), torch.from_numpy(said) != y)
    assert scores.min() >= -1 and scores.max() <= 1
    assert defence.flags(scores)[mask].all()


def test_clusters_are_scored_by_their_share_of_the_class(network):
    x, y, mask = planted(0.5)
    defence = defences.ActivationClustering(network, "flat", reduction="pca")
    scores = defence.scores(x, y)
    zeros = int((y == 0).sum())
    assert scores[mask].unique().tolist() == pytest.approx([1 - 30 / zeros])
    assert scores[(y == 0) & ~mask].unique().tolist() == pytest.approx([30 / zeros])
    assert torch.equal(defence.flags(scores) & (y == 0), mask)
    alone = defence.scores(torch.cat([x[y != 2], x[y == 2][:2]]), torch.cat([y[y != 2], y[y == 2][:2]]))
    assert alone[-2:].tolist() == [0, 0]  # two points are no class to divide
    same = defence.score_features(torch.ones(6, 4), torch.zeros(6, dtype=torch.int64))
    assert same.unique().tolist() == [0]  # equal points are one cluster


def test_credibility_scores_follow_the_credibility(train, network):
    torch.manual_seed(0)
    cnn = MnistCNN(classes=3).eval().requires_grad_(False)
    x, y = train
    for of in ("c_label", "c_pred", "c_dnn"):
        for out in (True, False):
            defence = defences.CredibilityDefence(cnn, ("relu3", "fc"), (x[:60], y[:60]), of=of, k=5, leave_self_out=out)
            dknn = DeepKNN(cnn, ("relu3", "fc"), k=5).fit(x, y).calibrate(x[:60], y[:60])
            expected = training_credibility(dknn, leave_self_out=out)[of]
            assert torch.equal(defence.scores(x, y), defences.credibility_score(expected))


def test_loss_is_the_cross_entropy_of_the_stored_label(network):
    x, y, mask = planted(0.1)
    scores = defences.TrainingLoss(network).scores(x, y)
    torch.testing.assert_close(scores, cross_entropy(x[:, :3].double(), y, reduction="none"))
    assert auc(scores, mask) > 0.99  # a network that is right has a high loss on wrong labels


def test_the_most_suspect_have_the_highest_scores_and_ties_are_drawn():
    scores = torch.tensor([0.0, 3, 1, 3, 2, 0, 0, 0])
    assert defences.most_suspect(scores, 3).tolist() == [1, 3, 4]
    drawn = {tuple(defences.most_suspect(torch.zeros(40), 5, seed=seed).tolist()) for seed in range(4)}
    assert len(drawn) == 4
    places = torch.cat([defences.most_suspect(torch.zeros(40), 5, seed=seed) for seed in range(200)])
    assert 15 < float(places.double().mean()) < 24  # neither the first nor the last are preferred


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: defences.SpectralSignatures(n, "relu9"), "layer is 'relu9'; allowed are flat"),
        (lambda n: defences.SpectralSignatures(Flat(), "flat"), "network is in training mode"),
        (lambda n: defences.TrainingLoss(Flat()), "network is in training mode"),
        (lambda n: defences.DeepKNNDefence(n, "flat", k=0), "k is 0"),
        (lambda n: defences.DeepKNNDefence(n, "flat", k=9).scores(torch.rand(4, 5), torch.zeros(4).long()), "from 1 to 4"),
        (lambda n: defences.ActivationClustering(n, "flat", reduction="tsne"), "allowed are pca, ica"),
        (lambda n: defences.ActivationClustering(n, "flat", components=0), "components is 0"),
        (lambda n: defences.CredibilityDefence(n, ("flat",), (torch.rand(2, 5), torch.zeros(2)), of="c"), "of is 'c'"),
        (lambda n: defences.RandomScores(seed=-1), "seed is -1"),
        (lambda n: defences.most_suspect(torch.rand(3), 4), "count is 4"),
        (lambda n: defences.SpectralSignatures(n, "flat").score_features(torch.rand(3, 2), torch.zeros(2).long()), "2 la"),
    ],
)
def test_bad_input_is_refused(network, call, message):
    with pytest.raises(InputError, match=message):
        call(network)
