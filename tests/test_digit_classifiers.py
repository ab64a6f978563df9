"""The classifiers of digits: parameters counted by hand, sizes of the named layers, and a forward pass written out."""

import pytest
import torch
from torch.nn import functional

from deepneighbors.networks import MLP, DeepCNN, LeNet, PooledCNN, activations

# Weights and biases, layer by layer; a batch norm has a scale and a shift a channel.
DEEP = 9 * (1 * 16 + 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 2 * 2 * (16 + 32 + 64) + (64 * 9 * 10 + 10)
POOLED = (9 * 32 + 32) + (9 * 32 * 64 + 64) + (64 * 49 * 128 + 128) + (128 * 10 + 10)
LENET = (25 * 6 + 6) + (25 * 6 * 16 + 16) + (400 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10)
HIDDEN = (784 * 300 + 300) + (300 * 100 + 100) + (100 * 10 + 10)

SIZES = {
    DeepCNN: [(16, 28, 28), (16, 28, 28), (32, 14, 14), (32, 14, 14), (64, 7, 7), (64, 7, 7), (10,)],
    PooledCNN: [(32, 28, 28), (64, 14, 14), (128,), (10,)],
    LeNet: [(6, 28, 28), (16, 10, 10), (120,), (84,), (10,)],
    MLP: [(300,), (100,), (10,)],
}


def seeded(make, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(**options).eval()


def images(count=3):
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("make", "by_hand", "documented"),
    [(DeepCNN, DEEP, "77,786"), (PooledCNN, POOLED, "421,642"), (LeNet, LENET, "61,706"), (MLP, HIDDEN, "266,610")],
)
def test_parameters_are_those_counted_by_hand(make, by_hand, documented):
    count = sum(parameter.numel() for parameter in make().parameters())
    assert count == by_hand == int(documented.replace(",", ""))
    assert f"{documented} parameters" in make.__doc__


@pytest.mark.parametrize("make", SIZES)
def test_layers_come_in_forward_order_and_have_their_sizes(make):
    network = seeded(make)
    found = activations(network, images(), make.layers)
    assert [tuple(part.shape[1:]) for part in found.values()] == SIZES[make]
    torch.testing.assert_close(found[make.layers[-1]], network(images()))


@pytest.mark.parametrize("make", SIZES)
def test_a_layer_does_not_depend_on_which_others_are_asked_for(make):
    network, x = seeded(make), images()
    together = activations(network, x, make.layers)
    for layer in make.layers:
        assert torch.equal(activations(network, x, (layer,))[layer], together[layer])
    for layer in make.layers[:-1]:  # all but the logits come after a ReLU
        assert together[layer].min() == 0 < together[layer].max()


@pytest.mark.parametrize("make", SIZES)
def test_an_image_is_judged_alone_and_as_many_classes_are_told_apart_as_asked(make):
    network, x = seeded(make, classes=4), images()
    alone = torch.cat([network(image[None]) for image in x])
    assert alone.shape == (3, 4)
    torch.testing.assert_close(network(x), alone)


def test_the_deep_network_normalises_before_its_relu_and_pools_after_a_block():
    network, x = seeded(DeepCNN), images()
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(2))
    for block in range(3):
        for place in range(2):
            convolution, norm, _ = getattr(network, f"b{block}c{place}")
            x = functional.conv2d(x, convolution.weight, padding=1)
            x = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
            x = (x * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
        x = functional.max_pool2d(x, 2)
    torch.testing.assert_close(network(images()), functional.linear(x.flatten(1), network.fc.weight, network.fc.bias))
