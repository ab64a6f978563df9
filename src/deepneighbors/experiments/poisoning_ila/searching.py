"""The stages that search the neighbours of training, test and foreign images, and what Deep kNN concludes from them.

A stage keeps the stored labels of the neighbours, so that fewer neighbours, fewer layers, trimmed calibration and the point
itself among its neighbours need no new search.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepneighbors import data
from deepneighbors.bounded_search import BoundedDeepKNN
from deepneighbors.dknn import DeepKNN
from deepneighbors.dknn_training import CREDIBILITIES, other_neighbors
from deepneighbors.experiments.poisoning_ila.poisons import SETS, TrainingSet, training_set
from deepneighbors.experiments.poisoning_ila.training import NETWORK, load_network
from deepneighbors.neighbors import Neighbors
from deepneighbors.networks import MnistCNN
from deepneighbors.store import Artifact, Context, Payload, stage
from deepneighbors.training import predict_logits

LAYERS = MnistCNN.layers
SEARCH = (*SETS, *NETWORK, "deepneighbors.experiments.poisoning_ila.training", "deepneighbors.training",
          "deepneighbors.dknn", "deepneighbors.knn", "deepneighbors.neighbors", "deepneighbors.bounded_search",
          "deepneighbors.dknn_training")  # fmt: skip


@stage("search_training", uses=SEARCH)
def search_training(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Neighbours of training points, themselves left out, and of test images, for the network (first input) at an epoch.

    ``points`` is ``all``, or how many clean training points to draw beside all poisoned and all misclassified ones. The
    first ``calibration`` test images calibrate, the next ``test`` are evaluated.
    """
    found, network = training_set(config["data"], inputs[1:]), load_network(inputs[0], config["epoch"], context.device)
    classifier = index(config, network, found, context.device)
    said = predict_logits(network, found.x, device=context.device).argmax(1)
    chosen = _chosen(config, found, said)
    near = other_neighbors(classifier, None if len(chosen) == len(said) else chosen)
    tensors = _described("train", near, found) | {
        "train/index": chosen, "train/y": found.y[chosen], "train/truth": found.truth[chosen],
        "train/network": said[chosen], "train/own": found.poisoned[chosen],
    }  # fmt: skip
    for group, (x, y) in held_out(config).items():
        if len(x):
            labels = predict_logits(network, x, device=context.device).argmax(1)
            tensors |= _described(group, classifier.kneighbors(x.to(context.device)), found)
            tensors |= {f"{group}/y": y, f"{group}/truth": y, f"{group}/network": labels}
    return Payload({name: part.cpu().contiguous().clone() for name, part in tensors.items()})


