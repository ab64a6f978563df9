"""The paper's two tables: attacks on kNN and on DkNN, as released, corrected and by our strongest attack."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.knn_dknn_attack.attacked import (
    EXAMPLES,
    Attacked,
    all_nodes,
    clean_node,
    clean_rows,
    dknn,
    knn,
    numpy_of,
    train_node,
)
from deepneighbors.experiments.knn_dknn_attack.stages import digits_of
from deepneighbors.results import statistic_row, table
from deepneighbors.store import Artifact


def knn_attacks(run: Run) -> list[Attacked]:
    """Lines of the kNN table."""
    s, classifier = run.settings, knn(run)
    inputs = (clean_node(run, classifier),)
    released = {"search_steps": s.search_steps, "steps": s.steps, "released": True}
    corrected = {"search_steps": s.search_steps, "steps": s.steps}
    rule = {"search_steps": s.rule_search_steps, "steps": s.rule_steps, "guides": 2 * s.k}

    def line(
        network: str, attack: str, norm: str, kind: str, images: int, batch: int = 100, setting: str = "", **options: Any
    ) -> Attacked:
        options |= {"norm": norm} if norm == "linf" else {}
        return Attacked(network, attack, norm, kind, classifier, inputs, images, batch, options, setting)

    n = s.knn_images
    linf: dict[str, Any] = {"schedule": {**released, "search_steps": 1}}
    return [
        line("knn/released", "mean", "l2", "mean", n, 500, means="unit"),
        line("knn", "mean", "l2", "mean", n, 500),
        line("knn/released", "gradient", "l2", "gradient", n, constant=10.0, schedule=released),
        line("knn", "gradient", "l2", "gradient", n, constant=10.0, schedule=corrected),
        *[line("knn/released", "gradient", "linf", "gradient", n, setting=f"epsilon={e:g}", epsilon=e, **linf)
          for e in (0.2, 0.3)],
        line("knn/released", "minimum_norm", "l2", "minimum_norm", s.rule_images, **rule),
        line("knn", "minimum_norm", "l2", "vote_margin", n, steps=s.margin_steps, targets=s.margin_targets, softness=0.02),
        line("knn", "minimum_norm", "linf", "vote_margin", n, steps=s.margin_steps, softness=0.02),
    ]  # fmt: skip


def dknn_attacks(run: Run) -> list[Attacked]:
    """Lines of the DkNN table."""
    s, classifier, network = run.settings, dknn(run), train_node(run)
    inputs = (network, clean_node(run, classifier, network))
    schedule = {"search_steps": s.search_steps, "steps": s.steps, "released": True}
    often = {"search_steps": s.search_steps, "steps": s.steps, "check_every": 40}
    once = {"search_steps": 1, "steps": s.linf_steps, "released": True}

    def line(network: str, attack: str, norm: str, kind: str, images: int, setting: str = "", **options: Any) -> Attacked:
        options |= {"norm": norm} if norm == "linf" else {}
        return Attacked(network, attack, norm, kind, classifier, inputs, images, 64, options, setting)

    n, extra = s.dknn_images, s.extra_images
    gradient = {"learning_rate": 0.5, "batch_size": 64, "schedule": once}
    margin = {"steps": s.dknn_margin_steps, "weigh": 5, "batch_size": 64}
    return [
        line("mnist_cnn/released", "mean", "l2", "mean", n, oracle="votes"),
        line("mnist_cnn", "mean", "l2", "mean", n),
        line("mnist_cnn/released", "feature_adversary", "l2", "feature_adversary", n, schedule=schedule),
        line("mnist_cnn/released", "gradient", "l2", "gradient", n, constant=0.5, batch_size=64, schedule=schedule),
        line("mnist_cnn", "gradient", "l2", "gradient", extra, constant=0.5, batch_size=64, schedule=often),
        line("mnist_cnn", "minimum_norm", "l2", "vote_margin", n, **margin),
        line("mnist_cnn", "minimum_norm", "linf", "vote_margin", extra, **margin),
        *[line("mnist_cnn/released", "feature_adversary", "linf", "feature_adversary", n, f"epsilon={e:g}",
               epsilon=e) for e in (0.2, 0.3)],
        *[line("mnist_cnn/released", "gradient", "linf", "gradient", extra, f"epsilon={e:g}", epsilon=e, **gradient)
          for e in (0.2, 0.3)],
    ]  # fmt: skip


def _summarise(run: Run, experiment: str, network: str, attacks: list[Attacked], found: Mapping[str, Artifact]) -> Summary:
    clean = numpy_of(found["clean"])
    rows = clean_rows(run, experiment, network, found["clean"].tensors)
    for layer, radius in found["clean"].values["radii"].items():
        names = {"experiment": experiment, "network": network, "attack": "none", "layer": layer, "metric": "eta"}
        rows.append(statistic_row(radius, n=len(clean["y"]), seed=run.seed, **names))
    arrays: dict[str, np.ndarray] = {}
    for attack in attacks:
        gathered = attack.gather(found)
        rows += attack.rows(run, experiment, gathered, clean)
        arrays |= attack.arrays(gathered)
    arrays["clean|label"], arrays["clean|y"] = clean["label"].astype("uint8"), clean["y"].astype("uint8")
    if "p_values" in clean:
        arrays["clean|p_values"] = clean["p_values"].astype("float16")
    arrays["clean|x"] = digits_of({"start": 0, "stop": EXAMPLES}, "cpu")[0].numpy().astype("float16")
    return table(rows), arrays


def _knn_nodes(run: Run) -> Nodes:
    return {"clean": clean_node(run, knn(run)), **all_nodes(knn_attacks(run))}


def _dknn_nodes(run: Run) -> Nodes:
    return {"clean": clean_node(run, dknn(run), train_node(run)), **all_nodes(dknn_attacks(run))}


def _knn_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    return _summarise(run, "knn_attack", "knn", knn_attacks(run), found)


def _dknn_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    return _summarise(run, "dknn_attack", "mnist_cnn", dknn_attacks(run), found)


KNN_ATTACK = Experiment("knn_attack", _knn_nodes, _knn_summary)
DKNN_ATTACK = Experiment("dknn_attack", _dknn_nodes, _dknn_summary)
