"""The Jacobian-based saliency map attack (Papernot et al. 2016): two features a step, exact in linear time."""

from collections.abc import Callable

import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.errors import InputError


def best_pair(gradient: Tensor, domain: Tensor) -> tuple[Tensor, Tensor]:
    """The pair of features that the saliency map ranks first, without a map over pairs.

    For a pair p < q of the search domain let ``a`` be the sum of the two gradients of the target's probability, and ``b``
    the sum of the two gradients of all other probabilities together. A pair is admissible if a > 0 and b < 0; the rule
    takes the admissible pair with the largest -a b.

    Probabilities sum to 1, so the gradient of all others together is minus that of the target, and b = -a for every pair.
    A pair is thus admissible exactly if a > 0, and its score is a squared, which grows with a there. So the best pair has
    the largest a of all pairs: the two largest target gradients. If their sum is not positive, no pair is admissible.
    The search takes O(D) instead of the O(D^2) of the pair matrix.

    Of equal scores the lowest (p, q) counts. If several features share the largest gradient, the best pairs are those
    among them; if only one has it, it pairs with every feature that shares the second largest. Either way the lowest index
    at the first place, then the lowest remaining at the second, is the lowest pair.

    Parameters
    ----------
    gradient
        Gradient ``(n, D)`` of the target's probability.
    domain
        Features ``(n, D)`` that may still change.

    Returns
    -------
    Indices ``(n, 2)``, p before q, and whether the pair is admissible ``(n,)``; of fewer than two features none is.
    """
    inside = gradient.masked_fill(~domain, -float("inf"))
    first = inside.argmax(1, keepdim=True)  # argmax is the first of equal values
    rest = inside.scatter(1, first, -float("inf"))
    second = rest.argmax(1, keepdim=True)
    total = inside.gather(1, first) + rest.gather(1, second)
    return torch.cat([first, second], 1).sort(1).values, total.squeeze(1) > 0


class JSMA:
    """Raise the two most salient features of each image, again and again, until the network answers the target.

    A feature is one channel value. Each step adds ``theta`` to the best pair (see :func:`best_pair`), at most up to 1, and
    takes both out of the search. An image is left alone once its label is the target, and once no pair is admissible. The
    gradients are those of softmax probabilities, as in cleverhans 3.0.1; its later releases take those of the logits.

    Two differences from cleverhans 3.0.1, otherwise the same rule. Where no pair is admissible, its arg-max over zeros
    falls on the first feature, which it then changes; here nothing is changed. And it sums the other classes' gradients
    one by one and multiplies in single precision, so pairs that agree to about seven digits may come out in another order.

    Images are worked on one by one, and those that are done leave the batch: the network's answer for an image must not
    depend on the others (no batch norm with statistics of the batch).

    Parameters
    ----------
    theta
        Added to a feature, in (0, 1]; 1 saturates it in one step.
    gamma
        Share of the features that may change, in (0, 1]; at most ``floor(D gamma / 2)`` steps.
    """

    def __init__(self, *, theta: float = 1.0, gamma: float = 0.1):
        for name, value in {"theta": theta, "gamma": gamma}.items():
            checks.positive(name, value)
            if value > 1:
                raise InputError(f"{name} is {value!r}; it must be a number above 0 and at most 1")
        self.theta, self.gamma = theta, gamma

    def steps(self, features: int) -> int:
        """Most steps for images of so many features; two features change in each."""
        return int(features * self.gamma / 2)

    def __call__(self, network: Callable[[Tensor], Tensor], x: Tensor, targets: Tensor) -> Tensor:
        """Attack one batch.

        Parameters
        ----------
        network
            Gives logits ``(n, K)`` for images; any callable that torch can differentiate.
        x
            Images ``(n, ...)`` in [0, 1].
        targets
            Wanted labels ``(n,)``.

        Returns
        -------
        Images like ``x`` in [0, 1]; where the target was not reached, the last iterate.

        Raises
        ------
        InputError
            Images outside [0, 1], or targets that do not fit them.
        """
        checks.images("x", x)
        checks.labels("targets", targets, len(x))
        image = x.detach().flatten(1).clone()
        domain = image < 1
        active = torch.arange(len(x), device=x.device)
        for _ in range(self.steps(image.shape[1])):
            current = image[active].view(-1, *x.shape[1:])
            reached, gradient = _target_gradient(network, current, targets[active])
            pair, admissible = best_pair(gradient, domain[active])
            goes_on = admissible & ~reached
            active, pair = active[goes_on], pair[goes_on]
            if len(active) == 0:
                break
            rows = active[:, None]
            image[rows, pair] = (image[rows, pair] + self.theta).clamp(max=1)
            domain[rows, pair] = False
        return image.view_as(x)


def _target_gradient(network: Callable[[Tensor], Tensor], x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each label is the target ``(n,)``, and the gradient ``(n, D)`` of the target's probability."""
    with torch.enable_grad():
        x = x.requires_grad_(True)
        logits = network(x)
        checks.labels("targets", targets, len(x), logits.shape[1])
        probability = logits.softmax(1).gather(1, targets[:, None])
        (gradient,) = torch.autograd.grad(probability.sum(), x)
    return logits.argmax(1) == targets, gradient.flatten(1)
