"""The mean attack: walk from the image towards the nearest other class mean, and bisect."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from deepneighbors import checks
from deepneighbors.attacks.base import NORMS, Attack
from deepneighbors.knn import KNNClassifier

MEANS = ("raw", "unit")
ORACLES = ("predict", "votes")


class MeanAttack(Attack):
    """Bisection on ``x + l (mean - x)``, l in [0, 1] (Sitawarin & Wagner 2019).

    Parameters
    ----------
    steps
        Halvings; 5 in the paper. The farthest point tried is ``l = 1 - 2^-steps``.
    means
        ``raw`` class means, or ``unit``: the normalised mean of normalised images, of norm 1. Walking from a raw image
        (norm about 9) to a unit mean never leaves the image's own direction far enough: see the chapter.
    oracle
        What the bisection asks: ``predict``, the classifier's label, or ``votes``, the label with most votes. They differ
        for DkNN where two p-values are equal; the released code asked one and reported the other.
    """

    def __init__(self, *, steps: int = 5, means: str = "raw", oracle: str = "predict", norm: str = "l2",
                 batch_size: int = 500):  # fmt: skip
        checks.whole("steps", steps, 1)
        checks.one_of("means", means, MEANS)
        checks.one_of("oracle", oracle, ORACLES)
        checks.one_of("norm", norm, NORMS)
        self.steps, self.means, self.oracle, self.norm, self.batch_size = (
            steps,
            means,
            oracle,
            norm,
            batch_size,
        )

    def run(self, classifier: KNNClassifier, x: Tensor, y: Tensor) -> Tensor:
        """Bisect one batch."""
        target = self._targets(classifier, x, y)
        shape = (-1, *[1] * (x.ndim - 1))
        low, high = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
        found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for _ in range(self.steps):
            middle = (low + high) / 2
            adversarial = self._labels(classifier, torch.lerp(x, target, middle.view(shape))) != y
            high = torch.where(adversarial, middle, high)
            low = torch.where(adversarial, low, middle)
            found |= adversarial
        return torch.lerp(x, target, torch.where(found, high, low).view(shape)).clamp(0, 1)

    def _labels(self, classifier: KNNClassifier, x: Tensor) -> Tensor:
        if self.oracle == "predict":
            return classifier.predict(x)
        return classifier.votes(classifier.kneighbors(x)).argmax(1)

    def _targets(self, classifier: KNNClassifier, x: Tensor, y: Tensor) -> Tensor:
        means = class_means(classifier, unit=self.means == "unit")
        distances = torch.cdist(x.flatten(1), means)
        distances.scatter_(1, y[:, None], float("inf"))
        distances[:, means.isnan().any(1)] = float("inf")  # a label without training images has no mean
        return means[distances.argmin(1)].view_as(x)


def class_means(classifier: KNNClassifier, *, unit: bool = False) -> Tensor:
    """Mean training image of each class ``(classes, D)``, raw or of unit images and scaled to norm 1; NaN if it has none."""
    rows = classifier.x_.flatten(1)
    rows = normalize(rows, dim=1) if unit else rows
    total = torch.zeros(classifier.classes_, rows.shape[1], device=rows.device).index_add_(0, classifier.labels_, rows)
    means = total / torch.bincount(classifier.labels_, minlength=classifier.classes_)[:, None]
    return normalize(means, dim=1) if unit else means
