"""The report's Experiment 2.1: 50 points with the labels 1 and 9 are added to MNIST, and the network learns the union.

Counted on the training set, as the report's 414 misclassified points seem to be; the sweep varies what it leaves open, one
choice at a time.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.poisoning_ila.plan import SUMMARY, Poisoned, over_all_seeds, seeds
from deepneighbors.experiments.poisoning_ila.rows import count_row, credibility_rows, reliability_rows, share_row
from deepneighbors.experiments.poisoning_ila.searching import LAYERS, Conclusion, Seen, conclude
from deepneighbors.results import table
from deepneighbors.store import Artifact, Node

METRICS = ("cosine", "l2")
GALLERY = 24  # poisoned images that are kept for figures


def main_set(run: Run, attack: str, seed: int, *, norm: str = "", rate: float = 0.0) -> Poisoned:
    """The set and network that experiments share; those of the SVM attack are kept at every counted epoch."""
    last = run.settings.cnn_epochs
    counted = {epoch for epoch in run.settings.counted_epochs if epoch < last} if attack == "svm_poisoning" else set()
    return Poisoned(run, attack, seed, norm=norm, rate=rate, epochs=(*sorted(counted), last))


def main_search(main: Poisoned) -> Node:
    """Neighbours of poisoned, misclassified and some clean training points, and of the test images."""
    s = main.run.settings
    return main.search(s.clean_points, test=s.evaluated_images, k=max(s.neighbors, *s.sweep_k))


def _cases(run: Run) -> Iterator[tuple[str, Poisoned]]:
    for seed in seeds(run):
        for norm in run.settings.svm_norms:
            yield f"{norm}|{seed}", main_set(run, "svm_poisoning", seed, norm=norm)


def _searches(case: Poisoned) -> Nodes:
    """Searches of a case by ``metric|epoch``; those beside the main one are of misclassified and poisoned points."""
    s = case.run.settings
    found = {f"cosine|{case.last}": main_search(case)}
    if case.norm != s.svm_norms[0]:
        return found
    k = max(s.neighbors, *s.sweep_k)
    for epoch in s.sweep_epochs:
        if epoch < case.last:
            found[f"cosine|{epoch}"] = case.search(0, epoch=epoch, k=k)
    return found | {f"l2|{case.last}": case.search(0, metric="l2", k=k)}


def _nodes(run: Run) -> Nodes:
    nodes: dict = {}
    for key, case in _cases(run):
        nodes[f"{key}|network"] = case.network
        nodes |= {f"{key}|{name}": node for name, node in _searches(case).items()}
        nodes |= {f"{key}|points{i}": node for i, node in enumerate(case.points_nodes)}
    return nodes


def _summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    rows: list[dict] = []
    arrays: dict[str, np.ndarray] = {}
    for key, case in _cases(run):
        names = case.names()
        rows += _count_rows(case, found[f"{key}|network"], names)
        main = found[f"{key}|cosine|{case.last}"]
        rows += _credibility_rows(run, main, names, arrays, key)
        for name in _searches(case):
            metric, epoch = name.split("|")
            rows += _recovery_rows(run, found[f"{key}|{name}"], names, metric=metric, epoch=epoch)
        if case.seed == run.seed:
            points = found[f"{key}|points0"].tensors
            arrays |= {f"{key}|{part}": points[part][:GALLERY].numpy().astype("float16") for part in ("x", "start")}
            arrays |= {f"{key}|{part}": points[part][:GALLERY].numpy().astype("uint8") for part in ("y", "truth")}
    return table(over_all_seeds(rows, seed=run.seed)), arrays


def _count_rows(case: Poisoned, trained: Artifact, names: dict[str, Any]) -> list[dict]:
    """Misclassified points by epoch; a poisoned one counts as misclassified when it does not get its stored label."""
    part = {name: tensor.numpy() for name, tensor in trained.tensors.items() if "|weights|" not in name}
    rows = []
    for epoch in case.epochs:
        wrong = part[f"{epoch}|labels|train"] != part["y"]
        errors = part[f"{epoch}|labels|test"] != part["y_test"]
        for where, flags in (("train", wrong), ("train_clean", wrong[~part["poisoned"]]),
                             ("poison", wrong[part["poisoned"]]), ("test", errors)):  # fmt: skip
            rows.append(count_row(flags, "misclassified", names, part=where, epoch=epoch))
        rows.append(share_row(~wrong[part["poisoned"]], "memorised", names, epoch=epoch))
        rows.append(share_row(~errors, "accuracy", names, part="test", epoch=epoch))
    return rows


def parts_of(artifact: Artifact) -> dict[str, Seen]:
    """Training points by kind: poison, clean ones that the network has wrong, and random clean ones; and test images."""
    train = Seen.of(artifact, "train")
    wrong = (train.network != train.y) & ~train.own
    parts = {"poison": train[train.own], "misclassified": train[wrong], "clean": train[~train.own & ~wrong]}
    if "test/y" in artifact.tensors:
        test = Seen.of(artifact, "test")
        parts |= {"test": test, "test_misclassified": test[test.network != test.truth]}
    return parts


def _credibility_rows(run: Run, artifact: Artifact, names: dict[str, Any], arrays: dict[str, np.ndarray],
                      key: str) -> list[dict]:  # fmt: skip
    calibration, k = Seen.of(artifact, "calibration"), run.settings.neighbors
    rows = []
    for part, seen in parts_of(artifact).items():
        if not len(seen):
            continue
        for own in ("out",) if part.startswith("test") else ("in", "out"):
            shown = seen.with_self() if own == "in" else seen
            said = conclude(shown, calibration, k=k)
            where = {"part": part} | ({} if part.startswith("test") else {"self": own})
            rows += credibility_rows(said.credibility, names, **where)
            right = said.labels == seen.truth
            rows += reliability_rows(said.credibility["c_pred"], right, names, credibility="c_pred", **where)
            label = f"{key}|{part}|{own}"
            arrays |= {f"{label}|{name}": sample.astype(np.float32) for name, sample in said.credibility.items()}
            arrays[f"{label}|correct"] = right
            if part == "poison":
                trimmed = conclude(shown, calibration, k=k, trimmed=True)
                rows += credibility_rows(trimmed.credibility, names, **where, trimmed="yes")
    return rows


def _recovery_rows(run: Run, artifact: Artifact, names: dict[str, Any], *, metric: str, epoch: str) -> list[dict]:
    """Share of misclassified points to which DkNN gives the true label: all choices at the report's, and each one varied."""
    calibration, parts, k = Seen.of(artifact, "calibration"), parts_of(artifact), run.settings.neighbors
    rows = []

    def recovered(part: str, said: Conclusion, layer: str = "", **where: object) -> dict:
        right = said.labels == parts[part].truth
        return share_row(right, "recovered", names | {"layer": layer}, part=part, epoch=epoch, distance=metric, **where)

    for part, seen in parts.items():
        if part in ("clean", "test") or not len(seen):
            continue
        train = not part.startswith("test")
        own = {"self": "out"} if train else {}
        rows.append(recovered(part, conclude(seen, calibration, k=k), k=k, **own))
        if train:
            rows.append(recovered(part, conclude(seen.with_self(), calibration, k=k), k=k, self="in"))
        if metric == "cosine" and int(epoch) == run.settings.cnn_epochs:
            for varied, options in _choices(run):
                said = conclude(seen, calibration, **{"k": k, **options})
                rows.append(recovered(part, said, **({"k": k} | own | varied)))
    return rows


def _choices(run: Run) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Names and options of the sweep beside epochs and metric: one layer alone, other ``k``, calibration trimmed."""
    for place, layer in enumerate(LAYERS):
        yield {"layer": layer}, {"layers": (place,)}
    for k in run.settings.sweep_k:
        if k != run.settings.neighbors:
            yield {"k": k}, {"k": k}
    yield {"trimmed": "yes"}, {"trimmed": True}


POISONED_TRAINING = Experiment("poisoned_training", _nodes, _summary, SUMMARY)
