"""Rows that experiments of chapter 3 share: credibility, reliability, counts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepneighbors.experiments.poisoning_ila.plan import setting
from deepneighbors.results import mean_row, statistic_row


def credibility_rows(found: Mapping[str, NDArray], names: Mapping[str, Any], **parts: object) -> list[dict]:
    """Mean, standard deviation and maximum of each credibility, ``(n,)`` by name; groups without a case give no rows."""
    rows = []
    for name, sample in found.items():
        if len(sample):
            where = dict(names) | {"setting": setting(credibility=name, **parts)}
            rows.append(mean_row(sample, metric="mean_credibility", **where))
            spread = float(np.std(sample, ddof=1)) if len(sample) > 1 else 0.0
            rows.append(statistic_row(spread, n=len(sample), metric="sd_credibility", **where))
            rows.append(statistic_row(float(np.max(sample)), n=len(sample), metric="max_credibility", **where))
    return rows


def reliability_rows(sample: NDArray, correct: NDArray, names: Mapping[str, Any], **parts: object) -> list[dict]:
    """Accuracy by tenths of a credibility; the count of images in each is ``n``, and empty tenths have n = 0."""
    tenths = np.minimum((sample * 10).astype(int), 9)
    return [
        mean_row(correct[tenths == b], metric="accuracy", **names,
                 setting=setting(**parts, bin=f"{b / 10:g}-{(b + 1) / 10:g}"))
        for b in range(10)
    ]  # fmt: skip


def count_row(flags: NDArray, metric: str, names: Mapping[str, Any], **parts: object) -> dict:
    """How many of ``n`` cases are flagged, as a plain count."""
    return statistic_row(int(np.sum(flags)), n=len(flags), metric=metric, **names, setting=setting(**parts))


def share_row(flags: NDArray, metric: str, names: Mapping[str, Any], **parts: object) -> dict:
    """The share of cases that are flagged, or the mean of numbers, with its interval."""
    return mean_row(flags, metric=metric, **names, setting=setting(**parts))
