"""Influence of training images through the last layer, in closed form (Koh & Liang 2017; Cohen et al. 2020).

The influence of training image z on the loss at a query t is ``s(z) = <g_z, (H + damping)^-1 g_t>``: the rate at which the
loss at t falls when the mean training loss gets more of z. s > 0 is helpful, s < 0 harmful. Restricted to the last linear
layer all of it is exact: gradients are outer products, the Hessian is one small matrix, and scores are matrix products.
"""

import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.errors import InputError
from deepneighbors.influence.operators import Gain, Inverse
from deepneighbors.influence.softmax import gradients, hessian


class LastLayerInfluence:
    """Influence scores of all training images for any queries, from one factorisation.

    Parameters
    ----------
    weight, bias
        Of the last layer: ``(K, d)`` and ``(K,)``.
    weight_decay
        Its L2 penalty, ``weight_decay / 2 * |weight|^2``; part of the Hessian. 4e-4 in Cohen et al. (2020).
    smoothing
        Label smoothing of the loss: 0.1 for CIFAR-10 and SVHN, 0.01 for CIFAR-100, there.
    operator
        What stands for the inverse Hessian: :class:`~deepneighbors.influence.Inverse` (the default, without damping),
        :class:`~deepneighbors.influence.Lissa`, or :class:`~deepneighbors.influence.Identity`.
    memory_gib
        Limit of scratch memory for scores and gradients.

    Attributes
    ----------
    eigenvalues_, eigenvectors_
        Of the Hessian, ascending, float64.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, weight_decay: float = 4e-4, smoothing: float = 0.0,
                 operator: Gain | None = None, memory_gib: float = 0.5):  # fmt: skip
        checks.points("weight", weight)
        if bias.shape != weight.shape[:1]:
            raise InputError(
                f"bias has shape {tuple(bias.shape)}; weight has {len(weight)} classes, one number each is needed"
            )
        checks.positive("weight_decay", weight_decay)
        checks.at_least("smoothing", smoothing, 0)
        checks.positive("memory_gib", memory_gib)
        self.theta = torch.cat([weight.detach(), bias.detach()[:, None]], 1).double()
        self.weight_decay, self.smoothing, self.memory_gib = weight_decay, smoothing, memory_gib
        self.operator = operator or Inverse()

    def fit(self, features: Tensor, labels: Tensor) -> "LastLayerInfluence":
        """Store training embeddings ``(N, d)`` with labels ``(N,)``, and factorise the Hessian once."""
        self._check(features, labels)
        self.theta = self.theta.to(features.device)
        self.features_, self.labels_ = features, labels.to(features.device)
        self.eigenvalues_, self.eigenvectors_ = torch.linalg.eigh(hessian(self.theta, features, self.weight_decay))
        return self

    def directions(self, features: Tensor, labels: Tensor) -> Tensor:
        """``operator(H) g`` of queries ``(T, d)`` with the labels ``(T,)`` of their loss: ``(T, K (d + 1))``, float64."""
        self._check_fitted()
        gains = self.operator(self.eigenvalues_)
        return (self._gradients(features, labels) @ self.eigenvectors_ * gains) @ self.eigenvectors_.T

    def whitened(self, features: Tensor, labels: Tensor) -> Tensor:
        """Vectors ``(n, K (d + 1))`` whose inner product, of a training image and a query, is the influence score.

        So the most helpful images are a maximum-inner-product search. Needs an operator without negative gains.
        """
        self._check_fitted()
        gains = self.operator(self.eigenvalues_).clamp(min=0).sqrt()
        return (self._gradients(features, labels) @ self.eigenvectors_ * gains).float()

    def scores(self, features: Tensor, labels: Tensor) -> Tensor:
        """Influence ``(T, N)`` of every training image on each query, float32.

        Parameters
        ----------
        features, labels
            Embeddings ``(T, d)`` of the queries, and the labels of their loss: the predicted ones in Cohen et al. (2020).
        """
        directions = self.directions(features, labels).float()
        rows = max(1, int(self.memory_gib * 2**30 / (16 * directions.shape[1])))
        parts = []
        for start in range(0, len(self.features_), rows):
            part = slice(start, start + rows)
            # Trained rows as one matrix: the same operations as class by class, in a single product.
            trained = gradients(self.theta.float(), self.features_[part].float(), self.labels_[part], self.smoothing)
            parts.append(directions @ trained.T)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def extremes(self, features: Tensor, labels: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """The ``m`` most helpful and most harmful training images of each query: two ``(T, m)``, most extreme first.

        The scores of all images are never held: memory stays within ``memory_gib``.
        """
        self._check_fitted()
        checks.whole("m", m, 1, len(self.features_))
        queries = max(1, int(self.memory_gib * 2**30 / (16 * len(self.features_))))
        helpful, harmful = [], []
        for part_features, part_labels in zip(features.split(queries), labels.split(queries), strict=True):
            scores = self.scores(part_features, part_labels)
            helpful.append(scores.topk(m).indices)
            harmful.append(scores.topk(m, largest=False).indices)
        return torch.cat(helpful), torch.cat(harmful)

    def _gradients(self, features: Tensor, labels: Tensor) -> Tensor:
        self._check(features, labels)
        return gradients(self.theta, features.to(self.theta), labels.to(self.theta.device), self.smoothing)

    def _check(self, features: Tensor, labels: Tensor) -> None:
        checks.points("features", features)
        checks.labels("labels", labels, len(features), len(self.theta))
        if features.ndim != 2 or features.shape[1] != self.theta.shape[1] - 1:
            raise InputError(
                f"features have shape {tuple(features.shape)}; the last layer takes (n, {self.theta.shape[1] - 1})"
            )

    def _check_fitted(self) -> None:
        if not hasattr(self, "eigenvalues_"):
            raise InputError("LastLayerInfluence was asked before fit; call fit with training embeddings first")
