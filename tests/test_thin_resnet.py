"""The thin ResNet's sizes, its 33 activations, and its three kinds of batch norm."""

import pytest
import torch
from torch import nn

from deepneighbors.errors import InputError
from deepneighbors.networks import activations
from deepneighbors.networks.thin_resnet import ThinResNet, decay_groups, pooled


def seeded(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ThinResNet(**options).eval()


def images(count=4, channels=3, side=32):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("classes", "parameters"), [(10, 464_154), (100, 470_004)])
def test_it_has_the_parameters_of_the_released_code(classes, parameters):
    assert sum(p.numel() for p in ThinResNet(classes=classes).parameters()) == parameters


def test_it_has_the_activations_of_the_released_code():
    network = seeded()
    found = [tuple(a.shape[1:]) for a in activations(network, images(), network.layers).values()]
    wide, middle, narrow = (16, 32, 32), (32, 16, 16), (64, 8, 8)
    assert found == [wide] * 11 + [middle] * 10 + [narrow] * 10 + [(64,), (10,)]


def test_the_pooled_last_map_is_the_embedding():
    network = seeded()
    found = activations(network, images(), ("last_relu", "embedding", "fc"))
    torch.testing.assert_close(pooled(found["last_relu"]), found["embedding"])
    torch.testing.assert_close(network.fc(found["embedding"]), found["fc"])


def test_a_batch_of_one_with_batch_statistics_is_instance_norm():
    batch, instance = seeded(statistics="batch"), seeded(statistics="instance")
    x = images()
    single = torch.cat([batch(row[None]) for row in x])
    torch.testing.assert_close(instance(x), single, atol=1e-5, rtol=1e-4)
    assert (batch(x) - single).abs().max() > 1e-3  # and the batch matters


def test_running_statistics_make_images_independent():
    network = seeded().train()
    network(images(16))
    network.eval()
    x = images()
    torch.testing.assert_close(network(x)[:1], network(x[:1]), atol=1e-5, rtol=1e-4)


def test_strided_convolutions_pad_right_and_below_only():
    """TensorFlow's "same" with stride 2 on an even side: output (i, j) sees the inputs 2i .. 2i + 2."""
    block = seeded().blocks[5]
    image = torch.zeros(1, 16, 8, 8)
    image[..., 2, 2] = 1
    with torch.no_grad():
        block.conv1.weight.fill_(1.0)
        out = block.conv1(block.pad(image))
    assert out.shape[-1] == 4 and (out[0, 0] > 0).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_digits_are_padded():
    assert seeded(channels=1)(images(channels=1, side=28)).shape == (4, 10)


def test_only_weights_decay():
    network = seeded()
    decayed, others = decay_groups(network, 4e-4)
    names = {id(p): name for name, p in network.named_parameters()}
    kinds = {type(network.get_submodule(names[id(p)].rpartition(".")[0])) for p in decayed["params"]}
    assert kinds == {nn.Conv2d, nn.Linear} and decayed["weight_decay"] == 4e-4 and others["weight_decay"] == 0
    assert len(decayed["params"]) + len(others["params"]) == len(names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistics": "none"}, "statistics is 'none'; allowed are running, batch, instance"),
        ({"classes": 1}, "classes is 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ThinResNet(**options)
