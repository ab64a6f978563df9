"""The stages of chapter 1: train, look at clean digits, attack, ask for neighbours, and the exact 1-NN answer."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from deepneighbors import attacks, data, splits, voronoi
from deepneighbors.attacks.base import distance
from deepneighbors.dknn import DeepKNN
from deepneighbors.knn import KNNClassifier
from deepneighbors.networks import MnistCNN
from deepneighbors.store import Artifact, Context, Payload, Stage, stage
from deepneighbors.training import accuracy, fit_classifier, pgd_l2

_DIGITS = ("deepneighbors.data", "deepneighbors.splits.calibration")
_CLASSIFIERS = ("deepneighbors.knn", "deepneighbors.dknn", "deepneighbors.neighbors", "deepneighbors.networks.layers",
                "deepneighbors.networks.mnist_cnn", *_DIGITS)  # fmt: skip
_TRAINING = ("deepneighbors.training", "deepneighbors.networks.mnist_cnn", "deepneighbors.data")


@stage("train_mnist_cnn", uses=_TRAINING)
def train(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Train the CNN of Papernot & McDaniel, plainly or against an L2 adversary."""
    digits = data.load("mnist")
    count, robust = config["train_images"], config.get("robust")
    with torch.random.fork_rng():
        torch.manual_seed(config["seed"])
        network = MnistCNN()
    fit_classifier(
        network, digits.x_train[:count], digits.y_train[:count], epochs=config["epochs"],
        learning_rate=config["learning_rate"], one_cycle=config["one_cycle"], seed=config["seed"],
        device=context.device, perturb=pgd_l2(**robust, seed=config["seed"]) if robust else None,
    )  # fmt: skip
    tested = slice(0, config["test_images"])
    clean = accuracy(network, digits.x_test[tested], digits.y_test[tested], device=context.device)
    weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    return Payload(tensors=weights, values={"accuracy": clean})


def load_network(weights: dict[str, Tensor], device: str) -> MnistCNN:
    """The trained network, fixed and in evaluation mode."""
    network = MnistCNN()
    network.load_state_dict(weights)
    return network.to(device).eval().requires_grad_(False)


def build(config: dict, inputs: Sequence[Artifact], device: str) -> KNNClassifier:
    """The classifier of a config: ``kind`` knn or dknn, ``database`` training images, and its parameters.

    The last one built is kept, because its database takes long to fill and gigabytes to hold.
    """
    weights = inputs[0] if config["kind"] == "dknn" else None
    key = (repr(sorted(config.items())), weights.key if weights else "", device)
    if key not in _BUILT:
        _BUILT.clear()
        _BUILT[key] = _build(config, weights, device)
    return _BUILT[key]


_BUILT: dict[tuple, KNNClassifier] = {}


def _build(config: dict, weights: Artifact | None, device: str) -> KNNClassifier:
    options = {key: value for key, value in config.items() if key not in ("kind", "database")}
    digits = data.load("mnist")
    x, y = (part[: config["database"]].to(device) for part in (digits.x_train, digits.y_train))
    memory = 8.0 if device.startswith("cuda") else 0.5
    if weights is None:
        return KNNClassifier(**options, memory_gib=memory).fit(x, y)
    network = load_network(weights.tensors, device)
    classifier = DeepKNN(network, MnistCNN.layers, **options, memory_gib=memory).fit(x, y)
    chosen, _ = split()
    return classifier.calibrate(digits.x_test[chosen], digits.y_test[chosen])


@lru_cache(maxsize=1)
def split() -> tuple[Tensor, Tensor]:
    """Test indices for calibration, and the others in a fixed random order: the first n of it are attacked.

    MNIST's first 5,000 test digits are harder than its last, so the first n in file order would flatter the attacks.
    """
    calibration, rest = splits.calibration_split(data.load("mnist").y_test)
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))
    return calibration, rest[order]


