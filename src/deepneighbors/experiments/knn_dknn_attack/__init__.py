"""Chapter 1: attacks on kNN and on Deep kNN (Sitawarin & Wagner 2019)."""

from dataclasses import replace

from deepneighbors.experiments.base import Chapter
from deepneighbors.experiments.knn_dknn_attack import artefacts, attacked, credibility, defences, gallery, optimum, tables

CHAPTER = Chapter(
    name="knn_dknn_attack",
    title="Attacks on kNN and Deep kNN",
    experiments={
        experiment.name: replace(experiment, uses=(attacked.__name__,))
        for experiment in (
            tables.KNN_ATTACK,
            tables.DKNN_ATTACK,
            gallery.GALLERY,
            gallery.LAYERS,
            credibility.EPSILON,
            credibility.CREDIBILITY,
            credibility.ADAPTIVE,
            artefacts.ARTEFACTS,
            optimum.EXACT,
            optimum.SWEEP,
            defences.UNDEFENDED,
            defences.ROBUST_NETWORK,
            defences.WEIGHTED,
        )
    },
)
