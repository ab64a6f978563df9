"""What every attack shares: checked input, batches, and a verdict by the classifier itself on what is returned."""

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.errors import InputError
from deepneighbors.knn import KNNClassifier

log = logging.getLogger(__name__)

NORMS = ("l2", "linf")


def linf_ball(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Lowest and highest image within ``epsilon`` of ``x`` in every pixel, inside [0, 1]."""
    return (x - epsilon).clamp(0, 1), (x + epsilon).clamp(0, 1)


def check_epsilon(norm: str, epsilon: float | None) -> None:
    """Refuse a missing radius for Linf, and a radius where the L2 penalty would ignore it."""
    if norm == "linf":
        if epsilon is None:
            raise InputError("epsilon is None; norm 'linf' needs the radius of the ball, a number above 0")
        checks.positive("epsilon", epsilon)
    elif epsilon is not None:
        raise InputError(f"epsilon is {epsilon!r}; norm 'l2' is a penalty without a ball and takes no epsilon")


def distance(norm: str, x: Tensor, origin: Tensor) -> Tensor:
    """L2 or Linf distance ``(n,)`` between images, in raw pixels."""
    delta = (x - origin).flatten(1)
    return delta.norm(dim=1) if norm == "l2" else delta.abs().amax(1)


@dataclass(frozen=True)
class AttackResult:
    """Images ``(n, ...)`` in [0, 1], whether the classifier mislabels each ``(n,)``, and their distance ``(n,)``.

    Where the attack failed, ``x`` is its last try and ``success`` is False.
    """

    x: Tensor
    success: Tensor
    distance: Tensor


class Best:
    """The nearest verified adversarial image of each sample so far."""

    def __init__(self, origin: Tensor, norm: str):
        self.origin, self.norm = origin, norm
        self.x = origin.clone()
        self.distance = torch.full((len(origin),), float("inf"), device=origin.device)

    def update(self, x: Tensor, adversarial: Tensor) -> None:
        """Keep the candidates that are adversarial and nearer than what is known."""
        candidate = distance(self.norm, x, self.origin)
        better = adversarial & (candidate < self.distance)
        self.x[better] = x[better].detach()
        self.distance[better] = candidate[better]

    @property
    def found(self) -> Tensor:
        """Samples with an adversarial image, ``(n,)``."""
        return self.distance.isfinite()

    def fill(self, last: Tensor) -> Tensor:
        """Best images, and the last try where none was found."""
        return torch.where(self.found.view(-1, *[1] * (last.ndim - 1)), self.x, last.detach())


class Attack(ABC):
    """An untargeted attack on a fitted :class:`KNNClassifier` or :class:`DeepKNN`.

    Call it with the classifier, images ``(n, ...)`` in [0, 1] and their true labels ``(n,)``. Every image that it returns
    is judged again by ``classifier.predict``; ``success`` means exactly that its label is not the true one.
    """

    batch_size: int = 100
    norm: str = "l2"
    allowed_norms: tuple[str, ...] = NORMS

    def __call__(self, classifier: KNNClassifier, x: Tensor, y: Tensor) -> AttackResult:
        self.check(classifier, x, y)
        x, y = x.to(classifier.x_.device), y.to(classifier.x_.device)
        found = []
        for start in range(0, len(x), self.batch_size):
            part = slice(start, start + self.batch_size)
            found.append(self.run(classifier, x[part], y[part]))
            log.info("%s: %d of %d images", type(self).__name__, min(start + self.batch_size, len(x)), len(x))
        adversarial = torch.cat(found)
        success = classifier.predict(adversarial) != y
        return AttackResult(adversarial, success, distance(self.norm, adversarial, x))

    def check(self, classifier: KNNClassifier, x: Tensor, y: Tensor) -> None:
        """Refuse input that would only fail after long work."""
        checks.one_of("norm", self.norm, self.allowed_norms)
        checks.whole("batch_size", self.batch_size, 1)
        classifier.check_ready()
        checks.images("x", x)
        checks.labels("y", y, len(x), classifier.classes_)

    @abstractmethod
    def run(self, classifier: KNNClassifier, x: Tensor, y: Tensor) -> Tensor:
        """Attack one batch; returns images in [0, 1]."""
