"""The settings of every chapter at every profile: ``smoke`` for tests, ``quick`` for a laptop, ``full`` as the papers.

Each number of an experiment that a reader may want to change stands once, in the module of its chapter.
"""

from typing import Any

from deepneighbors.profiles import knn_dknn_attack, nnif_detection, poisoning_ila
from deepneighbors.profiles.changes import changed
from deepneighbors.profiles.knn_dknn_attack import KnnDknnAttack
from deepneighbors.profiles.nnif_detection import NnifDetection
from deepneighbors.profiles.poisoning_ila import PoisoningIla

__all__ = ["EXPERIMENTS", "PROFILES", "SETTINGS", "KnnDknnAttack", "NnifDetection", "PoisoningIla", "changed"]

PROFILES = ("smoke", "quick", "full")
SETTINGS: dict[str, dict[str, Any]] = {
    "knn_dknn_attack": knn_dknn_attack.SETTINGS,
    "nnif_detection": nnif_detection.SETTINGS,
    "poisoning_ila": poisoning_ila.SETTINGS,
}

# Settings of single experiments that are not those of their profile: by chapter, profile and experiment.
EXPERIMENTS: dict[str, dict[str, dict[str, dict[str, Any]]]] = {"poisoning_ila": poisoning_ila.EXPERIMENTS}
