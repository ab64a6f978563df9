"""Attacks by sign steps in an Linf ball: the FGSM family, and random signs.

They serve to make examples on one network that are then shown to another. Momentum is that of Dong et al. (2018, MI-FGSM),
input diversity that of Xie et al. (2019, DI).
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepneighbors import checks
from deepneighbors.attacks.base import linf_ball
from deepneighbors.attacks.classifier import predict_labels
from deepneighbors.errors import InputError

log = logging.getLogger(__name__)

Loss = Callable[[Tensor], Tensor]  # images (n, ...) -> one value an image (n,)


def check_network(network: nn.Module) -> None:
    """Refuse what is no torch module, and a network in training mode."""
    if not isinstance(network, nn.Module):
        raise InputError(f"network is a {type(network).__name__}; it must be a torch module that gives logits")
    if network.training:
        raise InputError("network is in training mode, where its answers may be random; call network.eval() first")


def check_fraction(name: str, value: float) -> None:
    """Refuse a number outside [0, 1]."""
    checks.at_least(name, value, 0)
    if value > 1:
        raise InputError(f"{name} is {value!r}; it must be a number from 0 to 1")


def device_of(network: nn.Module, x: Tensor) -> torch.device:
    """Where the network's parameters are; without parameters where ``x`` is."""
    first = next(network.parameters(), None)
    return x.device if first is None else first.device


def ascend(loss: Loss, x: Tensor, start: Tensor, *, epsilon: float, step_size: float, steps: int,
           momentum: float = 0.0) -> Iterator[Tensor]:  # fmt: skip
    """Yield the image batch after each of ``steps`` sign steps up the loss, inside the Linf ball of ``x`` and [0, 1].

    The direction is ``g_t = momentum g_(t-1) + gradient / |gradient|_1``, the norm taken for each image (Dong et al. 2018,
    algorithm 1). Without momentum its sign is that of the gradient.
    """
    low, high = linf_ball(x, epsilon)
    z, direction = start.clamp(low, high), torch.zeros_like(x)
    for _ in range(steps):
        z = z.detach().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(z).sum(), z)
        size = gradient.flatten(1).abs().sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)  # an image may have no slope
        direction = momentum * direction + gradient / size.view(-1, *[1] * (x.ndim - 1))
        z = (z.detach() + step_size * direction.sign()).clamp(low, high)
        yield z


def last(path: Iterator[Tensor]) -> Tensor:
    """The final iterate; those before it are not kept."""
    for z in path:
        final = z
    return final


def sign_noise(x: Tensor, epsilon: float, *, seed: int = 0) -> Tensor:
    """Add ``+epsilon`` or ``-epsilon``, equally likely, to every value and clip: the control of equal Linf size."""
    checks.images("x", x)
    checks.positive("epsilon", epsilon)
    checks.whole("seed", seed, 0)
    signs = 2 * torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(seed)) - 1
    return (x + epsilon * signs.to(x)).clamp(0, 1)


def diverse(x: Tensor, growth: int, generator: torch.Generator) -> Tensor:
    """Shrink the content of images ``(n, C, H, W)`` a little, at a random place on black; differentiable (Xie et al. 2019).

    The batch is enlarged by 0 to ``growth - 1`` pixels, padded at random to ``growth`` more than it had, and resized back;
    bilinear here, where released code takes the nearest pixel.
    """
    height, width = x.shape[-2:]
    added = int(torch.randint(0, growth, (), generator=generator))
    space = growth - added
    top, left = torch.randint(0, space + 1, (2,), generator=generator).tolist()
    larger = _resize(x, height + added, width + added)
    return _resize(functional.pad(larger, (left, space - left, top, space - top)), height, width)


