"""Poisoning of a two-class learner: images with a wrong label, optimised to raise the validation loss after training."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.attacks.poisoning.descent import Domain, Steps, descend, descend_together
from deepneighbors.attacks.poisoning.learners import Learner, LinearSVM, LogisticRegression
from deepneighbors.attacks.poisoning.sets import check_sets, labels, rows, signs

NORMS = ("l1", "l2")
ORDERS = ("sequential", "together")

_NOISE = 1e-3  # two equal rows of the Gram matrix would make the equations of the gradient singular


@dataclass(frozen=True)
class Evaluation:
    """What one training set leads to: mean validation loss, and accuracy (0 to 1) on the validation and the test images."""

    loss: float
    val_accuracy: float
    test_accuracy: float | None


@dataclass(frozen=True)
class PoisoningResult:
    """Poisoning points, and the learner on the clean set and with them added.

    Attributes
    ----------
    x, y
        Images ``(count, ...)`` float32 in [0, 1] and their wrong labels ``(count,)``.
    indices
        Training images from which the points started, ``(count,)``.
    start
        The points before any optimisation, like ``x``: training images with noise, clipped to [0, 1].
    clean, flipped, poisoned
        The learner on the training set alone; with the points as drawn added (the control: wrong labels only; their noise
        is not yet clipped, as in secml); and with ``x`` added, in double precision.
    history
        Validation loss at the start and after each iteration of each descent, in the order in which the points moved.
    fits
        How often the learner was trained to find the points.
    """

    x: Tensor
    y: Tensor
    indices: Tensor
    start: Tensor
    clean: Evaluation
    flipped: Evaluation
    poisoned: Evaluation
    history: Tensor
    fits: int


@dataclass(frozen=True, kw_only=True)
class Poisoning(ABC):
    """Bilevel gradient poisoning (Biggio, Nelson & Laskov 2012; Demontis et al. 2019).

    The points start as training images with the label of the other class and noise of 0.001, and follow the gradient
    through the retrained learner. Defaults are those of secml's tutorial on MNIST (Melis et al. 2019).

    Parameters
    ----------
    C
        Weight of the training loss against half the squared norm of w.
    norm
        ``l1`` moves the steepest pixel in each step, ``l2`` all of them.
    radius
        Largest L2 distance of a point from its start; None for no limit but the box, as in secml.
    order
        ``sequential``: one sweep from the last point to the first, the others fixed; ``together``: all in each step.
    step, first_step
        Grid of the line search and its first trial: change of the pixel for ``l1``, L2 length for ``l2``. With
        ``together``, the first and the largest step.
    max_iter, tolerance
        Each descent visits ``max_iter`` points at most, its start included, and ends when the loss gains less than
        ``tolerance``.
    seed
        Draws the start images and their noise.
    """

    C: float = 10.0
    norm: str = "l1"
    radius: float | None = None
    order: str = "sequential"
    step: float = 0.25
    first_step: float = 2.0
    max_iter: int = 100
    tolerance: float = 1e-6
    seed: int = 999

    def __post_init__(self) -> None:
        checks.one_of("norm", self.norm, NORMS)
        checks.one_of("order", self.order, ORDERS)
        for name in ("C", "step", "first_step", "tolerance"):
            checks.positive(name, getattr(self, name))
        if self.radius is not None:
            checks.positive("radius", self.radius)
        checks.whole("max_iter", self.max_iter, 1)
        checks.whole("seed", self.seed, 0, 2**32 - 1)

    @abstractmethod
    def learner(self, x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray) -> Learner:
        """The victim on a training set, float64 rows and labels -1 and +1."""

    def __call__(
        self,
        x_train: Tensor,
        y_train: Tensor,
        x_val: Tensor,
        y_val: Tensor,
        *,
        count: int = 15,
        x_test: Tensor | None = None,
        y_test: Tensor | None = None,
    ) -> PoisoningResult:
        """Make ``count`` poisoning points for the training images ``(n, ...)`` of two labels.

        The validation images steer the attack; the test images, where given, are only judged.

        Raises
        ------
        InputError
            Images outside [0, 1], other than two labels in training, labels elsewhere that training does not have, or
            more points than training images.
        """
        classes = check_sets(x_train, y_train, x_val, y_val, x_test, y_test)
        checks.whole("count", count, 1, len(x_train))
        x, y = rows(x_train), signs(y_train, classes)
        val = rows(x_val), signs(y_val, classes)
        test = None if x_test is None or y_test is None else (rows(x_test), signs(y_test, classes))
        indices, start = self.start(x, count)
        wrong = -y[indices]

        def train(points: np.ndarray) -> Learner:
            return self.learner(np.vstack([x, points]), np.append(y, wrong[: len(points)]), *val)

        def evaluate(points: np.ndarray) -> Evaluation:
            learner = train(points)
            return Evaluation(learner.loss(), learner.accuracy(*val), None if test is None else learner.accuracy(*test))

        def images(points: np.ndarray) -> Tensor:
            return torch.from_numpy(points).float().view(count, *x_train.shape[1:])

        victim = train(start)
        history = self.optimise(victim, count)
        points = victim.x[len(x) :]
        return PoisoningResult(
            x=images(points),
            y=labels(wrong, classes),
            indices=torch.from_numpy(indices),
            start=images(start.clip(0, 1)),
            clean=evaluate(start[:0]),
            flipped=evaluate(start),
            poisoned=evaluate(points),
            history=torch.tensor(history, dtype=torch.float64),
            fits=victim.fits,
        )

    def start(self, x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Training images drawn without replacement ``(count,)``, and the points there with noise, not yet clipped.

        Both draws use the same seed in numpy's legacy generator: that is what secml does, and its figures depend on it.
        """
        indices = np.random.RandomState(self.seed).choice(len(x), count, replace=False)
        noise = np.random.RandomState(self.seed).random_sample((count, x.shape[1]))
        return indices, x[indices] + _NOISE * (2 * noise - 1)

    def optimise(self, learner: Learner, count: int) -> list[float]:
        """Move the last ``count`` points of the learner; returns the validation loss along the way."""
        points = np.arange(len(learner.x) - count, len(learner.x))
        if self.order == "together":
            return self._move(learner, points)
        return [value for index in points[::-1] for value in self._move(learner, np.array([index]))]

    def _move(self, learner: Learner, points: np.ndarray) -> list[float]:
        """Descend in these points, all at once where they are several."""

        def place(x: np.ndarray) -> None:
            for index, row in zip(points, x.reshape(len(points), -1), strict=True):
                learner.move(index, row)

        def loss(x: np.ndarray) -> float:
            place(x)
            return -learner.loss()

        def gradient(x: np.ndarray) -> np.ndarray:
            place(x)
            return -learner.gradient(points).reshape(x.shape)

        together = self.order == "together"
        start = (learner.x[points] if together else learner.x[points[0]]).clip(0, 1)
        steps = Steps(self.step, self.first_step, self.max_iter, self.tolerance)
        method = descend_together if together else descend
        x, values = method(loss, gradient, Domain(start, self.radius), start, steps, self.norm == "l1")
        place(x)
        return [-value for value in values]


@dataclass(frozen=True, kw_only=True)
class SVMPoisoning(Poisoning):
    """Poisoning of a linear soft-margin SVM; the objective is the mean hinge loss on the validation images.

    ``exact`` counts the term of the gradient that secml leaves out for a point on the margin; without it, the published
    figures of secml's tutorial come out.
    """

    exact: bool = False

    def learner(self, x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray) -> Learner:
        return LinearSVM(x, y, x_val, y_val, C=self.C, exact=self.exact)


@dataclass(frozen=True, kw_only=True)
class LogisticPoisoning(Poisoning):
    """Poisoning of logistic regression; the objective is the mean log loss on the validation images."""

    def learner(self, x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray) -> Learner:
        return LogisticRegression(x, y, x_val, y_val, C=self.C)
