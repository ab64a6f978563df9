"""The paper's future work: is NNIF still as good when it is made fast, has another distance, or is one threshold?

All methods are at the embedding with one M (``helpful``), one operator for the inverse Hessian and all training images, in
clean mode where the run has it: an index is prepared once for all images. Times are those of a detector once the network
has been run on the images in question, since every detector needs its embedding and logits; the network has a row of its
own. So the activations of the training images, which all methods share, belong to no preparation.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepneighbors import detectors
from deepneighbors.detectors.fast import conformal_threshold
from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.nnif_detection import detecting
from deepneighbors.experiments.nnif_detection.activations import USES, influence_of, kept_images, training_activations
from deepneighbors.experiments.nnif_detection.cases import Case, cases, scores_of
from deepneighbors.influence import InfluenceIndex, LastLayerInfluence, recall
from deepneighbors.results import auc_row, mean_row, statistic_row, table
from deepneighbors.store import Artifact, Context, Node, Payload, stage

LAYER = "embedding"
ALONE = "fixed M"  # NNIF as it is; the table of detection has it with the M that was chosen
EXACT, MAHALANOBIS, THRESHOLD = "nnif", "nnif_mahalanobis", "d_up_threshold"
INDEX, APPROXIMATE, NEIGHBORS = "nnif_index_exact", "nnif_index_approximate", "neighbor_influence"
FPR = 0.05
# Detector and setting, with the options of each: an approximate index knows a share of the images, or visits a share of the
# about sqrt(N) lists of an inverted file.
METHODS: dict[tuple[str, str], dict] = {
    (EXACT, ALONE): {},
    (MAHALANOBIS, ""): {},
    (INDEX, ""): {},
    (APPROXIMATE, "longest=1/8"): {"share": 1 / 8},
    (APPROXIMATE, "probed=1/32"): {"probed": 1 / 32},
    (APPROXIMATE, "probed=1/8"): {"probed": 1 / 8},
    (NEIGHBORS, "averaged=features"): {"anchors": 1 / 10, "k": 10},  # a share of the training images
    (NEIGHBORS, "averaged=class_shares"): {"anchors": 1, "k": 10},
    (THRESHOLD, ""): {"fpr": FPR},
}
SAMPLES = tuple((part, shown) for part in ("validation", "test") for shown in ("clean", "attacked"))


@dataclass(frozen=True)
class _Known(detectors.TrainingActivations):
    """Training activations, with the network's outputs for the images in question: a clock sees the detector alone."""

    outputs: Mapping[str, Tensor] = field(default_factory=dict)

    def query(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        return {layer: self.outputs[layer] for layer in layers}

    def logits(self, x: Tensor) -> Tensor:
        return self.outputs["logits"]


@stage("fast_prepared", uses=USES)
def prepared(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """What a method keeps of the training images, and the ``seconds`` of all its work on these ``images``.

    That is what takes long to compute again: clusters of an inverted file, vectors of anchors. One input: the network.
    """
    training = _embeddings(config, inputs[0], context.device)
    _ESTIMATORS.clear()
    start = _clock(context.device)
    state, _ = _prepare(config, inputs[0], training, {})
    values = {"seconds": _clock(context.device) - start, "images": len(training.labels)}
    return Payload({name: part.cpu().contiguous() for name, part in state.items()}, values)


@stage("fast_features", uses=USES)
def features(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Features of a method for the images of a part that the network has right, with ``seconds`` for all of them.

    Inputs: the network, what was prepared, and the slices of an attack where attacked images are shown. ``recall`` of an
    index, for test images: the share of the M most helpful and M most harmful images found, one number a query, not timed.
    """
    weights, known, slices = inputs[0], inputs[1], inputs[2:]
    x, places = kept_images(config, weights, context.device)
    x = (torch.cat([part.tensors["x"] for part in slices])[places] if slices else x).to(context.device)
    training = _embeddings(config, weights, context.device)
    start = _clock(context.device)
    outputs = {**training.query(x, (LAYER,)), "logits": training.logits(x)}
    network = (_clock(context.device) - start) / 2  # the network has run twice, and one run gives both
    training = _Known(training.network, training.images, training.labels, training.pooled, training.batch_size, outputs)
    _, detector = _prepare(config, weights, training, known.tensors)
    start = _clock(context.device)
    found = torch.from_numpy(detector.features(x))
    seconds = _clock(context.device) - start
    values = {"seconds": seconds, "network_seconds": network, "recall": _recall(config, detector, outputs)}
    return Payload({str(config["m"]): found.double().contiguous()}, values)


@stage("fast_threshold", uses=("deepneighbors.detectors",))
def threshold(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """D_up of clean and attacked test images, and which of them lie above the threshold of clean validation images.

    Inputs: features of clean validation, clean test and attacked test images.
    """
    held, *tested = (next(iter(part.tensors.values()))[:, 0].numpy() for part in inputs)
    limit = conformal_threshold(held, config["fpr"])
    scores = dict(zip(("clean", "attacked"), tested, strict=True))
    flagged = {f"flagged_{name}": torch.from_numpy(part > limit) for name, part in scores.items()}
    # JSON has no infinity: the threshold of too few images.
    values = {"threshold": limit if math.isfinite(limit) else None}
    return Payload({name: torch.from_numpy(part).contiguous() for name, part in scores.items()} | flagged, values)


def _clock(device: str) -> float:
    """Seconds, once the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _embeddings(config: dict, weights: Artifact, device: str) -> detectors.TrainingActivations:
    """The training activations at the embedding."""
    whole = training_activations(config, weights, device)
    pooled = {LAYER: whole.pooled[LAYER]}
    return detectors.TrainingActivations(whole.network, whole.images, whole.labels, pooled, whole.batch_size)


def _prepare(config: dict, weights: Artifact, training: detectors.TrainingActivations, state: Mapping[str, Tensor]
             ) -> tuple[dict[str, Tensor], detectors.Detector]:  # fmt: skip
    """What is worth keeping of a method's preparation, and its detector; ``state`` is what an earlier one has kept."""
    method, m, options = config["method"], config["m"], config["options"]
    if method == NEIGHBORS:
        known = dict(state)
        if not known:
            index = _estimator(config, weights, training, state)
            known = _neighbor_vectors(training, index, m, round(options["anchors"] * len(training.labels)))
        k = min(options["k"], len(known["anchors"]))
        return known, detectors.NeighborInfluence(training, known["vectors"], known["anchors"], k=k)
    estimator = _estimator(config, weights, training, state)
    kept = {"members": estimator.members_} if "probed" in options else {}
    influence = detectors.PredictedLabelInfluence(training, estimator)
    if method == THRESHOLD:
        return kept, detectors.HelpfulDistance(training, influence, m=m, fpr=options["fpr"])
    distances = detectors.MahalanobisActivations.of(training, (LAYER,)) if method == MAHALANOBIS else training
    return kept, detectors.NNIF(distances, influence, (LAYER,), m=m)


def _estimator(config: dict, weights: Artifact, training: detectors.TrainingActivations, state: Mapping[str, Tensor]
               ) -> Any:  # fmt: skip
    """A method's estimator of influence; the last one is kept for the other attacks."""
    key = repr(
        [weights.key, str(training.labels.device), config["data"], config["mode"], config["method"], config["options"]]
    )
    if key not in _ESTIMATORS:
        _ESTIMATORS.clear()
        model = influence_of(config | {"part": "validation"}, weights, training)
        _ESTIMATORS[key] = model if config["method"] in (EXACT, MAHALANOBIS) else _index(config, model, state)
    return _ESTIMATORS[key]


_ESTIMATORS: dict[str, Any] = {}


def _index(config: dict, model: LastLayerInfluence, state: Mapping[str, Tensor]) -> InfluenceIndex:
    if config["method"] != APPROXIMATE:
        return InfluenceIndex(model)
    if "share" in config["options"]:
        return InfluenceIndex(model, backend="longest", share=config["options"]["share"])
    lists = round(len(model.labels_) ** 0.5)
    probes = max(1, round(lists * config["options"]["probed"]))
    members = state.get("members")
    return InfluenceIndex(model, backend="inverted_file", lists=lists, probes=probes, members=members)


def _neighbor_vectors(training: detectors.TrainingActivations, index: InfluenceIndex, m: int, count: int
                      ) -> dict[str, Tensor]:  # fmt: skip
    """Vectors by class of ``count`` random training images, NNIF's features; or of all of them, shares of their help."""
    device = training.labels.device
    if count == len(training.labels):
        shares = detectors.class_shares(index.vectors_, training.labels)
        return {"vectors": shares[:, :, None], "anchors": torch.arange(len(shares), device=device)}
    order = torch.randperm(len(training.labels), generator=torch.Generator().manual_seed(0))
    anchors = order[:count].sort().values.to(device)
    return {"vectors": detectors.nnif_by_class(training, index, anchors, m=m), "anchors": anchors}


def _recall(config: dict, detector: Any, outputs: Mapping[str, Tensor]) -> list[float]:
    if config["method"] not in (INDEX, APPROXIMATE) or config["part"] != "test":
        return []
    labels, m = outputs["logits"].argmax(1), config["m"]
    index = detector.influence.estimator
    found, exact = (estimator.extremes(outputs[LAYER], labels, m) for estimator in (index, index.model))
    shares = [recall(*pair) for pair in zip(found, exact, strict=True)]
    return torch.stack(shares).mean(0).tolist()


def _case(run: Run) -> Case:
    known = cases(run)
    return next((case for case in known if case.mode == "clean"), known[0])


def _config(case: Case, method: str, options: dict) -> dict:
    # As many helpful as harmful images, and one more for an anchor that is left out.
    m = min(case.run.settings.helpful, case.data["train_images"] // 2 - 1)
    return {"data": case.data, "mode": case.mode, "method": method, "options": options, "m": m}


def _prepared_node(case: Case, method: str, options: dict) -> Node:
    return prepared.node(_config(case, method, options), (case.weights,))


def _feature_nodes(case: Case, attack: str, method: str, options: dict) -> list[Node]:
    """Features of clean and of attacked images of each part, in the order of :data:`SAMPLES`."""
    ready, nodes = _prepared_node(case, method, options), []
    for part, shown in SAMPLES:
        images = {"part": part, "images": case.images(attack, part)}
        slices = case.attacked(attack, part) if shown == "attacked" else []
        nodes.append(features.node(_config(case, method, options) | images, (case.weights, ready, *slices)))
    return nodes


def _nodes(run: Run) -> Nodes:
    case, nodes = _case(run), {}
    for (method, setting), options in METHODS.items():
        nodes[f"{method}|{setting}"] = _prepared_node(case, method, options)
        for attack in run.settings.ablation_attacks:
            key, parts = f"{method}|{setting}|{attack}", _feature_nodes(case, attack, method, options)
            nodes |= {f"{key}|{shown}": node for (part, shown), node in zip(SAMPLES, parts, strict=True) if part == "test"}
            if method == THRESHOLD:
                nodes[key] = threshold.node({"fpr": options["fpr"]}, (parts[0], *parts[2:]))
            else:
                nodes[key] = detecting.detect.node({"detector": method, "columns": [], "folds": 5}, parts)
    return nodes


def _summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    """How well each method detects, what a query costs, and what an index misses.

    ``seconds_per_query`` is the mean over all clean and attacked test images, which are given at once. The threshold of
    D_up comes from clean validation images, so that ``false_positive_rate`` is a result; the other detectors'
    ``tpr_at_fpr_5`` has a threshold from clean test images.
    """
    case, rows, arrays = _case(run), list[dict](), dict[str, np.ndarray]()
    for method, setting in METHODS:
        names = {"detector": method, "layer": LAYER, "setting": setting}
        ready = found[f"{method}|{setting}"].values
        more = case.names(metric="preparation_seconds", **names)
        rows.append(statistic_row(ready["seconds"], n=ready["images"], **more))
        for attack in run.settings.ablation_attacks:
            key = f"{method}|{setting}|{attack}"
            rows += _detection_rows(case, found[key], **names, attack=attack)
            rows += _cost_rows(case, [found[f"{key}|{shown}"] for shown in ("clean", "attacked")], **names, attack=attack)
            for name, scores in zip(("clean", "attacked"), scores_of(found[key]), strict=True):
                arrays[f"{key}|{name}"] = scores.astype(np.float32)
    return table([*rows, *_network_rows(run, case, found)]), arrays


def _detection_rows(case: Case, found: Artifact, **names: str) -> list[dict]:
    clean, attacked = scores_of(found)
    if names["detector"] != THRESHOLD:
        return case.rows((clean, attacked), **names)
    flagged = {name: found.tensors[f"flagged_{name}"].numpy() for name in ("clean", "attacked")}
    return [
        auc_row(-clean, -attacked, metric="auc", **case.names(**names)),
        mean_row(flagged["attacked"], metric="tpr_at_fpr_5", **case.names(**names)),
        mean_row(flagged["clean"], metric="false_positive_rate", **case.names(**names)),
    ]


def _cost_rows(case: Case, parts: Sequence[Artifact], **names: str) -> list[dict]:
    rows = [_time_row(case, parts, "seconds", **names)]
    shares = [share for part in parts for share in part.values["recall"]]
    return [*rows, mean_row(shares, metric="recall", **case.names(**names))] if shares else rows


def _time_row(case: Case, parts: Sequence[Artifact], clock: str, **names: str) -> dict:
    count = sum(len(rows) for part in parts for rows in part.tensors.values())
    spent = sum(part.values[clock] for part in parts) / count
    return statistic_row(spent, n=count, **case.names(metric="seconds_per_query", **names))


def _network_rows(run: Run, case: Case, found: Mapping[str, Artifact]) -> list[dict]:
    """The forward pass that every detector needs besides."""
    rows = []
    for attack in run.settings.ablation_attacks:
        parts = [found[f"{EXACT}|{ALONE}|{attack}|{shown}"] for shown in ("clean", "attacked")]
        rows.append(_time_row(case, parts, "network_seconds", detector="network", layer=LAYER, attack=attack))
    return rows


FAST = Experiment("fast", _nodes, _summary)
