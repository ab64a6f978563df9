"""Attacks on kNN and on Deep kNN, one class each, and on a network's softmax, all batched over images."""

from deepneighbors.attacks.base import Attack, AttackResult
from deepneighbors.attacks.classifier import ClassifierAttackResult, draw_targets, perturbation_norms, run_attack
from deepneighbors.attacks.credible import CredibleAttack
from deepneighbors.attacks.feature_adversary import FeatureAdversary
from deepneighbors.attacks.gradient import GradientAttack
from deepneighbors.attacks.jsma import JSMA
from deepneighbors.attacks.mean import MeanAttack
from deepneighbors.attacks.minimum_norm import MinimumNormAttack
from deepneighbors.attacks.penalty import Schedule
from deepneighbors.attacks.vote_margin import VoteMarginAttack

__all__ = [
    "Attack",
    "AttackResult",
    "ClassifierAttackResult",
    "CredibleAttack",
    "FeatureAdversary",
    "GradientAttack",
    "JSMA",
    "MeanAttack",
    "MinimumNormAttack",
    "Schedule",
    "VoteMarginAttack",
    "draw_targets",
    "perturbation_norms",
    "run_attack",
]
