"""What detectors and white-box attacks share: training activations, images that the network has right, influence."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from deepneighbors import detectors
from deepneighbors.experiments.nnif_detection.training import BATCH, DATA, NETWORK, SMOOTHING, images_of, load_network
from deepneighbors.influence import Inverse, LastLayerInfluence, Lissa
from deepneighbors.store import Artifact
from deepneighbors.training import predict_logits

# Modules that the code of a stage depends on which calls this one.
USES = (__name__, "deepneighbors.detectors", "deepneighbors.influence", "deepneighbors.neighbors", *DATA, *NETWORK)


def training_activations(config: dict, weights: Artifact, device: str, subset: int = 0) -> detectors.TrainingActivations:
    """Activations of the training images in all layers; the last ones computed are kept.

    ``subset`` draws so many of the training images, as the released code does for test images.
    """
    key = (repr(sorted(config["data"].items())), config["mode"], weights.key, device)
    if key not in _ACTIVATIONS:
        _ACTIVATIONS.clear()
        images, network = images_of(config["data"]), load_network(weights.tensors, config["mode"], device)
        x, y = images.x["train"].to(device), images.y["train"].to(device)
        _ACTIVATIONS[key] = detectors.TrainingActivations.compute(network, x, y, network.layers, batch_size=BATCH)
    whole = _ACTIVATIONS[key]
    if config.get("view") == "single":
        whole = replace(whole, batch_size=1)
    return subset_of(whole, subset) if subset else whole


def subset_of(whole: detectors.TrainingActivations, count: int) -> detectors.TrainingActivations:
    """A random part of the training images, in order; the same for the same count."""
    order = torch.randperm(len(whole.labels), generator=torch.Generator().manual_seed(0))
    chosen = order[:count].sort().values.to(whole.labels.device)
    pooled = {layer: rows[chosen] for layer, rows in whole.pooled.items()}
    return replace(whole, images=whole.images[chosen], labels=whole.labels[chosen], pooled=pooled)


_ACTIVATIONS: dict[tuple, detectors.TrainingActivations] = {}


def kept_images(config: dict, weights: Artifact, device: str) -> tuple[Tensor, Tensor]:
    """The first ``images`` of a part that the network has right, in order, and their places ``(n,)`` among all."""
    images, part = images_of(config["data"]), config["part"]
    x, y = images.x[part][: config["images"]], images.y[part][: config["images"]]
    network = load_network(weights.tensors, config["mode"], device)
    right = predict_logits(network, x, batch_size=BATCH, device=device).argmax(1) == y
    return x[right], right.nonzero().flatten()


def influence_of(config: dict, weights: Artifact, training: detectors.TrainingActivations,
                 smoothing: float | None = None) -> LastLayerInfluence:  # fmt: skip
    """Last-layer influence: exact in clean mode; in faithful mode with what LiSSA's truncation leaves of the inverse.

    ``smoothing`` is that of the loss, as in the network's training where None is given.
    """
    operator = Inverse() if config["mode"] == "clean" else Lissa(49 if config["part"] == "validation" else 5)
    smoothing = SMOOTHING[config["data"]["dataset"]] if smoothing is None else smoothing
    weight, bias = (weights.tensors[f"fc.{part}"] for part in ("weight", "bias"))
    model = LastLayerInfluence(weight, bias, smoothing=smoothing, operator=operator)
    return model.fit(training.pooled["embedding"], training.labels)


def columns_of(features: Tensor, chosen: Sequence[int]) -> np.ndarray:
    """The chosen columns of features ``(n, F)``; all where none is chosen."""
    rows = features.numpy()
    return rows[:, list(chosen)] if chosen else rows
