"""Chapter 2: detecting adversarial images by influence functions and nearest neighbours (Cohen, Sapiro & Giryes 2020)."""

from dataclasses import replace

from deepneighbors.experiments.base import Chapter
from deepneighbors.experiments.nnif_detection import cases, estimators, fast, gallery, tables, white_box

CHAPTER = Chapter(
    name="nnif_detection",
    title="NNIF",
    experiments={
        experiment.name: replace(experiment, uses=(cases.__name__,))
        for experiment in (
            tables.ATTACKS,
            tables.DETECTION,
            gallery.GALLERY,
            gallery.DENSITIES,
            tables.ABLATION,
            tables.GENERALISATION,
            tables.VIEWS_OF_IMAGES,
            estimators.ESTIMATORS_OF_INFLUENCE,
            fast.FAST,
            white_box.WHITE_BOX,
        )
    },
)
