"""The features of each detector as a stage, and what the detector makes of them as another."""

from collections.abc import Sequence
from typing import Any

import sklearn
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from deepneighbors import detectors
from deepneighbors.detectors.dknn import calibration_rows
from deepneighbors.detectors.mahalanobis import CIFAR_SCALE
from deepneighbors.errors import InputError
from deepneighbors.experiments.nnif_detection.activations import (
    USES,
    columns_of,
    influence_of,
    kept_images,
    training_activations,
)
from deepneighbors.experiments.nnif_detection.training import images_of
from deepneighbors.store import Artifact, Context, Payload, stage


@stage("detector_features", uses=USES)
def features(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Features of one detector, for the images of a part that the network has right.

    The first input is the network, the others are the slices of an attack. ``shown`` is ``clean`` or ``attacked``. One
    tensor for each value of the detector's hyper-parameter. ``layers`` is ``all`` or ``embedding``. ``view`` is how images
    come to the detector: ``plain``; ``rounded``, attacked images being stored in 8 bits; ``mixed``, clean and attacked
    images in the same batches; or ``single``, one at a time.
    """
    weights, slices = inputs[0], inputs[1:]
    clean, places = kept_images(config, weights, context.device)
    attacked = torch.cat([part.tensors["x"] for part in slices])[places] if slices else clean
    attacked = (attacked * 255).round() / 255 if config["view"] == "rounded" else attacked
    if config["view"] == "mixed":
        order = torch.randperm(2 * len(clean), generator=torch.Generator().manual_seed(0))
        x, reference = torch.cat([clean, attacked])[order], torch.cat([clean, clean])[order]
        wanted = order.argsort().view(2, -1)[int(config["shown"] == "attacked")]
    else:
        x, reference = clean if config["shown"] == "clean" else attacked, clean
        wanted = torch.arange(len(clean))
    if config["detector"] == "dknn" and config["part"] == "validation":
        # Images that calibrate do not teach.
        free = torch.ones(len(clean), dtype=torch.bool)
        free[calibration_rows(len(clean), config["mode"])] = False
        wanted = wanted[free]
    found = FEATURES[config["detector"]](config, weights, x, reference, context.device)
    tensors = {name: torch.as_tensor(rows)[wanted].to(torch.float64).contiguous() for name, rows in found.items()}
    return Payload(tensors=tensors)


def _layers(config: dict, training: detectors.TrainingActivations) -> tuple[str, ...]:
    return training.layers if config["layers"] == "all" else ("embedding",)


def _dknn(config: dict, weights: Artifact, x: Tensor, clean: Tensor, device: str) -> dict[str, Any]:
    """p-values by k, calibrated on a third of the validation images."""
    training, found = training_activations(config, weights, device), {}
    held, places = kept_images(config | {"part": "validation", "images": config["calibration"]}, weights, device)
    labels = images_of(config["data"]).y["validation"][places].to(device)
    for share in config["grid"]:
        k = min(len(training.labels), max(1, round(share * len(training.labels) / training.classes)))
        detector = detectors.DkNN(training, k=k, mode=config["mode"])
        detector.calibrate(detector.votes(held), labels)
        found[str(k)] = detector.p_values(detector.votes(x))
    return found


def _lid(config: dict, weights: Artifact, x: Tensor, clean: Tensor, device: str) -> dict[str, Any]:
    training, minibatch = training_activations(config, weights, device), min(100, len(x))
    sizes = [k for k in config["grid"] if k < minibatch]
    if not sizes:
        raise InputError(f"{len(x)} images are too few for LID with k of {min(config['grid'])}; attack more of them")
    detector = detectors.LID(training, _layers(config, training), k=max(sizes), mode=config["mode"], minibatch=minibatch)
    distances = detector.distances(x, max(sizes), reference=clean)
    return {str(k): detectors.lid(distances[..., :k]) for k in sizes}


def _mahalanobis(config: dict, weights: Artifact, x: Tensor, clean: Tensor, device: str) -> dict[str, Any]:
    training = training_activations(config, weights, device)
    scale = CIFAR_SCALE if training.images.shape[1] == 3 else (0.3081,)
    detector = detectors.Mahalanobis(training, _layers(config, training), scale=scale, mode=config["mode"])
    return {f"{epsilon:g}": rows for epsilon, rows in detector.grid(x, config["grid"]).items()}


def _nnif(config: dict, weights: Artifact, x: Tensor, clean: Tensor, device: str, smoothing: float | None = None
          ) -> dict[str, Any]:  # fmt: skip
    training, scale = training_activations(config, weights, device), 1.0
    if config["mode"] == "faithful" and config["part"] == "test":
        scale = len(training.labels) / config["subset"]
        training = training_activations(config, weights, device, config["subset"])
    influence = detectors.PredictedLabelInfluence(training, influence_of(config, weights, training, smoothing))
    return _nearness(config, training, influence, x, _layers(config, training), scale)


def _nnif_unsmoothed(config: dict, weights: Artifact, x: Tensor, clean: Tensor, device: str) -> dict[str, Any]:
    return _nnif(config, weights, x, clean, device, smoothing=0.0)


def _nearness(config: dict, training: detectors.TrainingActivations, influence: Any, x: Tensor, layers: Sequence[str],
              scale: float = 1.0) -> dict[str, Any]:  # fmt: skip
    detector = detectors.NNIF(training, influence, layers, m=max(config["grid"]), rank_scale=scale)
    return {str(m): rows for m, rows in detector.grid(x, config["grid"]).items()}


def _random_of_class(config: dict, weights: Artifact, x: Tensor, clean: Tensor, device: str) -> dict[str, Any]:
    training = training_activations(config, weights, device)
    return _nearness(config, training, detectors.RandomOfPredictedClass(training), x, ("embedding",))


def _nearest_of_class(config: dict, weights: Artifact, x: Tensor, clean: Tensor, device: str) -> dict[str, Any]:
    training = training_activations(config, weights, device)
    return _nearness(config, training, detectors.NearestOfPredictedClass(training), x, ("embedding",))


def _single(function: Any) -> Any:
    def compute(config: dict, weights: Artifact, x: Tensor, clean: Tensor, device: str) -> dict[str, Any]:
        return {"0": function(training_activations(config, weights, device), x)[:, None].cpu()}

    return compute


FEATURES: dict[str, Any] = {
    "dknn": _dknn,
    "lid": _lid,
    "mahalanobis": _mahalanobis,
    "nnif": _nnif,
    "nnif_unsmoothed": _nnif_unsmoothed,
    "random_of_class": _random_of_class,
    "nearest_of_class": _nearest_of_class,
    "class_mean": _single(detectors.class_mean_distance),
    "logit_margin": _single(detectors.logit_margin),
    "max_softmax": _single(detectors.max_softmax),
    "off_grid": _single(lambda training, x: detectors.off_grid(x)),
}


@stage("detect", uses=("deepneighbors.detectors.base", "deepneighbors.detectors.select",
                       "deepneighbors.experiments.nnif_detection.activations"))  # fmt: skip
def detect(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Choose the hyper-parameter and learn on validation images, then score test images.

    Inputs: features of clean and of attacked validation images, then those of test images. ``columns`` chooses features;
    none means all. The hyper-parameter is chosen by cross-validation that keeps an image and its attacked twin together.
    """
    names = sorted(inputs[0].tensors, key=float)
    rows = [{name: columns_of(part.tensors[name], config["columns"]) for name in names} for part in inputs]
    learned = {name: (rows[0][name], rows[1][name]) for name in names}
    chosen, aucs = names[0], [float("nan")]
    # Hundreds of fits of a few hundred rows: threads that wait for each other, and checks of each call, cost most of it.
    with threadpool_limits(1), sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        if len(names) > 1:
            selection = detectors.select_hyperparameter(learned, folds=config["folds"])
            chosen, aucs = str(selection.best), selection.table["auc"].tolist()
        fitted = detectors.LogisticStage().fit(*learned[chosen])
    scores = {
        name: torch.from_numpy(fitted.score(part[chosen]))
        for name, part in zip(("clean", "attacked"), rows[2:], strict=True)
    }
    return Payload(tensors=scores, values={"chosen": chosen, "values": names, "validation_auc": aucs})
