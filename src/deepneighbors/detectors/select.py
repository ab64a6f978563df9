"""Choice of a detector's hyper-parameter on the images that it learns from."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold

from deepneighbors import checks
from deepneighbors.detectors.base import LogisticStage, check_features
from deepneighbors.errors import InputError


@dataclass(frozen=True)
class Selection:
    """The ``best`` value, and a ``table`` with one row a value: ``value``, ``auc`` (mean over folds) and ``auc_std``."""

    best: Hashable
    table: pd.DataFrame


def select_hyperparameter(features: Mapping[Any, tuple[np.ndarray, np.ndarray]], *, folds: int = 5,
                          seed: int = 0) -> Selection:  # fmt: skip
    """Value with the largest mean ROC-AUC in cross-validation; of equal ones the first.

    Cohen, Sapiro & Giryes (2020, section 4) choose by cross-validation within the validation images. Here the folds are of
    images, shuffled with ``seed`` and the same for all values: a clean image and its adversarial twin are either both
    learnt from or both scored.

    Parameters
    ----------
    features
        Value -> features ``(n, F)`` of the clean images and of their adversarial twins, row by row.
    folds
        Number of folds.
    """
    if not features:
        raise InputError("features is empty; give at least one value to choose from")
    rows = {len(clean) for clean, _ in features.values()}
    if len(rows) > 1:
        raise InputError(f"features has {min(rows)} to {max(rows)} images; every value needs the same ones")
    for clean, adversarial in features.values():
        check_features(clean, adversarial)
    count = rows.pop()
    checks.whole("folds", folds, 2, count)
    if count - -(-count // folds) < LogisticStage.folds:
        raise InputError(f"{count} images in {folds} folds leave too few to learn from; {LogisticStage.folds} are needed")
    splits = list(KFold(folds, shuffle=True, random_state=seed).split(np.arange(count)))
    aucs = {value: [_auc(*pair, *split) for split in splits] for value, pair in features.items()}
    columns = {
        "value": list(aucs),
        "auc": [np.mean(a) for a in aucs.values()],
        "auc_std": [np.std(a) for a in aucs.values()],
    }
    # max keeps the first of equal values.
    return Selection(max(aucs, key=lambda value: float(np.mean(aucs[value]))), pd.DataFrame(columns))


def _auc(clean: np.ndarray, adversarial: np.ndarray, learn: np.ndarray, held: np.ndarray) -> float:
    stage = LogisticStage().fit(clean[learn], adversarial[learn])
    scores = stage.score(np.concatenate([adversarial[held], clean[held]]))
    return float(roc_auc_score(np.repeat([1, 0], len(held)), scores))
