"""The report's Experiment 2.2 and its Table 1: the share of poisoned points among the neighbours, layer by layer.

Twice: with 1,000 clean images as the report writes, and with 150, whose base rate fits its first column. Controls for why
the share grows with depth: a network that never saw the poison, flips at random, poison that is memorised or not, training
time, and how well a linear probe tells poison in each layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.poisoning_ila.plan import REPORT, SUMMARY, Poisoned, over_all_seeds, seeds, setting
from deepneighbors.experiments.poisoning_ila.poisons import training_set
from deepneighbors.experiments.poisoning_ila.rows import share_row
from deepneighbors.experiments.poisoning_ila.searching import LAYERS, SEARCH, Seen
from deepneighbors.experiments.poisoning_ila.training import load_network
from deepneighbors.networks import activations
from deepneighbors.results import auc_row, mean_row, statistic_row, table
from deepneighbors.store import Artifact, Context, Node, Payload, stage

BATCH = 50
# How the poison came about, and whether the network was trained with it.
KINDS = {"poisoned": "svm_poisoning", "clean_network": "svm_poisoning", "random_flip": "random_flip"}
_PARTS = 50  # principal components that the probe sees, or fewer where there are fewer points
_FOLDS = 5


@stage("probe_poison", uses=(*SEARCH, "deepneighbors.experiments.poisoning_ila.searching"))
def probe_poison(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Out-of-fold probability of being poisoned from a linear probe on each layer of the training points: ``(N,)``."""
    found, network = training_set(config["data"], inputs[1:]), load_network(inputs[0], config["epoch"], context.device)
    with torch.no_grad():
        parts = [activations(network, part.to(context.device), LAYERS) for part in found.x.split(500)]
    target = found.poisoned.numpy()
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=config["data"]["seed"])
    tensors = {"poisoned": found.poisoned}
    for layer in LAYERS:
        rows = coordinates(torch.cat([part[layer].flatten(1) for part in parts]).cpu().double()).numpy()
        count = min(_PARTS, rows.shape[1], len(rows) * (_FOLDS - 1) // _FOLDS - 1)
        probe = make_pipeline(
            PCA(count, random_state=0), StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000)
        )
        said = cross_val_predict(probe, rows, target, cv=folds, method="predict_proba")[:, 1]
        tensors[layer] = torch.from_numpy(said)
    return Payload(tensors)


def coordinates(rows: Tensor) -> Tensor:
    """Points ``(N, D)`` in at most N dimensions, with the same distances: a linear probe sees no difference, and is fast."""
    if rows.shape[1] <= len(rows):
        return rows
    centred = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    return vectors * values.clamp(min=0).sqrt()


def _set(run: Run, size: int, seed: int, kind: str) -> Poisoned:
    s = run.settings
    norm, trained = "" if kind == "random_flip" else "l1", {"epochs": s.share_epochs, "batch": BATCH}
    return Poisoned(run, KINDS[kind], seed, norm=norm, images=size, digits=REPORT, points=s.svm_points, **trained)


def _clean_network(run: Run, size: int, seed: int) -> Node:
    s = run.settings
    return Poisoned(run, "none", seed, images=size, digits=REPORT, epochs=s.share_epochs, batch=BATCH).network


def _cases(run: Run) -> Iterator[tuple[str, Poisoned, Node]]:
    """Sets with the network that looks at them, by ``size|seed|kind``."""
    for size in run.settings.share_sizes:
        for seed in seeds(run, run.settings.share_seeds):
            for kind in KINDS:
                case = _set(run, size, seed, kind)
                network = _clean_network(run, size, seed) if kind == "clean_network" else case.network
                yield f"{size}|{seed}|{kind}", case, network


def _nodes(run: Run) -> Nodes:
    nodes: dict = {}
    for key, case, network in _cases(run):
        for epoch in case.epochs:
            nodes[f"{key}|{epoch}"] = case.search("all", test=run.settings.share_queries, epoch=epoch, network=network)
        config = {"data": case.data, "epoch": case.last}
        nodes[f"{key}|probe"] = probe_poison.node(config, (network, *case.points_nodes))
    return nodes


