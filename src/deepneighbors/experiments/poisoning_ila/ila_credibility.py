"""What Deep kNN says of examples of the Intermediate Level Attack and of its controls.

Two Deep kNN look at the same images: that of the target, which no attack has seen (``network`` is ``source->target``), and
that of the source (``network`` is the source). Clean images are the same digits before the attack. A setting says which
credibility is meant: ``predicted``, the largest p-value, or ``network``, the p-value of the label that the network gives.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepneighbors import data, splits
from deepneighbors.dknn import DeepKNN
from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.poisoning_ila import crafting, pooled, sources
from deepneighbors.experiments.poisoning_ila.crafting import Cell
from deepneighbors.experiments.poisoning_ila.sources import DIGITS, NETWORKS, digits_at, load_network
from deepneighbors.results import mean_row, table
from deepneighbors.store import Artifact, Context, Node, Payload, stage
from deepneighbors.training import predict_logits

TARGET = "mnist_cnn"  # the report's network, whose Deep kNN defends
LAYERS = {"mnist_cnn": ("relu1", "relu2", "relu3", "fc"), "deep": ("b0c1", "b1c1", "b2c1", "fc")}
SHOWN = 5  # neighbours of a panel
EXAMPLES = 12  # images of the first seed that are kept for galleries


@stage("ila_dknn", uses=("deepneighbors.dknn", "deepneighbors.knn", "deepneighbors.neighbors", *NETWORKS, *DIGITS))
def ask(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """What Deep kNN says of clean digits and of every kept line of a cell.

    Inputs: the network that Deep kNN stands on, the digits, and the cell. For each line, ``none`` being the clean digits:
    p-values ``(n, classes)``, votes ``(n, layers, classes)``, the network's label ``(n,)``, and of the first images the
    nearest training digits ``(examples, layers, shown)``.
    """
    trained, selected, cell = inputs
    classifier = _classifier(config, trained, context.device)
    x, y = digits_at(selected.tensors["indices"][: config["images"]], "cpu")
    lines = {"none||": x} | {name[2:]: z for name, z in cell.tensors.items() if name.startswith("x|")}
    tensors = {"y": y}
    for name, z in lines.items():
        said = _said(classifier, z[: config["images"]].to(context.device))
        tensors |= {f"{key}|{name}": part for key, part in said.items()}
    return Payload(tensors=tensors, values={"lines": list(lines)})


_BUILT: dict[tuple, DeepKNN] = {}  # the last one built: its index takes long to fill and gigabytes to hold


def _classifier(config: dict, trained: Artifact, device: str) -> DeepKNN:
    key = (trained.key, config["k"], config["database"], device)
    if key not in _BUILT:
        _BUILT.clear()
        digits, (calibration, _) = data.load("mnist"), splits.calibration_split(data.load("mnist").y_test)
        x, y = (part[: config["database"]].to(device) for part in (digits.x_train, digits.y_train))
        layers = LAYERS[trained.values["architecture"]]
        classifier = DeepKNN(load_network(trained, device), layers, k=config["k"]).fit(x, y)
        _BUILT[key] = classifier.calibrate(digits.x_test[calibration], digits.y_test[calibration])
    return _BUILT[key]


def _said(classifier: DeepKNN, x: Tensor) -> dict[str, Tensor]:
    found = classifier.kneighbors(x)
    votes = torch.stack([classifier.votes({layer: near}) for layer, near in found.items()], 1)
    near = torch.stack([neighbors.indices[:EXAMPLES, :SHOWN] for neighbors in found.values()], 1)
    label = predict_logits(classifier.network, x, device=str(x.device)).argmax(1)
    said = {"p": classifier.conformal_p_values(votes.sum(1)), "votes": votes.round().to(torch.int16), "label": label}
    return {name: part.cpu().contiguous() for name, part in (said | {"near": near}).items()}


@dataclass(frozen=True)
class Look:
    """One Deep kNN on the examples of one source at one radius, for one seed."""

    cell: Cell
    black_box: bool

    @property
    def name(self) -> str:
        """Name of its node."""
        return f"{self.network}|{self.cell.epsilon:g}|{self.cell.seed}"

    @property
    def network(self) -> str:
        """As in the results."""
        return f"{self.cell.source}->{TARGET}" if self.black_box else self.cell.source

    def node(self, run: Run) -> Node:
        """Its stage."""
        s, seed = run.settings, self.cell.seed
        trained = sources.source_node(run, seed, self.cell.source)
        if self.black_box:
            trained = sources.target_nodes(run, seed)[list(s.ila_targets).index(TARGET)]
        config = {"k": s.ila_k, "database": s.ila_database, "images": s.ila_credibility_images}
        return ask.node(config, (trained, sources.selected_node(run, seed), crafting.transfer_node(run, self.cell)))


def _looks(run: Run) -> list[Look]:
    """Ordered by the network that they stand on, so that each index is filled once."""
    cells = crafting.cells(run, run.settings.ila_credibility_epsilons)
    looks = [Look(cell, True) for cell in cells if TARGET in run.settings.ila_targets]
    looks += [Look(cell, False) for cell in cells]
    return sorted(looks, key=lambda look: (look.cell.seed, TARGET if look.black_box else f"own {look.cell.source}"))


def _nodes(run: Run) -> Nodes:
    nodes: dict[str, Node] = {look.name: look.node(run) for look in _looks(run)}
    cells = crafting.cells(run, run.settings.ila_credibility_epsilons)
    nodes |= {f"cell|{cell.name}": crafting.transfer_node(run, cell) for cell in cells if cell.seed == run.seed}
    return nodes | {"selected": sources.selected_node(run, run.seed)}


@dataclass(frozen=True)
class Said:
    """What Deep kNN and its network say of the images of one line.

    Parameters
    ----------
    p, votes, label, y
        p-values ``(n, classes)``, votes ``(n, layers, classes)``, the network's label and the true one ``(n,)``.
    """

    p: np.ndarray
    votes: np.ndarray
    label: np.ndarray
    y: np.ndarray

    @classmethod
    def of(cls, artifact: Artifact, line: str) -> "Said":
        """One line of the stage."""
        parts = {key: artifact.tensors[f"{key}|{line}"].numpy() for key in ("p", "votes", "label")}
        return cls(**parts, y=artifact.tensors["y"].numpy())

    def credibility(self, kind: str) -> np.ndarray:
        """Of the predicted label, or of the network's."""
        return self.p.max(1) if kind == "predicted" else self.p[np.arange(len(self.p)), self.label]

    def true_share(self, layer: int) -> np.ndarray:
        """Share of neighbours in a layer that have the true label."""
        votes = self.votes[:, layer].astype(float)
        return votes[np.arange(len(votes)), self.y] / votes.sum(1)

    @property
    def fooled(self) -> np.ndarray:
        """Whether the network is wrong."""
        return self.label != self.y


