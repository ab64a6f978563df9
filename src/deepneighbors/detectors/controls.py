"""Controls: what any detector has to beat before its own idea can be said to matter.

Two put training images in the place of the helpful and harmful ones of :class:`deepneighbors.detectors.NNIF`, without any
influence. The others are one number an image, made a detector by :class:`SingleFeature`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.detectors.activations import TrainingActivations
from deepneighbors.detectors.base import Detector

_QUERIES = 500  # at a time, each with one number for every training image
_OFF_GRID = 1e-3  # grey levels; single precision keeps 8-bit pixels within 3e-5 of theirs


class _PredictedClass(ABC):
    """Stands in for influence: "helpful" training images have the predicted label, "harmful" ones have another."""

    def __init__(self, training: TrainingActivations):
        self.training = training

    def extremes(self, x: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """Distinct training images ``(n, m)`` with the label predicted for images ``(n, ...)``, and as many with another.

        Raises
        ------
        InputError
            More images than there are with a predicted label, or without it.
        """
        predicted, labels = self.training.logits(x).argmax(1), self.training.labels.to(self.training.images.device)
        checks.whole("m", m, 1, _fewest(predicted, labels))
        parts = []
        for keys, own in zip(self._keys(x), predicted.split(_QUERIES), strict=True):
            same = labels == own[:, None]
            kept = (keys.masked_fill(~same, torch.inf), keys.masked_fill(same, torch.inf))
            parts.append([part.topk(m, dim=1, largest=False).indices for part in kept])
        return torch.cat([helpful for helpful, _ in parts]), torch.cat([harmful for _, harmful in parts])

    @abstractmethod
    def _keys(self, x: Tensor) -> list[Tensor]:
        """For ``_QUERIES`` images at a time a number for each training image, ``(n, N)``; the smallest are taken."""


class RandomOfPredictedClass(_PredictedClass):
    """Random training images of the predicted class, and random ones of the others.

    The draw depends on ``seed`` and on the place of an image in the batch alone.
    """

    def __init__(self, training: TrainingActivations, *, seed: int = 0):
        super().__init__(training)
        checks.whole("seed", seed, 0)
        self.seed = seed

    def _keys(self, x: Tensor) -> list[Tensor]:
        generator, labels = torch.Generator().manual_seed(self.seed), self.training.labels
        return [
            torch.rand(len(part), len(labels), generator=generator).to(self.training.images) for part in x.split(_QUERIES)
        ]


class NearestOfPredictedClass(_PredictedClass):
    """The nearest training images of the predicted class by L2 distance in one layer, and the nearest of the others."""

    def __init__(self, training: TrainingActivations, *, layer: str = "embedding"):
        super().__init__(training)
        training.check_layers((layer,))
        self.layer = layer

    def _keys(self, x: Tensor) -> list[Tensor]:
        database = self.training.pooled[self.layer]
        rows = self.training.query(x, (self.layer,))[self.layer]
        # By differences: a matrix product rounds small distances too coarsely to order them.
        exact = "donot_use_mm_for_euclid_dist"
        return [torch.cdist(part, database, compute_mode=exact) for part in rows.split(_QUERIES)]


def _fewest(predicted: Tensor, labels: Tensor) -> int:
    """The most training images that every query can have with its label, and without."""
    counts = [int((labels == label).sum()) for label in torch.unique(predicted).tolist()]
    return min(min(count, len(labels) - count) for count in counts)


def class_mean_distance(training: TrainingActivations, x: Tensor, *, layer: str = "embedding") -> Tensor:
    """L2 distance ``(n,)`` of images to the mean of the training images of their predicted class, in one layer."""
    training.check_layers((layer,))
    labels, database = training.labels, training.pooled[layer]
    predicted = training.logits(x).argmax(1)
    checks.labels("the predicted labels", predicted, len(x), training.classes)
    means = torch.stack([database[labels == label].mean(0) for label in range(training.classes)])
    return (training.query(x, (layer,))[layer] - means[predicted]).norm(dim=1)


def logit_margin(training: TrainingActivations, x: Tensor) -> Tensor:
    """Largest logit less the second largest, ``(n,)``, at least 0."""
    top = training.logits(x).topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def max_softmax(training: TrainingActivations, x: Tensor) -> Tensor:
    """Probability ``(n,)`` of the predicted label (Hendrycks & Gimpel 2017)."""
    return training.logits(x).softmax(1).amax(1)


def off_grid(x: Tensor) -> Tensor:
    """Share ``(n,)`` of an image's values that are no multiple of 1 / 255; 0 for an image that was stored in 8 bits."""
    checks.images("x", x)
    levels = x.flatten(1).double() * 255
    return ((levels - levels.round()).abs() > _OFF_GRID).double().mean(1)


class SingleFeature(Detector):
    """A detector of one feature, from a function of images ``(n, ...)`` to numbers ``(n,)``.

    Its ROC-AUC is that of the number itself, or of its negative: logistic regression can only choose the sign.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]):
        self.function = function

    def features(self, x: Tensor, *, reference: Tensor | None = None) -> np.ndarray:
        """The function's numbers, ``(n, 1)``."""
        return self.function(x).double().cpu().numpy()[:, None]