def _summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    rows: list[dict] = []
    arrays: dict[str, np.ndarray] = {}
    for key, case, _ in _cases(run):
        size, _, kind = key.split("|")
        base = case.points / (int(size) + case.points)
        for epoch in case.epochs:
            artifact = found[f"{key}|{epoch}"]
            where = {"clean": size, "kind": kind, "epoch": epoch}
            for group, (own, shares) in _groups(run, artifact, kind).items():
                rows += _share_rows(shares, base, case.names(), **where, queries=group, **own)
                if epoch == case.last:
                    arrays[f"{key}|{group}|{own.get('self', '')}"] = shares.mean(0) if len(shares) else np.zeros(0)
            if kind != "clean_network":
                train = Seen.of(artifact, "train")
                rows.append(share_row((train.network == train.y)[train.own], "memorised", case.names(), **where))
            rows += _purity_rows(run, artifact, case.names(), **where)
        rows += _probe_rows(found[f"{key}|probe"], case.names(), clean=size, kind=kind, epoch=case.last)
        common = case.names(setting=setting(clean=size, kind=kind))
        rows.append(statistic_row(base, n=int(size) + case.points, metric="base_rate", **common))
    return table(over_all_seeds(rows, seed=run.seed, single=_is_table)), arrays


def _is_table(row: dict) -> bool:
    """Whether a row of one seed is kept: what Table 1 rests on. Controls, and what follows from shares, are pooled only."""
    return row["metric"] in ("poisoned_neighbor_share", "memorised", "base_rate") and "kind=poisoned" in row["setting"]


def _groups(run: Run, artifact: Artifact, kind: str) -> dict[str, tuple[dict[str, str], NDArray]]:
    """Shares ``(n, layers)`` of poisoned neighbours for each kind of query, with what names the point itself.

    Test images: those that calibrate elsewhere count too, as nothing is calibrated here.
    """
    k = run.settings.neighbors
    groups: dict[str, tuple[dict[str, str], NDArray]] = {}
    test, train = (Seen.of(artifact, name) for name in ("test", "train"))
    calibration = Seen.of(artifact, "calibration")
    shares = np.concatenate([calibration.share(k), test.share(k)])
    right = np.concatenate([part.network == part.truth for part in (calibration, test)])
    groups["test_correct"] = ({}, shares[right])
    groups["test_misclassified"] = ({}, shares[~right])
    memorised = train.network == train.y
    chosen = {"poison": train.own, "clean_train": ~train.own}
    if kind != "clean_network":
        chosen |= {"poison_memorised": train.own & memorised, "poison_unmemorised": train.own & ~memorised}
    for own in ("in", "out"):
        near = (train.with_self() if own == "in" else train).share(k)
        groups |= {f"{name}/{own}": ({"self": own}, near[rows]) for name, rows in chosen.items()}
    return {name: group for name, group in groups.items() if len(group[1])}


def _share_rows(shares: NDArray, base: float, names: dict[str, Any], *, queries: str, **where: object) -> list[dict]:
    """The share in each layer, its enrichment over the base rate, and its growth from the first layer to the last.

    The last two are kept over seeds only, so an interval within a seed would serve nothing.
    """
    common = names | {"n": len(shares), "setting": setting(**where, queries=queries.split("/")[0])}
    rows = [statistic_row(float((shares[:, -1] - shares[:, 0]).mean()), metric="share_growth", **common)]
    for layer, sample in zip(LAYERS, shares.T, strict=True):
        place = names | {"layer": layer, "setting": common["setting"]}
        rows.append(mean_row(sample, metric="poisoned_neighbor_share", resamples=200, **place))
        enrichment = float(sample.mean() / base)
        rows.append(statistic_row(enrichment, n=len(sample), metric="enrichment", **place))
    return rows


def _purity_rows(run: Run, artifact: Artifact, names: dict[str, Any], **where: object) -> list[dict]:
    """Share of a clean training point's other neighbours that bear its label: how far a layer separates the labels."""
    train = Seen.of(artifact, "train")
    clean = train[~train.own]
    same = (clean.labels[:, :, : run.settings.neighbors] == clean.y[:, None, None]).mean(2)
    return [
        statistic_row(float(sample.mean()), n=len(sample), metric="label_purity",
                      **(names | {"layer": layer, "setting": setting(**where)}))
        for layer, sample in zip(LAYERS, same.T, strict=True)
    ]  # fmt: skip


def _probe_rows(probed: Artifact, names: dict[str, Any], **where: object) -> list[dict]:
    poisoned = probed.tensors["poisoned"].numpy()
    return [
        auc_row(-probed.tensors[layer].numpy()[~poisoned], -probed.tensors[layer].numpy()[poisoned], metric="probe_auc",
                resamples=200, **(names | {"layer": layer, "setting": setting(**where)}))
        for layer in LAYERS
    ]  # fmt: skip


NEIGHBOR_SHARE = Experiment("neighbor_share", _nodes, _summary, SUMMARY)
