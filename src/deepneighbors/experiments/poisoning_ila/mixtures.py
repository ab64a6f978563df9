"""The report's Experiment 1: poison shown as test images to a Deep kNN of clean digits, in three readings.

The report names two mixtures, 4 of 15 and 25 of 50, and not what the first number counts. Reading A: all points of a set,
of which so many are misclassified. Reading B: a test batch of 15 (50) with 4 (25) poisoned ones. Reading C: the 25 evasion
images of the tutorial with 25 clean ones.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.poisoning_ila import classifier, searching
from deepneighbors.experiments.poisoning_ila.classifier import case_nodes, parse
from deepneighbors.experiments.poisoning_ila.plan import CNN, SUMMARY, Poisoned, evasion_node, over_all_seeds, seeds
from deepneighbors.experiments.poisoning_ila.rows import count_row, credibility_rows, reliability_rows, share_row
from deepneighbors.experiments.poisoning_ila.searching import Seen, conclude
from deepneighbors.results import table
from deepneighbors.store import Artifact, Node

POISONED_OF = {15: 4, 50: 25}  # of the report's mixtures


def _images(run: Run, seed: int) -> Nodes:
    """Poison and evasion images of a seed by ``case`` or ``evasion-digits``."""
    nodes = {key.split("|")[1]: node for key, node in case_nodes(run, "svm_poisoning", seed).items()}
    for digits in sorted({parse(case)[0] for case in nodes}):
        nodes[f"{digits[0]}-{digits[1]}-evasion"] = evasion_node(run, seed, digits=digits)
    return nodes


def _nodes(run: Run) -> Nodes:
    return {str(seed): _search(run, seed) for seed in seeds(run)}


def _search(run: Run, seed: int) -> Node:
    clean, images, s = Poisoned(run, "none", seed), _images(run, seed), run.settings
    config = {
        "data": clean.data, "epoch": clean.last, "metric": "cosine", "k": s.neighbors, "names": list(images),
        "calibration": s.calibration_images, "test": s.evaluated_images,
    }  # fmt: skip
    return searching.search_images.node(config, (clean.network, *images.values()))


def _summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    rows: list[dict] = []
    arrays: dict[str, np.ndarray] = {}
    for seed in seeds(run):
        artifact = found[str(seed)]
        calibration, test = Seen.of(artifact, "calibration"), Seen.of(artifact, "test")
        names: dict[str, Any] = {"experiment": "poisoning", "network": CNN, "seed": seed}
        rows += _rows(test, calibration, run, names | {"attack": "none"}, arrays, reading="clean")
        for case in _images(run, seed):
            digits, kind = case.rsplit("-", 1)[0], case.rsplit("-", 1)[1]
            shown = Seen.of(artifact, case)
            if kind == "evasion":
                where = {"reading": "C", "digits": digits}
                mixed = _mixed(shown, test, len(shown), 2 * len(shown))
                rows += _rows(mixed, calibration, run, names | {"attack": "evasion", "norm": "l2"}, arrays, **where)
                continue
            pair, points, norm = parse(case)
            common = names | {"attack": "svm_poisoning", "norm": norm}
            where = {"digits": f"{pair[0]}-{pair[1]}", "points": str(points)}
            rows += _rows(shown, calibration, run, common, arrays, reading="A", **where)
            if points in POISONED_OF:
                mixed = _mixed(shown, test, POISONED_OF[points], points)
                rows += _rows(mixed, calibration, run, common, arrays, reading="B", **where)
    return table(over_all_seeds(rows, seed=run.seed)), arrays


def _mixed(poison: Seen, test: Seen, poisoned: int, total: int) -> Seen:
    """The first ``poisoned`` points and so many clean test images of their digits that the batch has ``total``."""
    same = np.flatnonzero(np.isin(test.truth, np.unique(poison.truth)))[: total - poisoned]
    parts = poison[np.arange(min(poisoned, len(poison)))], test[same]
    return Seen(*(np.concatenate([getattr(part, name) for part in parts]) for name in Seen.__dataclass_fields__))


def _rows(seen: Seen, calibration: Seen, run: Run, names: dict[str, Any], arrays: dict[str, np.ndarray],
          **where: object) -> list[dict]:  # fmt: skip
    """What network and DkNN say, against the true label and, for poison, against the wrong one that it bears."""
    said = conclude(seen, calibration, k=run.settings.neighbors)
    network, dknn = seen.network == seen.truth, said.labels == seen.truth
    rows = [
        share_row(network, "accuracy", names, by="network", **where),
        share_row(dknn, "accuracy", names, by="dknn", **where),
        count_row(~network, "misclassified", names, by="network", **where),
        count_row(~dknn, "misclassified", names, by="dknn", **where),
    ]
    wrong = seen.y != seen.truth
    if wrong.any():
        rows.append(share_row(said.labels[wrong] == seen.y[wrong], "poison_label", names, by="dknn", **where))
    rows += credibility_rows(said.credibility, names, **where)
    rows += reliability_rows(said.credibility["c_pred"], dknn, names, credibility="c_pred", **where)
    key = "|".join([names["attack"], str(names["seed"]), *(str(part) for part in (*where.values(), names.get("norm", "")))])
    arrays |= {f"{key}|{name}": sample.astype(np.float32) for name, sample in said.credibility.items()}
    arrays[f"{key}|correct"], arrays[f"{key}|wrong_label"] = dknn, wrong
    return rows


MIXTURES = Experiment("mixtures", _nodes, _summary, (*SUMMARY, classifier.__name__))
