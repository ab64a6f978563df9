"""Attacks on the features of a layer that speak for the label: FIA (Wang et al. 2021) and NAA (Zhang et al. 2022).

Like the FGSM family they make examples on one network that are then shown to another.
"""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from deepneighbors import checks
from deepneighbors.attacks.iterated import Loss, SignAttack, check_fraction, device_of
from deepneighbors.networks import activations


def layer_gradient(network: nn.Module, x: Tensor, y: Tensor, layer: str, *, probability: bool) -> Tensor:
    """Gradient ``(n, D)`` of the logit of ``y``, or of its softmax probability, with respect to the layer's output."""
    inner: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor | None:
        if inner:
            return None  # a module called again: its first output is the layer, as in activations
        inner.append(output.detach().requires_grad_(True))
        return inner[0].clone()  # so that a later module may work in place

    handle = dict(network.named_modules())[layer].register_forward_hook(cut)
    try:
        with torch.enable_grad():
            outputs = network(x).softmax(1) if probability else network(x)
            (gradient,) = torch.autograd.grad(outputs.gather(1, y[:, None]).sum(), inner[0])
    finally:
        handle.remove()
    return gradient.flatten(1)


class _FeatureAttack(SignAttack):
    """Push down the features of one layer that speak for the label, each weighted by what it does for that label.

    Weights are means over ``samples`` altered images; their scale has no effect on a sign step, so none is normalised.

    Parameters
    ----------
    layer
        Name of a module of the network.
    samples
        Altered images that the weights are averaged over; 30 in the released code.
    """

    probability: bool

    def __init__(self, layer: str, *, epsilon: float, samples: int = 30, steps: int = 10, step_size: float | None = None,
                 momentum: float = 1.0, seed: int = 0, batch_size: int = 100):  # fmt: skip
        super().__init__(
            epsilon=epsilon, steps=steps, step_size=step_size, momentum=momentum, seed=seed, batch_size=batch_size
        )  # fmt: skip
        checks.whole("samples", samples, 1)
        self.layer, self.samples = layer, samples

    def check(self, network: nn.Module, x: Tensor, y: Tensor) -> None:
        """Also refuse a layer that the network does not have, or does not call."""
        super().check(network, x, y)
        with torch.no_grad():
            self.features(network, x[:1].to(device_of(network, x)))

    def features(self, network: nn.Module, x: Tensor) -> Tensor:
        """Rows ``(n, D)`` of the layer."""
        return activations(network, x, (self.layer,))[self.layer].flatten(1)

    def weights(self, network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Mean gradient ``(n, D)`` over the altered images."""
        total = torch.zeros((), device=x.device)
        for image in self.altered(x, generator):
            total = total + layer_gradient(network, image, y, self.layer, probability=self.probability)
        return total / self.samples

    @abstractmethod
    def altered(self, x: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """Batches like ``x``, ``samples`` of them."""


class FIA(_FeatureAttack):
    """Feature importance-aware attack (Wang et al. 2021): weights are gradients of the logit at randomly masked images.

    Parameters
    ----------
    keep
        Probability that a value survives the mask.
    """

    probability = False

    def __init__(self, layer: str, *, epsilon: float, keep: float = 0.7, **settings: int | float | None):
        super().__init__(layer, epsilon=epsilon, **settings)  # type: ignore[arg-type]
        check_fraction("keep", keep)
        self.keep = keep

    def altered(self, x: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """Images with values set to 0 at random."""
        for _ in range(self.samples):
            yield x * (torch.rand(x.shape, generator=generator) < self.keep).to(x)

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Loss:
        """Minus the weighted sum of the features."""
        weights = self.weights(network, x, y, generator)
        return lambda z: -(weights * self.features(network, z)).sum(1)


class NAA(_FeatureAttack):
    """Neuron attribution-based attack (Zhang et al. 2022): the label's probability, attributed to the features.

    The attribution of feature j is ``(F_j(z) - F_j(0)) w_j``, where w_j is the mean gradient of the probability on the
    straight way from the noisy image to black (integrated gradients).

    Parameters
    ----------
    negative
        gamma, weight of the features with negative attribution, which is driven further down.
    noise
        Standard deviation of the noise on the image; 0.2 in the released code, whose pixels lie in [-1, 1].
    """

    probability = True

    def __init__(self, layer: str, *, epsilon: float, negative: float = 1.0, noise: float = 0.2,
                 **settings: int | float | None):  # fmt: skip
        super().__init__(layer, epsilon=epsilon, **settings)  # type: ignore[arg-type]
        checks.at_least("negative", negative, 0)
        checks.at_least("noise", noise, 0)
        self.negative, self.noise = negative, noise

    def altered(self, x: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """Points on the way from the image to black, each with noise of its own."""
        for step in range(self.samples):
            noise = self.noise * torch.randn(x.shape, generator=generator).to(x)
            yield (x + noise) * (1 - step / self.samples)

    def attribution(self, network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Loss:
        """Function of images that gives the attribution ``(n, D)`` of each feature, with the weights of ``x``."""
        weights = self.weights(network, x, y, generator)
        with torch.no_grad():
            black = self.features(network, torch.zeros_like(x[:1]))
        return lambda z: (self.features(network, z) - black) * weights

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Loss:
        """Minus the attribution of all features, the negative ones times gamma."""
        attribution = self.attribution(network, x, y, generator)

        def weighted(z: Tensor) -> Tensor:
            parts = attribution(z)
            return -(parts.clamp(min=0) + self.negative * parts.clamp(max=0)).sum(1)

        return weighted
