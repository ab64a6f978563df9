"""Suspicion by the credibility of Deep kNN (Papernot & McDaniel 2018), applied to the training points themselves."""

import torch
from torch import Tensor, nn

from deepneighbors import checks
from deepneighbors.defences.base import Defence
from deepneighbors.dknn import DeepKNN
from deepneighbors.dknn_training import CREDIBILITIES, training_credibility


class CredibilityDefence(Defence):
    """One minus a credibility of each training point.

    A point is flagged at a threshold t where its credibility is below t. Of the label's credibility a mislabelled point has
    little: its neighbours, in every layer, bear another label.

    Parameters
    ----------
    network, layers, k, metric, trim_zeros, memory_gib
        As in :class:`deepneighbors.dknn.DeepKNN`.
    calibration
        Held-out images ``(n, ...)`` and their true labels ``(n,)``.
    of
        Whose p-value: ``c_label`` of the stored label, ``c_pred`` the largest, ``c_dnn`` of the network's label.
    leave_self_out
        Whether each point is removed from its own neighbour lists.
    """

    def __init__(self, network: nn.Module, layers: tuple[str, ...], calibration: tuple[Tensor, Tensor], *,
                 of: str = "c_label", k: int = 75, metric: str = "cosine", trim_zeros: bool = False,
                 leave_self_out: bool = True, memory_gib: float = 0.5):  # fmt: skip
        checks.one_of("of", of, CREDIBILITIES)
        self.of, self.leave_self_out, self.calibration = of, leave_self_out, calibration
        self.classifier = DeepKNN(network, layers, k=k, metric=metric, trim_zeros=trim_zeros, memory_gib=memory_gib)

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """One minus the credibility, ``(N,)`` in [0, 1]; searches all pairs of training points in every layer."""
        device = next(self.classifier.network.parameters()).device
        classifier = self.classifier.fit(x.to(device), y.to(device)).calibrate(*self.calibration)
        found = training_credibility(classifier, leave_self_out=self.leave_self_out)
        return 1 - found[self.of].double().cpu()


def credibility_score(credibility: Tensor) -> Tensor:
    """Suspicion from a credibility that is known: one minus it, float64."""
    return 1 - torch.as_tensor(credibility).double().cpu()
