"""What every detector of adversarial images shares: a few features an image, and logistic regression on them."""

import inspect
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegressionCV
from sklearn.preprocessing import MinMaxScaler
from torch import Tensor

from deepneighbors import checks
from deepneighbors.errors import InputError

MODES = ("clean", "faithful")
# scikit-learn 1.8 warns of the older spelling of an L2 penalty, and versions before it do not know the newer one.
_RENAMED = "use_legacy_attributes" in inspect.signature(LogisticRegressionCV).parameters
_L2: dict[str, Any] = {"l1_ratios": (0.0,), "use_legacy_attributes": False} if _RENAMED else {"penalty": "l2"}


class LogisticStage:
    """The last stage of every detector of Cohen, Sapiro & Giryes (2020): features to a probability of being adversarial.

    Features are scaled to [0, 1] on the rows of ``fit`` (later rows are not clipped). Logistic regression has an L2 penalty;
    its C is one of 10 values from 1e-4 to 1e4, the smallest of those with the best accuracy in 3 folds. The folds are
    stratified and unshuffled and the rows are all adversarial, then all clean ones, so an image and its adversarial twin are
    always in the same fold.
    """

    folds = 3

    def fit(self, clean: np.ndarray, adversarial: np.ndarray) -> "LogisticStage":
        """Learn from features ``(n, F)`` of clean images and of their adversarial twins, row by row."""
        check_features(clean, adversarial)
        rows = np.concatenate([adversarial, clean])
        labels = np.repeat([1, 0], [len(adversarial), len(clean)])
        self.scaler_ = MinMaxScaler().fit(rows)
        self.regression_ = LogisticRegressionCV(
            Cs=np.logspace(-4, 4, 10), cv=self.folds, scoring="accuracy", solver="lbfgs", max_iter=20_000, **_L2
        ).fit(self.scaler_.transform(rows), labels)
        return self

    def score(self, features: np.ndarray) -> np.ndarray:
        """Probability ``(n,)`` of being adversarial for features ``(n, F)``.

        Raises
        ------
        InputError
            Before ``fit``, and for another number of features than there.
        """
        if not hasattr(self, "regression_"):
            raise InputError("the logistic regression was asked before fit; call fit with clean and adversarial rows first")
        _check_matrix("features", features)
        if features.shape[1] != self.scaler_.n_features_in_:
            raise InputError(
                f"features has {features.shape[1]} columns; the detector was fitted on {self.scaler_.n_features_in_}"
            )
        return self.regression_.predict_proba(self.scaler_.transform(features))[:, 1]


def check_features(clean: np.ndarray, adversarial: np.ndarray) -> None:
    """Refuse feature matrices that are not finite, not paired row by row, or too short for the folds."""
    _check_matrix("clean", clean)
    _check_matrix("adversarial", adversarial)
    check_pairs(clean.shape, adversarial.shape)


def check_pairs(clean: tuple[int, ...], adversarial: tuple[int, ...], least: int = LogisticStage.folds) -> None:
    """Refuse different shapes of clean and adversarial rows, and fewer than ``least`` rows."""
    if clean != adversarial:
        raise InputError(f"adversarial has shape {tuple(adversarial)}, but clean has {tuple(clean)}; they must be pairs")
    if clean[0] < least:
        raise InputError(f"clean has {clean[0]} rows; at least {least} are needed")


def _check_matrix(name: str, features: np.ndarray) -> None:
    if not isinstance(features, np.ndarray) or features.ndim != 2 or 0 in features.shape:
        raise InputError(f"{name} must be an array of shape (n, features) that is not empty, got {np.shape(features)}")
    if not np.isfinite(features).all():
        raise InputError(f"{name} has features that are NaN or infinite; only finite numbers are allowed")


class Detector(ABC):
    """Tells adversarial images from clean ones.

    ``features`` needs no ``fit`` unless a detector says so: features can be computed once, kept, and refitted with
    ``fit_features`` and ``score_features``.
    """

    least: int = LogisticStage.folds

    def fit(self, clean: Tensor, adversarial: Tensor) -> "Detector":
        """Learn from clean images ``(n, ...)`` in [0, 1] and the adversarial ones ``(n, ...)`` made of them, row by row."""
        self.check_images(clean, adversarial)
        return self.fit_features(self.features(clean, reference=clean), self.features(adversarial, reference=clean))

    def score_samples(self, x: Tensor, *, reference: Tensor | None = None) -> np.ndarray:
        """Probability ``(n,)`` of being adversarial, for images ``(n, ...)``; ``reference`` as in :meth:`features`."""
        self.check_fitted()
        return self.score_features(self.features(x, reference=reference))

    @abstractmethod
    def features(self, x: Tensor, *, reference: Tensor | None = None) -> np.ndarray:
        """Features ``(n, F)``, float64, of images ``(n, ...)`` in [0, 1].

        ``reference``: the clean images that ``x`` was made from, row by row (``x`` itself for clean images). Only
        :class:`deepneighbors.detectors.LID` in faithful mode looks at them; no other detector knows of them.
        """

    def fit_features(self, clean: np.ndarray, adversarial: np.ndarray) -> "Detector":
        """Fit the logistic regression alone, on known features ``(n, F)`` of clean and adversarial twins."""
        self.stage_ = LogisticStage().fit(clean, adversarial)
        return self

    def score_features(self, features: np.ndarray) -> np.ndarray:
        """Probability ``(n,)`` of being adversarial, for known features ``(n, F)``."""
        self.check_fitted()
        return self.stage_.score(features)

    def check_images(self, clean: Tensor, adversarial: Tensor) -> None:
        """Refuse images that are not pairs in [0, 1], or too few of them."""
        checks.images("clean", clean)
        checks.images("adversarial", adversarial)
        check_pairs(clean.shape, adversarial.shape, self.least)

    def check_fitted(self) -> None:
        """Refuse a detector that cannot score yet."""
        if not hasattr(self, "stage_"):
            raise InputError(f"{type(self).__name__} was asked before fit; call fit with clean and adversarial images first")