CREDIBILITIES = ("predicted", "network")


def _summarise(run: Run, found: Mapping[str, Artifact]) -> Summary:
    rows: list[dict] = []
    arrays: dict[str, np.ndarray] = {}
    groups: dict[tuple[str, float], list[Look]] = {}
    for look in _looks(run):
        groups.setdefault((look.network, look.cell.epsilon), []).append(look)
    for (network, epsilon), looks in groups.items():
        made = {look.cell.seed: found[look.name] for look in looks}
        clean = {seed: Said.of(one, "none||") for seed, one in made.items()}
        layers = LAYERS[TARGET if looks[0].black_box else looks[0].cell.source]
        for line in next(iter(made.values())).values["lines"]:
            attack, layer, _ = line.split("|")
            said = {seed: Said.of(one, line) for seed, one in made.items()}
            names = {"experiment": "ila", "network": network, "attack": attack, "setting": f"epsilon={epsilon:g}"}
            names["setting"] = _join(names["setting"], f"source_layer={layer}" if layer else "")
            rows += _means(run, said, names, layers)
            if attack != "none":
                rows += _detection(run, clean, said, names)
            arrays |= _distributions(said, "|".join((network, attack, f"{epsilon:g}")))
    return table(rows), arrays | _gallery(run, found)


def _join(*parts: str) -> str:
    return ";".join(filter(None, parts))


