"""The stages of chapter 2: train, attack, compute the features of each detector, and detect."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deepneighbors import data, detectors, splits
from deepneighbors.attacks import classifier
from deepneighbors.attacks.cw_opt import CWOpt, anchor_embeddings
from deepneighbors.attacks.detector_evasion import DetectorEvasion, HelpfulAnchors, threshold_at_fpr
from deepneighbors.augmentation import FlipAndCrop
from deepneighbors.detectors.dknn import calibration_rows
from deepneighbors.detectors.mahalanobis import CIFAR_SCALE
from deepneighbors.errors import InputError
from deepneighbors.influence import Inverse, LastLayerInfluence, Lissa
from deepneighbors.networks.thin_resnet import ThinResNet, decay_groups
from deepneighbors.store import Artifact, Context, Payload, stage
from deepneighbors.training import fit_classifier, predict_logits

log = logging.getLogger(__name__)

BATCH = 125  # images of a batch everywhere in the released code
STATISTICS = {"clean": "running", "faithful": "batch"}  # of batch norm, by mode
SMOOTHING = {"mnist": 0.1, "cifar10": 0.1, "cifar100": 0.01, "svhn": 0.1}  # of labels, in the released code
_DATA = ("deepneighbors.data", "deepneighbors.splits.validation")
_NETWORK = ("deepneighbors.networks.thin_resnet", "deepneighbors.networks.layers")


@dataclass(frozen=True)
class Images:
    """Training, validation and test images ``(N, ...)`` with labels ``(N,)``."""

    x: dict[str, Tensor]
    y: dict[str, Tensor]
    classes: int


def images_of(config: dict) -> Images:
    """The images of a config: ``dataset``, and at most ``train_images`` beside ``validation_images``."""
    return _images(config["dataset"], config["train_images"], config["validation_images"])


@lru_cache(maxsize=1)
def _images(name: str, train_images: int, validation_images: int) -> Images:
    dataset = data.load(name)
    split = splits.validation_split(dataset, validation=validation_images)
    train = split.train[:train_images]
    return Images(
        {
            "train": dataset.x_train[train],
            "validation": dataset.x_train[split.validation],
            "test": dataset.x_test[split.test],
        },
        {
            "train": dataset.y_train[train],
            "validation": dataset.y_train[split.validation],
            "test": dataset.y_test[split.test],
        },
        dataset.classes,
    )


@stage("train_thin_resnet", uses=("deepneighbors.training", "deepneighbors.augmentation", *_DATA, _NETWORK[0]))
def train(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Train the thin ResNet by the paper's recipe and keep the epoch of the best validation accuracy; or by one cycle.

    Accuracies are those of both modes, in batches of 125.
    """
    images, name = images_of(config), config["dataset"]
    with torch.random.fork_rng():
        torch.manual_seed(config["seed"])
        network = ThinResNet(classes=images.classes, channels=images.x["train"].shape[1], blocks=config["blocks"])

    def make(parameters: object) -> torch.optim.Optimizer:
        groups = decay_groups(network, config["weight_decay"])
        return torch.optim.SGD(groups, lr=config["learning_rate"], momentum=0.9, nesterov=True)

    validation = None if config["one_cycle"] else _Validation(network, images, context.device)
    augment = FlipAndCrop(flip=name.startswith("cifar"), seed=config["seed"]) if name != "mnist" else None
    fit_classifier(
        network, images.x["train"], images.y["train"], epochs=config["epochs"], batch_size=BATCH, seed=config["seed"],
        learning_rate=config["learning_rate"], one_cycle=config["one_cycle"], device=context.device, perturb=augment,
        loss=partial(cross_entropy, label_smoothing=SMOOTHING[name]), optimizer=make, after_epoch=validation,
    )  # fmt: skip
    if validation is None:
        # The running averages of a short training still hold their first values: take them anew.
        torch.optim.swa_utils.update_bn((x.to(context.device) for x in images.x["train"].split(BATCH)), network)
    weights = validation.weights if validation else {name: part.cpu() for name, part in network.state_dict().items()}
    reached = {}
    for mode in STATISTICS:
        best = load_network(weights, mode, context.device)
        reached[mode] = {part: _accuracy(best, images, part, context.device) for part in images.x}
    return Payload(
        tensors=weights, values={"accuracy": reached, "epoch": validation.epoch if validation else config["epochs"]}
    )


class _Validation:
    """After each epoch: keep the weights of the best validation accuracy, and cut the rate where it has stopped rising.

    Three epochs without a rise of 1e-4 cut the rate by 0.9, and two more pass before epochs count again, as in the released
    code.
    """

    def __init__(self, network: nn.Module, images: Images, device: str):
        self.network, self.images, self.device = network, images, device
        self.best, self.epoch, self.weights = -1.0, 0, dict[str, Tensor]()
        self.plateau: torch.optim.lr_scheduler.ReduceLROnPlateau | None = None

    def __call__(self, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        reached = _accuracy(self.network, self.images, "validation", self.device)
        log.info("epoch %d: validation accuracy %.4f", epoch, reached)
        if reached > self.best:
            self.best, self.epoch = reached, epoch
            self.weights = {name: part.detach().cpu().clone() for name, part in self.network.state_dict().items()}
        self.plateau = self.plateau or torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=0.9, patience=2, cooldown=2, threshold=1e-4, threshold_mode="abs"
        )
        self.plateau.step(reached)


