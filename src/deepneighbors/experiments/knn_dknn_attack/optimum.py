"""How far attacks are from the best possible: the exact 1-NN optimum, a certified bound for k, and sweeps of choices."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.knn_dknn_attack import stages
from deepneighbors.experiments.knn_dknn_attack.attacked import Attacked, all_nodes, clean_node, knn, numpy_of
from deepneighbors.results import mean_row, table
from deepneighbors.store import Artifact

METRICS = ("l2", "cosine")
_SLICE = 25


def _one_neighbor(run: Run, metric: str) -> dict:
    return knn(run, k=1, metric=metric)


def single_attacks(run: Run) -> list[Attacked]:
    """Each attack on 1-NN, Euclidean and cosine."""
    s, made = run.settings, []
    corrected = {"search_steps": s.search_steps, "steps": s.steps}
    for metric in METRICS:
        classifier = _one_neighbor(run, metric)
        inputs = (clean_node(run, classifier, images=min(1000, s.clean_images)),)
        options: dict[str, dict] = {
            "mean": {"steps": 10},
            "gradient": {"guides": 1, "constant": 10.0, "schedule": corrected},
            "minimum_norm": {"steps": s.margin_steps, "guides": 20, "targets": s.margin_targets, "softness": 0.01},
        }
        for attack, chosen in options.items():
            kind = "vote_margin" if attack == "minimum_norm" else attack
            made.append(Attacked(f"knn/1nn_{metric}", attack, "l2", kind, classifier, inputs, s.exact_images, 100, chosen))
    return made


def _exact_nodes(run: Run) -> Nodes:
    s, nodes = run.settings, dict(all_nodes(single_attacks(run)))
    for metric in METRICS:
        classifier = _one_neighbor(run, metric)
        nodes[f"clean/{metric}"] = clean_node(run, classifier, images=min(1000, s.clean_images))
    for start in range(0, s.exact_images, _SLICE):
        part = {"start": start, "stop": min(start + _SLICE, s.exact_images), "database": s.knn_database}
        for metric in METRICS:
            nodes[f"exact/{metric}#{start}"] = stages.exact_1nn.node(part | {"metric": metric})
        nodes[f"bound#{start}"] = stages.lower_bound_knn.node(part | {"metric": "cosine", "k": s.k})
    return nodes


def _exact_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    """Mean L2 over the digits that 1-NN has right, and the ratio of each attack to the optimum, image by image."""
    rows, arrays = [], {}
    for metric in METRICS:
        clean = numpy_of(found[f"clean/{metric}"])
        optimum = _join(found, f"exact/{metric}#")
        right = (clean["label"] == clean["y"])[: len(optimum["distance"])]
        names: dict[str, Any] = {"experiment": "exact", "network": f"knn/1nn_{metric}", "norm": "l2", "seed": run.seed}
        exact = optimum["distance"][right]
        rows.append(mean_row(exact, metric="mean_l2", attack="exact", **names))
        gap = 1 - optimum["lower_bound"][right] / exact
        rows.append(mean_row(gap, metric="certified_gap", attack="exact", **names))
        arrays[f"{metric}|exact"] = exact.astype(np.float32)
        for attack in (a for a in single_attacks(run) if a.network == names["network"]):
            gathered = attack.gather(found)
            won = gathered["success"].astype(bool)[right]
            reached = gathered["l2"][right]
            rows.append(mean_row(won, metric="success", attack=attack.attack, **names))
            rows.append(mean_row(reached[won], metric="mean_l2", attack=attack.attack, **names))
            rows.append(mean_row(reached[won] / exact[won], metric="ratio_to_exact", attack=attack.attack, **names))
            arrays[f"{metric}|{attack.attack}"] = np.where(won, reached, np.nan).astype(np.float32)
    bound = _join(found, "bound#")["lower_bound"]
    rows.append(
        mean_row(bound, metric="lower_bound_l2", experiment="exact", network="knn", attack="exact", norm="l2", seed=run.seed)
    )
    arrays["bound"] = bound.astype(np.float32)
    return table(rows), arrays


def _join(found: Mapping[str, Artifact], prefix: str) -> dict[str, np.ndarray]:
    names = sorted((name for name in found if name.startswith(prefix)), key=lambda name: int(name.split("#")[1]))
    parts = [numpy_of(found[name]) for name in names]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def sweep_attacks(run: Run) -> list[Attacked]:
    """The gradient attack against its guides and steps, and both attacks against k, on cosine kNN."""
    s, made = run.settings, []
    n = s.sweep_images

    def gradient(setting: str, classifier: dict, guides: int, steps: int) -> Attacked:
        inputs = (clean_node(run, classifier, images=min(1000, s.clean_images)),)
        options = {"guides": guides, "constant": 10.0, "schedule": {"search_steps": s.search_steps, "steps": steps}}
        return Attacked("knn", "gradient", "l2", "gradient", classifier, inputs, n, 100, options, setting)

    def margin(setting: str, classifier: dict, guides: int, steps: int) -> Attacked:
        inputs = (clean_node(run, classifier, images=min(1000, s.clean_images)),)
        options = {"guides": guides, "steps": steps, "softness": 0.02}
        return Attacked("knn", "minimum_norm", "l2", "vote_margin", classifier, inputs, n, 100, options, setting)

    for guides in s.sweep_guides:
        made.append(gradient(f"guides={guides}", knn(run), guides, s.steps))
        if guides >= s.k:
            made.append(margin(f"guides={guides}", knn(run), guides, s.margin_steps))
    for steps in s.sweep_steps:
        made.append(gradient(f"steps={steps}", knn(run), 75, steps))
        made.append(margin(f"steps={steps}", knn(run), s.k, steps))
    for k in s.sweep_k:
        made.append(gradient(f"k={k}", knn(run, k=k), max(k, 1), s.steps))
        made.append(margin(f"k={k}", knn(run, k=k), max(k, 20), s.margin_steps))
    return made


def _sweep_nodes(run: Run) -> Nodes:
    return all_nodes(sweep_attacks(run))


def _sweep_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    rows = []
    for attack in sweep_attacks(run):
        gathered = attack.gather(found)
        won = gathered["success"].astype(bool)
        names = attack.names(experiment="sweep", seed=run.seed)
        rows.append(mean_row(won, metric="fooled", **names))
        rows.append(mean_row(gathered["l2"][won], metric="mean_l2", **names))
    return table(rows), {}


EXACT = Experiment("exact", _exact_nodes, _exact_summary)
SWEEP = Experiment("sweep", _sweep_nodes, _sweep_summary)
