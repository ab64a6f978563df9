"""The paper's tables: attacks and what they need, detection, the ablation of NNIF's features, and unseen attacks."""

from collections.abc import Iterator, Mapping

import numpy as np

from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.nnif_detection.cases import CONTROLS, DETECTORS, LAYERED, Case, cases, scores_of
from deepneighbors.experiments.nnif_detection.training import images_of
from deepneighbors.results import mean_row, statistic_row, table
from deepneighbors.store import Artifact

MASKS = tuple(f"{mask:04b}" for mask in range(1, 16))  # R_up, D_up, R_down, D_down; table 2 of the paper
# How images come to a detector; LID computes its activations in minibatches of its own, so one at a time means nothing.
VIEWS = {
    "plain": (*DETECTORS, *CONTROLS),
    "rounded": (*DETECTORS, *CONTROLS),
    "mixed": DETECTORS,
    "single": ("dknn", "mahalanobis", "nnif"),
}
LEARNED = "fgsm"  # the attack that detectors have seen in table 3


def _slices(run: Run, part: str) -> Nodes:
    """Slices of every attack on a part, by mode, attack and number."""
    return {
        f"{case.mode}|{attack}|{part}#{i}": node
        for case in cases(run)
        for attack in run.settings.attacks
        for i, node in enumerate(case.attacked(attack, part))
    }


def _attack_nodes(run: Run) -> Nodes:
    return {"network": cases(run)[0].weights, **_slices(run, "test")}


def _attack_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    """Accuracy of the network, and success and size of each attack on the test images that the network has right.

    Success is another label, as the released code counts it; ``target_rate``, the attack's own aim, the target where it has
    one. Sizes are over all those images, as detectors see them, failures included; ``mean_l2`` over the successes.
    """
    rows: list[dict] = []
    arrays: dict[str, np.ndarray] = {}
    for case in cases(run):
        counts = {part: len(labels) for part, labels in images_of(case.data).y.items()}
        for part, reached in found["network"].values["accuracy"][case.mode].items():
            names = case.names(attack="none", metric="clean_accuracy", setting=part)
            hits = round(reached * counts[part])
            rows.append(mean_row(np.repeat([1, 0], [hits, counts[part] - hits]), **names))
        for attack in run.settings.attacks:
            known = _right(case, attack, found)
            names = case.names(attack=attack)
            won = known["success"]
            rows.append(mean_row(won, metric="success", **names))
            rows.append(mean_row(known["aim"], metric="target_rate", **names))
            rows.append(mean_row(known["l2"][won], metric="mean_l2", **names))
            for norm in ("l0", "l1", "l2", "linf"):
                rows.append(mean_row(known[norm], metric=f"mean_{norm}_all", **names))
            arrays |= {f"{case.mode}|{attack}|{key}": known[key] for key in ("success", "l2", "y", "predictions")}
    return table(rows), arrays


def _right(case: Case, attack: str, found: Mapping[str, Artifact]) -> dict[str, np.ndarray]:
    """Arrays of an attack on test images, over its slices, where the network is right before it."""
    count = len(case.attacked(attack, "test"))
    parts = [found[f"{case.mode}|{attack}|test#{i}"].tensors for i in range(count)]
    arrays = {key: np.concatenate([tensors[key].numpy() for tensors in parts]) for key in parts[0] if key != "x"}
    labels = images_of(case.data).y["test"][: case.images(attack, "test")].numpy()
    right = arrays["clean"] == labels
    known = {key: array[right] for key, array in (arrays | {"y": labels}).items()}
    return known | {"success": known["predictions"] != known["y"], "aim": known["success"].astype(bool)}


def _detection_lines(run: Run) -> Iterator[tuple[Case, str, str, str]]:
    for case in cases(run):
        for attack in run.settings.attacks:
            for detector in (*DETECTORS, *CONTROLS):
                layers = ("embedding", "all") if detector in LAYERED else ("embedding",)
                for layer in layers:
                    yield case, attack, detector, layer


def _detection_nodes(run: Run) -> Nodes:
    detected = {
        f"{case.mode}|{attack}|{detector}|{layer}": case.detected(detector, layer, attack)
        for case, attack, detector, layer in _detection_lines(run)
    }
    return {**detected, **_slices(run, "test")}


