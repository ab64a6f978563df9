"""Bilevel poisoning of linear learners (Biggio, Nelson & Laskov 2012): SVM and logistic regression, label by label pair."""

from deepneighbors.attacks.poisoning.attack import Evaluation, LogisticPoisoning, Poisoning, PoisoningResult, SVMPoisoning
from deepneighbors.attacks.poisoning.pairs import PairsResult, first_images, poison_pairs

__all__ = [
    "Evaluation",
    "LogisticPoisoning",
    "PairsResult",
    "Poisoning",
    "PoisoningResult",
    "SVMPoisoning",
    "first_images",
    "poison_pairs",
]
