"""The networks between which the Intermediate Level Attack is tried, the digits that it attacks, and its layer.

One seed stands for one draw of everything: a source and a target of each architecture, and digits of its own.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from deepneighbors import checks, data, splits
from deepneighbors.attacks.iterated import IteratedFGSM
from deepneighbors.attacks.layer_choice import choose_layer
from deepneighbors.errors import InputError
from deepneighbors.experiments.base import Run
from deepneighbors.networks import MLP, DeepCNN, LeNet, MnistCNN, PooledCNN
from deepneighbors.store import Artifact, Context, Node, Payload, stage
from deepneighbors.training import accuracy, fit_classifier, predict_logits

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "mnist_cnn": partial(MnistCNN, conv2_padding=0),  # of the report's Appendix A
    "deep": DeepCNN,
    "cnn": PooledCNN,
    "lenet": LeNet,
    "mlp": MLP,
}
# Top learning rate of the cycle, and passes for each of the profile's: small networks learn more slowly and cost little.
RECIPES = {"mnist_cnn": (2e-3, 1), "deep": (1e-2, 1), "cnn": (4e-3, 1), "lenet": (6e-3, 3), "mlp": (5e-3, 6)}
# The layer of each source that was fixed before any of these networks was trained, on others and on fewer digits.
FIXED_LAYERS = {"mnist_cnn": "relu3", "deep": "b0c1"}
TARGET_SEEDS = 1_000  # is added to a seed for its targets, so that no network attacks itself

DIGITS = ("deepneighbors.data", "deepneighbors.splits.calibration")
NETWORKS = (__name__, "deepneighbors.networks.mnist_cnn", "deepneighbors.networks.digit_classifiers",
            "deepneighbors.networks.layers", "deepneighbors.training")  # fmt: skip


@stage("train_digit_classifier", uses=(*NETWORKS[1:], "deepneighbors.data"))
def train(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Train one architecture by Adam on one cycle of the learning rate."""
    digits, name, count = data.load("mnist"), config["architecture"], config["train_images"]
    rate, passes = RECIPES[name]
    with torch.random.fork_rng():
        torch.manual_seed(config["seed"])
        network = ARCHITECTURES[name]()
    fit_classifier(
        network, digits.x_train[:count], digits.y_train[:count], epochs=passes * config["epochs"], learning_rate=rate,
        one_cycle=True, seed=config["seed"], device=context.device,
    )  # fmt: skip
    tested = slice(0, config["test_images"])
    reached = accuracy(network, digits.x_test[tested], digits.y_test[tested], device=context.device)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    values = {"accuracy": reached, "images": len(digits.y_test[tested]), "architecture": name}
    return Payload(tensors=weights, values=values)


def load_network(trained: Artifact, device: str) -> nn.Module:
    """The trained network, fixed and in evaluation mode."""
    network = ARCHITECTURES[trained.values["architecture"]]()
    network.load_state_dict(trained.tensors)
    return network.to(device).eval().requires_grad_(False)


@lru_cache(maxsize=1)
def test_order() -> Tensor:
    """Test indices that calibrate no DkNN, in a fixed random order: MNIST's first test digits are harder than its last."""
    _, rest = splits.calibration_split(data.load("mnist").y_test)
    return rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))]


def digits_at(indices: Tensor, device: str) -> tuple[Tensor, Tensor]:
    """Test digits and their labels."""
    digits = data.load("mnist")
    return digits.x_test[indices].to(device), digits.y_test[indices].to(device)


@stage("select_digits", uses=(*NETWORKS[1:], *DIGITS))
def select(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """The first digits of a seed's share that all networks classify correctly, by their test indices.

    The share of seed number ``member`` are every ``members``-th digit of the order, after the ``skip`` that choose layers.
    """
    networks = [load_network(trained, context.device) for trained in inputs]
    share, kept = test_order()[config["skip"] :][config["member"] :: config["members"]], [torch.empty(0, dtype=torch.int64)]
    for part in share.split(200):
        x, y = digits_at(part, "cpu")
        said = torch.stack([predict_logits(network, x, device=context.device).argmax(1) for network in networks])
        kept.append(part[(said == y).all(0)])
        if sum(map(len, kept)) >= config["images"]:
            break
    found = sum(map(len, kept))
    if found < config["images"]:
        raise InputError(
            f"ila_images is {config['images']}, but only {found} test digits of this seed are classified correctly by "
            f"every network; ask for {found} or fewer, or train on more digits"
        )
    return Payload(tensors={"indices": torch.cat(kept)[: config["images"]].contiguous()})


_CHOICE = tuple(f"deepneighbors.attacks.{name}" for name in ("layer_choice", "ila", "iterated", "classifier", "base"))


@stage("choose_layer", uses=(*_CHOICE, *NETWORKS[1:], *DIGITS))
def choose(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """The layer by the disturbance curves of the source, on digits that are attacked nowhere else.

    The logits are no candidate: an attack on them climbs the loss itself, and their own curve always peaks.
    """
    network = load_network(inputs[0], context.device)
    layers: tuple[str, ...] = network.layers  # type: ignore[assignment]
    x, y = digits_at(test_order()[: config["images"]], context.device)
    options: dict[str, Any] = {"epsilon": config["epsilon"], "steps": config["steps"]}
    guide = IteratedFGSM(**options)(network, x, y)
    choice = choose_layer(network, x, guide, layers, candidates=layers[:-1], **options)
    values = {"layer": choice.layer, "peaks": list(choice.peaks), "candidates": list(choice.candidates)}
    return Payload(tensors={"curves": choice.curves.cpu().contiguous()}, values=values | {"layers": list(layers)})


def seeds_of(run: Run) -> list[int]:
    """The seeds of the run."""
    return [run.seed + member for member in range(run.settings.seeds)]


def source_node(run: Run, seed: int, architecture: str) -> Node:
    """A trained source."""
    checks.one_of("source", architecture, FIXED_LAYERS)
    return _network_node(run, seed, architecture)


def target_nodes(run: Run, seed: int) -> list[Node]:
    """The trained targets, in the order of the settings."""
    return [_network_node(run, TARGET_SEEDS + seed, name) for name in run.settings.ila_targets]


def _network_node(run: Run, seed: int, architecture: str) -> Node:
    checks.one_of("architecture", architecture, ARCHITECTURES)
    copied = {name: getattr(run.settings, f"ila_{name}") for name in ("train_images", "test_images", "epochs")}
    return train.node({"architecture": architecture, "seed": seed, **copied})


def selected_node(run: Run, seed: int) -> Node:
    """The digits of a seed."""
    s = run.settings
    config = {"images": s.ila_images, "skip": s.ila_layer_images, "member": seed - run.seed, "members": s.seeds}
    sources = [source_node(run, seed, name) for name in s.ila_sources]
    return select.node(config, (*sources, *target_nodes(run, seed)))


def choice_node(run: Run, seed: int, architecture: str) -> Node:
    """The layer of a source by the blind rule."""
    s = run.settings
    config = {"images": s.ila_layer_images, "epsilon": s.ila_layer_epsilon, "steps": s.ila_steps}
    return choose.node(config, (source_node(run, seed, architecture),))
