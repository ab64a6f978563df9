"""Defences against poisoned training data: each scores the training points, higher is more suspect."""

from deepneighbors.defences.base import ActivationDefence, Defence, most_suspect
from deepneighbors.defences.clustering import ActivationClustering
from deepneighbors.defences.controls import RandomScores, TrainingLoss
from deepneighbors.defences.credibility import CredibilityDefence, credibility_score
from deepneighbors.defences.deep_knn import DeepKNNDefence
from deepneighbors.defences.spectral import SpectralSignatures

__all__ = [
    "ActivationClustering",
    "ActivationDefence",
    "CredibilityDefence",
    "Defence",
    "DeepKNNDefence",
    "RandomScores",
    "SpectralSignatures",
    "TrainingLoss",
    "credibility_score",
    "most_suspect",
]
