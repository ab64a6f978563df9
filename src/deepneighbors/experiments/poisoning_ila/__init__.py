"""Chapter 3: poisoned training data and the Intermediate Level Attack, seen by Deep kNN (report of 2021)."""

from deepneighbors.experiments.base import Chapter
from deepneighbors.experiments.poisoning_ila import (
    classifier,
    confirmation,
    defending,
    ila_credibility,
    low_credibility,
    many_labels,
    mixtures,
    poisoned_training,
    shares,
    transfer,
    why_it_failed,
)

CHAPTER = Chapter(
    name="poisoning_ila",
    title="Poisoning and ILA",
    experiments={
        experiment.name: experiment
        for experiment in (
            classifier.POISONED_CLASSIFIER,
            mixtures.MIXTURES,
            poisoned_training.POISONED_TRAINING,
            shares.NEIGHBOR_SHARE,
            low_credibility.LOW_CREDIBILITY,
            many_labels.MANY_LABELS,
            defending.DEFENCES,
            transfer.TRANSFER,
            confirmation.CONFIRMATION,
            why_it_failed.WHY_IT_FAILED,
            ila_credibility.ILA_CREDIBILITY,
        )
    },
)
