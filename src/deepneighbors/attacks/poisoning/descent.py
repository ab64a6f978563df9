"""Projected descent with a line search on a grid: how a poisoning point is moved.

The rules are those of the ``pgd-ls`` solver of secml 0.15 (Melis et al. 2019), written down step by step because the result
of a poisoning run depends on each of them: the objective is piecewise smooth and its inner problem is solved inexactly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Loss = Callable[[np.ndarray], float]
Gradient = Callable[[np.ndarray], np.ndarray]
Path = tuple[np.ndarray, list[float]]

_FLAT = 1e-4  # a trial that changes the loss by less ends the bisection
_MAX_TRIALS = 50
_ON_BOUND = 6  # decimals to which a pixel must agree with a bound to count as lying on it
_NO_GRADIENT = 1e-20


@dataclass(frozen=True)
class Domain:
    """Pixels in [0, 1] and, with ``radius``, an L2 ball around ``origin`` ``(..., d)``; rows are separate images."""

    origin: np.ndarray
    radius: float | None = None

    def contains(self, x: np.ndarray) -> bool:
        """Whether all of ``x`` is feasible (the ball with room for rounding)."""
        if (x < 0).any() or (x > 1).any():
            return False
        return self.radius is None or bool((self._distance(x) <= self.radius * (1 + 1e-9)).all())

    def project(self, x: np.ndarray) -> np.ndarray:
        """A feasible point near ``x``: into the ball, then into the box, which never leaves the ball again."""
        if self.radius is not None:
            x = self.origin + self.radius / np.maximum(self._distance(x), self.radius) * (x - self.origin)
        return np.clip(x, 0, 1)

    def _distance(self, x: np.ndarray) -> np.ndarray:
        return np.linalg.norm(x - self.origin, axis=-1, keepdims=True)


@dataclass(frozen=True)
class Steps:
    """Sizes of the line search: grid ``step``, first trial ``first_step``, and when the descent of a point ends."""

    step: float = 0.25
    first_step: float = 2.0
    max_iter: int = 100
    tolerance: float = 1e-6


def uphill(x: np.ndarray, gradient: np.ndarray, one_pixel: bool) -> np.ndarray | None:
    """Unit direction of each row, without the pixels that a step against it would push out of the box.

    ``one_pixel`` keeps the steepest pixel of each row as its sign, which is the steepest direction in the L1 norm.
    None where no row has a gradient.
    """
    norm = np.linalg.norm(gradient, axis=-1, keepdims=True)
    if (norm < _NO_GRADIENT).all():
        return None
    unit = gradient / np.maximum(norm, _NO_GRADIENT)
    rounded = x.round(_ON_BOUND)
    unit = np.where(((rounded == 0) & (unit > 0)) | ((rounded == 1) & (unit < 0)), 0.0, unit)
    if not one_pixel:
        return unit
    steepest = np.abs(unit).argmax(axis=-1, keepdims=True)
    single = np.zeros_like(unit)
    np.put_along_axis(single, steepest, np.sign(np.take_along_axis(unit, steepest, axis=-1)), axis=-1)
    return single


def descend(loss: Loss, gradient: Gradient, domain: Domain, x: np.ndarray, steps: Steps, one_pixel: bool) -> Path:
    """Minimise ``loss`` from the feasible image ``x`` ``(d,)``.

    Returns
    -------
    The last image ``(d,)`` and the loss at the start and after each iteration.
    """
    values = [loss(x)]
    for _ in range(1, steps.max_iter):
        direction = uphill(x, gradient(x), one_pixel)
        if direction is None:
            break
        target = x - steps.step * direction
        if not domain.contains(target):
            direction = x - domain.project(target)
        x, value = line_search(loss, domain, x, values[-1], -direction, steps)
        values.append(value)
        if abs(values[-1] - values[-2]) < steps.tolerance:
            break
    return x, values


class _Trial(NamedTuple):
    t: int
    loss: float


@dataclass(frozen=True)
class _Ray:
    """Points ``x + t step direction`` at whole numbers t."""

    loss: Loss
    domain: Domain
    x: np.ndarray
    direction: np.ndarray
    step: float

    def point(self, t: float) -> np.ndarray:
        return self.x + t * self.step * self.direction

    def at(self, t: int) -> _Trial:
        return _Trial(t, self.loss(self.point(t)))

    def feasible(self, trial: _Trial) -> bool:
        return self.domain.contains(self.point(trial.t))

    def falls(self, trial: _Trial) -> bool:
        """Whether the loss goes on falling a tenth of a step behind a feasible trial."""
        return self.feasible(trial) and self.loss(self.point(trial.t) + 0.1 * self.step * self.direction) <= trial.loss


def line_search(
    loss: Loss, domain: Domain, x: np.ndarray, start: float, direction: np.ndarray, steps: Steps
) -> tuple[np.ndarray, float]:
    """Minimise ``loss(x + t step direction)`` over whole numbers t: double t while the loss falls, then bisect.

    Returns
    -------
    The best of ``x`` and the two ends of the last interval, and its loss; ``start`` is the loss of ``x``.
    """
    ray = _Ray(loss, domain, x, direction, steps.step)
    first = _first_trial(ray, start, max(round(steps.first_step / steps.step), 1))
    low, high, trials = _double(ray, first)
    low, high = _bisect(ray, low, high, _MAX_TRIALS - trials)
    best = min((end for end in (high, low) if ray.feasible(end)), default=None, key=lambda end: end.loss)
    if best is None or best.loss > start:
        return x, start
    return ray.point(best.t), best.loss


def _first_trial(ray: _Ray, start: float, t: int) -> _Trial:
    trial = ray.at(t)
    while trial.t > 1 and (not ray.feasible(trial) or trial.loss > start):
        trial = ray.at(round(trial.t / 2))
    return trial


def _double(ray: _Ray, high: _Trial) -> tuple[_Trial, _Trial, int]:
    trials = 0
    while True:
        low, high, trials = high, ray.at(2 * high.t), trials + 1
        if trials == _MAX_TRIALS or not ray.falls(high):
            return low, high, trials


def _bisect(ray: _Ray, low: _Trial, high: _Trial, trials: int) -> tuple[_Trial, _Trial]:
    last = high
    for _ in range(trials):
        if high.t - low.t <= 1:
            break
        middle = ray.at((low.t + high.t) // 2)
        low, high = (middle, high) if ray.falls(middle) else (low, middle)
        if ray.feasible(middle) and abs(middle.loss - last.loss) <= _FLAT:
            break
        last = middle
    return low, high


def descend_together(loss: Loss, gradient: Gradient, domain: Domain, x: np.ndarray, steps: Steps, one_pixel: bool) -> Path:
    """Minimise ``loss`` over all rows of ``x`` ``(n, d)`` at once, with one step size for all.

    It starts at the grid's step, doubles after each success up to ``first_step``, and halves until the loss falls.

    Returns
    -------
    The last images ``(n, d)`` and the loss at the start and after each iteration.
    """
    values, step = [loss(x)], steps.step
    for _ in range(1, steps.max_iter):
        direction = uphill(x, gradient(x), one_pixel)
        if direction is None:
            break
        while (value := loss(trial := domain.project(x - step * direction))) >= values[-1]:
            step /= 2
            if step < 0.1 * steps.step:
                return x, values
        x, step = trial, min(2 * step, steps.first_step)
        values.append(value)
        if values[-2] - values[-1] < steps.tolerance:
            break
    return x, values
