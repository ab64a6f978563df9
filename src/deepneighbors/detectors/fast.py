"""Cheaper ways to NNIF's idea, which Cohen, Sapiro & Giryes (2020) name as future work.

- :class:`~deepneighbors.influence.InfluenceIndex`, in place of an estimator of influence: a search for the extremes.
- :class:`NeighborInfluence`: no influence at all for a query; what is known of its nearest training images is averaged.
- :class:`MahalanobisActivations`: activations in which L2 distance is Mahalanobis distance, for NNIF or any other detector.
- :class:`HelpfulDistance`: a threshold on D_up alone, which has no logistic regression to expose and sees no attack.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.detectors.activations import TrainingActivations
from deepneighbors.detectors.base import Detector
from deepneighbors.detectors.mahalanobis import ClassGaussians
from deepneighbors.detectors.nnif import FeatureInfluence, Influence
from deepneighbors.detectors.ranks import check_chosen, ranks_and_distances
from deepneighbors.errors import InputError
from deepneighbors.neighbors import NearestNeighbors

_QUERIES = 500  # queries whose helpful images are gathered at once


@dataclass(frozen=True)
class MahalanobisActivations(TrainingActivations):
    """Activations in coordinates where the L2 distance of two images is their Mahalanobis distance.

    ``d(a, b)^2 = (a - b)^T P (a - b)`` with the pseudo-inverse P of the covariance within classes, one for all classes (Lee
    et al. 2018), in each layer. Directions in which no class varies do not count. Logits are those of the network. For NNIF
    with this distance give these to :class:`deepneighbors.detectors.NNIF`, and the plain ones to the influence, whose last
    layer knows no other coordinates. Use :meth:`of`.
    """

    plain: TrainingActivations | None = None
    transforms: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, training: TrainingActivations, layers: Sequence[str]) -> "MahalanobisActivations":
        """Fit the covariance of some layers to the training images, with their true labels."""
        training.check_layers(layers)
        transforms = {layer: _root(training.pooled[layer], training.labels) for layer in layers}
        rows = {layer: training.pooled[layer].double() @ transforms[layer] for layer in layers}
        return cls(training.network, training.images, training.labels, rows, training.batch_size, training, transforms)

    def query(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Activations ``(n, C)`` of other images by layer, float64, in the same coordinates."""
        self.check_layers(layers)
        assert self.plain is not None
        found = self.plain.query(x, layers)
        return {layer: found[layer].double() @ self.transforms[layer] for layer in layers}

    def logits(self, x: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of other images."""
        assert self.plain is not None
        return self.plain.logits(x)


def _root(rows: Tensor, labels: Tensor) -> Tensor:
    """W with W W^T the precision within classes."""
    values, vectors = torch.linalg.eigh(ClassGaussians(rows, labels).precision_)
    return vectors * values.clamp(min=0).sqrt()


def class_shares(vectors: Tensor, labels: Tensor) -> Tensor:
    """How the help that each training image gives is shared between the classes: ``(N, K)``, each row adds up to 1.

    The influence of image z on class c is that on the mean loss of the training images of class c, itself among them: the
    inner product of its whitened gradient, a row of ``vectors`` (N, D), with their mean. Harm counts as no help; an image
    that helps no class has equal shares. This is our reading of the paper's "probability vector" of influence by class.
    """
    checks.points("vectors", vectors)
    checks.labels("labels", labels, len(vectors))
    classes, labels = int(labels.max()) + 1, labels.to(vectors.device)
    means = vectors.new_zeros(classes, vectors.shape[1]).index_add_(0, labels, vectors)
    means /= torch.bincount(labels, minlength=classes).clamp(min=1)[:, None]
    help_ = (vectors @ means.T).double().clamp(min=0)
    total = help_.sum(1, keepdim=True)
    return torch.where(total > 0, help_ / total.clamp(min=torch.finfo(total.dtype).tiny), 1 / classes)


def nnif_by_class(training: TrainingActivations, estimator: FeatureInfluence, anchors: Tensor, *, m: int = 50,
                  layer: str = "embedding", memory_gib: float = 0.5) -> Tensor:  # fmt: skip
    """NNIF's R_up, D_up, R_down and D_down of training images ``anchors`` (A,) as if each label were predicted: (A, K, 4).

    The other training images are the database: an anchor is neither helpful for itself nor counted in a rank. The estimator
    is not fitted anew without it. Cost: that of NNIF for ``A K`` queries.
    """
    training.check_layers((layer,))
    check_chosen("anchors", anchors[None], 1, len(training.images))
    checks.whole("m", m, 1, len(training.images) - 1)
    rows = training.pooled[layer]
    anchors = anchors.to(rows.device)
    queries, found = rows[anchors], []
    for label in range(training.classes):
        features = []
        for indices in estimator.extremes(queries, torch.full_like(anchors, label), m + 1):
            # The anchor itself goes to the end; where it is not among them, the least extreme image is one too many.
            order = (indices == anchors[:, None]).to(torch.int8).argsort(dim=1, stable=True)
            others = indices.gather(1, order)[:, :m]
            ranks, distances = ranks_and_distances(queries, rows, others, memory_gib=memory_gib)
            # Without the anchor every rank is one less, but for a copy of it that comes first.
            features += [(ranks - 1).clamp(min=0).double().mean(1), distances.mean(1)]
        found.append(torch.stack(features, 1))
    return torch.stack(found, 1)


class NeighborInfluence(Detector):
    """What is known of the nearest training images, by predicted label, averaged in place of influence for the query.

    Each of some training images ("anchors") has F numbers for each label. The features of a query are the means of those
    for its predicted label over its k nearest anchors: k-nearest-neighbour regression of the numbers at a fixed label.
    With :func:`nnif_by_class` they estimate NNIF's four features; with :func:`class_shares` the one feature is the share of
    the neighbours' help that goes to the predicted class. A query costs a neighbour search and no gradient.

    Parameters
    ----------
    training
        The network with its training images and their pooled activations.
    vectors
        ``(A, K, F)``.
    anchors
        Places ``(A,)`` of these training images.
    k
        Neighbours averaged.
    layer
        Where distances are taken.
    """

    def __init__(self, training: TrainingActivations, vectors: Tensor, anchors: Tensor, *, k: int = 10,
                 layer: str = "embedding"):  # fmt: skip
        training.check_layers((layer,))
        check_chosen("anchors", anchors[None], 1, len(training.images))
        checks.points("vectors", vectors)
        if vectors.ndim != 3 or vectors.shape[:2] != (len(anchors), training.classes):
            expected = f"({len(anchors)}, {training.classes}, F), for anchors and classes"
            raise InputError(f"vectors has shape {tuple(vectors.shape)}; it must be {expected}")
        checks.whole("k", k, 1, len(anchors))
        self.training, self.k, self.layer = training, k, layer
        rows = training.pooled[layer]
        self.vectors, self.neighbors = vectors.double().to(rows.device), NearestNeighbors()
        self.neighbors.fit(rows[anchors.to(rows.device)])

    def features(self, x: Tensor, *, reference: Tensor | None = None) -> np.ndarray:
        """Means ``(n, F)`` over the nearest anchors."""
        predicted = self.training.logits(x).argmax(1)
        nearest = self.neighbors.kneighbors(self.training.query(x, (self.layer,))[self.layer], self.k).indices
        return self.vectors[nearest, predicted[:, None]].mean(1).cpu().numpy()


class HelpfulDistance(Detector):
    """D_up alone: the mean L2 distance of an image to its M most helpful training images, against a threshold.

    An adversarial image owes its label to images that it is not near to, so the farther, the more adversarial; the sign is
    not learnt. The threshold is that of split conformal prediction (Vovk, Gammerman & Shafer 2005): a clean image
    exchangeable with the n clean ones of ``fit`` is flagged with probability at most ``fpr``. It is infinite, and nothing is
    flagged, for n below ``1 / fpr - 1``. No adversarial image is needed.

    Attributes
    ----------
    threshold_
        D_up above which an image is flagged.
    """

    least = 1

    def __init__(self, training: TrainingActivations, influence: Influence, *, m: int = 50, fpr: float = 0.05,
                 layer: str = "embedding"):  # fmt: skip
        training.check_layers((layer,))
        checks.whole("m", m, 1, len(training.images))
        checks.positive("fpr", fpr)
        if fpr >= 1:
            raise InputError(f"fpr is {fpr!r}; it must be a number above 0 and below 1")
        self.training, self.influence, self.m, self.fpr, self.layer = training, influence, m, fpr, layer

    def features(self, x: Tensor, *, reference: Tensor | None = None) -> np.ndarray:
        """D_up, ``(n, 1)``. It takes no distance but to the helpful images, where ranks would need those to all."""
        helpful, _ = self.influence.extremes(x, self.m)
        check_chosen("helpful", helpful, len(x), len(self.training.images))
        database, queries = self.training.pooled[self.layer], self.training.query(x, (self.layer,))[self.layer]
        means = [
            (database[chosen].double() - rows.double()[:, None]).norm(dim=2).mean(1)
            for rows, chosen in zip(queries.split(_QUERIES), helpful.to(queries.device).split(_QUERIES), strict=True)
        ]
        return torch.cat(means)[:, None].cpu().numpy()

    def fit(self, clean: Tensor, adversarial: Tensor | None = None) -> "HelpfulDistance":
        """Set the threshold on clean images ``(n, ...)`` in [0, 1]; adversarial ones are not looked at."""
        self.training.check_images("clean", clean)
        return self.fit_features(self.features(clean))

    def fit_features(self, clean: np.ndarray, adversarial: np.ndarray | None = None) -> "HelpfulDistance":
        """Set the threshold on the D_up ``(n, 1)`` of clean images."""
        self.threshold_ = conformal_threshold(_column(clean), self.fpr)
        return self

    def score_features(self, features: np.ndarray) -> np.ndarray:
        """D_up ``(n,)`` itself, from features ``(n, 1)``; not a probability."""
        return _column(features)

    def predict(self, x: Tensor) -> np.ndarray:
        """Which images ``(n, ...)`` are flagged, ``(n,)``."""
        return self.predict_features(self.features(x))

    def predict_features(self, features: np.ndarray) -> np.ndarray:
        """Which of features ``(n, 1)`` are flagged, ``(n,)``."""
        self.check_fitted()
        return _column(features) > self.threshold_

    def check_fitted(self) -> None:
        """Refuse a detector without a threshold."""
        if not hasattr(self, "threshold_"):
            raise InputError("HelpfulDistance was asked before fit; call fit with clean images first")


def conformal_threshold(clean_scores: np.ndarray, fpr: float) -> float:
    """The ``ceil((1 - fpr) (n + 1))``-th smallest of n clean scores; infinite where n is too small for that."""
    rank = math.ceil((1 - fpr) * (len(clean_scores) + 1) - 1e-9)  # the product may come out just above a whole number
    return float(np.sort(clean_scores)[rank - 1]) if rank <= len(clean_scores) else math.inf


def _column(features: np.ndarray) -> np.ndarray:
    if not isinstance(features, np.ndarray) or features.ndim != 2 or features.shape[1] != 1 or len(features) == 0:
        raise InputError(f"features must be an array of shape (n, 1) that is not empty, got {np.shape(features)}")
    if not np.isfinite(features).all():
        raise InputError("features has values that are NaN or infinite; only finite numbers are allowed")
    return features[:, 0]
