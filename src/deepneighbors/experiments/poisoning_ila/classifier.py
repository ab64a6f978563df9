"""The poisoned linear classifier of secml's tutorial: clean, with flipped labels only, and with optimised points."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from deepneighbors.attacks.poisoning.attack import NORMS
from deepneighbors.errors import InputError
from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.poisoning_ila.plan import SUMMARY, evasion_node, over_all_seeds, poison_node, seeds, setting
from deepneighbors.results import mean_row, statistic_row, table
from deepneighbors.store import Artifact

_CHANGED = 0.05  # a pixel counts as changed beyond this
LINEAR_ATTACKS = ("svm_poisoning", "logistic_poisoning")


def parse(case: str) -> tuple[tuple[int, int], int, str]:
    """Digits, points and norm of a case such as ``5-9-15-l1``."""
    parts = case.split("-")
    if len(parts) != 4 or not all(part.isdigit() for part in parts[:3]) or parts[3] not in NORMS:
        raise InputError(f"the case {case!r} cannot be read; give it like 5-9-15-l1: two digits, points, and l1 or l2")
    return (int(parts[0]), int(parts[1])), int(parts[2]), parts[3]


def case_nodes(run: Run, attack: str, seed: int) -> Nodes:
    """The points of every case by ``attack|case|seed``."""
    nodes = {}
    for case in run.settings.classifier_cases:
        digits, points, norm = parse(case)
        nodes[f"{attack}|{case}|{seed}"] = poison_node(run, attack, seed, norm=norm, digits=digits, points=points)
    return nodes


def _nodes(run: Run) -> Nodes:
    nodes: dict = {}
    for seed in seeds(run):
        for attack in _attacks(run):
            nodes |= case_nodes(run, attack, seed)
        for digits in sorted({parse(case)[0] for case in run.settings.classifier_cases}):
            nodes[f"evasion|{digits[0]}-{digits[1]}|{seed}"] = evasion_node(run, seed, digits=digits)
    return nodes


def _attacks(run: Run) -> list[str]:
    return [attack for attack in LINEAR_ATTACKS if attack in run.settings.poison_attacks]


def _summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    rows: list[dict] = []
    arrays: dict[str, np.ndarray] = {}
    for key, made in found.items():
        attack, case, seed = key.split("|")
        if attack == "evasion":
            rows += _evasion_rows(made, digits=case, seed=int(seed))
            continue
        rows += _rows(run, made, attack, case, int(seed))
        if int(seed) == run.seed:
            for name in ("x", "start"):
                arrays[f"{attack}|{case}|{name}"] = made.tensors[name].numpy().astype("float16")
            arrays[f"{attack}|{case}|y"] = made.tensors["y"].numpy().astype("uint8")
    return table(over_all_seeds(rows, seed=run.seed)), arrays


def _rows(run: Run, made: Artifact, attack: str, case: str, seed: int) -> list[dict]:
    """Accuracy and validation loss of the three learners, and how far the points moved.

    Accuracy on the test images is without interval: the published ones are exact numbers of one draw.
    """
    digits, points, norm = parse(case)
    learner = "linear_svm" if attack == "svm_poisoning" else "logistic_regression"
    names: dict[str, Any] = {
        "experiment": "poisoning", "network": learner, "attack": attack, "norm": norm, "seed": seed
    }  # fmt: skip
    where = {"digits": f"{digits[0]}-{digits[1]}", "points": points}
    tests = run.settings.svm_images[2]
    rows = []
    for training in ("clean", "flipped", "poisoned"):
        said, place = made.values[training], setting(**where, training=training)
        rows.append(statistic_row(said["test_accuracy"], n=tests, metric="accuracy", setting=place, **names))
        rows.append(statistic_row(said["loss"], n=run.settings.svm_images[1], metric="val_loss", setting=place, **names))
    moved = (made.tensors["x"] - made.tensors["start"]).flatten(1).double().numpy()
    l2 = np.linalg.norm(moved, axis=1)
    place = setting(**where)
    rows.append(mean_row(l2, metric="mean_l2", setting=place, **names))
    for metric, value in (
        ("median_l2", np.median(l2)), ("max_l2", l2.max()), ("max_linf", np.abs(moved).max()),
        ("median_changed_pixels", np.median((np.abs(moved) > _CHANGED).sum(1))), ("fits", made.values["fits"]),
    ):  # fmt: skip
        rows.append(statistic_row(float(value), n=len(l2), metric=metric, setting=place, **names))
    return rows


def _evasion_rows(made: Artifact, *, digits: str, seed: int) -> list[dict]:
    names: dict[str, Any] = {
        "experiment": "poisoning", "network": "linear_svm", "attack": "evasion", "norm": "l2", "seed": seed
    }  # fmt: skip
    count = len(made.tensors["truth"])
    return [
        statistic_row(value, n=count, metric="accuracy", setting=setting(digits=digits, shown=shown), **names)
        for shown, value in made.values["accuracy"].items()
    ]


POISONED_CLASSIFIER = Experiment("poisoned_classifier", _nodes, _summary, SUMMARY)
