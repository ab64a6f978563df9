"""The filtered network against the plain one, in double precision, and its matrices against the sum that they compute."""

from fractions import Fraction

import pytest
import torch
from torch.nn.functional import cross_entropy

from deepneighbors.errors import InputError
from deepneighbors.networks import FilteredMnistCNN, MnistCNN, activations
from deepneighbors.networks.minimal_filtering import filter_matrices


def _product(matrix, vector):
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


@pytest.mark.parametrize(("outputs", "taps"), [(2, 3), (5, 3), (4, 5), (1, 1)])
def test_the_matrices_compute_the_correlation_exactly(outputs, taps):
    points = [Fraction(0), Fraction(1), Fraction(-1), Fraction(2), Fraction(-2), Fraction(1, 2), Fraction(-3)]
    a, g, b = filter_matrices(outputs, taps, points[: outputs + taps - 2])
    signal = [Fraction(7 * i * i - 3 * i + 1, 5) for i in range(outputs + taps - 1)]
    kernel = [Fraction(2 - 3 * j, j + 1) for j in range(taps)]
    found = _product(a, [x * y for x, y in zip(_product(g, kernel), _product(b, signal), strict=True)])
    assert found == [sum(kernel[j] * signal[i + j] for j in range(taps)) for i in range(outputs)]


@pytest.mark.parametrize("points", [(0, 1, 1, 2), (0, 1, 2), (0, 1, 2, 3, 4), (0, 1, 1, 2, 3)])
def test_points_that_are_equal_or_too_many_or_few_are_refused(points):
    with pytest.raises(InputError, match="4 different ones are needed"):
        filter_matrices(3, 3, points)


@pytest.mark.parametrize("shape", [(3, 3, 28, 28), (3, 1, 40, 40), (1, 1, 27, 27), (3, 28, 28)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(InputError, match=r"images of shape \(n, 1, 28, 28\) are needed"):
        FilteredMnistCNN()(torch.rand(shape))
    assert FilteredMnistCNN()(torch.rand(0, 1, 28, 28)).shape == (0, 10)


def _pair(dtype):
    """Both forms with the same parameters, biases among them, and images with labels."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # of the matrices too, which no later cast makes more exact
    try:
        plain, fast = MnistCNN(conv2_padding=0), FilteredMnistCNN()
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator().manual_seed(0)
    for parameter in plain.parameters():
        parameter.data = (torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5).to(dtype)
    fast.load_state_dict(plain.state_dict())
    return plain, fast, torch.rand(9, 1, 28, 28, generator=generator).to(dtype), torch.arange(9)


def _answers(network, x, y):
    """Logits, and gradients with respect to the images and all parameters."""
    x = x.clone().requires_grad_(True)
    logits = network(x)
    return [logits.detach(), *torch.autograd.grad(cross_entropy(logits, y), [x, *network.parameters()])]


def _errors(found, wanted):
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]


def test_logits_and_all_gradients_are_those_of_the_plain_network():
    plain, fast, x, y = _pair(torch.float64)
    assert max(_errors(_answers(fast, x, y), _answers(plain, x, y))) < 1e-11


def test_single_precision_loses_little_more_than_a_plain_convolution():
    plain, fast, x, y = _pair(torch.float32)
    exact, _, x64, _ = _pair(torch.float64)
    wanted = _answers(exact, x64, y)
    usual, ours = (_errors(_answers(network, x, y), wanted) for network in (plain, fast))
    assert all(a < 6 * b + 1e-7 for a, b in zip(ours, usual, strict=True)) and max(ours) < 1e-5


def test_parameters_are_interchangeable_and_start_alike():
    torch.manual_seed(3)
    plain = MnistCNN(conv2_padding=0)
    torch.manual_seed(3)
    fast = FilteredMnistCNN()
    assert list(fast.state_dict()) == list(plain.state_dict())  # the matrices are no part of it
    assert all(torch.equal(a, b) for a, b in zip(fast.parameters(), plain.parameters(), strict=True))


def test_named_activations_are_refused_in_a_sentence():
    with pytest.raises(InputError, match="'relu1' is never called"):
        activations(FilteredMnistCNN(), torch.rand(2, 1, 28, 28), ("relu1",))
