"""The Intermediate Level Attack (Huang et al. 2019): go on from an adversarial example along the features of one layer.

A guide, usually a finished adversarial example x', fixes a direction in the layer: ``F(x') - F(x)``. The attack then looks
for an image whose features have moved far along it, whatever the network answers. Li, Guo & Chen (2020, ILA++) take the
direction from all steps of the first attack: see :func:`regression_guide`.
"""

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepneighbors import checks
from deepneighbors.attacks.base import linf_ball
from deepneighbors.attacks.iterated import ascend, check_network, device_of, last
from deepneighbors.errors import InputError
from deepneighbors.networks import activations

log = logging.getLogger(__name__)

STARTS = ("clean", "guide")


@dataclass(frozen=True)
class ILAResult:
    """What the attack made.

    Attributes
    ----------
    x
        Images ``(n, ...)`` in [0, 1] and in the Linf ball.
    projection
        How far the features have moved along the guide after each step, ``(n, steps)``, in units of the features:
        ``(F(z) - F(x)) . u`` with the guide's unit vector u.
    guide_norm
        The same of the guide itself, its length ``(n,)``. An image whose guide has length 0 stays as it was at the start.
    """

    x: Tensor
    projection: Tensor
    guide_norm: Tensor


class ILA(ABC):
    """Sign steps up an objective of the change in one layer; call it with a network, images and one kind of guide.

    Everything is per image: lengths and products are never taken over a batch, as they are in the released code.

    Parameters
    ----------
    layer
        Name of a module of the network.
    epsilon
        Radius of the Linf ball, in pixels of [0, 1].
    steps, step_size
        Number and length of the steps; ``epsilon / steps`` where no length is given.
    start
        ``clean`` starts at the image, as the released code does, ``guide`` at the guide, moved into the ball.
    """

    def __init__(self, layer: str, *, epsilon: float, steps: int = 10, step_size: float | None = None,
                 start: str = "clean", batch_size: int = 100):  # fmt: skip
        checks.positive("epsilon", epsilon)
        checks.whole("steps", steps, 1)
        if step_size is not None:
            checks.positive("step_size", step_size)
        checks.one_of("start", start, STARTS)
        checks.whole("batch_size", batch_size, 1)
        self.layer, self.epsilon, self.steps, self.start, self.batch_size = layer, epsilon, steps, start, batch_size
        self.step_size = epsilon / steps if step_size is None else step_size

    def __call__(self, network: nn.Module, x: Tensor, *, guide: Tensor | None = None, delta: Tensor | None = None,
                 direction: Tensor | None = None) -> ILAResult:  # fmt: skip
        """Attack images ``(n, ...)`` in [0, 1] along one of three kinds of guide.

        Parameters
        ----------
        network
            In evaluation mode; it needs no labels.
        guide
            Adversarial images like ``x``, in [0, 1], from any attack and of any size.
        delta
            A change of ``x``, for example noise: the guide is ``x + delta``, which may leave [0, 1].
        direction
            Rows ``(n, D)`` in the layer itself, for example of :func:`regression_guide`; only with ``start="clean"``.

        Raises
        ------
        InputError
            No guide or two, one that does not fit, images outside [0, 1], an unknown layer, a network in training mode.
        """
        kind, given = self._check(network, x, {"guide": guide, "delta": delta, "direction": direction})
        parts, device = [], device_of(network, x)
        for first in range(0, len(x), self.batch_size):
            part = slice(first, first + self.batch_size)
            parts.append(self._run(network, x[part].detach().to(device), given[part].detach().to(device), kind))
            log.info("%s: %d of %d images", type(self).__name__, min(first + self.batch_size, len(x)), len(x))
        return ILAResult(*(torch.cat(values).to(x.device) for values in zip(*parts, strict=True)))

    def _check(self, network: nn.Module, x: Tensor, given: dict[str, Tensor | None]) -> tuple[str, Tensor]:
        check_network(network)
        checks.images("x", x)
        kinds = {kind: value for kind, value in given.items() if value is not None}
        if len(kinds) != 1:
            raise InputError(f"{' and '.join(kinds) or 'no guide'} given; give exactly one of guide, delta and direction")
        ((kind, value),) = kinds.items()
        (checks.images if kind == "guide" else checks.points)(kind, value)
        shape = tuple(x.shape)
        with torch.no_grad():
            row = self._features(network, x[:1].to(device_of(network, x)))
        if kind == "direction":
            shape = (len(x), row.shape[1])
            if self.start == "guide":
                raise InputError("start is 'guide', but a direction in a layer is no image; use 'clean', or give a guide")
        if tuple(value.shape) != shape:
            raise InputError(f"{kind} has shape {tuple(value.shape)}; it must be {shape}")
        return kind, value

    def _features(self, network: nn.Module, x: Tensor) -> Tensor:
        return activations(network, x, (self.layer,))[self.layer].flatten(1)

    def _run(self, network: nn.Module, x: Tensor, given: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
        """One batch: images, projections and the length of the guide."""
        reference = x + given if kind == "delta" else given
        with torch.no_grad():
            clean = self._features(network, x)
            aim = given if kind == "direction" else self._features(network, reference) - clean
        size = aim.norm(dim=1)
        unit = aim / _nonzero(size)[:, None]
        seen: list[Tensor] = []

        def loss(z: Tensor) -> Tensor:
            change = self._features(network, z) - clean
            seen.append((change * unit).sum(1).detach())
            return self.objective(change, unit, size)

        start = reference.clamp(*linf_ball(x, self.epsilon)) if self.start == "guide" else x
        z = last(ascend(loss, x, start, epsilon=self.epsilon, step_size=self.step_size, steps=self.steps))
        with torch.no_grad():
            loss(z)
        return z, torch.stack(seen[1:], 1), size

    @abstractmethod
    def objective(self, change: Tensor, unit: Tensor, size: Tensor) -> Tensor:
        """What to climb ``(n,)``, from the change of the features ``(n, D)``, the guide's unit vector and its length."""


class ILAP(ILA):
    """Projection loss: the product of the change with the guide (Huang et al. 2019)."""

    def objective(self, change: Tensor, unit: Tensor, size: Tensor) -> Tensor:
        """The length of the guide is left out, since sign steps do not see it."""
        return (change * unit).sum(1)


class ILAF(ILA):
    """Flexible loss: ``weight |change| / |guide| + cos(change, guide)``, length against direction (Huang et al. 2019).

    Where nothing has changed yet, at a clean start, neither term has a slope; there the step is that of :class:`ILAP`.

    Parameters
    ----------
    weight
        alpha, of the length; the released code takes 5 for CIFAR-10 and 0.8 for ImageNet.
    """

    def __init__(self, layer: str, *, epsilon: float, weight: float = 5.0, steps: int = 10,
                 step_size: float | None = None, start: str = "clean", batch_size: int = 100):  # fmt: skip
        super().__init__(
            layer, epsilon=epsilon, steps=steps, step_size=step_size, start=start, batch_size=batch_size
        )  # fmt: skip
        checks.positive("weight", weight)
        self.weight = weight

    def objective(self, change: Tensor, unit: Tensor, size: Tensor) -> Tensor:
        """Zero where the guide has no length."""
        length = change.norm(dim=1)  # torch gives it slope 0 at 0
        value = self.weight * length / _nonzero(size) + (change * unit).sum(1) / _nonzero(length)
        return torch.where(size > 0, value, 0.0)


def _nonzero(length: Tensor) -> Tensor:
    """Lengths to divide by, 1 in place of 0."""
    return torch.where(length > 0, length, 1.0)


def regression_guide(network: nn.Module, layer: str, x: Tensor, y: Tensor, path: Tensor, *, ridge: float | None = None,
                     batch_size: int = 100) -> Tensor:  # fmt: skip
    """The direction in a layer that best predicts the loss on the way of a first attack (Li, Guo & Chen 2020, ILA++).

    Step t of the attack changes the features by the unit vector h_t and has cross-entropy r_t. The direction is the mean
    of r_t h_t, or with ``ridge`` the solution w of the regression ``(H'H + ridge I) w = H'r``.

    Parameters
    ----------
    x, y
        Clean images ``(n, ...)`` in [0, 1] and their labels ``(n,)``.
    path
        Images of each step, ``(T, n, ...)``; see :meth:`SignAttack.path`.
    ridge
        None for the mean, the limit of a large ridge and the default of the released code.

    Returns
    -------
    Rows ``(n, D)``, for ``ILAP(...)(network, x, direction=rows)``; of any length.
    """
    check_network(network)
    checks.images("x", x)
    checks.labels("y", y, len(x))
    checks.images("path", path)
    if path.shape[1:] != x.shape:
        raise InputError(f"path has shape {tuple(path.shape)}; it must be (T, *{tuple(x.shape)})")
    if ridge is not None:
        checks.positive("ridge", ridge)
    checks.whole("batch_size", batch_size, 1)
    rows, device = [], device_of(network, x)
    with torch.no_grad():
        for first in range(0, len(x), batch_size):
            part = slice(first, first + batch_size)
            clean = activations(network, x[part].to(device), (layer,))[layer].flatten(1)
            moves, losses = [], []
            for z in path[:, part].to(device):
                moves.append(functional.normalize(activations(network, z, (layer,))[layer].flatten(1) - clean))
                losses.append(functional.cross_entropy(network(z), y[part].to(device), reduction="none"))
            rows.append(_regress(torch.stack(moves, 1), torch.stack(losses, 1), ridge).to(x.device))
    return torch.cat(rows)


def _regress(moves: Tensor, losses: Tensor, ridge: float | None) -> Tensor:
    """Weights ``(n, D)`` of steps ``(n, T, D)`` with losses ``(n, T)``, by a system of size T."""
    if ridge is None:
        return (losses[:, :, None] * moves).mean(1)
    gram = moves @ moves.transpose(1, 2) + ridge * torch.eye(moves.shape[1], device=moves.device)
    return (moves.transpose(1, 2) @ torch.linalg.solve(gram, losses[:, :, None])).squeeze(2)
