"""What a defence has to beat: chance, and the network's own loss."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deepneighbors import checks
from deepneighbors.defences.base import Defence, check_evaluation_mode
from deepneighbors.training import predict_logits


class RandomScores(Defence):
    """Uniform numbers in [0, 1), from a seed."""

    def __init__(self, *, seed: int = 0):
        checks.whole("seed", seed, 0)
        self.seed = seed

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """A random number for each point, ``(N,)``."""
        checks.labels("y", y, len(x))
        return torch.rand(len(y), dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed))


class TrainingLoss(Defence):
    """Cross-entropy of the network with the stored label: high where a point was not learned."""

    def __init__(self, network: nn.Module, *, batch_size: int = 1000):
        check_evaluation_mode(network)
        checks.whole("batch_size", batch_size, 1)
        self.network, self.batch_size = network, batch_size

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Loss in nats, ``(N,)``."""
        checks.labels("y", y, len(x))
        device = str(next(self.network.parameters()).device)
        logits = predict_logits(self.network, x, batch_size=self.batch_size, device=device)
        return cross_entropy(logits.double(), y.cpu(), reduction="none")
