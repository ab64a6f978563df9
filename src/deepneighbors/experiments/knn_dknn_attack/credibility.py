"""Credibility: against the radius of attacks, as a filter, on images that are no digits, and under an adaptive attack."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.knn_dknn_attack import stages
from deepneighbors.experiments.knn_dknn_attack.attacked import (
    Attacked,
    all_nodes,
    clean_node,
    dknn,
    numpy_of,
    train_node,
)
from deepneighbors.experiments.knn_dknn_attack.tables import dknn_attacks
from deepneighbors.results import auc_row, mean_row, table
from deepneighbors.store import Artifact, Node

THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)  # of the filter, as in the authors' saved arrays


def _dknn_inputs(run: Run) -> tuple[Node, Node]:
    network = train_node(run)
    return network, clean_node(run, dknn(run), network)


def curve_attacks(run: Run) -> list[Attacked]:
    """Gradient attack and feature adversary in Linf balls of all radii (Sitawarin & Wagner 2019, figure)."""
    s, inputs = run.settings, _dknn_inputs(run)
    once = {"search_steps": 1, "steps": s.linf_steps, "released": True}
    made = []
    for epsilon in s.epsilons:
        options = {"norm": "linf", "epsilon": epsilon}
        gradient = options | {"learning_rate": 0.5, "batch_size": 64, "schedule": once}
        for attack, chosen in (("gradient", gradient), ("feature_adversary", options)):
            made.append(
                Attacked("mnist_cnn", attack, "linf", attack, dknn(run), inputs, s.curve_images, 64, chosen,
                         f"epsilon={epsilon:g}")
            )  # fmt: skip
    return made


def adaptive_attacks(run: Run) -> list[Attacked]:
    """The attack that raises credibility, in Linf balls and in an L2 ball of the published mean distance 2.164."""
    s, inputs = run.settings, _dknn_inputs(run)
    balls = [("linf", 0.2), ("linf", 0.3), ("l2", 2.164), ("l2", 4.0)]
    return [
        Attacked("mnist_cnn", "credible", norm, "credible", dknn(run), inputs, s.extra_images, 64,
                 {"norm": norm, "epsilon": epsilon, "steps": s.credible_steps}, f"epsilon={epsilon:g}")
        for norm, epsilon in balls
    ]  # fmt: skip


def _summarise_attacks(run: Run, experiment: str, attacks: list[Attacked], found: Mapping[str, Artifact]) -> Summary:
    clean, rows = numpy_of(found["clean"]), []
    arrays: dict[str, np.ndarray] = {}
    for attack in attacks:
        gathered = attack.gather(found)
        rows += attack.rows(run, experiment, gathered, clean)
        arrays |= attack.arrays(gathered)
    arrays["clean|p_values"] = clean["p_values"].astype(np.float16)
    return table(rows), arrays


def _curve_nodes(run: Run) -> Nodes:
    return {"clean": _dknn_inputs(run)[1], **all_nodes(curve_attacks(run))}


def _curve_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    return _summarise_attacks(run, "dknn_epsilon", curve_attacks(run), found)


def _adaptive_nodes(run: Run) -> Nodes:
    return {"clean": _dknn_inputs(run)[1], **all_nodes(adaptive_attacks(run))}


def _adaptive_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    return _summarise_attacks(run, "adaptive", adaptive_attacks(run), found)


def filtered_attacks(run: Run) -> list[Attacked]:
    """Attacks whose successes meet the filter: those of the DkNN table, and the adaptive ones."""
    return dknn_attacks(run) + adaptive_attacks(run)


def _filter_nodes(run: Run) -> Nodes:
    network, clean = _dknn_inputs(run)
    config = {"classifier": dknn(run), "images": run.settings.outside_images, "seed": run.seed}
    outside = stages.out_of_distribution.node(config, (network,))
    return {"clean": clean, "outside": outside, **all_nodes(filtered_attacks(run))}


def _filter_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    """Accepted share at each threshold, AUC against clean digits, and histograms in bins of 0.1."""
    clean, outside = numpy_of(found["clean"]), numpy_of(found["outside"])
    own = clean["p_values"].max(1)
    samples: dict[tuple[str, str, str, str], np.ndarray] = {("mnist_cnn", "none", "", ""): own}
    for kind in stages.OUT_OF_DISTRIBUTION:
        samples[("mnist_cnn", kind, "", "")] = outside[kind]
    for line in filtered_attacks(run):
        gathered = line.gather(found)
        won = gathered["success"].astype(bool)
        if won.any():
            key = (line.network, line.attack, line.norm, line.setting)
            samples[key] = gathered["p_values"].max(1)[won]
    samples[("mnist_cnn/trimmed", "none", "", "")] = _trimmed(clean, outside["calibration"])
    rows: list[dict] = []
    arrays: dict[str, np.ndarray] = {}
    for (network, attack, norm, setting), sample in samples.items():
        names: dict[str, Any] = {"experiment": "credibility", "network": network, "attack": attack, "norm": norm}
        for threshold in THRESHOLDS:
            where = ";".join(filter(None, (setting, f"threshold={threshold:g}")))
            rows.append(mean_row(sample > threshold, metric="accepted", seed=run.seed, setting=where, **names))
        rows.append(mean_row(sample, metric="mean_credibility", seed=run.seed, setting=setting, **names))
        if network == "mnist_cnn/trimmed":
            continue
        if attack != "none":
            rows.append(auc_row(own, sample, metric="credibility_auc", seed=run.seed, setting=setting, **names))
        arrays["|".join((network, attack, norm, setting, "credibility"))] = sample.astype(np.float32)
    arrays["clean|correct"] = clean["label"] == clean["y"]
    rows += _reliability(run, own, arrays["clean|correct"])
    return table(rows), arrays


def _trimmed(clean: Mapping[str, np.ndarray], calibration: np.ndarray) -> np.ndarray:
    """Credibility of the clean digits when calibration scores of 0 are dropped, as cleverhans does."""
    kept = np.sort(calibration[calibration > 0])
    votes = clean["votes"].sum(1)
    scores = votes.sum(1, keepdims=True) - votes
    return (1 - np.searchsorted(kept, scores) / len(kept)).max(1)


def _reliability(run: Run, credibility: np.ndarray, correct: np.ndarray) -> list[dict]:
    """Accuracy of clean digits by tenths of credibility; empty tenths have n = 0."""
    bins = np.minimum((credibility * 10).astype(int), 9)
    names: dict[str, Any] = {"experiment": "credibility", "network": "mnist_cnn", "attack": "none"}
    return [
        mean_row(
            correct[bins == b], metric="accuracy", seed=run.seed, setting=f"credibility={b / 10:g}-{b / 10 + 0.1:g}", **names
        )
        for b in range(10)
    ]


EPSILON = Experiment("dknn_epsilon", _curve_nodes, _curve_summary)
ADAPTIVE = Experiment("adaptive", _adaptive_nodes, _adaptive_summary)
CREDIBILITY = Experiment("credibility", _filter_nodes, _filter_summary)
