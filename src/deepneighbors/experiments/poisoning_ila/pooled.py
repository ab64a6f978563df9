"""Means over seeds, with intervals that hold for other seeds and for other images.

The hierarchical bootstrap draws seeds with replacement, and within each drawn seed its images anew (Davison & Hinkley
1997, section 3.8). The value is the mean of the seeds' values, each seed counting the same. Percentiles of so few seeds are
too narrow: drawing k seeds has (k - 1) / k of their variance, and the normal quantile stands where Student's t belongs. So
both ends are moved away from the value by t / z * sqrt(k / (k - 1)), 1.58 for five seeds, within the range of the numbers.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from deepneighbors.attacks.detector_evasion import threshold_at_fpr
from deepneighbors.intervals import LEVEL, sample_of, wilson_interval
from deepneighbors.results import NO_INTERVAL, statistic_row

Statistic = Callable[[NDArray, NDArray], float]
_FEW = 16  # levels up to which a resample is one draw of their counts
LEAST = 10  # attacked scores that a seed needs for its statistic to count


def hierarchical_interval(groups: Sequence[ArrayLike], *, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of the groups' means.

    Args:
        groups: 1-d finite numbers of each seed, none empty.
        resamples: bootstrap samples.
    """
    samples = [sample_of(group, "group") for group in groups]
    everything = np.concatenate(samples)
    if np.isin(everything, (0, 1)).all() and np.ptp(everything) == 0:
        return wilson_interval(int(everything.sum()), everything.size)  # a bootstrap of equal values has no width
    generator = np.random.default_rng(seed)
    draws = np.stack([_means(sample, resamples, generator) for sample in samples])
    limits = (float(everything.min()), float(everything.max()))
    return _over_seeds(draws, float(np.mean([sample.mean() for sample in samples])), limits, generator)


def _means(sample: NDArray, resamples: int, generator: np.random.Generator) -> NDArray:
    """Means of resamples of one sample."""
    levels, counts = np.unique(sample, return_counts=True)
    if levels.size <= _FEW:
        return generator.multinomial(sample.size, counts / sample.size, size=resamples) @ levels / sample.size
    return sample[generator.integers(sample.size, size=(resamples, sample.size))].mean(1)


def _over_seeds(draws: NDArray, value: float, limits: tuple[float, float], generator: np.random.Generator
                ) -> tuple[float, float]:  # fmt: skip
    """Widened percentiles of means over drawn seeds, from values ``(seeds, resamples)`` for drawn images of each seed."""
    seeds, resamples = draws.shape
    chosen = generator.integers(seeds, size=(resamples, seeds))
    means = draws[chosen, generator.integers(resamples, size=(resamples, seeds))].mean(1)
    low, high = np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    wider = _widening(seeds)
    ends = (value - wider * max(0.0, value - float(low)), value + wider * max(0.0, float(high) - value))
    return max(ends[0], min(limits[0], value)), min(ends[1], max(limits[1], value))


def _widening(seeds: int) -> float:
    if seeds == 1:
        return 1.0  # of one seed the interval speaks of its images alone
    tail = (1 + LEVEL) / 2
    return float(stats.t.ppf(tail, seeds - 1) / stats.norm.ppf(tail)) * math.sqrt(seeds / (seeds - 1))


def pooled_mean_row(groups: Sequence[ArrayLike], *, setting: str = "", seed: int = 0, **names: str) -> dict[str, Any]:
    """The mean over seeds as a row, its setting ending in ``seeds=all``; empty groups are left out.

    Args:
        groups: 1-d numbers of each seed.
        seed: the first seed of the run.
    """
    samples = [sample for sample in map(np.asarray, groups) if sample.size]
    names["setting"] = over_seeds(setting)
    if not samples:
        return statistic_row(math.nan, n=0, ci=NO_INTERVAL, seed=seed, **names)
    value = float(np.mean([sample.mean() for sample in samples]))
    ci = hierarchical_interval(samples, seed=seed)
    return statistic_row(value, n=sum(sample.size for sample in samples), ci=ci, seed=seed, **names)


def pooled_score_row(pairs: Sequence[tuple[NDArray, NDArray]], statistic: Statistic, *, setting: str = "", seed: int = 0,
                     resamples: int = 200, **names: str) -> dict[str, Any]:  # fmt: skip
    """The mean over seeds of a statistic in [0, 1] of clean and attacked scores; images of both are drawn apart.

    The row's n counts attacked scores, of which there may be few where only those that fool the network count.

    Args:
        pairs: clean and attacked scores of each seed, higher for attacked; a seed with fewer than 10 attacked ones is left
            out.
        statistic: for example :func:`detection_auc` or :func:`tpr_at_fpr_5`.
    """
    kept = [(clean, other) for clean, other in pairs if len(clean) and len(other) >= LEAST]
    names["setting"] = over_seeds(setting)
    if not kept:
        return statistic_row(math.nan, n=0, ci=NO_INTERVAL, seed=seed, **names)
    generator = np.random.default_rng(seed)

    def resampled(clean: NDArray, other: NDArray) -> float:
        return statistic(*(part[generator.integers(part.size, size=part.size)] for part in (clean, other)))

    draws = np.array([[resampled(*pair) for _ in range(resamples)] for pair in kept])
    value = float(np.mean([statistic(*pair) for pair in kept]))
    count = sum(len(other) for _, other in kept)
    return statistic_row(value, n=count, ci=_over_seeds(draws, value, (0.0, 1.0), generator), seed=seed, **names)


def over_seeds(setting: str) -> str:
    """The setting of a row over all seeds."""
    return ";".join(filter(None, (setting, "seeds=all")))


def detection_auc(clean: NDArray, attacked: NDArray) -> float:
    """Probability that an attacked score exceeds a clean one; a tie counts half."""
    order = np.sort(clean)
    below, up_to = (np.searchsorted(order, attacked, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(clean)))


def tpr_at_fpr_5(clean: NDArray, attacked: NDArray) -> float:
    """Share of attacked images that are flagged where at most 5 % of clean ones are."""
    return float((attacked >= threshold_at_fpr(clean)).mean())