def _resize(x: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


class SignAttack(ABC):
    """Sign steps up a loss that needs the network and the labels; call it with network, images and labels.

    Batches share one stream of random numbers, so an attack that draws any depends on ``batch_size`` as well as on
    ``seed``. The global random state is left as it was.

    Parameters
    ----------
    epsilon
        Radius of the Linf ball, in pixels of [0, 1].
    steps, step_size
        Number and length of the steps; ``epsilon / steps`` where no length is given.
    momentum
        Decay of the accumulated direction; 0 for none, 1 in the published attacks that have it.
    """

    def __init__(self, *, epsilon: float, steps: int = 10, step_size: float | None = None, momentum: float = 0.0,
                 seed: int = 0, batch_size: int = 100):  # fmt: skip
        checks.positive("epsilon", epsilon)
        checks.whole("steps", steps, 1)
        if step_size is not None:
            checks.positive("step_size", step_size)
        checks.at_least("momentum", momentum, 0)
        checks.whole("seed", seed, 0)
        checks.whole("batch_size", batch_size, 1)
        self.epsilon, self.steps, self.momentum = epsilon, steps, momentum
        self.step_size = epsilon / steps if step_size is None else step_size
        self.seed, self.batch_size = seed, batch_size

    def __call__(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Attack images ``(n, ...)`` in [0, 1] away from their labels ``(n,)``.

        Returns
        -------
        Images like ``x``, the last iterate of each.

        Raises
        ------
        InputError
            Images outside [0, 1], labels that the network does not have, a network in training mode, an unknown layer.
        """
        return torch.cat([last(path).to(x.device) for path in self._batches(network, x, y)])

    def path(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The images after each step, ``(steps, n, ...)``; the last are what calling the attack returns."""
        return torch.cat([torch.stack(list(path)).to(x.device) for path in self._batches(network, x, y)], 1)

    def _batches(self, network: nn.Module, x: Tensor, y: Tensor) -> Iterator[Iterator[Tensor]]:
        self.check(network, x, y)
        device, generator = device_of(network, x), torch.Generator().manual_seed(self.seed)
        for start in range(0, len(x), self.batch_size):
            part = slice(start, start + self.batch_size)
            images, labels = x[part].detach().to(device), y[part].to(device)
            yield ascend(
                self.loss(network, images, labels, generator), images, images, epsilon=self.epsilon,
                step_size=self.step_size, steps=self.steps, momentum=self.momentum,
            )  # fmt: skip
            log.info("%s: %d of %d images", type(self).__name__, min(start + self.batch_size, len(x)), len(x))

    def check(self, network: nn.Module, x: Tensor, y: Tensor) -> None:
        """Refuse input that would only fail after long work."""
        check_network(network)
        checks.images("x", x)
        _, classes = predict_labels(network, x[:1], 1, str(device_of(network, x)))
        checks.labels("y", y, len(x), classes)

    @abstractmethod
    def loss(self, network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Loss:
        """What to climb for one batch."""


class IteratedFGSM(SignAttack):
    """Climb the cross-entropy of the label: FGSM, I-FGSM, MI-FGSM and their forms with input diversity.

    ``steps=1`` is FGSM (Goodfellow et al. 2015), more are I-FGSM (Kurakin et al. 2017), ``momentum=1`` makes it MI-FGSM
    (Dong et al. 2018), and ``diversity=0.5`` adds DI (Xie et al. 2019); with both it is MI-DI.

    Parameters
    ----------
    diversity
        Probability of a step on a transformed batch, see :func:`diverse`; 0 for none.
    growth
        Pixels by which :func:`diverse` enlarges; 4 turns 28 x 28 into at most 32 x 32.
    """

    def __init__(self, *, epsilon: float, steps: int = 10, step_size: float | None = None, momentum: float = 0.0,
                 diversity: float = 0.0, growth: int = 4, seed: int = 0, batch_size: int = 100):  # fmt: skip
        super().__init__(
            epsilon=epsilon, steps=steps, step_size=step_size, momentum=momentum, seed=seed, batch_size=batch_size
        )  # fmt: skip
        check_fraction("diversity", diversity)
        checks.whole("growth", growth, 1)
        self.diversity, self.growth = diversity, growth

    def check(self, network: nn.Module, x: Tensor, y: Tensor) -> None:
        """Also refuse to resize what has no height and width."""
        super().check(network, x, y)
        if self.diversity and x.ndim != 4:
            raise InputError(f"x has shape {tuple(x.shape)}; input diversity resizes images of shape (n, C, H, W)")

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Loss:
        """Cross-entropy of ``y``, at times of the transformed batch."""

        def cross_entropy(z: Tensor) -> Tensor:
            if self.diversity and float(torch.rand((), generator=generator)) < self.diversity:
                z = diverse(z, self.growth, generator)
            return functional.cross_entropy(network(z), y, reduction="none")

        return cross_entropy