def _accuracy(network: nn.Module, images: Images, part: str, device: str) -> float:
    said = predict_logits(network, images.x[part], batch_size=BATCH, device=device).argmax(1)
    return float((said == images.y[part]).float().mean())


def load_network(weights: dict[str, Tensor], mode: str, device: str, *, statistics: str = "") -> ThinResNet:
    """The trained network in evaluation mode, with the statistics of a mode or others."""
    blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    network = ThinResNet(
        classes=len(weights["fc.bias"]), channels=weights["conv.weight"].shape[1], statistics=statistics or STATISTICS[mode],
        blocks=blocks // 3,
    )  # fmt: skip
    network.load_state_dict(weights)
    return network.to(device).eval().requires_grad_(False)


@stage("attack_classifier", uses=("deepneighbors.attacks.classifier", "deepneighbors.attacks.jsma", *_DATA, _NETWORK[0]))
def attack(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Attack a slice of the validation or test images. Targets are drawn for all of them, whatever the slice."""
    images, part = images_of(config["data"]), config["part"]
    network = load_network(inputs[0].tensors, config["mode"], context.device)
    chosen = slice(config["start"], config["stop"])
    x, y = images.x[part][chosen], images.y[part][chosen]
    targets = None
    if classifier.SETTINGS[config["attack"]].targets == classifier.DRAWN:
        targets = classifier.draw_targets(images.y[part], images.classes, config["seed"])[chosen]
    found = classifier.run_attack(
        config["attack"], network, x, y, targets=targets, seed=config["seed"] + config["start"], batch_size=BATCH,
        device=context.device, **config["options"],
    )  # fmt: skip
    return _attacked(found, network, x, context.device)


def _attacked(found: classifier.ClassifierAttackResult, network: nn.Module, x: Tensor, device: str) -> Payload:
    """What an attack made, the network's labels before and after, success, and norms of the change."""
    tensors = {"x": found.x, "predictions": found.predictions, "success": found.success}
    tensors["clean"] = predict_logits(network, x, batch_size=BATCH, device=device).argmax(1)
    tensors |= {name: size.float() for name, size in classifier.perturbation_norms(x, found.x.to(x.device)).items()}
    return Payload(tensors={name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


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


@stage("attack_cw_opt", uses=("deepneighbors.attacks.cw_opt", "deepneighbors.attacks.classifier",
                              "deepneighbors.attacks.penalty", "deepneighbors.attacks.base", "deepneighbors.influence",
                              *_DATA, *_NETWORK))  # fmt: skip
def attack_cw_opt(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """The paper's white-box attack on a slice: towards the training images most helpful for the clean image."""
    images, part, device = images_of(config["data"]), config["part"], context.device
    training = training_activations(config, inputs[0], device)
    chosen = slice(config["start"], config["stop"])
    x, y = (values[part][chosen].to(device) for values in (images.x, images.y))
    targets = classifier.draw_targets(images.y[part], images.classes, config["seed"])[chosen].to(device)
    influence = detectors.PredictedLabelInfluence(training, influence_of(config, inputs[0], training))
    helpful, _ = influence.extremes(x, config["m"])
    if config["mode"] == "clean":
        anchors = training.pooled["embedding"][helpful]
    else:
        anchors = anchor_embeddings(training.network, training.images, helpful, mode="faithful", batch_size=BATCH)
    found = CWOpt(mode=config["mode"], batch_size=BATCH, **config["options"])(
        training.network, x, y, anchors, targets=targets, seed=config["seed"]
    )
    return _attacked(found, training.network, x, device)


@stage("evade", uses=("deepneighbors.attacks.detector_evasion", "deepneighbors.attacks.cw_opt",
                      "deepneighbors.attacks.vote_margin", "deepneighbors.attacks.base", "deepneighbors.detectors",
                      "deepneighbors.influence", *_DATA, *_NETWORK))  # fmt: skip
def evade(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """The adaptive attack on NNIF at the embedding, for the first test images that the network has right.

    Inputs: the network, features of clean and of attacked validation images, and the scores of :func:`detect` with its
    choice of M. The threshold is that of 5 % false positives on clean test images.
    """
    weights, clean, attacked, known = inputs
    m, training = known.values["chosen"], training_activations(config, weights, context.device)
    x, places = kept_images(config | {"part": "test"}, weights, context.device)
    y = images_of(config["data"]).y["test"][places].to(context.device)
    influence = influence_of(config | {"part": "validation"}, weights, training)
    adapted = detectors.PredictedLabelInfluence(training, influence)
    detector = detectors.NNIF(training, adapted, ("embedding",), m=int(m))
    detector.fit_features(*(_columns(part.tensors[m], config["columns"]) for part in (clean, attacked)))
    threshold = threshold_at_fpr(known.tensors["clean"].numpy())
    attack_ = DetectorEvasion(
        HelpfulAnchors(training.pooled["embedding"], influence, m=int(m)), steps=config["steps"], batch_size=BATCH
    )
    found = attack_(training.network, detector, threshold, x.to(context.device), y)
    tensors = {name: getattr(found, name).cpu() for name in ("x", "fooled", "evaded", "score", "l2")}
    return Payload(tensors=tensors, values={"threshold": threshold})


def kept_images(config: dict, weights: Artifact, device: str) -> tuple[Tensor, Tensor]:
    """The first ``images`` of a part that the network has right, in order, and their places ``(n,)`` among all."""
    images, part = images_of(config["data"]), config["part"]
    x, y = images.x[part][: config["images"]], images.y[part][: config["images"]]
    network = load_network(weights.tensors, config["mode"], device)
    right = predict_logits(network, x, batch_size=BATCH, device=device).argmax(1) == y
    return x[right], right.nonzero().flatten()


@stage("detector_features", uses=("deepneighbors.detectors", "deepneighbors.influence", "deepneighbors.neighbors",
                                  *_DATA, *_NETWORK))  # fmt: skip
def features(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Features of one detector, in all layers, for the images of a part that the network has right.

    The first input is the network, the others are the slices of an attack. ``shown`` is ``clean`` or ``attacked``. One
    tensor for each value of the detector's hyper-parameter. ``view`` is how images come to the detector: ``plain``;
    ``rounded``, attacked images being stored in 8 bits; ``mixed``, clean and attacked images in the same batches; or
    ``single``, one at a time.
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
    detector = detectors.LID(training, training.layers, k=max(sizes), mode=config["mode"], minibatch=minibatch)
    distances = detector.distances(x, max(sizes), reference=clean)
    return {str(k): detectors.lid(distances[..., :k]) for k in sizes}


def _mahalanobis(config: dict, weights: Artifact, x: Tensor, clean: Tensor, device: str) -> dict[str, Any]:
    training = training_activations(config, weights, device)
    scale = CIFAR_SCALE if training.images.shape[1] == 3 else (0.3081,)
    detector = detectors.Mahalanobis(training, training.layers, scale=scale, mode=config["mode"])
    return {f"{epsilon:g}": rows for epsilon, rows in detector.grid(x, config["grid"]).items()}


def influence_of(config: dict, weights: Artifact, training: detectors.TrainingActivations) -> LastLayerInfluence:
    """Last-layer influence: exact in clean mode; in faithful mode with what LiSSA's truncation leaves of the inverse."""
    operator = Inverse() if config["mode"] == "clean" else Lissa(49 if config["part"] == "validation" else 5)
    model = LastLayerInfluence(
        weights.tensors["fc.weight"], weights.tensors["fc.bias"], smoothing=SMOOTHING[config["data"]["dataset"]],
        operator=operator,
    )  # fmt: skip
    return model.fit(training.pooled["embedding"], training.labels)


def _nnif(config: dict, weights: Artifact, x: Tensor, clean: Tensor, device: str) -> dict[str, Any]:
    training, scale = training_activations(config, weights, device), 1.0
    if config["mode"] == "faithful" and config["part"] == "test":
        scale = len(training.labels) / config["subset"]
        training = training_activations(config, weights, device, config["subset"])
    influence = detectors.PredictedLabelInfluence(training, influence_of(config, weights, training))
    return _nearness(config, training, influence, x, training.layers, scale)


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
    "random_of_class": _random_of_class,
    "nearest_of_class": _nearest_of_class,
    "class_mean": _single(detectors.class_mean_distance),
    "logit_margin": _single(detectors.logit_margin),
    "max_softmax": _single(detectors.max_softmax),
    "off_grid": _single(lambda training, x: detectors.off_grid(x)),
}


@stage("detect", uses=("deepneighbors.detectors.base", "deepneighbors.detectors.select"))
def detect(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Choose the hyper-parameter and learn on validation images, then score test images.

    Inputs: features of clean and of attacked validation images, then those of test images. ``columns`` chooses features;
    none means all. The hyper-parameter is chosen by cross-validation that keeps an image and its attacked twin together.
    """
    names = sorted(inputs[0].tensors, key=float)
    rows = [{name: _columns(part.tensors[name], config["columns"]) for name in names} for part in inputs]
    learned = {name: (rows[0][name], rows[1][name]) for name in names}
    chosen, aucs = names[0], [float("nan")]
    if len(names) > 1:
        selection = detectors.select_hyperparameter(learned, folds=config["folds"])
        chosen, aucs = str(selection.best), selection.table["auc"].tolist()
    fitted = detectors.LogisticStage().fit(*learned[chosen])
    scores = {
        name: torch.from_numpy(fitted.score(part[chosen]))
        for name, part in zip(("clean", "attacked"), rows[2:], strict=True)
    }
    return Payload(tensors=scores, values={"chosen": chosen, "values": names, "validation_auc": aucs})


def _columns(features: Tensor, chosen: Sequence[int]) -> np.ndarray:
    rows = features.numpy()
    return rows[:, list(chosen)] if chosen else rows
