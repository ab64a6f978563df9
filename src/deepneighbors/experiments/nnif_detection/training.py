"""The images of chapter 2, and the stage that trains its network."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deepneighbors import checks, data, splits
from deepneighbors.augmentation import FlipAndCrop
from deepneighbors.networks.thin_resnet import ThinResNet, decay_groups
from deepneighbors.store import Artifact, Context, Payload, stage
from deepneighbors.training import fit_classifier, predict_logits

log = logging.getLogger(__name__)

BATCH = 125  # images of a batch everywhere in the released code
PRECISIONS = ("float32", "bfloat16")  # of the convolutions in training
STATISTICS = {"clean": "running", "faithful": "batch"}  # of batch norm, by mode
SMOOTHING = {"mnist": 0.1, "cifar10": 0.1, "cifar100": 0.01, "svhn": 0.1}  # of labels, in the released code
# Modules that the code of a stage depends on which loads these images, or this network.
DATA = ("deepneighbors.data", "deepneighbors.splits.validation")
NETWORK = (__name__, "deepneighbors.training", "deepneighbors.networks.thin_resnet", "deepneighbors.networks.layers")


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


@stage("train_thin_resnet", uses=("deepneighbors.augmentation", *DATA, *NETWORK))
def train(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Train the thin ResNet by the paper's recipe and keep the epoch of the best validation accuracy; or by one cycle.

    Accuracies are those of both modes, in batches of 125.
    """
    images, name = images_of(config), config["dataset"]
    checks.one_of("precision", config["precision"], PRECISIONS)
    with torch.random.fork_rng():
        torch.manual_seed(config["seed"])
        network = ThinResNet(classes=images.classes, channels=images.x["train"].shape[1], blocks=config["blocks"])

    def make(parameters: object) -> torch.optim.Optimizer:
        groups = decay_groups(network, config["weight_decay"])
        return torch.optim.SGD(groups, lr=config["learning_rate"], momentum=0.9, nesterov=True)

    validation = None if config["one_cycle"] else _Validation(network, images, context.device)
    augment = FlipAndCrop(flip=name.startswith("cifar"), seed=config["seed"]) if name != "mnist" else None
    trained = _Bfloat16(network) if config["precision"] == "bfloat16" else network
    fit_classifier(
        trained, images.x["train"], images.y["train"], epochs=config["epochs"], batch_size=BATCH, seed=config["seed"],
        learning_rate=config["learning_rate"], one_cycle=config["one_cycle"], device=context.device, perturb=augment,
        loss=partial(cross_entropy, label_smoothing=SMOOTHING[name]), optimizer=make, after_epoch=validation,
    )  # fmt: skip
    if validation is None:
        # The running averages of a short training still hold their first values: take them anew.
        torch.optim.swa_utils.update_bn((x.to(context.device) for x in images.x["train"].split(BATCH)), network)
    weights = validation.weights if validation else network.state_dict()
    weights = {name: part.cpu().contiguous() for name, part in weights.items()}
    reached = {}
    for mode in STATISTICS:
        best = load_network(weights, mode, context.device)
        reached[mode] = {part: _accuracy(best, images, part, context.device) for part in images.x}
    return Payload(
        tensors=weights, values={"accuracy": reached, "epoch": validation.epoch if validation else config["epochs"]}
    )


class _Bfloat16(nn.Module):
    """A network whose convolutions compute in bfloat16, about twice as fast; weights and logits stay float32."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.network(x.contiguous(memory_format=torch.channels_last)).float()


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
