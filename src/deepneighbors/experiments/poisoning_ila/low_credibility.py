"""Do poisoned points always have a credibility of low variance and low maximum, as the report's figures suggest? A test.

For each poisoned set: spread and maximum against the clean training points of the same network, with each point among its
own neighbours and without, by credibility, and for memorised and other points apart.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.poisoning_ila import poisoned_training
from deepneighbors.experiments.poisoning_ila.plan import SUMMARY, Poisoned, over_all_seeds, seeds, setting
from deepneighbors.experiments.poisoning_ila.poisoned_training import main_search, main_set
from deepneighbors.experiments.poisoning_ila.poisons import BACKDOORS
from deepneighbors.experiments.poisoning_ila.rows import credibility_rows, share_row
from deepneighbors.experiments.poisoning_ila.searching import Seen, conclude
from deepneighbors.results import statistic_row, table
from deepneighbors.store import Artifact, Node

_DRAWS = 2000  # of clean points, for the tests
_MOST = 100  # poisoned points of a test, so that a draw of clean ones repeats few


def attacked_sets(run: Run, attack: str, seed: int) -> Iterator[tuple[str, Poisoned]]:
    """The sets of an attack: one a norm for the SVM attack, one a rate for a backdoor, with what names them in a setting."""
    s = run.settings
    if attack == "svm_poisoning":
        for norm in s.svm_norms:
            yield "", main_set(run, attack, seed, norm=norm)
    elif attack in BACKDOORS:
        for rate in s.backdoor_rates:
            yield f"{rate:g}", main_set(run, attack, seed, rate=rate)
    else:
        yield "", main_set(run, attack, seed, norm="l1" if attack == "logistic_poisoning" else "")


def _cases(run: Run) -> Iterator[tuple[str, dict[str, Any], Poisoned]]:
    """Every set by key: the report's regime, and a small one in which poison is memorised."""
    s = run.settings
    for seed in seeds(run):
        for attack in s.poison_attacks:
            for rate, case in attacked_sets(run, attack, seed):
                yield f"{attack}|{case.norm}|{rate}|{seed}|report", {"rate": rate, "regime": "report"}, case
        norm = s.svm_norms[0]
        small = Poisoned(
            run, "svm_poisoning", seed, norm=norm, images=s.memorised_images, epochs=(s.memorised_epochs,), batch=50
        )
        yield f"svm_poisoning|{norm}||{seed}|memorised", {"rate": "", "regime": "memorised"}, small


def _node(case: Poisoned) -> Node:
    shared = case.attack == "svm_poisoning" and case.images == 0
    return main_search(case) if shared else case.search(case.run.settings.clean_points)


def _nodes(run: Run) -> Nodes:
    return {key: _node(case) for key, _, case in _cases(run)}


def _summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    rows: list[dict] = []
    arrays: dict[str, np.ndarray] = {}
    for key, where, case in _cases(run):
        train, calibration = Seen.of(found[key], "train"), Seen.of(found[key], "calibration")
        poison, memorised = train.own, train.network == train.y
        rows.append(share_row(memorised[poison], "memorised", case.names(), **where))
        # Clean points are a random draw and, beside it, every misclassified one: those would be too many.
        clean = _random_clean(train)
        for own in ("in", "out"):
            said = conclude(train.with_self() if own == "in" else train, calibration, k=run.settings.neighbors).credibility
            groups = {"all": poison, "memorised": poison & memorised, "unmemorised": poison & ~memorised}
            for group, chosen in groups.items():
                part = {name: sample[chosen] for name, sample in said.items()}
                rows += credibility_rows(part, case.names(), **where, self=own, points=group)
                for name, sample in said.items():
                    if chosen.any():
                        place = {"credibility": name, **where, "self": own, "points": group}
                        rows += _tests(sample[chosen], sample[clean], case.names() | {"setting": setting(**place)})
            base = {name: sample[clean] for name, sample in said.items()}
            rows += credibility_rows(base, case.names(), **where, self=own, points="clean")
            for name, sample in said.items():
                arrays[f"{key}|{own}|{name}|poison"] = sample[poison].astype(np.float32)
                arrays[f"{key}|{own}|{name}|clean"] = sample[clean].astype(np.float32)
        arrays[f"{key}|memorised"] = memorised[poison]
    return table(over_all_seeds(rows, seed=run.seed, single=_is_whole)), arrays


def _is_whole(row: dict) -> bool:
    """Whether a row of one seed is kept; those of memorised and other points apart are pooled only."""
    return not row["setting"].endswith(("points=memorised", "points=unmemorised"))


def _random_clean(train: Seen) -> NDArray:
    """Clean training points that the network has right: nearly all are, and the draw holds every other one."""
    return ~train.own & (train.network == train.y)


def _tests(poison: NDArray, clean: NDArray, names: dict[str, Any]) -> list[dict]:
    """Kolmogorov-Smirnov's distance, and how often as many random clean points have a variance or a maximum as low.

    ``low_variance_p`` and ``low_maximum_p`` are one-sided p-values by draws with replacement; the least is 1 / 2001.
    """
    generator = np.random.default_rng(0)
    shown = poison if len(poison) <= _MOST else generator.choice(poison, _MOST, replace=False)
    draws = clean[generator.integers(len(clean), size=(_DRAWS, len(shown)))]
    low_variance = (1 + (draws.var(1) <= shown.var()).sum()) / (_DRAWS + 1)
    low_maximum = (1 + (draws.max(1) <= shown.max()).sum()) / (_DRAWS + 1)
    distance = stats.ks_2samp(poison, clean, method="asymp")
    return [
        statistic_row(float(value), n=len(poison), metric=metric, **names)
        for metric, value in (
            ("ks_distance", distance.statistic), ("ks_p", distance.pvalue),
            ("low_variance_p", low_variance), ("low_maximum_p", low_maximum),
        )
    ]  # fmt: skip


LOW_CREDIBILITY = Experiment("low_credibility", _nodes, _summary, (*SUMMARY, poisoned_training.__name__))
