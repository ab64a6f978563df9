"""NNIF: how near an image lies to the training images that its prediction is owed to (Cohen, Sapiro & Giryes 2020)."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.detectors.activations import TrainingActivations
from deepneighbors.detectors.base import Detector
from deepneighbors.detectors.ranks import check_chosen, check_distinct, ranks_and_distances
from deepneighbors.errors import InputError


class Influence(Protocol):
    """Finds the training images that matter most for a prediction."""

    def extremes(self, x: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """The m most helpful and the m most harmful training images, ``(n, m)`` each, the most extreme first."""


class FeatureInfluence(Protocol):
    """An estimator of influence that works on features and labels, as those of the last layer do."""

    def extremes(self, features: Tensor, labels: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """The m most helpful and the m most harmful training images, ``(n, m)`` each, the most extreme first."""


class PredictedLabelInfluence:
    """Influence on the loss of images with the label that the network predicts, from their activations in one layer."""

    def __init__(self, training: TrainingActivations, estimator: FeatureInfluence, *, layer: str = "embedding"):
        training.check_layers((layer,))
        self.training, self.estimator, self.layer = training, estimator, layer

    def extremes(self, x: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """The m most helpful and the m most harmful training images of images ``(n, ...)``, ``(n, m)`` each."""
        predicted = self.training.logits(x).argmax(1)
        return self.estimator.extremes(self.training.query(x, (self.layer,))[self.layer], predicted, m)


class NNIF(Detector):
    """Mean rank and distance of the most helpful and the most harmful training images, among all of them, in each layer.

    Four features a layer: R_up and D_up, the mean rank and L2 distance of the M most helpful images, and R_down and D_down
    of the M most harmful ones. Algorithm 1 of the paper reads as if all 4 M numbers were features; the code averages.

    In the released code, images under test are compared with a subset of the training images that is 5 / 49 of what the
    validation images see, and their ranks are multiplied by 49 / 5. For that, compute the features of the test images with
    a second detector on the subset with ``rank_scale=49 / 5``, and score them with the fitted one by ``score_features``.

    Parameters
    ----------
    training
        The network with its training images and their pooled activations; the ones that ``influence`` counts in.
    influence
        Estimator of influence, or a control in its place.
    layers
        Layers used.
    m
        M, helpful and harmful images each; 10 to 500 in the paper's search.
    mask
        Which of R_up, D_up, R_down and D_down are features: four digits, as in the paper's Table 2.
    rank_scale
        Multiplies the ranks.
    memory_gib
        Limit of scratch memory for distances, in GiB.
    """

    def __init__(self, training: TrainingActivations, influence: Influence, layers: Sequence[str], *, m: int = 50,
                 mask: str = "1111", rank_scale: float = 1.0, memory_gib: float = 0.5):  # fmt: skip
        training.check_layers(layers)
        checks.whole("m", m, 1, len(training.images))
        checks.positive("rank_scale", rank_scale)
        checks.positive("memory_gib", memory_gib)
        if len(mask) != 4 or set(mask) - {"0", "1"} or "1" not in mask:
            raise InputError(f"mask is {mask!r}; it must be four digits 0 or 1, not all 0")
        self.training, self.influence, self.layers, self.m = training, influence, tuple(layers), m
        self.mask, self.rank_scale, self.memory_gib = mask, rank_scale, memory_gib

    def features(self, x: Tensor, *, reference: Tensor | None = None) -> np.ndarray:
        """Features ``(n, kept of 4 x layers)``, layer by layer."""
        return self.grid(x, (self.m,))[self.m]

    def grid(self, x: Tensor, sizes: Sequence[int]) -> dict[int, np.ndarray]:
        """Features for several M, each the mean over the first M images of one common search."""
        for size in sizes:
            checks.whole("m", size, 1, len(self.training.images))
        # Averaged layer by layer, because all numbers of all layers may not fit into memory.
        layers = [{size: values[..., :size].mean(2) for size in sizes} for values in self._values(x, max(sizes))]
        kept = [column for column, digit in enumerate(self.mask) if digit == "1"]
        return {size: torch.cat([means[size][:, kept] for means in layers], 1).cpu().numpy() for size in sizes}

    def values(self, x: Tensor) -> Tensor:
        """What the means are taken over: R_up, D_up, R_down and D_down of each image, ``(n, layers, 4, M)``, float64."""
        return torch.stack(list(self._values(x, self.m)), 1)

    def _values(self, x: Tensor, m: int) -> Iterator[Tensor]:
        """Ranks and distances ``(n, 4, m)`` of each layer."""
        self.training.check_images("x", x)
        chosen = self.influence.extremes(x, m)
        for name, indices in zip(("helpful", "harmful"), chosen, strict=True):
            check_chosen(name, indices, len(x), len(self.training.images))
            check_distinct(name, indices)
            if indices.shape[1] != m:
                raise InputError(f"{name} has {indices.shape[1]} images for each query; {m} were asked for")
        queries, both = self.training.query(x, self.layers), torch.cat(chosen, 1)  # distances to all images serve both
        for layer in self.layers:
            found = ranks_and_distances(queries[layer], self.training.pooled[layer], both, memory_gib=self.memory_gib)
            ranks, distances = found[0] * self.rank_scale, found[1]
            yield torch.stack([ranks[:, :m], distances[:, :m], ranks[:, m:], distances[:, m:]], 1)
