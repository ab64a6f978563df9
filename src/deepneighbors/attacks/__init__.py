"""Attacks on kNN, on Deep kNN and on a network's softmax, one class each, all batched over images."""

from deepneighbors.attacks.base import Attack, AttackResult
from deepneighbors.attacks.classifier import ClassifierAttackResult, draw_targets, perturbation_norms, run_attack
from deepneighbors.attacks.credible import CredibleAttack
from deepneighbors.attacks.cw_opt import CWOpt
from deepneighbors.attacks.feature_adversary import FeatureAdversary
from deepneighbors.attacks.feature_importance import FIA, NAA
from deepneighbors.attacks.gradient import GradientAttack
from deepneighbors.attacks.ila import ILAF, ILAP
from deepneighbors.attacks.iterated import IteratedFGSM
from deepneighbors.attacks.jsma import JSMA
from deepneighbors.attacks.mean import MeanAttack
from deepneighbors.attacks.minimum_norm import MinimumNormAttack
from deepneighbors.attacks.penalty import Schedule
from deepneighbors.attacks.vote_margin import VoteMarginAttack

__all__ = [
    "Attack",
    "AttackResult",
    "CWOpt",
    "ClassifierAttackResult",
    "CredibleAttack",
    "FIA",
    "FeatureAdversary",
    "GradientAttack",
    "ILAF",
    "ILAP",
    "IteratedFGSM",
    "JSMA",
    "MeanAttack",
    "MinimumNormAttack",
    "NAA",
    "Schedule",
    "VoteMarginAttack",
    "draw_targets",
    "perturbation_norms",
    "run_attack",
]
