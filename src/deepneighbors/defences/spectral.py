"""Spectral signatures of Tran, Li & Madry (2018): poison moves a class along its top singular direction."""

import torch
from torch import Tensor, nn

from deepneighbors.defences.base import ActivationDefence, check_features


class SpectralSignatures(ActivationDefence):
    """Squared projection of the class-centred features on their top right singular vector.

    Tran et al. (2018), algorithm 1: for each class, with mean m and top right singular vector v of the centred features,
    the score of a point with features r is ``((r - m) . v)^2``; the paper removes the highest 1.5 epsilon of a class.

    Parameters
    ----------
    centred
        False projects r itself, as the authors' released code does.
    """

    def __init__(self, network: nn.Module, layer: str, *, centred: bool = True, batch_size: int = 1000):
        super().__init__(network, layer, batch_size=batch_size)
        self.centred = centred

    def score_features(self, features: Tensor, y: Tensor) -> Tensor:
        """Squared projection, ``(N,)``, in squared units of the features."""
        check_features(features, y)
        scores, labels = torch.zeros(len(y), dtype=torch.float64), y.cpu()
        for label in labels.unique():
            members = torch.nonzero(labels == label).flatten()
            rows = features[members.to(features.device)].double().cpu()
            centred = rows - rows.mean(0)
            # Of the D x D scatter matrix, which has the same right singular vectors and does not grow with the class.
            direction = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
            scores[members] = ((centred if self.centred else rows) @ direction) ** 2
        return scores
