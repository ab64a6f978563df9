"""95 % intervals and the area under the ROC curve."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepneighbors.errors import InputError

LEVEL = 0.95
_Z = 1.959963984540054  # normal quantile at (1 + LEVEL) / 2
_CELLS = 1 << 22  # numbers drawn at once by a bootstrap: 32 MB


def auc(clean_scores: ArrayLike, other_scores: ArrayLike) -> float:
    """Probability that a clean score exceeds another one; a tie counts half."""
    clean, other = sample_of(clean_scores, "clean_scores"), sample_of(other_scores, "other_scores")
    levels, codes = np.unique(np.concatenate([clean, other]), return_inverse=True)
    counts = (np.bincount(part, minlength=levels.size) for part in (codes[: clean.size], codes[clean.size :]))
    return _auc_of_counts(*counts)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a fraction (Wilson 1927)."""
    fraction, z2 = successes / n, _Z**2
    centre = (fraction + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(fraction * (1 - fraction) / n + z2 / (4 * n * n))
    # At 0 and n one end is exactly 0 or 1, but for rounding.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def bootstrap_interval(sample: ArrayLike, *, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval of a mean; memory does not grow with ``resamples`` x n."""
    numbers = sample_of(sample, "sample")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _CELLS // numbers.size)
    for start in range(0, resamples, step):
        chosen = generator.integers(numbers.size, size=(min(step, resamples - start), numbers.size))
        means[start : start + step] = numbers[chosen].mean(axis=1)
    return _percentiles(means, float(numbers.mean()))


def auc_interval(
    clean_scores: ArrayLike, other_scores: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval of the AUC, clean and other scores drawn apart."""
    clean, other = sample_of(clean_scores, "clean_scores"), sample_of(other_scores, "other_scores")
    levels, codes = np.unique(np.concatenate([clean, other]), return_inverse=True)
    drawn = _resampled_counts(codes[: clean.size], codes[clean.size :], levels.size, resamples, seed)
    return _percentiles(np.array([_auc_of_counts(*counts) for counts in drawn]), auc(clean, other))


def _percentiles(draws: NDArray, value: float) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, (tail, 1 - tail))
    # A heavy tail or rounding can put the value itself outside by a hair.
    return min(float(low), value), max(float(high), value)


def _resampled_counts(
    clean: NDArray, other: NDArray, levels: int, resamples: int, seed: int
) -> Iterator[tuple[NDArray, NDArray]]:
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield tuple(  # type: ignore[misc]
            np.bincount(part[generator.integers(part.size, size=part.size)], minlength=levels) for part in (clean, other)
        )


def _auc_of_counts(clean: NDArray, other: NDArray) -> float:
    """AUC from how often each score level occurs, levels ascending."""
    below = np.cumsum(other) - other
    return float(clean @ (below + other / 2) / (clean.sum() * other.sum()))


def sample_of(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """The values as 1-d finite float64.

    Raises:
        InputError: more dimensions than one, NaN or infinity.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise InputError(f"{what} must have one dimension, and has {numbers.ndim}.")
    if not np.isfinite(numbers).all():
        raise InputError(f"{what} holds NaN or infinity at index {int(np.argmin(np.isfinite(numbers)))}.")
    return numbers
