"""Chapter 1: attacks on kNN and on Deep kNN (Sitawarin & Wagner 2019)."""

from deepneighbors.experiments.base import Chapter
from deepneighbors.experiments.knn_dknn_attack import tables

CHAPTER = Chapter(
    name="knn_dknn_attack",
    title="Attacks on kNN and Deep kNN",
    dataset="mnist",
    experiments={e.name: e for e in (tables.KNN_ATTACK, tables.DKNN_ATTACK)},
)
