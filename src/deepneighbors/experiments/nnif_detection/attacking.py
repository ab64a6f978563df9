"""The attacks of chapter 2 as stages: on the network, and on the network with its detector."""

from collections.abc import Sequence

from torch import Tensor, nn

from deepneighbors import detectors
from deepneighbors.attacks import classifier
from deepneighbors.attacks.cw_opt import CWOpt, anchor_embeddings
from deepneighbors.attacks.detector_evasion import DetectorEvasion, HelpfulAnchors, threshold_at_fpr
from deepneighbors.experiments.nnif_detection.activations import (
    USES,
    columns_of,
    influence_of,
    kept_images,
    training_activations,
)
from deepneighbors.experiments.nnif_detection.training import BATCH, DATA, NETWORK, images_of, load_network
from deepneighbors.store import Artifact, Context, Payload, stage
from deepneighbors.training import predict_logits


@stage("attack_classifier", uses=("deepneighbors.attacks.classifier", "deepneighbors.attacks.jsma", *DATA, *NETWORK))
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


@stage("attack_cw_opt", uses=("deepneighbors.attacks.cw_opt", "deepneighbors.attacks.classifier",
                              "deepneighbors.attacks.penalty", "deepneighbors.attacks.base", *USES))  # fmt: skip
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
                      "deepneighbors.attacks.vote_margin", "deepneighbors.attacks.base", *USES))  # fmt: skip
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
    detector.fit_features(*(columns_of(part.tensors[m], config["columns"]) for part in (clean, attacked)))
    threshold = threshold_at_fpr(known.tensors["clean"].numpy())
    attack_ = DetectorEvasion(
        HelpfulAnchors(training.pooled["embedding"], influence, m=int(m)), steps=config["steps"], batch_size=BATCH
    )
    found = attack_(training.network, detector, threshold, x.to(context.device), y)
    tensors = {name: getattr(found, name).cpu() for name in ("x", "fooled", "evaded", "score", "l2")}
    return Payload(tensors=tensors, values={"threshold": threshold})
