"""Minimise ``c * F(x') + |x' - x|^2`` with a search over c for each image: the engine of the 2019 attacks.

The search is that of Carlini & Wagner (2017): a success lowers c halfway, a failure raises it halfway or tenfold.
Two schedules: ``released`` is what Sitawarin & Wagner's code did, the other tests often and never gives up early.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.attacks.base import Best

_ALMOST_ONE = 0.999999  # keeps atanh finite at pixels of exactly 0 and 1, as in the released code


@dataclass(frozen=True)
class Schedule:
    """How long to optimise and when to look.

    Parameters
    ----------
    search_steps, steps
        Values of c tried for each image, and optimiser steps for each.
    check_every
        Optimiser steps between two tests of success, when not ``released``.
    released
        The loss is a mean over the batch, success is tested at 80 %, 90 % and the end only, and the whole batch stops when
        its loss has fallen by less than 0.01 % over a tenth of the steps (before 80 %: with no test at all).
    """

    search_steps: int = 5
    steps: int = 200
    check_every: int = 20
    released: bool = False

    def __post_init__(self) -> None:
        for name in ("search_steps", "steps", "check_every"):
            checks.whole(name, getattr(self, name), 1)

    def tests(self, step: int) -> bool:
        """Whether success is tested after this step (from 0)."""
        if self.released:
            return step in (int(0.8 * self.steps), int(0.9 * self.steps), self.steps - 1)
        return (step + 1) % self.check_every == 0 or step == self.steps - 1

    def looks_for_progress(self, step: int) -> bool:
        """Whether the batch may be given up after this step."""
        return self.released and step % max(1, self.steps // 10) == 0


class Adam:
    """Adam as TensorFlow 1 defines it: epsilon is added to the root before bias correction (Kingma & Ba, section 2)."""

    def __init__(self, variable: Tensor, learning_rate: float):
        self.rate = learning_rate
        self.mean, self.square = torch.zeros_like(variable), torch.zeros_like(variable)
        self.count = 0

    def step(self, variable: Tensor, gradient: Tensor) -> None:
        """One step in place."""
        self.count += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient * gradient, 0.001)
        rate = self.rate * (1 - 0.999**self.count) ** 0.5 / (1 - 0.9**self.count)
        variable.addcdiv_(self.mean, self.square.sqrt().add_(1e-8), value=-rate)


class ConstantSearch:
    """The trade-off constant of each image, between a bound that failed and one that succeeded."""

    def __init__(self, count: int, start: float, *, device: torch.device):
        self.value = torch.full((count,), start, device=device)
        self.low = torch.zeros(count, device=device)
        self.high = torch.full((count,), 1e9, device=device)

    def update(self, success: Tensor) -> None:
        """Halve the interval after a success or a failure; multiply by 10 while nothing has succeeded."""
        self.high = torch.where(success, self.high.minimum(self.value), self.high)
        self.low = torch.where(success, self.low, self.low.maximum(self.value))
        middle = (self.low + self.high) / 2
        self.value = torch.where(self.high < 1e9, middle, self.value * 10)


class TanhBox:
    """Change of variable that keeps an image in ``[low, high]``: ``x' = low + (high - low) (tanh(w0 + w) + 1) / 2``."""

    def __init__(self, x: Tensor, low: Tensor | float = 0.0, high: Tensor | float = 1.0):
        self.low, self.span = low, high - low
        self.origin = torch.atanh((2 * (x - low) / self.span - 1) * _ALMOST_ONE)

    def __call__(self, w: Tensor) -> Tensor:
        return self.low + self.span * (torch.tanh(self.origin + w) + 1) / 2


class ClipBox:
    """An additive change, clipped: ``x' = clip(x + w, 0, 1)``."""

    def __init__(self, x: Tensor):
        self.x = x

    def __call__(self, w: Tensor) -> Tensor:
        return (self.x + w).clamp(0, 1)


Objective = Callable[[Tensor], Tensor]  # image batch (n, ...) -> loss (n,), lower is more adversarial
Predict = Callable[[Tensor], Tensor]


def minimise(
    predict: Predict,
    objective: Objective,
    box: TanhBox | ClipBox,
    x: Tensor,
    y: Tensor,
    *,
    schedule: Schedule,
    learning_rate: float,
    constant: float | None,
    norm: str = "l2",
) -> Tensor:
    """Best image of each sample over the search; without ``constant`` only the objective counts (a ball bounds the box).

    Returns
    -------
    Images like ``x``; the last try where none was adversarial.
    """
    best = Best(x, norm)
    search = ConstantSearch(len(x), constant or 1.0, device=x.device)
    start = image = box(torch.zeros_like(x))
    for _ in range(schedule.search_steps if constant else 1):
        w = torch.zeros_like(x)
        adam, previous = Adam(w, learning_rate), 1e6
        success = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for step in range(schedule.steps):
            w.requires_grad_(True)
            image = box(w)
            loss = objective(image)
            if constant:
                loss = search.value * loss + ((image - start) ** 2).flatten(1).sum(1)
            total = loss.mean() if schedule.released else loss.sum()
            (gradient,) = torch.autograd.grad(total, w)
            w = w.detach()
            adam.step(w, gradient)
            if schedule.tests(step):
                image = box(w)
                adversarial = predict(image) != y
                best.update(image, adversarial)
                success |= adversarial
            if schedule.looks_for_progress(step):
                if float(total.detach()) > 0.9999 * previous:
                    break
                previous = float(total.detach())
        search.update(success)
    return best.fill(image)
