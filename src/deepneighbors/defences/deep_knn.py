"""Deep k-NN defence of Peri et al. (2020): a point is suspect when the neighbours of its features bear another label."""

import torch
from torch import Tensor, nn

from deepneighbors import checks
from deepneighbors.defences.base import ActivationDefence, check_features
from deepneighbors.neighbors import NearestNeighbors


class DeepKNNDefence(ActivationDefence):
    """Votes of the most frequent other label minus those of the own one, over ``k``: in [-1, 1].

    Peri et al. (2020), algorithm 1, remove a point when the plurality label of its ``k`` nearest neighbours, itself among
    them, by Euclidean distance in the last hidden layer, is not its own: that is a score above 0. Their guideline is a
    ``k`` between one and two times the class size where classes are small; 50 to 75 removed nearly all poison.
    """

    def __init__(self, network: nn.Module, layer: str, *, k: int = 50, memory_gib: float = 0.5, batch_size: int = 1000):
        super().__init__(network, layer, batch_size=batch_size)
        checks.whole("k", k, 1)
        checks.positive("memory_gib", memory_gib)
        self.k, self.memory_gib = k, memory_gib

    def score_features(self, features: Tensor, y: Tensor) -> Tensor:
        """Margin of the best other label over the stored one, ``(N,)``; above 0 is what the paper removes."""
        check_features(features, y)
        checks.whole("k", self.k, 1, len(features))
        y = y.to(features.device)
        index = NearestNeighbors(memory_gib=self.memory_gib).fit(features)
        found = torch.cat([index.kneighbors(part, self.k).indices for part in features.split(1000)])
        votes = torch.zeros(len(y), int(y.max()) + 1, dtype=torch.float64, device=features.device)
        votes.scatter_add_(1, y[found], torch.ones_like(found, dtype=torch.float64))
        own = votes.gather(1, y[:, None]).flatten()
        others = votes.scatter(1, y[:, None], -1.0).amax(1).clamp(min=0)
        return ((others - own) / self.k).cpu()

    @staticmethod
    def flags(scores: Tensor) -> Tensor:
        """The paper's rule: whether each point is removed, ``(N,)`` bool."""
        return scores > 0
