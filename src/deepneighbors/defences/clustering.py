"""Activation clustering of Chen et al. (2018): within a class, poison and clean points form two clusters."""

import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, FastICA
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from deepneighbors import checks
from deepneighbors.defences.base import ActivationDefence, check_features

REDUCTIONS = ("pca", "ica")
SMALL = 0.35  # a cluster of a smaller share of its class is called poison


class ActivationClustering(ActivationDefence):
    """One minus the share of its class that a point's cluster holds, in [0, 1).

    For each class: features of the last hidden layer, reduced to ``components`` dimensions, then 2-means (Chen et al. 2018,
    algorithm 1, with the relative size of the clusters as the measure). A class of fewer than three points scores 0.

    Parameters
    ----------
    components, reduction
        Dimensions kept by ``ica`` (the paper's) or ``pca``; at most one less than the points of a class.
    seed
        Starts the reduction and the clusters.
    """

    def __init__(self, network: nn.Module, layer: str, *, components: int = 10, reduction: str = "ica", seed: int = 0,
                 batch_size: int = 1000):  # fmt: skip
        super().__init__(network, layer, batch_size=batch_size)
        checks.whole("components", components, 1)
        checks.one_of("reduction", reduction, REDUCTIONS)
        checks.whole("seed", seed, 0, 2**32 - 1)
        self.components, self.reduction, self.seed = components, reduction, seed

    def score_features(self, features: Tensor, y: Tensor) -> Tensor:
        """One minus the relative size of the point's cluster, ``(N,)``: above 0.5 in the smaller one of its class."""
        check_features(features, y)
        scores, labels = torch.zeros(len(y), dtype=torch.float64), y.cpu()
        for label in labels.unique():
            members = torch.nonzero(labels == label).flatten()
            if len(members) > 2:
                clusters = self._clusters(features[members.to(features.device)].double().cpu().numpy())
                shares = np.bincount(clusters, minlength=2) / len(members)
                scores[members] = 1 - torch.from_numpy(shares[clusters])
        return scores

    def _clusters(self, rows: np.ndarray) -> np.ndarray:
        """Cluster, 0 or 1, of every row."""
        reduced = self._reduce(rows)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # all rows equal: one cluster stays empty
            return KMeans(2, n_init=10, random_state=self.seed).fit_predict(reduced)

    def _reduce(self, rows: np.ndarray) -> np.ndarray:
        # ReLU units that are silent on a whole class leave fewer directions than there are columns.
        count = min(self.components, len(rows) - 1, int(np.linalg.matrix_rank(rows - rows.mean(0))))
        if count < 1:
            return rows
        reduced = PCA(count, random_state=self.seed).fit_transform(rows)
        if self.reduction == "pca":
            return reduced
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # what it has reached is used, as in the paper's code
            return FastICA(count, whiten="unit-variance", max_iter=500, random_state=self.seed).fit_transform(reduced)

    @staticmethod
    def flags(scores: Tensor) -> Tensor:
        """Whether each point lies in a cluster that holds less than 35 % of its class, ``(N,)`` bool."""
        return scores > 1 - SMALL
