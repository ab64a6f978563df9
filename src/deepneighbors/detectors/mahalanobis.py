"""Mahalanobis distance to the nearest class as a detector (Lee et al. 2018)."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.detectors.activations import TrainingActivations
from deepneighbors.detectors.base import MODES, Detector
from deepneighbors.errors import InputError
from deepneighbors.networks import activations
from deepneighbors.networks.thin_resnet import pooled

log = logging.getLogger(__name__)

CIFAR_SCALE = (0.2023, 0.1994, 0.2010)


class ClassGaussians:
    """One Gaussian a class with a common covariance, fitted to rows ``(N, C)`` with labels ``(N,)``; in double precision.

    Attributes
    ----------
    means_, precision_
        Class means ``(classes, C)``; pseudo-inverse ``(C, C)`` of the covariance about them.
    """

    def __init__(self, rows: Tensor, labels: Tensor):
        rows, labels = rows.double(), labels.to(rows.device)
        present = torch.unique(labels)
        self.means_ = torch.stack([rows[labels == label].mean(0) for label in present])
        centred = rows - self.means_[torch.searchsorted(present, labels)]
        self.precision_ = torch.linalg.pinv(centred.T @ centred / len(rows), hermitian=True)

    def score(self, rows: Tensor) -> Tensor:
        """``max_c -d_c^2 / 2``, ``(n,)``, at most 0; d_c is the Mahalanobis distance to the mean of class c."""
        gaps = rows.double()[:, None] - self.means_
        return (-0.5 * torch.einsum("nci,ij,ncj->nc", gaps, self.precision_, gaps)).amax(1)


class Mahalanobis(Detector):
    """Score of the nearest class in each layer, after a small step on the image towards that class.

    The image ``x - epsilon g / s`` is scored, without clipping to [0, 1]; g is taken from the gradient of half the squared
    distance to the nearest class, in the layer at hand, averaged over the batch.

    Parameters
    ----------
    training
        The network with its training images and their pooled activations.
    layers
        Layers used; one feature each.
    epsilon
        Length of the step; 0 for none. Cohen, Sapiro & Giryes (2020) search 12 values from 1e-5 to 1e-2.
    scale
        s, one number a channel: the standard deviation of the pixels, by default CIFAR-10's in Lee et al.'s code.
    mode
        ``clean``: g is the sign of the gradient, as Lee et al. (2018) define it. ``faithful``: ``2 max(gradient, 0) - 1``,
        as released by Cohen et al.; gradients are small there, so that g is nearly -1 and the image only gets brighter.

    Attributes
    ----------
    gaussians
        Class means and precision by layer.
    """

    def __init__(self, training: TrainingActivations, layers: Sequence[str], *, epsilon: float = 1e-4,
                 scale: Sequence[float] = CIFAR_SCALE, mode: str = "clean"):  # fmt: skip
        training.check_layers(layers)
        checks.at_least("epsilon", epsilon, 0)
        checks.one_of("mode", mode, MODES)
        for value in scale:
            checks.positive("scale", value)
        if len(scale) != training.images.shape[1]:
            raise InputError(
                f"scale has {len(scale)} numbers; images have {training.images.shape[1]} channels, one each is needed"
            )
        self.training, self.layers, self.epsilon, self.mode = training, tuple(layers), epsilon, mode
        self.scale = tuple(scale)
        self.gaussians = {layer: ClassGaussians(training.pooled[layer], training.labels) for layer in layers}

    def features(self, x: Tensor, *, reference: Tensor | None = None) -> np.ndarray:
        """Score by layer, ``(n, layers)``."""
        return self.grid(x, (self.epsilon,))[self.epsilon]

    def grid(self, x: Tensor, epsilons: Sequence[float]) -> dict[float, np.ndarray]:
        """Features ``(n, layers)`` for several steps, each layer's gradient being taken once for all of them."""
        self.training.check_images("x", x)
        for epsilon in epsilons:
            checks.at_least("epsilon", epsilon, 0)
        scores, size = [], self.training.batch_size
        for start in range(0, len(x), size):
            scores.append(self._batch(x[start : start + size].to(self.training.images.device), epsilons))
            log.info("Mahalanobis: %d of %d images", min(start + size, len(x)), len(x))
        return {epsilon: rows.numpy() for epsilon, rows in zip(epsilons, torch.cat(scores, 1), strict=True)}

    def _batch(self, x: Tensor, epsilons: Sequence[float]) -> Tensor:
        """Scores ``(epsilons, n, layers)`` of one batch."""
        scale = torch.tensor(self.scale, device=x.device).view(1, -1, *[1] * (x.ndim - 2))
        columns = []
        for layer, direction in self.directions(x):
            with torch.no_grad():
                moved = [self._scores(x - epsilon * direction / scale, (layer,))[layer] for epsilon in epsilons]
            columns.append(torch.stack(moved).cpu())
        return torch.stack(columns, 2)

    def directions(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """g by layer, each of the images' shape, for one batch of images; one forward pass serves all layers."""
        x = x.detach().requires_grad_(True)
        for layer, score in self._scores(x, self.layers).items():
            (gradient,) = torch.autograd.grad(-score.mean(), x, retain_graph=True)
            yield layer, gradient.sign() if self.mode == "clean" else 2 * gradient.clamp(min=0) - 1

    def _scores(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Scores ``(n,)`` by layer."""
        found = activations(self.training.network, x, layers)
        return {layer: self.gaussians[layer].score(pooled(rows)) for layer, rows in found.items()}
