"""Poison of chapter 3: points made against a linear classifier, images that evade it, and the training sets with poison."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor

from deepneighbors import checks, data
from deepneighbors.attacks import backdoor
from deepneighbors.attacks.poisoning import LogisticPoisoning, SVMPoisoning, first_images
from deepneighbors.store import Artifact, Context, Payload, stage

LINEAR = {"svm_poisoning": SVMPoisoning, "logistic_poisoning": LogisticPoisoning}
BACKDOORS = ("patch", "blended")
# random_flip: the points from which the SVM attack starts, with its wrong labels, and no optimisation.
ATTACKS = ("none", *LINEAR, "random_flip", *BACKDOORS)
TARGET = 0  # label that a backdoor gives to every image
C = 10.0  # of the linear SVM and of logistic regression, secml's tutorial
_SEED = 999  # secml's tutorial
_POOLS = 9  # seeds that draw images of their own: 300 of each digit, of which MNIST has 5,421 at least

# Modules that a stage depends on which puts a training set together.
SETS = (__name__, "deepneighbors.data", "deepneighbors.attacks.backdoor")


def tutorial_images(digits: Sequence[int], images: Sequence[int], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Indices in MNIST of training, validation and test images of two digits, as secml draws them, and test labels.

    The first images of each digit, in file order; every further seed takes the next ones for training and validation, from
    where the last of the seed before it lies in the file, so that both digits stay mixed.
    """
    mnist = data.load("mnist")
    places, start = torch.arange(len(mnist.y_train))[:, None], 0
    for _ in range(seed % _POOLS + 1):
        pool, _ = first_images(places[start:], mnist.y_train[start:], digits, images[0] + images[1])
        start = int(pool.max()) + 1
    test, y_test = first_images(torch.arange(len(mnist.y_test))[:, None], mnist.y_test, digits, images[2])
    pool = pool.flatten()
    return pool[: images[0]], pool[images[0] :], test.flatten(), y_test


@stage("poison_points", uses=("deepneighbors.attacks.poisoning", "deepneighbors.data"))
def poison_points(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Poison a linear classifier of two digits, as secml's tutorial; ``seed`` 0 is its own draw."""
    checks.one_of("attack", config["attack"], LINEAR)
    mnist = data.load("mnist")
    train, validation, test, y_test = tutorial_images(config["digits"], config["images"], config["seed"])
    attack = LINEAR[config["attack"]](C=C, norm=config["norm"], max_iter=config["iterations"], seed=_SEED + config["seed"])
    made = attack(
        mnist.x_train[train], mnist.y_train[train], mnist.x_train[validation], mnist.y_train[validation],
        count=config["points"], x_test=mnist.x_test[test], y_test=y_test,
    )  # fmt: skip
    source = train[made.indices]
    tensors = {"x": made.x, "start": made.start, "y": made.y, "source": source, "truth": mnist.y_train[source]}
    values = {name: asdict(getattr(made, name)) for name in ("clean", "flipped", "poisoned")}
    return Payload({name: part.contiguous() for name, part in tensors.items()}, {**values, "fits": made.fits})


@stage("evasion_points", uses=("deepneighbors.attacks.poisoning", "deepneighbors.data"))
def evasion_points(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Images that evade the linear SVM within an L2 radius and [0, 1], from the first test images of two digits.

    The optimum of a linear function on a ball and a box moves every pixel by the same multiple of its weight and clips.
    """
    mnist = data.load("mnist")
    train, _, test, y_test = tutorial_images(config["digits"], config["images"], config["seed"])
    test, truth = test[: config["points"]], y_test[: config["points"]]
    model = SVC(kernel="linear", C=C).fit(mnist.x_train[train].flatten(1).double().numpy(), mnist.y_train[train].numpy())
    clean = mnist.x_test[test].flatten(1).double().numpy()
    away = np.where(truth.numpy() == model.classes_[1], -1.0, 1.0)[:, None] * model.coef_
    moved = evade(clean, away, config["radius"])
    said = {name: model.predict(rows) == truth.numpy() for name, rows in (("clean", clean), ("evading", moved))}
    x = torch.from_numpy(moved).float().view(-1, 1, 28, 28)
    values = {"accuracy": {name: float(right.mean()) for name, right in said.items()}}
    return Payload({"x": x, "truth": truth.contiguous(), "source": test.contiguous()}, values)


def evade(x: np.ndarray, direction: np.ndarray, radius: float) -> np.ndarray:
    """Rows ``(n, d)`` moved furthest along their directions ``(n, d)`` within an L2 radius and [0, 1], by bisection."""
    low, high = np.zeros((len(x), 1)), np.full((len(x), 1), 2 * radius / np.abs(direction).max())
    while (short := np.linalg.norm((x + high * direction).clip(0, 1) - x, axis=1) < radius).any() and high.max() < 1e6:
        high[short] *= 2
    for _ in range(60):
        middle = (low + high) / 2
        inside = np.linalg.norm((x + middle * direction).clip(0, 1) - x, axis=1, keepdims=True) <= radius
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return (x + low * direction).clip(0, 1)


@dataclass(frozen=True)
class TrainingSet:
    """Images ``(N, 1, 28, 28)``, stored labels, true labels, and which points are poisoned, each ``(N,)``."""

    x: Tensor
    y: Tensor
    truth: Tensor
    poisoned: Tensor


def training_set(config: dict, points: Sequence[Artifact]) -> TrainingSet:
    """The training set of a config: MNIST's first ``images``, of ``digits`` where given, with the poison of ``attack``.

    Points made against a linear classifier are added at the end; a backdoor replaces images.
    """
    checks.one_of("attack", config["attack"], ATTACKS)
    mnist = data.load("mnist")
    if config["digits"]:
        x, y = first_images(mnist.x_train, mnist.y_train, config["digits"], config["images"])
    else:
        x, y = mnist.x_train[: config["images"]], mnist.y_train[: config["images"]]
    if config["attack"] in BACKDOORS:
        found = backdoor.poison(x, y, trigger(config), rate=config["rate"], target=TARGET, seed=config["seed"])
        return TrainingSet(found.x, found.y, y, found.mask)
    clean = torch.zeros(len(y), dtype=torch.bool)
    if config["attack"] == "none":
        return TrainingSet(x, y, y, clean)
    shown = "start" if config["attack"] == "random_flip" else "x"
    added = {name: torch.cat([part.tensors[name] for part in points]) for name in (shown, "y", "truth")}
    checks.whole("poisoned points", len(added["y"]), 1, len(y))
    return TrainingSet(
        torch.cat([x, added[shown]]), torch.cat([y, added["y"]]), torch.cat([y, added["truth"]]),
        torch.cat([clean, torch.ones(len(added["y"]), dtype=torch.bool)]),
    )  # fmt: skip


def trigger(config: dict) -> backdoor.Trigger:
    """The trigger of a backdoor's config: BadNets' pattern of four pixels, or a picture of noise."""
    if config["attack"] == "patch":
        return backdoor.PatchTrigger()
    return backdoor.BlendedTrigger.noise((1, 28, 28), alpha=config["alpha"], seed=config["seed"])
