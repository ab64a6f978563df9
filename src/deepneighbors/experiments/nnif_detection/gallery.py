"""What the figures show: images with the training images that matter to them, and how NNIF's features are spread."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from deepneighbors import detectors
from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.nnif_detection.activations import USES, influence_of, kept_images, training_activations
from deepneighbors.experiments.nnif_detection.cases import Case, cases
from deepneighbors.experiments.nnif_detection.training import images_of
from deepneighbors.neighbors import NearestNeighbors
from deepneighbors.results import auc_row, mean_row, table
from deepneighbors.store import Artifact, Context, Node, Payload, stage

ATTACK = "deepfool"  # of the paper's figure 1
NEAR, SHOWN = 25, 6  # images of a kind in the plane (figure 1), and in the gallery
EXAMPLES, BACKGROUND = 4, 2_000
FEATURES = ("r_up", "d_up", "r_down", "d_down")


@stage("neighborhoods", uses=USES)
def neighborhoods(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Nearest and most helpful training images of validation images, before and after an attack that succeeded.

    Inputs: the network, and the slices of the attack. ``clean`` and ``attacked`` each have ``near``, ``helpful`` and
    ``harmful``: indices ``(n, NEAR)`` of training images. The examples are the first image of each of the first classes;
    ``plane`` has their embeddings, and those of all training images, on the first two principal components.
    """
    weights, slices = inputs[0], inputs[1:]
    training = training_activations(config, weights, context.device)
    clean, places = kept_images(config | {"part": "validation"}, weights, context.device)
    attacked, won = (torch.cat([part.tensors[key] for part in slices])[places] for key in ("x", "success"))
    images = {"clean": clean[won.bool()], "attacked": attacked[won.bool()]}
    labels = images_of(config["data"]).y["validation"][places][won.bool()]
    influence = detectors.PredictedLabelInfluence(training, influence_of(config | {"part": "validation"}, weights, training))
    base = training.pooled["embedding"]
    index, tensors = NearestNeighbors().fit(base), {"labels": labels, "training_labels": training.labels}
    centre, axes = base.mean(0), torch.linalg.svd(base - base.mean(0), full_matrices=False)[2][:2]
    tensors["plane|training"] = (base - centre) @ axes.T
    chosen = _first_of_each_class(labels)[: config["examples"]]
    tensors["examples"] = chosen
    for shown, x in images.items():
        embedded = training.query(x, ("embedding",))["embedding"]
        tensors[f"{shown}|near"] = index.kneighbors(embedded, config["near"]).indices
        tensors[f"{shown}|helpful"], tensors[f"{shown}|harmful"] = influence.extremes(x, config["near"])
        tensors[f"plane|{shown}"] = ((embedded - centre) @ axes.T)[chosen]
        tensors[f"{shown}|x"], tensors[f"{shown}|y"] = x[chosen], training.logits(x).argmax(1)[chosen]
    return Payload({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def _first_of_each_class(labels: Tensor) -> Tensor:
    """Places of the first image of each label, in order of the labels."""
    return torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()])


def _gallery_node(case: Case) -> Node:
    config = {
        "data": case.data, "mode": case.mode, "images": case.images(ATTACK, "validation"), "near": NEAR,
        "examples": EXAMPLES,
    }  # fmt: skip
    return neighborhoods.node(config, (case.weights, *case.attacked(ATTACK, "validation")))


def _gallery_nodes(run: Run) -> Nodes:
    return {case.mode: _gallery_node(case) for case in cases(run)}


def _gallery_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    """How many of the most helpful training images are among as many nearest ones, clean and attacked; and examples."""
    rows: list[dict] = []
    arrays: dict[str, np.ndarray] = {}
    for case in cases(run):
        tensors = found[case.mode].tensors
        for shown in ("clean", "attacked"):
            names = case.names(attack=ATTACK, layer="embedding", setting=shown)
            near, own = tensors[f"{shown}|near"].numpy(), tensors[f"{shown}|helpful"].numpy()
            share = [len(np.intersect1d(a, b)) / NEAR for a, b in zip(near, own, strict=True)]
            rows.append(mean_row(share, metric="helpful_neighbor_share", **names))
        pictures = images_of(case.data).x["train"]
        arrays |= {f"{case.mode}|{key}": array for key, array in _examples(tensors, pictures).items()}
    return table(rows), arrays


def _examples(tensors: Mapping[str, Tensor], pictures: Tensor) -> dict[str, np.ndarray]:
    """Arrays of the example images: pixels in 8 bits, labels, and coordinates in the plane."""
    chosen, plane = tensors["examples"], tensors["plane|training"]
    sample = torch.randperm(len(plane), generator=torch.Generator().manual_seed(0))[:BACKGROUND]
    arrays = {"plane|background": plane[sample], "background|y": tensors["training_labels"][sample]}
    arrays["true|y"] = tensors["labels"][chosen]
    for shown in ("clean", "attacked"):
        arrays[f"{shown}|x"], arrays[f"{shown}|y"] = _bytes(tensors[f"{shown}|x"]), tensors[f"{shown}|y"]
        arrays[f"plane|{shown}"] = tensors[f"plane|{shown}"]
        for kind in ("near", "helpful", "harmful"):
            rows = tensors[f"{shown}|{kind}"][chosen]
            arrays[f"plane|{shown}|{kind}"] = plane[rows]
            arrays[f"{shown}|{kind}|x"] = _bytes(pictures[rows[:, :SHOWN]])
            arrays[f"{shown}|{kind}|y"] = tensors["training_labels"][rows[:, :SHOWN]]
    return {key: tensor.numpy() for key, tensor in arrays.items()}


def _bytes(x: Tensor) -> Tensor:
    return (x * 255).round().to(torch.uint8)


def _density_nodes(run: Run) -> Nodes:
    nodes = {}
    for case in cases(run):
        for attack in run.settings.ablation_attacks:
            nodes[f"{case.mode}|{attack}|chosen"] = case.detected("nnif", "embedding", attack)
            for shown in ("clean", "attacked"):
                nodes[f"{case.mode}|{attack}|{shown}"] = case.features("nnif", attack, "test", shown)
    return nodes


def _density_summary(run: Run, found: Mapping[str, Artifact]) -> Summary:
    """Each feature of NNIF at the embedding, clean and attacked, at the M that the detector chose; and its AUC alone.

    Clean images are nearer to what helps them, so minus the rank or the distance is higher for clean; and farther from what
    harms them.
    """
    rows: list[dict] = []
    arrays: dict[str, np.ndarray] = {}
    for case in cases(run):
        for attack in run.settings.ablation_attacks:
            m = str(found[f"{case.mode}|{attack}|chosen"].values["chosen"])
            parts = [
                found[f"{case.mode}|{attack}|{shown}"].tensors[m][:, case.columns("nnif", "embedding")].numpy()
                for shown in ("clean", "attacked")
            ]
            for column, feature in enumerate(FEATURES):
                clean, attacked = (part[:, column] for part in parts)
                sign = -1 if feature.endswith("up") else 1
                names = case.names(attack=attack, detector=feature, layer="embedding", setting="alone")
                rows.append(auc_row(sign * clean, sign * attacked, metric="auc", **names))
                arrays |= {
                    f"{case.mode}|{attack}|{feature}|clean": clean,
                    f"{case.mode}|{attack}|{feature}|attacked": attacked,
                }
    return table(rows), {key: array.astype(np.float32) for key, array in arrays.items()}


GALLERY = Experiment("gallery", _gallery_nodes, _gallery_summary)
DENSITIES = Experiment("densities", _density_nodes, _density_summary)
