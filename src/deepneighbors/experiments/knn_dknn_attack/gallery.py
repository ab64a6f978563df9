"""The digits that the paper shows: its eight test digits attacked, and their neighbours layer by layer."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from deepneighbors import data
from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.knn_dknn_attack import stages
from deepneighbors.experiments.knn_dknn_attack.attacked import Attacked, all_nodes, clean_node, dknn, train_node
from deepneighbors.experiments.knn_dknn_attack.tables import dknn_attacks, knn_attacks
from deepneighbors.networks import MnistCNN
from deepneighbors.results import mean_row, table
from deepneighbors.store import Artifact

POSITIONS = (178, 222, 23, 233, 237, 322, 36, 20)  # in the attacked set; the last is the digit of the neighbour panels
SHOWN = 5  # neighbours of a panel


def paper_digits(run: Run) -> list[Attacked]:
    """Every attack of both tables on the paper's digits."""
    lines = knn_attacks(run) + dknn_attacks(run)
    return [replace(line, positions=POSITIONS) for line in lines if line.setting != "epsilon=0.3"]


def _neighbor_nodes(run: Run) -> Nodes:
    network, classifier = train_node(run), dknn(run)
    config = {"classifier": classifier, "positions": POSITIONS}
    nodes = {"neighbors|clean": stages.neighbors.node(config | {"attacked": False}, (network,))}
    for attack in paper_digits(run):
        if attack.network.startswith("mnist_cnn"):
            (made,) = attack.nodes().values()
            nodes[f"neighbors|{attack.label}"] = stages.neighbors.node(config | {"attacked": True}, (network, made))
    return nodes


def _nodes(run: Run) -> Nodes:
    return {**all_nodes(paper_digits(run)), **_neighbor_nodes(run)}


def _summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    x, y = stages.digits_of({"positions": POSITIONS}, "cpu")
    arrays: dict[str, np.ndarray] = {"clean|x": x.numpy().astype(np.float16), "clean|y": y.numpy().astype(np.uint8)}
    rows = []
    for attack in paper_digits(run):
        gathered = attack.gather(found)
        arrays |= {
            key: array for key, array in attack.arrays(gathered).items() if key.endswith(("|x", "|success", "|label", "|l2"))
        }
        won = gathered["success"].astype(bool)
        rows.append(mean_row(won, metric="fooled", **attack.names(experiment="gallery", seed=run.seed)))
    arrays |= _panels(found)
    return table(rows), arrays


def _panels(found: Mapping[str, Artifact]) -> dict[str, np.ndarray]:
    """The nearest training digits in each layer of the panels' digit, clean and attacked."""
    images, panels = data.load("mnist").x_train, {}
    for name in (name for name in found if name.startswith("neighbors|")):
        for layer in MnistCNN.layers:
            near = found[name].tensors[f"indices/{layer}"][-1, :SHOWN]
            panels[f"{name}|{layer}|x"] = images[near].numpy().astype(np.float16)
            panels[f"{name}|{layer}|y"] = found[name].tensors[f"labels/{layer}"][-1, :SHOWN].numpy().astype(np.uint8)
    return panels


def _layer_nodes(run: Run) -> Nodes:
    return {"clean": clean_node(run, dknn(run), train_node(run)), **all_nodes(dknn_attacks(run))}


def _layer_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    """Share of the k neighbours with the true and with the predicted label, by layer, over each attack's successes."""
    clean = found["clean"].tensors
    rows = _layer_rows(run, {"attack": "none", "network": "mnist_cnn"}, clean["votes"].numpy(), clean["y"].numpy(), None)
    for attack in dknn_attacks(run):
        gathered = attack.gather(found)
        won = gathered["success"].astype(bool)
        names = attack.names()
        rows += _layer_rows(run, names, gathered["votes"][won], gathered["y"][won], gathered["label"][won])
    return table(rows), {}


def _layer_rows(run: Run, names: dict, votes: np.ndarray, y: np.ndarray, label: np.ndarray | None) -> list[dict]:
    rows, at = [], np.arange(len(y))
    for index, layer in enumerate(MnistCNN.layers):
        for metric, classes in (("true_neighbor_share", y), ("predicted_neighbor_share", label)):
            if classes is not None:
                share = votes[at, index, classes] / run.settings.k
                rows.append(mean_row(share, metric=metric, layer=layer, experiment="layers", seed=run.seed, **names))
    return rows


GALLERY = Experiment("gallery", _nodes, _summary)
LAYERS = Experiment("layers", _layer_nodes, _layer_summary)
