"""Detectors of adversarial images, one class each, and the controls that they are to be compared with."""

from deepneighbors.detectors.activations import TrainingActivations
from deepneighbors.detectors.base import Detector, LogisticStage
from deepneighbors.detectors.controls import (
    NearestOfPredictedClass,
    RandomOfPredictedClass,
    SingleFeature,
    class_mean_distance,
    logit_margin,
    max_softmax,
    off_grid,
)
from deepneighbors.detectors.dknn import DkNN
from deepneighbors.detectors.fast import (
    HelpfulDistance,
    MahalanobisActivations,
    NeighborInfluence,
    class_shares,
    nnif_by_class,
)
from deepneighbors.detectors.lid import LID, lid
from deepneighbors.detectors.mahalanobis import ClassGaussians, Mahalanobis
from deepneighbors.detectors.nnif import NNIF, PredictedLabelInfluence
from deepneighbors.detectors.ranks import rank_and_distance, ranks_and_distances
from deepneighbors.detectors.select import Selection, select_hyperparameter

__all__ = [
    "LID",
    "NNIF",
    "ClassGaussians",
    "Detector",
    "DkNN",
    "HelpfulDistance",
    "LogisticStage",
    "Mahalanobis",
    "MahalanobisActivations",
    "NearestOfPredictedClass",
    "NeighborInfluence",
    "PredictedLabelInfluence",
    "RandomOfPredictedClass",
    "Selection",
    "SingleFeature",
    "TrainingActivations",
    "class_mean_distance",
    "class_shares",
    "lid",
    "logit_margin",
    "max_softmax",
    "nnif_by_class",
    "off_grid",
    "rank_and_distance",
    "ranks_and_distances",
    "select_hyperparameter",
]
