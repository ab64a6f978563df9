"""Deep k-nearest neighbours as a detector: the p-value of every label is a feature (Papernot & McDaniel 2018)."""

import numpy as np
import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.detectors.activations import TrainingActivations
from deepneighbors.detectors.base import MODES, Detector
from deepneighbors.errors import InputError
from deepneighbors.neighbors import NearestNeighbors

_QUERIES = 1000  # at a time: k of some thousands makes the neighbours the largest thing in memory


def calibration_rows(count: int, mode: str, seed: int = 0) -> Tensor:
    """The third of ``count`` clean images that calibrates: the first in ``faithful`` mode, a random one in ``clean``."""
    if mode == "faithful":
        return torch.arange(count // 3)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: count // 3]


class DkNN(Detector):
    """p-values of all labels from the k nearest training images in one layer, by L2 distance.

    Nonconformity of an image with label j: its neighbours with another label, 0 to k. p_j: the share of calibration images
    whose nonconformity with their true label is at least that. A third of the clean images of ``fit`` is for calibration;
    logistic regression learns from the others and their twins (Cohen, Sapiro & Giryes 2020, section 4).

    Parameters
    ----------
    training
        The network with its training images.
    k
        Neighbours; the paper searches from 10 to the number of training images a class.
    layer
        Where distances are measured.
    mode
        ``clean``: the calibration images are a random third, drawn with ``seed``. ``faithful``: the first third.

    Attributes
    ----------
    calibration_
        Sorted nonconformity of the calibration images with their true labels.
    """

    least = 4  # one image for calibration and three for the folds

    def __init__(
        self, training: TrainingActivations, *, k: int, layer: str = "embedding", mode: str = "clean", seed: int = 0
    ):
        training.check_layers((layer,))
        checks.whole("k", k, 1, len(training.images))
        checks.one_of("mode", mode, MODES)
        checks.whole("seed", seed, 0)
        self.training, self.k, self.layer, self.mode, self.seed = training, k, layer, mode, seed
        self._index = NearestNeighbors().fit(training.pooled[layer])

    def fit(self, clean: Tensor, adversarial: Tensor, labels: Tensor | None = None) -> "DkNN":
        """Calibrate on a third of the clean images and learn from the rest.

        ``labels`` (n,) are the true ones of the clean images. None takes the network's, which are the same where
        misclassified images have been left out, as the paper does.
        """
        self.check_images(clean, adversarial)
        labels = self.training.logits(clean).argmax(1) if labels is None else labels
        checks.labels("labels", labels, len(clean), self.training.classes)
        votes = self.votes(clean)
        rest = self.calibrate(votes, labels.to(votes.device))
        rows = self.p_values(votes)[rest], self.p_values(self.votes(adversarial))[rest]
        self.fit_features(*rows)
        return self

    def calibrate(self, votes: Tensor, labels: Tensor) -> np.ndarray:
        """Learn the nonconformity of a third of the clean images from their votes; returns a mask ``(n,)`` of the others."""
        chosen = calibration_rows(len(votes), self.mode, self.seed)
        own = self.k - votes[chosen].gather(1, labels[chosen, None]).flatten()
        self.calibration_ = own.sort().values
        rest = np.ones(len(votes), dtype=bool)
        rest[chosen.cpu().numpy()] = False
        return rest

    def votes(self, x: Tensor) -> Tensor:
        """Neighbours with each label, ``(n, classes)``; a row adds up to k."""
        rows = self.training.query(x, (self.layer,))[self.layer]
        return torch.cat([self._count(part) for part in rows.split(_QUERIES)])

    def _count(self, rows: Tensor) -> Tensor:
        labels = self.training.labels.to(rows.device)[self._index.kneighbors(rows, self.k).indices]
        votes = torch.zeros(len(rows), self.training.classes, dtype=torch.int64, device=rows.device)
        return votes.scatter_add_(1, labels, torch.ones_like(labels))

    def p_values(self, votes: Tensor) -> np.ndarray:
        """Share of calibration images at least as nonconforming, for each label: ``(n, classes)``, in [0, 1]."""
        self._check_calibrated()
        below = torch.searchsorted(self.calibration_, (self.k - votes).contiguous())
        return ((len(self.calibration_) - below).double() / len(self.calibration_)).cpu().numpy()

    def features(self, x: Tensor, *, reference: Tensor | None = None) -> np.ndarray:
        """p-values ``(n, classes)``; needs the calibration of ``fit``."""
        self._check_calibrated()
        return self.p_values(self.votes(x))

    def _check_calibrated(self) -> None:
        if not hasattr(self, "calibration_"):
            raise InputError("DkNN was asked before fit; call fit with clean and adversarial images first")
