"""The stage that trains the report's network on a training set of chapter 3, and what it then says."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from deepneighbors import data
from deepneighbors.experiments.poisoning_ila.poisons import BACKDOORS, SETS, TrainingSet, training_set, trigger
from deepneighbors.networks import FilteredMnistCNN, MnistCNN
from deepneighbors.store import Artifact, Context, Payload, stage
from deepneighbors.training import fit_classifier, predict_logits

NETWORK = ("deepneighbors.networks.mnist_cnn", "deepneighbors.networks.layers")


@stage("train_on_poison", uses=(*SETS, *NETWORK, "deepneighbors.networks.minimal_filtering", "deepneighbors.training"))
def train(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Train the network of the report's Appendix A and keep it at some epochs, with its answers.

    ``inputs``: the poisoned points of the set; where ``removed`` names a detector, last what it flagged. For every epoch in
    ``checkpoints``: weights, and the labels that it gives to training, test and triggered test images.
    """
    points = inputs[:-1] if config["removed"] else inputs
    whole, mnist = training_set(config["data"], points), data.load("mnist")
    kept = without(whole, inputs[-1].tensors[config["removed"]]) if config["removed"] else whole
    with torch.random.fork_rng():
        torch.manual_seed(config["seed"])
        network = FilteredMnistCNN()
    x_test, y_test = (part[: config["test_images"]] for part in (mnist.x_test, mnist.y_test))
    seen = {"train": whole.x, "test": x_test}
    if config["data"]["attack"] in BACKDOORS:
        seen["triggered"] = trigger(config["data"])(x_test)
    tensors: dict[str, Tensor] = {}

    def keep(epoch: int, solver: torch.optim.Optimizer) -> None:
        if epoch not in config["checkpoints"]:
            return
        for name, part in network.state_dict().items():
            tensors[f"{epoch}|weights|{name}"] = part.detach().cpu().clone()
        for name, x in seen.items():
            tensors[f"{epoch}|labels|{name}"] = predict_logits(network, x, device=context.device).argmax(1).to(torch.uint8)

    fit_classifier(
        network, kept.x, kept.y, epochs=max(config["checkpoints"]), batch_size=config["batch_size"], seed=config["seed"],
        learning_rate=config["learning_rate"], device=context.device, after_epoch=keep,
    )  # fmt: skip
    tensors |= {"y": whole.y.clone(), "truth": whole.truth.clone(), "poisoned": whole.poisoned, "y_test": y_test.clone()}
    return Payload(tensors)


def without(found: TrainingSet, removed: Tensor) -> TrainingSet:
    """The set less some of its points, by their indices."""
    kept = torch.ones(len(found.y), dtype=torch.bool).index_fill(0, removed, False)
    return replace(found, **{name: getattr(found, name)[kept] for name in ("x", "y", "truth", "poisoned")})


def load_network(trained: Artifact, epoch: int, device: str) -> MnistCNN:
    """The network at an epoch, fixed and in evaluation mode."""
    network, prefix = MnistCNN(conv2_padding=0), f"{epoch}|weights|"
    weights = {name.removeprefix(prefix): part for name, part in trained.tensors.items() if name.startswith(prefix)}
    network.load_state_dict(weights)
    return network.to(device).eval().requires_grad_(False)