@stage("search_images", uses=SEARCH)
def search_images(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Neighbours in a clean training set of images made elsewhere: the artefacts after the network, by ``names``.

    ``y`` is the label that comes with an image: the wrong one of poison, the true one of any other.
    """
    found, network = training_set(config["data"], ()), load_network(inputs[0], config["epoch"], context.device)
    classifier = index(config, network, found, context.device)
    groups = dict(held_out(config))
    truth = {group: y for group, (_, y) in groups.items()}
    for name, made in zip(config["names"], inputs[1:], strict=True):
        groups[name] = (made.tensors["x"], made.tensors.get("y", made.tensors["truth"]))
        truth[name] = made.tensors["truth"]
    tensors: dict[str, Tensor] = {}
    for group, (x, y) in groups.items():
        labels = predict_logits(network, x, device=context.device).argmax(1)
        tensors |= _described(group, classifier.kneighbors(x.to(context.device)), found)
        tensors |= {f"{group}/y": y, f"{group}/truth": truth[group], f"{group}/network": labels}
    return Payload({name: part.cpu().contiguous().clone() for name, part in tensors.items()})


def index(config: dict, network: MnistCNN, found: TrainingSet, device: str) -> DeepKNN:
    """DkNN of all four layers on a training set; its calibration is left to the summary."""
    memory = 8.0 if device.startswith("cuda") else 0.5
    classifier = BoundedDeepKNN(network, LAYERS, k=config["k"], metric=config["metric"], memory_gib=memory)
    return classifier.fit(found.x.to(device), found.y.to(device))


def held_out(config: dict) -> dict[str, tuple[Tensor, Tensor]]:
    """Test images for calibration and for evaluation, with labels; of the set's digits only."""
    mnist, digits = data.load("mnist"), config["data"]["digits"]
    kept = torch.isin(mnist.y_test, torch.tensor(digits)) if digits else torch.ones_like(mnist.y_test, dtype=torch.bool)
    x, y = mnist.x_test[kept], mnist.y_test[kept]
    first, last = config["calibration"], config["calibration"] + config["test"]
    return {"calibration": (x[:first], y[:first]), "test": (x[first:last], y[first:last])}


def _chosen(config: dict, found: TrainingSet, said: Tensor) -> Tensor:
    if config["points"] == "all":
        return torch.arange(len(found.y))
    wanted = found.poisoned | (said != found.y)
    order = torch.randperm(len(found.y), generator=torch.Generator().manual_seed(config["data"]["seed"]))
    drawn = order[~found.poisoned[order]][: config["points"]]
    return wanted.index_fill(0, drawn, True).nonzero().flatten()


def _described(group: str, near: dict[str, Neighbors], found: TrainingSet) -> dict[str, Tensor]:
    """Stored labels of the neighbours and whether they are poisoned, ``(n, layers, k)`` uint8."""
    places = torch.stack([near[layer].indices for layer in LAYERS], 1).cpu()
    return {
        f"{group}/labels": found.y[places].to(torch.uint8), f"{group}/poisoned": found.poisoned[places].to(torch.uint8)
    }  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What a search found for ``n`` images.

    Attributes
    ----------
    labels, poisoned
        Stored labels of the neighbours and whether these are poisoned, ``(n, layers, k)``, nearest first.
    y, truth, network
        Label that comes with each image, its true one, and the network's, ``(n,)``.
    own
        Whether each image is itself poisoned, ``(n,)``; False for test images.
    """

    labels: NDArray
    poisoned: NDArray
    y: NDArray
    truth: NDArray
    network: NDArray
    own: NDArray

    @classmethod
    def of(cls, artifact: Artifact, group: str) -> "Seen":
        """A group of a search's artefact."""
        part = {name.removeprefix(f"{group}/"): tensor.numpy() for name, tensor in artifact.tensors.items()
                if name.startswith(f"{group}/")}  # fmt: skip
        own = part.get("own", np.zeros(len(part["y"]), dtype=bool))
        return cls(part["labels"], part["poisoned"].astype(bool), part["y"], part["truth"], part["network"], own)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: NDArray) -> "Seen":
        """Some of the images, by a mask or by places."""
        return Seen(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def with_self(self) -> "Seen":
        """With each image put first among its own neighbours, as a plain search of the training set finds it."""

        def put(own: NDArray, others: NDArray) -> NDArray:
            first = np.broadcast_to(own[:, None, None], (len(own), others.shape[1], 1)).astype(others.dtype)
            return np.concatenate([first, others[:, :, :-1]], 2)

        return replace(self, labels=put(self.y, self.labels), poisoned=put(self.own, self.poisoned))

    def nonconformity(self, layers: Sequence[int] = (0, 1, 2, 3), k: int = 75, classes: int = 10) -> NDArray:
        """Neighbours with another label, for each label: ``(n, classes)``."""
        near = self.labels[:, list(layers), :k].reshape(len(self), -1)
        rows = np.arange(len(self))[:, None] * classes + near
        votes = np.bincount(rows.ravel(), minlength=len(self) * classes).reshape(len(self), classes)
        return near.shape[1] - votes

    def share(self, k: int = 75) -> NDArray:
        """Share of poisoned points among the nearest ``k``, by layer: ``(n, layers)``."""
        return self.poisoned[:, :, :k].mean(2)


@dataclass(frozen=True)
class Conclusion:
    """Credibilities ``(n,)`` by name, and the labels that DkNN predicts."""

    credibility: dict[str, NDArray]
    labels: NDArray


def conclude(seen: Seen, calibration: Seen, *, layers: Sequence[int] = (0, 1, 2, 3), k: int = 75,
             trimmed: bool = False) -> Conclusion:  # fmt: skip
    """The conformal part of DkNN, as :meth:`deepneighbors.dknn.DeepKNN.conclude`, for any layers and ``k``.

    ``trimmed`` drops calibration images of nonconformity 0, as cleverhans does.
    """
    scores = calibration.nonconformity(layers, k)[np.arange(len(calibration)), calibration.truth]
    scores = np.sort(scores[scores > 0] if trimmed and scores.any() else scores)
    p = (len(scores) - np.searchsorted(scores, seen.nonconformity(layers, k))) / len(scores)
    labels, rows = p.argmax(1), np.arange(len(seen))
    found = (p.max(1), p[rows, seen.network], p[rows, seen.y])
    return Conclusion(dict(zip(CREDIBILITIES, found, strict=True)), labels)