def _detection_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    """Every detector and control on every attack that it has learned from, with the hyper-parameter that it chose.

    Failed attacks count as adversarial, as in the paper; ``setting`` is ``successful`` where they are left out of the test.
    """
    rows: list[dict] = []
    arrays: dict[str, np.ndarray] = {}
    for case, attack, detector, layer in _detection_lines(run):
        key = f"{case.mode}|{attack}|{detector}|{layer}"
        names = {"attack": attack, "detector": detector, "layer": layer}
        clean, attacked = scores_of(found[key])
        won = _right(case, attack, found)["success"]
        rows += case.rows((clean, attacked), **names)
        rows += case.rows((clean, attacked[won]), **names, setting="successful")
        chosen = float(found[key].values["chosen"])
        rows.append(statistic_row(chosen, n=case.images(attack, "validation"), **case.names(metric="chosen", **names)))
        arrays |= {f"{key}|clean": clean.astype(np.float32), f"{key}|attacked": attacked.astype(np.float32)}
    return table(rows), arrays


def _ablation_nodes(run: Run) -> Nodes:
    return {
        f"{case.mode}|{attack}|{mask}": case.detected("nnif", "embedding", attack, mask=mask)
        for case in cases(run)
        for attack in run.settings.ablation_attacks
        for mask in MASKS
    }


def _ablation_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    """NNIF with each choice of its four features at the embedding."""
    rows = []
    for case in cases(run):
        for attack in run.settings.ablation_attacks:
            for mask in MASKS:
                names = {"attack": attack, "detector": "nnif", "layer": "embedding", "setting": f"features={mask}"}
                rows += case.rows(scores_of(found[f"{case.mode}|{attack}|{mask}"]), **names)
    return table(rows), {}


def _generalisation_lines(run: Run) -> Iterator[tuple[Case, str, str, str]]:
    for case, attack, detector, layer in _detection_lines(run):
        if attack != LEARNED and detector in DETECTORS:
            yield case, attack, detector, layer


def _generalisation_nodes(run: Run) -> Nodes:
    return {
        f"{case.mode}|{attack}|{detector}|{layer}": case.detected(detector, layer, attack, learned=LEARNED)
        for case, attack, detector, layer in _generalisation_lines(run)
    }


def _generalisation_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    """Detectors that have seen FGSM alone, on the other attacks."""
    rows = []
    for case, attack, detector, layer in _generalisation_lines(run):
        names = {"attack": attack, "detector": detector, "layer": layer, "setting": f"learned={LEARNED}"}
        rows += case.rows(scores_of(found[f"{case.mode}|{attack}|{detector}|{layer}"]), **names)
    return table(rows), {}


def _view_lines(run: Run) -> Iterator[tuple[Case, str, str, str]]:
    for case in cases(run, run.settings.view_n):
        for attack in run.settings.view_attacks:
            for view, seen in VIEWS.items():
                for detector in seen:
                    yield case, attack, detector, view


def _view_nodes(run: Run) -> Nodes:
    return {
        f"{case.mode}|{attack}|{detector}|{view}": case.detected(
            detector, "embedding", attack, view="embedding" if view == "plain" else view
        )
        for case, attack, detector, view in _view_lines(run)
    }


def _view_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    """What is left of each detector when images come to it in another way, in learning and in the test; ``plain`` first."""
    rows = []
    for case, attack, detector, view in _view_lines(run):
        names = {"attack": attack, "detector": detector, "layer": "embedding", "setting": view}
        rows += case.rows(scores_of(found[f"{case.mode}|{attack}|{detector}|{view}"]), **names)
    return table(rows), {}


ATTACKS = Experiment("attacks", _attack_nodes, _attack_summary)
DETECTION = Experiment("detection", _detection_nodes, _detection_summary)
ABLATION = Experiment("ablation", _ablation_nodes, _ablation_summary)
GENERALISATION = Experiment("generalisation", _generalisation_nodes, _generalisation_summary)
VIEWS_OF_IMAGES = Experiment("views", _view_nodes, _view_summary)
