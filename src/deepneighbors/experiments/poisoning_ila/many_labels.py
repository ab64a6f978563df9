"""Poison of several label pairs at once, which the report leaves for later work: all 45 pairs of digits, ten points each."""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.poisoning_ila.plan import SUMMARY, Poisoned, over_all_seeds, seeds, setting
from deepneighbors.experiments.poisoning_ila.rows import credibility_rows, share_row
from deepneighbors.experiments.poisoning_ila.searching import LAYERS, Seen, conclude
from deepneighbors.results import auc_row, mean_row, statistic_row, table
from deepneighbors.store import Artifact


def label_pairs(count: int) -> tuple[tuple[int, int], ...]:
    """``count`` pairs of digits, spread evenly over all 45 in order."""
    pairs = list(combinations(range(10), 2))
    return tuple(pairs[len(pairs) * i // count] for i in range(min(count, len(pairs))))


def _cases(run: Run) -> Iterator[tuple[str, Poisoned, Poisoned]]:
    """For each seed the poisoned set, and the clean one that it is compared with."""
    s = run.settings
    for seed in seeds(run):
        pairs = label_pairs(s.label_pairs)
        yield (
            str(seed),
            Poisoned(run, "svm_poisoning", seed, norm="l1", pairs=pairs, points=s.pair_points),
            Poisoned(run, "none", seed),
        )


def _nodes(run: Run) -> Nodes:
    nodes: dict = {}
    for key, case, clean in _cases(run):
        nodes[f"{key}|network"], nodes[f"{key}|clean"] = case.network, clean.network
        nodes[f"{key}|search"] = case.search(run.settings.clean_points, test=run.settings.evaluated_images)
    return nodes


def _summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    rows: list[dict] = []
    arrays: dict[str, np.ndarray] = {}
    for key, case, clean in _cases(run):
        pairs = f"pairs={len(case.pairs)}"
        names = case.names() | {"setting": pairs}
        rows += _accuracy_rows(found[f"{key}|network"], case.last, names)
        rows += _accuracy_rows(found[f"{key}|clean"], clean.last, clean.names() | {"setting": pairs})
        search = found[f"{key}|search"]
        rows += _neighbor_rows(run, search, case)
        train, calibration = Seen.of(search, "train"), Seen.of(search, "calibration")
        said = conclude(train, calibration, k=run.settings.neighbors)
        right = said.labels == train.truth
        rows.append(share_row(right[train.own], "recovered", case.names(), pairs=len(case.pairs), part="poison"))
        rows.append(share_row((train.network == train.y)[train.own], "memorised", case.names(), pairs=len(case.pairs)))
        drawn = ~train.own & (train.network == train.y)
        for name, sample in said.credibility.items():
            place = setting(pairs=len(case.pairs), credibility=name, self="out")
            rows.append(auc_row(sample[drawn], sample[train.own], metric="auc", resamples=200,
                                **case.names(detector="credibility", setting=place)))  # fmt: skip
            arrays[f"{key}|{name}|poison"] = sample[train.own].astype(np.float32)
            arrays[f"{key}|{name}|clean"] = sample[drawn].astype(np.float32)
        poison = {name: sample[train.own] for name, sample in said.credibility.items()}
        rows += credibility_rows(poison, case.names(), pairs=len(case.pairs), self="out", part="poison")
    return table(over_all_seeds(rows, seed=run.seed)), arrays


def _accuracy_rows(trained: Artifact, epoch: int, names: dict[str, Any]) -> list[dict]:
    """Test accuracy, of all digits and of each."""
    y = trained.tensors["y_test"].numpy()
    right = trained.tensors[f"{epoch}|labels|test"].numpy() == y
    common = {name: value for name, value in names.items() if name != "setting"}
    digits = [
        mean_row(right[y == digit], metric="accuracy", **common, setting=f"{names['setting']};digit={digit}")
        for digit in range(10)
    ]
    return [mean_row(right, metric="accuracy", **names), *digits]


def _neighbor_rows(run: Run, search: Artifact, case: Poisoned) -> list[dict]:
    """Share of poisoned neighbours by layer: of poison without itself, and of test images that are misclassified or not."""
    train, test = Seen.of(search, "train"), Seen.of(search, "test")
    wrong = test.network != test.truth
    groups = {"poison": train[train.own], "test_correct": test[~wrong], "test_misclassified": test[wrong]}
    count = len(case.pairs) * case.points
    base = count / ((case.images or run.settings.cnn_images) + count)
    rows = []
    for queries, seen in groups.items():
        for layer, sample in zip(LAYERS, seen.share(run.settings.neighbors).T, strict=True):
            place = setting(pairs=len(case.pairs), queries=queries, self="out")
            common = case.names(layer=layer, setting=place)
            rows.append(mean_row(sample, metric="poisoned_neighbor_share", **common))
            rows.append(mean_row(sample / base, metric="enrichment", **common))
    rows.append(statistic_row(base, n=count, metric="base_rate", **case.names(setting=f"pairs={len(case.pairs)}")))
    return rows


MANY_LABELS = Experiment("many_labels", _nodes, _summary, SUMMARY)
