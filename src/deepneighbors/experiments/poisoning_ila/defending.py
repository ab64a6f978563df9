"""Remove what is flagged and train anew: detection, clean points lost, accuracy and backdoor success, for every defence."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from deepneighbors import checks
from deepneighbors.attacks import detector_evasion
from deepneighbors.defences import ActivationClustering, DeepKNNDefence
from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.poisoning_ila import low_credibility, poisoned_training, scoring
from deepneighbors.experiments.poisoning_ila.low_credibility import attacked_sets
from deepneighbors.experiments.poisoning_ila.plan import SUMMARY, Poisoned, over_all_seeds, seeds, setting
from deepneighbors.experiments.poisoning_ila.poisons import BACKDOORS, TARGET
from deepneighbors.experiments.poisoning_ila.scoring import MAIN, score_training
from deepneighbors.experiments.poisoning_ila.training import train
from deepneighbors.results import auc_row, mean_row, statistic_row, table
from deepneighbors.store import Artifact, Node

DEEP_KNN = 50  # neighbours, themselves among them: where Peri et al. (2020) lose no more clean points than they must
_USES = (*SUMMARY, low_credibility.__name__, poisoned_training.__name__, scoring.__name__, detector_evasion.__name__)
RULES = {"deep_knn": DeepKNNDefence.flags, "activation_clustering": ActivationClustering.flags}


def _cases(run: Run) -> Iterator[tuple[str, str, Poisoned]]:
    """Every poisoned set by key, with the rate of a backdoor; of the SVM attack the first norm only."""
    for seed in seeds(run):
        for attack in run.settings.poison_attacks:
            for rate, case in attacked_sets(run, attack, seed):
                if attack != "svm_poisoning" or case.norm == run.settings.svm_norms[0]:
                    yield f"{attack}|{rate}|{seed}", rate, case


def _scored(case: Poisoned) -> Node:
    s = case.run.settings
    config = {
        "data": case.data, "epoch": case.last, "k": s.neighbors, "metric": "cosine", "deep_knn": DEEP_KNN,
        "calibration": s.calibration_images, "test": 0, "removal": s.removal,
    }  # fmt: skip
    return score_training.node(config, (case.network, *case.points_nodes))


def _retrained(case: Poisoned, detector: str) -> Node:
    """The network trained anew without what a detector flags, by the same recipe and from the same start."""
    checks.one_of("detector", detector, MAIN)
    recipe = replace(case, epochs=(case.last,)).recipe
    config = {**recipe, "removed": f"removed/{detector}"}
    return train.node(config, (*case.points_nodes, _scored(case)))


def _nodes(run: Run) -> Nodes:
    nodes: dict = {}
    for key, _, case in _cases(run):
        nodes[f"{key}|scores"], nodes[f"{key}|none"] = _scored(case), case.network
        for detector in run.settings.retrained:
            nodes[f"{key}|{detector}"] = _retrained(case, detector)
    for seed in seeds(run):
        nodes[f"none|{seed}"] = Poisoned(run, "none", seed).network
    return nodes


def _summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    rows: list[dict] = []
    arrays: dict[str, np.ndarray] = {}
    for key, rate, case in _cases(run):
        scored = found[f"{key}|scores"]
        poisoned = scored.tensors["poisoned"].numpy()
        for name, tensor in scored.tensors.items():
            if name.startswith("scores/"):
                detector, form = name.removeprefix("scores/").split("|")
                names = case.names(detector=detector)
                rows += _detection_rows(tensor, poisoned, names, rate=rate, form=form)
                if form == MAIN[detector]:
                    arrays[f"{key}|{detector}|poison"] = tensor.numpy()[poisoned].astype(np.float32)
                    arrays[f"{key}|{detector}|clean"] = _sample(tensor.numpy()[~poisoned]).astype(np.float32)
        rows += _answer_rows(found[f"{key}|none"], case, case.names(), rate=rate, removed="nothing")
        for detector in MAIN:
            lost = _removed(scored, detector)
            rows += _removal_rows(lost, poisoned, case.names(detector=detector), rate=rate, rule="budget")
            if detector in run.settings.retrained:
                answers = found[f"{key}|{detector}"]
                rows += _answer_rows(answers, case, case.names(detector=detector), rate=rate, removed="flagged")
        for detector, rule in RULES.items():
            flagged = rule(scored.tensors[f"scores/{detector}|{MAIN[detector]}"]).numpy()
            rows += _removal_rows(flagged, poisoned, case.names(detector=detector), rate=rate, rule="own")
    for seed in seeds(run):
        clean = Poisoned(run, "none", seed)
        rows += _answer_rows(found[f"none|{seed}"], clean, clean.names(), removed="nothing")
    return table(over_all_seeds(rows, seed=run.seed)), arrays


def _sample(scores: NDArray, most: int = 2000) -> NDArray:
    """At most so many scores, drawn evenly in their order, which keeps their distribution."""
    return np.sort(scores)[np.linspace(0, len(scores) - 1, min(most, len(scores))).astype(int)]


def _removed(scored: Artifact, detector: str) -> NDArray:
    """Whether each training point was removed, ``(N,)``."""
    flags = torch.zeros(len(scored.tensors["poisoned"]), dtype=torch.bool)
    return flags.index_fill(0, scored.tensors[f"removed/{detector}"], True).numpy()


def _detection_rows(scores: torch.Tensor, poisoned: NDArray, names: dict[str, Any], *, rate: str, form: str) -> list[dict]:
    """AUC, average precision, and poison found where 1 and 5 % of clean points are flagged."""
    clean, poison = scores.numpy()[~poisoned], scores.numpy()[poisoned]
    common = names | {"setting": ";".join(filter(None, (setting(rate=rate), form)))}
    precision = float(average_precision_score(poisoned, scores.numpy()))
    rows = [
        auc_row(-clean, -poison, metric="auc", resamples=200, **common),
        statistic_row(precision, n=len(poisoned), metric="average_precision", **common),
    ]
    for percent in (1, 5):
        flagged = poison >= detector_evasion.threshold_at_fpr(clean, percent / 100)
        rows.append(mean_row(flagged, metric=f"tpr_at_fpr_{percent}", **common))
    return rows


def _removal_rows(removed: NDArray, poisoned: NDArray, names: dict[str, Any], **where: object) -> list[dict]:
    """What removal costs: its precision, the poison that it finds, and the clean points that it loses."""
    common = names | {"setting": setting(**where)}
    return [
        mean_row(poisoned[removed], metric="precision", **common),
        mean_row(removed[poisoned], metric="recall", **common),
        statistic_row(int((removed & ~poisoned).sum()), n=int(removed.sum()), metric="removed_clean", **common),
    ]


def _answer_rows(trained: Artifact, case: Poisoned, names: dict[str, Any], **where: object) -> list[dict]:
    """Accuracy on clean test images, and how often the trigger gives images of another class the target's label."""
    y, common = trained.tensors["y_test"].numpy(), names | {"setting": setting(**where)}
    rows = [mean_row(trained.tensors[f"{case.last}|labels|test"].numpy() == y, metric="accuracy", **common)]
    if case.attack in BACKDOORS:
        triggered = trained.tensors[f"{case.last}|labels|triggered"].numpy()
        rows.append(mean_row((triggered == TARGET)[y != TARGET], metric="success", **common))
    return rows


DEFENCES = Experiment("defences", _nodes, _summary, _USES)
