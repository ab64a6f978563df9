"""What the slides leave as future work: DkNN on an adversarially trained network, and votes weighted by distance.

Beside them the undefended network alone, with the attacks of the field (foolbox).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.knn_dknn_attack import stages
from deepneighbors.experiments.knn_dknn_attack.attacked import (
    Attacked,
    all_nodes,
    clean_node,
    clean_rows,
    dknn,
    numpy_of,
    train_node,
)
from deepneighbors.results import mean_row, table
from deepneighbors.store import Artifact, Node

ROBUST = "mnist_cnn/robust"


def robust_node(run: Run) -> Node:
    """The network trained against an L2 adversary."""
    s = run.settings
    return train_node(run, epsilon=s.robust_epsilon, steps=s.robust_steps, step_size=2.5 * s.robust_epsilon / s.robust_steps)


def robust_attacks(run: Run) -> list[Attacked]:
    """DkNN on the robust network: the attack of 2019 and ours."""
    s, classifier, network = run.settings, dknn(run), robust_node(run)
    inputs = (network, clean_node(run, classifier, network, images=min(1000, s.clean_images)))
    schedule = {"search_steps": s.search_steps, "steps": s.steps, "released": True}
    gradient = {"constant": 0.5, "batch_size": 64, "schedule": schedule}
    margin = {"steps": s.dknn_margin_steps, "weigh": 5, "batch_size": 64}
    n = s.extra_images
    return [
        Attacked(ROBUST, "gradient", "l2", "gradient", classifier, inputs, n, 64, gradient),
        Attacked(ROBUST, "minimum_norm", "l2", "vote_margin", classifier, inputs, n, 64, margin),
    ]


def _softmax_node(run: Run, network: Node) -> Node:
    return stages.softmax_attacks.node({"images": run.settings.extra_images}, (network,))


def _robust_nodes(run: Run) -> Nodes:
    attacks = robust_attacks(run)
    network, clean = attacks[0].inputs
    return {"clean": clean, "softmax": _softmax_node(run, network), **all_nodes(attacks)}


def _robust_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    """DkNN on the robust network, and that network's own softmax."""
    clean = numpy_of(found["clean"])
    rows = clean_rows(run, "robust_network", ROBUST, found["clean"].tensors)
    arrays: dict[str, np.ndarray] = {}
    for attack in robust_attacks(run):
        gathered = attack.gather(found)
        rows += attack.rows(run, "robust_network", gathered, clean)
        arrays |= attack.arrays(gathered)
    rows += _softmax_rows(run, "robust_network", f"{ROBUST}/softmax", numpy_of(found["softmax"]))
    return table(rows), arrays


def _undefended_nodes(run: Run) -> Nodes:
    return {"softmax": _softmax_node(run, train_node(run))}


def _undefended_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    return table(_softmax_rows(run, "undefended", "mnist_cnn/softmax", numpy_of(found["softmax"]))), {}


def _softmax_rows(run: Run, experiment: str, network: str, said: dict[str, np.ndarray]) -> list[dict]:
    rows = [mean_row(said["clean"], metric="accuracy", experiment=experiment, network=network, attack="none", seed=run.seed)]
    for attack, norm, setting in (("carlini_wagner", "l2", ""), ("pgd", "linf", "epsilon=0.2")):
        won = said[f"{attack}/success"]
        names: dict[str, Any] = {
            "experiment": experiment,
            "network": network,
            "attack": attack,
            "norm": norm,
            "setting": setting,
        }
        rows.append(mean_row(~won, metric="accuracy", seed=run.seed, **names))
        rows.append(mean_row(said[f"{attack}/l2"][won], metric="mean_l2", seed=run.seed, **names))
    return rows


def weighted_attacks(run: Run) -> list[Attacked]:
    """Our attack on DkNN whose votes are weighted by distance, one temperature after the other; first without weights."""
    s, network = run.settings, train_node(run)
    made = []
    for temperature in (None, *s.temperatures):
        weights = {} if temperature is None else {"weights": "distance", "temperature": temperature}
        classifier = dknn(run, **weights)
        inputs = (network, clean_node(run, classifier, network, images=min(1000, s.clean_images)))
        margin = {"steps": s.dknn_margin_steps, "weigh": 5, "batch_size": 64}
        setting = "uniform" if temperature is None else f"temperature={temperature:g}"
        made.append(
            Attacked("mnist_cnn/weighted", "minimum_norm", "l2", "vote_margin", classifier, inputs,
                     s.extra_images, 64, margin, setting)
        )  # fmt: skip
    return made


def _weighted_nodes(run: Run) -> Nodes:
    attacks = weighted_attacks(run)
    return {**all_nodes(attacks), **{f"clean/{attack.setting}": attack.inputs[1] for attack in attacks}}


def _weighted_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    rows = []
    for attack in weighted_attacks(run):
        clean = found[f"clean/{attack.setting}"]
        for row in clean_rows(run, "weighted_voting", attack.network, clean.tensors):
            rows.append(row | {"setting": attack.setting})
        rows += attack.rows(run, "weighted_voting", attack.gather(found), numpy_of(clean))
    return table(rows), {}


UNDEFENDED = Experiment("undefended", _undefended_nodes, _undefended_summary)
ROBUST_NETWORK = Experiment("robust_network", _robust_nodes, _robust_summary)
WEIGHTED = Experiment("weighted_voting", _weighted_nodes, _weighted_summary)
