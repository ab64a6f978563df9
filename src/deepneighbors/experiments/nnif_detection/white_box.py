"""Attacks that know of the detector: the paper's CW-Opt, and one that counts only what the detector lets through."""

from collections.abc import Mapping

import numpy as np

from deepneighbors.attacks.detector_evasion import threshold_at_fpr
from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.nnif_detection.cases import DETECTORS, Case, cases, scores_of
from deepneighbors.experiments.nnif_detection.training import images_of
from deepneighbors.results import mean_row, table
from deepneighbors.store import Artifact

PLAIN = "cw"  # what CW-Opt is compared with, and what the detector has learned that the adaptive attack meets


LEARNED = ("cw_opt", PLAIN)  # what detectors have seen that CW-Opt meets


def _nodes(run: Run) -> Nodes:
    nodes = {}
    for case in cases(run):
        for detector in DETECTORS:
            for learned in LEARNED:
                nodes[f"{case.mode}|{detector}|{learned}"] = case.detected(detector, "embedding", "cw_opt", learned=learned)
        for attack in (PLAIN, "cw_opt"):
            nodes |= {f"{case.mode}|{attack}#{i}": node for i, node in enumerate(case.attacked(attack, "test"))}
    clean = _clean_case(run)
    if clean:
        nodes |= {"plain": clean.detected("nnif", "embedding", PLAIN), "adaptive": clean.evaded(PLAIN)}
    return nodes


def _clean_case(run: Run) -> Case | None:
    return next((case for case in cases(run) if case.mode == "clean"), None)


def _summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    """CW-Opt of the paper's table 4, and how often the adaptive attack fools the classifier and NNIF together.

    ``evaded`` is the share of all attacked images that the classifier mislabels and the detector lets pass at 5 % false
    positives; for the plain attack at the same threshold.
    """
    rows: list[dict] = []
    for case in cases(run):
        for detector in DETECTORS:
            for learned in LEARNED:
                setting = f"learned={learned}" if learned == PLAIN else "white_box"
                names = {"attack": "cw_opt", "detector": detector, "layer": "embedding", "setting": setting}
                rows += case.rows(scores_of(found[f"{case.mode}|{detector}|{learned}"]), **names)
        won, sizes = _successes(case, "cw_opt", found)
        rows.append(mean_row(won, metric="success", **case.names(attack="cw_opt")))
        rows.append(mean_row(sizes[won], metric="mean_l2", **case.names(attack="cw_opt")))
    clean, arrays = _clean_case(run), dict[str, np.ndarray]()
    if clean:
        made, more = _adaptive_rows(clean, found)
        rows, arrays = rows + made, arrays | more
    return table(rows), arrays


def _adaptive_rows(case: Case, found: Mapping[str, Artifact]) -> tuple[list[dict], dict[str, np.ndarray]]:
    adaptive = {name: tensor.numpy() for name, tensor in found["adaptive"].tensors.items()}
    scores = scores_of(found["plain"])
    won, _ = _successes(case, PLAIN, found)
    names = {"detector": "nnif", "layer": "embedding"}
    passed = won & (scores[1] < threshold_at_fpr(scores[0]))
    rows = [
        mean_row(passed, metric="evaded", **case.names(attack=PLAIN, **names)),
        mean_row(adaptive["evaded"], metric="evaded", **case.names(attack="adaptive", **names)),
        mean_row(adaptive["fooled"], metric="success", **case.names(attack="adaptive", **names)),
        mean_row(adaptive["l2"][adaptive["evaded"]], metric="mean_l2", **case.names(attack="adaptive", **names)),
    ]
    return rows, {f"adaptive|{name}": adaptive[name] for name in ("evaded", "score", "l2")}


def _successes(case: Case, attack: str, found: Mapping[str, Artifact]) -> tuple[np.ndarray, np.ndarray]:
    """Whether the label has changed, and the L2 norm, of the test images that the network has right before the attack."""
    count = len(case.attacked(attack, "test"))
    parts = [found[f"{case.mode}|{attack}#{i}"].tensors for i in range(count)]
    clean, said, sizes = (np.concatenate([part[key].numpy() for part in parts]) for key in ("clean", "predictions", "l2"))
    labels = images_of(case.data).y["test"][: len(clean)].numpy()
    right = clean == labels
    return (said != labels)[right], sizes[right]


WHITE_BOX = Experiment("white_box", _nodes, _summary)