def _means(run: Run, said: Mapping[int, Said], names: dict[str, str], layers: Sequence[str]) -> Iterator[dict]:
    """Accuracies, credibilities and shares of true neighbours, by seed and over seeds."""
    at = names["setting"]
    samples: list[tuple[dict[str, str], dict[int, np.ndarray]]] = [
        ({"metric": "accuracy"}, {seed: ~one.fooled for seed, one in said.items()}),
        ({"metric": "accuracy", "detector": "dknn"}, {seed: one.p.argmax(1) == one.y for seed, one in said.items()}),
    ]
    for kind in CREDIBILITIES:
        more = {"metric": "mean_credibility", "detector": "credibility", "setting": _join(at, f"credibility={kind}")}
        samples.append((more, {seed: one.credibility(kind) for seed, one in said.items()}))
    for index, layer in enumerate(layers):
        samples.append(
            ({"metric": "true_label_share", "layer": layer}, {seed: one.true_share(index) for seed, one in said.items()})
        )
    for more, by_seed in samples:
        full: dict[str, Any] = names | more
        yield from (mean_row(sample, seed=seed, **full) for seed, sample in by_seed.items())
        yield pooled.pooled_mean_row(list(by_seed.values()), seed=run.seed, **full)


def _detection(run: Run, clean: Mapping[int, Said], said: Mapping[int, Said], names: dict[str, str]) -> Iterator[dict]:
    """AUC and detection at 5 % false positives of 1 - credibility, over all images and over those that fool the network."""
    for kind in CREDIBILITIES:
        for over in ("all", "fooled"):
            pairs = {}
            for seed, one in said.items():
                kept = one.fooled | (over == "all")
                pairs[seed] = (1 - clean[seed].credibility(kind), 1 - one.credibility(kind)[kept])
            more: dict[str, Any] = names | {"detector": "credibility"}
            more["setting"] = _join(names["setting"], f"credibility={kind}", f"over={over}")
            for metric, statistic in (("auc", pooled.detection_auc), ("tpr_at_fpr_5", pooled.tpr_at_fpr_5)):
                for seed, pair in pairs.items():
                    alone = pooled.pooled_score_row([pair], statistic, metric=metric, seed=seed, **more)
                    yield alone | {"setting": more["setting"]}
                yield pooled.pooled_score_row(list(pairs.values()), statistic, seed=run.seed, metric=metric, **more)


def _distributions(said: Mapping[int, Said], name: str) -> dict[str, np.ndarray]:
    """Credibilities over all seeds, and which images fool the network."""
    arrays = {
        f"{name}|{kind}": np.concatenate([one.credibility(kind) for one in said.values()]).astype(np.float16)
        for kind in CREDIBILITIES
    }
    return arrays | {f"{name}|fooled": np.concatenate([one.fooled for one in said.values()])}


def _gallery(run: Run, found: Mapping[str, Artifact]) -> dict[str, np.ndarray]:
    """Of the first seed and the largest radius: examples, and the training digits nearest to them layer by layer."""
    epsilon, images, arrays = max(run.settings.ila_credibility_epsilons), data.load("mnist"), {}
    for look in (look for look in _looks(run) if (look.cell.seed, look.cell.epsilon) == (run.seed, epsilon)):
        seen, cell = found[look.name], found[f"cell|{look.cell.name}"]
        for line in seen.values["lines"]:
            name = "|".join(("gallery", look.network, line.split("|")[0]))
            arrays[f"{name}|label"] = seen.tensors[f"label|{line}"][:EXAMPLES].numpy().astype(np.uint8)
            near = seen.tensors[f"near|{line}"]
            arrays[f"{name}|near_y"] = images.y_train[near].numpy().astype(np.uint8)
            if line.startswith(("none|", "ilap|")):
                arrays[f"{name}|near_x"] = images.x_train[near].mul(255).round().to(torch.uint8).numpy()
            if line != "none||":
                arrays[f"{name}|x"] = cell.tensors[f"x|{line}"][:EXAMPLES].numpy().astype(np.float16)
    x, y = digits_at(found["selected"].tensors["indices"][:EXAMPLES], "cpu")
    return arrays | {"gallery|clean|x": x.numpy().astype(np.float16), "gallery|clean|y": y.numpy().astype(np.uint8)}


ILA_CREDIBILITY = Experiment(
    "ila_credibility", _nodes, _summarise, uses=tuple(module.__name__ for module in (crafting, pooled, sources))
)
