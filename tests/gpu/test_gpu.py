"""On a GPU: the same neighbours, votes, logits and invariants as on the CPU. Run with ``-m gpu``; they fail without one.

The workflow that executes the full profile runs these on its GPU runner first.
"""

import pytest
import torch
from conftest import blobs

from deepneighbors.attacks import VoteMarginAttack
from deepneighbors.dknn import DeepKNN
from deepneighbors.knn import KNNClassifier
from deepneighbors.networks import FilteredMnistCNN, MnistCNN

pytestmark = pytest.mark.gpu


def test_knn_votes_agree_with_the_cpu():
    x, y = blobs(300, seed=0)
    queries, _ = blobs(60, seed=1, spread=0.3)
    here, there = KNNClassifier(k=15).fit(x, y), KNNClassifier(k=15).fit(x.cuda(), y.cuda())
    assert torch.equal(here.predict(queries), there.predict(queries).cpu())


def test_an_attack_on_dknn_is_verified_there():
    x, y = (part.cuda() for part in blobs(180, seed=0))
    network = MnistCNN(classes=3).cuda().eval().requires_grad_(False)
    model = DeepKNN(network, MnistCNN.layers, k=7).fit(x, y).calibrate(*(part.cuda() for part in blobs(60, seed=2)))
    found = VoteMarginAttack(steps=60, guides=12)(model, *blobs(12, seed=1))
    assert torch.equal(found.success, model.predict(found.x) != blobs(12, seed=1)[1].cuda())
    assert found.x.min() >= 0 and found.x.max() <= 1


def test_the_filtered_network_gives_the_logits_of_the_plain_one_there():
    torch.manual_seed(0)
    plain, fast = MnistCNN(conv2_padding=0), FilteredMnistCNN().cuda()
    fast.load_state_dict(plain.state_dict())
    x = torch.rand(20, 1, 28, 28)
    torch.testing.assert_close(fast(x.cuda()).cpu(), plain(x), rtol=1e-3, atol=1e-4)
