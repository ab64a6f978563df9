"""Do estimators of influence agree, what do they cost, and does it matter to the detector which one is taken?"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from deepneighbors.detectors import TrainingActivations, ranks_and_distances
from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.nnif_detection.activations import USES, kept_images, subset_of, training_activations
from deepneighbors.experiments.nnif_detection.cases import Case, cases
from deepneighbors.experiments.nnif_detection.training import SMOOTHING, load_network
from deepneighbors.influence import (
    FullNetworkInfluence,
    Identity,
    Inverse,
    LastLayerInfluence,
    Lissa,
    Recursion,
    fit_softmax,
)
from deepneighbors.influence.operators import Gain
from deepneighbors.results import auc_row, mean_row, statistic_row, table
from deepneighbors.store import Artifact, Context, Node, Payload, stage

EXACT = "last_layer"
LAST_LAYER: dict[str, Gain] = {
    EXACT: Inverse(),
    "last_layer_damped": Inverse(2.0),  # the limit of the released recursion
    "last_layer_lissa_49": Lissa(49),
    "last_layer_lissa_5": Lissa(5),
    "last_layer_gradient": Identity(),
}
REFITTED, FULL_LISSA, FULL_GRADIENT = "last_layer_refitted", "network_lissa", "network_gradient"
ESTIMATORS = (*LAST_LAYER, REFITTED, FULL_LISSA, FULL_GRADIENT)


@stage("influence_scores", uses=USES)
def influence_scores(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Scores ``(T, N)`` of a subset of the training images for validation images, the first half of them clean.

    Every loss has the label that the network predicts. ``seconds`` are those of all queries, preparation included.
    """
    weights, slices = inputs[0], inputs[1:]
    whole, device = training_activations(config, weights, context.device), context.device
    training = subset_of(whole, config["training"])
    clean, places = kept_images(config | {"part": "validation"}, weights, device)
    attacked = torch.cat([part.tensors["x"] for part in slices])[places]
    queries = torch.cat([clean[: config["queries"]], attacked[: config["queries"]]]).to(device)
    labels = training.logits(queries).argmax(1)
    start = time.perf_counter()
    scores = _scores(config, weights, training, queries, labels)
    seconds = time.perf_counter() - start
    features = training.query(queries, ("embedding",))["embedding"]
    tensors = {"scores": scores, "features": features, "training": training.pooled["embedding"]}
    return Payload({name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}, {"seconds": seconds})


def _scores(config: dict, weights: Artifact, training: TrainingActivations, x: Tensor, labels: Tensor) -> Tensor:
    name, smoothing = config["estimator"], SMOOTHING[config["data"]["dataset"]]
    weight, bias = (weights.tensors[f"fc.{part}"].to(x.device) for part in ("weight", "bias"))
    if name in (FULL_LISSA, FULL_GRADIENT):
        # A batch of one with the statistics of its batch is instance norm; so are the released gradients.
        statistics = ("faithful", "instance") if config["mode"] == "faithful" else ("clean", "running")
        batch = load_network(weights.tensors, statistics[0], str(x.device))
        single = load_network(weights.tensors, statistics[0], str(x.device), statistics=statistics[1])
        recursion = Recursion(**config["recursion"]) if name == FULL_LISSA else None
        model = FullNetworkInfluence(single, batch, smoothing=smoothing, recursion=recursion)
        return model.scores(training.images, training.labels, x, labels)
    embeddings = training.pooled["embedding"]
    if name == REFITTED:
        theta = fit_softmax(embeddings, training.labels, training.classes, weight_decay=4e-4, smoothing=smoothing)
        weight, bias = theta[:, :-1], theta[:, -1]
    operator = LAST_LAYER.get(name, Inverse())
    last = LastLayerInfluence(weight, bias, smoothing=smoothing, operator=operator).fit(embeddings, training.labels)
    return last.scores(training.query(x, ("embedding",))["embedding"], labels)


def _node(case: Case, estimator: str) -> Node:
    s = case.run.settings
    attack = s.view_attacks[0]
    config = {
        "data": case.data, "mode": case.mode, "estimator": estimator, "queries": s.estimator_queries,
        "training": s.estimator_training, "images": case.images(attack, "validation"),
        "recursion": {"repeats": s.lissa[0], "depth": s.lissa[1], "batch_size": s.lissa[2]},
    }  # fmt: skip
    return influence_scores.node(config, (case.weights, *case.attacked(attack, "validation")))


def _nodes(run: Run) -> Nodes:
    return {f"{case.mode}|{name}": _node(case, name) for case in cases(run) for name in ESTIMATORS}


def _summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    """Agreement with the exact last-layer scores, seconds a query, and the AUC of D_up alone, by estimator.

    Agreement: rank correlation over the training images, and the share of the M most helpful that are the same.
    """
    rows: list[dict] = []
    arrays: dict[str, np.ndarray] = {}
    for case in cases(run):
        exact = found[f"{case.mode}|{EXACT}"].tensors["scores"].numpy()
        m = min(run.settings.helpful, exact.shape[1] // 10)
        for name in ESTIMATORS:
            artifact = found[f"{case.mode}|{name}"]
            scores = artifact.tensors["scores"].numpy()
            names: dict[str, Any] = case.names(attack=run.settings.view_attacks[0], layer="embedding", setting=name)
            agreement = [spearmanr(ours, other).statistic for ours, other in zip(scores, exact, strict=True)]
            rows.append(mean_row(agreement, metric="spearman", **names))
            helpful = np.argsort(-scores, axis=1)[:, :m]
            best = np.argsort(-exact, axis=1)[:, :m]
            overlap = [len(np.intersect1d(a, b)) / m for a, b in zip(helpful, best, strict=True)]
            rows.append(mean_row(overlap, metric="top_overlap", **names))
            spent = artifact.values["seconds"] / len(scores)
            rows.append(statistic_row(spent, n=len(scores), metric="seconds_per_query", **names))
            tensors = artifact.tensors
            _, distances = ranks_and_distances(tensors["features"], tensors["training"], torch.from_numpy(helpful))
            nearness = distances.mean(1).numpy()
            half = len(nearness) // 2
            # Clean images are nearer to what helps them, so minus the distance is higher for clean.
            rows.append(auc_row(-nearness[:half], -nearness[half:], metric="auc", detector="d_up", **names))
            arrays[f"{case.mode}|{name}|agreement"] = np.asarray(agreement, dtype=np.float32)
    return table(rows), arrays


ESTIMATORS_OF_INFLUENCE = Experiment("estimators", _nodes, _summary)
