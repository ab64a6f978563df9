"""What stands for the inverse Hessian in an influence score, as a gain for each eigenvalue of the Hessian."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepneighbors import checks

Gain = Callable[[Tensor], Tensor]
_NULL = 1e-10  # eigenvalues below this share of the largest are zero up to rounding


@dataclass(frozen=True)
class Inverse:
    """``1 / (l + damping)``; directions without curvature or damping are left out, as by a pseudo-inverse."""

    damping: float = 0.0

    def __post_init__(self) -> None:
        checks.at_least("damping", self.damping, 0)

    def __call__(self, eigenvalues: Tensor) -> Tensor:
        damped = eigenvalues + self.damping
        return torch.where(damped > _NULL * eigenvalues.max(), 1 / damped, 0.0)


@dataclass(frozen=True)
class Lissa:
    """The average that a truncated LiSSA recursion converges to when every mini-batch has the same Hessian.

    ``u <- v + (1 - damping) u - H u / scale``, ``depth`` times from ``u = v``, then ``u / scale``: the gain is
    ``(1 - q^(depth + 1)) / (scale damping + l)`` with ``q = 1 - damping - l / scale``. The code of Cohen et al. (2020) has
    scale 200 and damping 0.01, so the limit is ``1 / (l + 2)``, and a depth of 49 for validation but 5 for test images.
    """

    depth: int
    scale: float = 200.0
    damping: float = 0.01

    def __post_init__(self) -> None:
        checks.whole("depth", self.depth, 0)
        checks.positive("scale", self.scale)
        checks.at_least("damping", self.damping, 0)

    def __call__(self, eigenvalues: Tensor) -> Tensor:
        ratio = 1 - self.damping - eigenvalues / self.scale
        # A plain sum and not its closed form, which is 0 / 0 where the ratio is 1.
        total, power = torch.zeros_like(ratio), torch.ones_like(ratio)
        for _ in range(self.depth + 1):
            total, power = total + power, power * ratio
        return total / self.scale


@dataclass(frozen=True)
class Identity:
    """No Hessian: the inner product of two gradients."""

    def __call__(self, eigenvalues: Tensor) -> Tensor:
        return torch.ones_like(eigenvalues)