def digits_of(config: dict, device: str) -> tuple[Tensor, Tensor]:
    """The attacked digits of a config with their labels.

    Either ``start`` and ``stop`` in the attacked order, or ``positions`` in the paper's: ascending, after calibration.
    """
    digits, (_, order) = data.load("mnist"), split()
    chosen = (
        order.sort().values[list(config["positions"])] if "positions" in config else order[config["start"] : config["stop"]]
    )
    return digits.x_test[chosen].to(device), digits.y_test[chosen].to(device)


@stage("clean", uses=_CLASSIFIERS)
def clean(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """What the classifier says of clean digits, and the mean distance to their k-th neighbour in each layer."""
    classifier = build(config["classifier"], inputs, context.device)
    x, y = digits_of({"start": 0, "stop": config["images"]}, context.device)
    said, radii = _evaluate(classifier, x), None
    radii = {layer: float(said.pop(f"radius/{layer}").mean()) for layer in classifier.layers}
    return Payload(tensors={"y": y.cpu(), **said}, values={"radii": radii})


def _evaluate(classifier: KNNClassifier, x: Tensor) -> dict[str, Tensor]:
    """Labels, votes by layer, and for DkNN the p-values; with the distance to the k-th neighbour by layer."""
    found = classifier.kneighbors(x)
    layers = torch.stack([classifier.votes({layer: near}) for layer, near in found.items()], 1)
    votes = layers.sum(1)
    said = {"label": classifier.decide(votes), "votes": layers.to(torch.float32)}
    if isinstance(classifier, DeepKNN):
        said["p_values"] = classifier.conformal_p_values(votes)
    said |= {f"radius/{layer}": near.distances[:, -1] for layer, near in found.items()}
    return {name: tensor.cpu().contiguous() for name, tensor in said.items()}


_ATTACKS = {
    "mean": (attacks.MeanAttack, ("mean",)),
    "gradient": (attacks.GradientAttack, ("gradient", "guides", "penalty")),
    "feature_adversary": (attacks.FeatureAdversary, ("feature_adversary", "guides", "penalty")),
    "minimum_norm": (attacks.MinimumNormAttack, ("minimum_norm", "vote_margin", "guides", "penalty")),
    "vote_margin": (attacks.VoteMarginAttack, ("vote_margin", "guides")),
    "credible": (attacks.CredibleAttack, ("credible", "vote_margin", "guides")),
}


def _attack_stage(name: str) -> Stage:
    make, modules = _ATTACKS[name]
    uses = (
        *_CLASSIFIERS,
        "deepneighbors.attacks.base",
        *(f"deepneighbors.attacks.{module}" for module in modules),
    )

    @stage(f"attack_{name}", uses=uses)
    def attack(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
        """Attack a slice of the digits. The last input is the clean stage, whose radii are the gradient attack's eta."""
        classifier = build(config["classifier"], inputs, context.device)
        x, y = digits_of(config, context.device)
        options: dict[str, Any] = dict(config["options"])
        if "schedule" in options:
            options["schedule"] = attacks.Schedule(**options["schedule"])
        if name == "gradient":
            options["eta"] = inputs[-1].values["radii"]
        found = make(**options)(classifier, x, y)
        said = {key: value for key, value in _evaluate(classifier, found.x).items() if not key.startswith("radius/")}
        return Payload(
            tensors={
                "x": found.x.cpu(), "y": y.cpu(), "success": found.success.cpu(),
                "l2": distance("l2", found.x, x).cpu(), "linf": distance("linf", found.x, x).cpu(), **said,
            }
        )  # fmt: skip

    return attack


ATTACK = {name: _attack_stage(name) for name in _ATTACKS}


@stage("neighbors", uses=_CLASSIFIERS)
def neighbors(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Indices and labels of the training digits nearest to clean digits or, as the last input, to an attack's images."""
    classifier = build(config["classifier"], inputs, context.device)
    x, _ = digits_of(config, context.device)
    if config["attacked"]:
        x = inputs[-1].tensors["x"].to(context.device)
    tensors = {}
    for layer, near in classifier.kneighbors(x).items():
        tensors[f"indices/{layer}"] = near.indices.cpu()
        tensors[f"labels/{layer}"] = classifier.labels_[near.indices].cpu()
    return Payload(tensors=tensors)


OUT_OF_DISTRIBUTION = ("rotated", "inverted", "shuffled", "noise")


def outsiders(kind: str, x: Tensor, seed: int) -> Tensor:
    """Images that are no digits of MNIST, made from digits: turned by 90 degrees, inverted, shuffled pixels, or noise."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "rotated":
        return x.rot90(1, (2, 3))
    if kind == "inverted":
        return 1 - x
    if kind == "shuffled":
        order = torch.stack([torch.randperm(x[0].numel(), generator=generator) for _ in x])
        return x.flatten(1).gather(1, order.to(x.device)).view_as(x)
    return torch.rand(x.shape, generator=generator).to(x.device)


@stage("out_of_distribution", uses=_CLASSIFIERS)
def out_of_distribution(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Credibility of images that are no digits, by kind, and of clean digits with zeros trimmed from the calibration."""
    classifier = build(config["classifier"], inputs, context.device)
    assert isinstance(classifier, DeepKNN)
    x, _ = digits_of({"start": 0, "stop": config["images"]}, context.device)
    made = {kind: classifier.credibility(outsiders(kind, x, config["seed"])).cpu() for kind in OUT_OF_DISTRIBUTION}
    return Payload(tensors={**made, "calibration": classifier.calibration_.cpu()})


@stage("softmax_attacks", uses=("deepneighbors.networks.mnist_cnn", *_DIGITS, "deepneighbors.attacks.base"))
def softmax_attacks(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """The network's own softmax under Carlini & Wagner's L2 attack and Linf PGD (0.2; 100 steps of 0.02), by foolbox."""
    import foolbox

    network = load_network(inputs[0].tensors, context.device)
    x, y = digits_of({"start": 0, "stop": config["images"]}, context.device)
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=context.device)
    with torch.no_grad():
        tensors = {"clean": network(x).argmax(1) == y}
    with torch.random.fork_rng():
        torch.manual_seed(0)  # PGD starts at random
        search = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=5, steps=200, stepsize=0.05, initial_const=1.0)
        ball = foolbox.attacks.LinfPGD(abs_stepsize=0.02, steps=100)
        for name, attack, epsilon in (("carlini_wagner", search, None), ("pgd", ball, 0.2)):
            _, found, success = attack(model, x, y, epsilons=epsilon)
            tensors[f"{name}/success"], tensors[f"{name}/l2"] = success, distance("l2", found, x)
    return Payload(tensors={name: tensor.cpu() for name, tensor in tensors.items()})


@stage("exact_1nn", uses=("deepneighbors.voronoi", *_DIGITS))
def exact_1nn(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """The certified smallest L2 perturbation of the 1-NN classifier for a slice of the digits."""
    digits = data.load("mnist")
    x, y = digits_of(config, "cpu")
    count = config["database"]
    answers = voronoi.minimum_perturbations(
        x.flatten(1), y, digits.x_train[:count].flatten(1), digits.y_train[:count], metric=config["metric"]
    )
    return Payload(
        tensors={
            "distance": torch.tensor([float(a.distance) for a in answers]),
            "lower_bound": torch.tensor([float(a.lower_bound) for a in answers]),
            "programs": torch.tensor([int(a.n_programs) for a in answers]),
        }
    )


@stage("lower_bound_knn", uses=("deepneighbors.voronoi", *_DIGITS))
def lower_bound_knn(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """A certified lower bound on any L2 perturbation that changes the vote of k neighbours."""
    digits = data.load("mnist")
    x, y = digits_of(config, "cpu")
    count = config["database"]
    bound = voronoi.lower_bound_knn(
        x.flatten(1),
        y,
        digits.x_train[:count].flatten(1),
        digits.y_train[:count],
        config["k"],
        metric=config["metric"],
    )
    return Payload(tensors={"lower_bound": torch.as_tensor(bound).float()})
