"""What every defence against poisoned training data shares: a score for each training point, higher is more suspect."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from deepneighbors import checks
from deepneighbors.errors import InputError
from deepneighbors.networks import activations, check_layers


class Defence(ABC):
    """Ranks the points of a training set by suspicion.

    A defence knows a network that was trained on the set, and neither which points are poisoned nor how many.
    """

    @abstractmethod
    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Suspicion ``(N,)``, float64 on the CPU, of training images ``(N, ...)`` in [0, 1] with stored labels ``(N,)``."""


class ActivationDefence(Defence):
    """A defence that looks at one layer of the network.

    Parameters
    ----------
    network
        Trained on the set that is judged, in evaluation mode.
    layer
        Name of its module whose output is used: the last hidden layer in the papers.
    batch_size
        Images of a forward pass.
    """

    def __init__(self, network: nn.Module, layer: str, *, batch_size: int = 1000):
        check_layers(network, (layer,))
        checks.whole("batch_size", batch_size, 1)
        check_evaluation_mode(network)
        self.network, self.layer, self.batch_size = network, layer, batch_size

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Activations ``(N, D)`` of the layer, on the network's device."""
        device = next(self.network.parameters()).device
        parts = [activations(self.network, part.to(device), (self.layer,))[self.layer] for part in x.split(self.batch_size)]
        return torch.cat([part.flatten(1) for part in parts])

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Suspicion ``(N,)`` of training images ``(N, ...)`` with stored labels ``(N,)``."""
        checks.images("x", x)
        checks.labels("y", y, len(x))
        return self.score_features(self.features(x), y)

    @abstractmethod
    def score_features(self, features: Tensor, y: Tensor) -> Tensor:
        """Suspicion ``(N,)`` from known features ``(N, D)`` and labels ``(N,)``."""


def check_evaluation_mode(network: nn.Module) -> None:
    """Refuse a network in training mode, whose answers would depend on the batch."""
    if network.training:
        raise InputError("network is in training mode; call network.eval() first")


def check_features(features: Tensor, y: Tensor) -> None:
    """Refuse features that are not a finite matrix with one row a label."""
    checks.points("features", features)
    checks.labels("y", y, len(features))
    if features.ndim != 2:
        raise InputError(f"features has shape {tuple(features.shape)}; a matrix (N, D) is needed")


def most_suspect(scores: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """Indices ``(count,)``, ascending, of the points with the highest scores; equal scores are drawn at random."""
    checks.whole("count", count, 1, len(scores))
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    return order[scores[order].argsort(descending=True, stable=True)[:count]].sort().values
