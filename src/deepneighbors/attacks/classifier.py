"""Attacks on a plain softmax classifier, with the settings of Cohen, Sapiro & Giryes (2020).

Their code calls cleverhans 3.0.1; here foolbox runs all but :class:`JSMA`. Each attack follows the same method, and
differs from cleverhans in this:

``fgsm``
    Nothing but rounding: one projected gradient step from the image itself, as long as the ball's radius. (Foolbox's own
    fast gradient method takes no targets.)
``jsma``
    See :class:`JSMA`.
``deepfool``
    cleverhans walks without overshoot and scales the total by 1.02 at the end; foolbox looks at the overshot image at each
    step, so it may stop a step earlier. Its step is the distance to the border plus 1e-4 in L2, theirs adds 1e-5 to the
    difference of logits. The candidate classes are the ten likeliest of the clean image, theirs are ranked anew at each
    step (the same for ten classes or fewer). More candidates than classes are no error.
``cw``
    Adam adds its epsilon after the bias correction, TensorFlow before. The best image has the smallest distance from the
    image itself, theirs from what the tanh makes of it (1e-6 away). Constants, confidence, search and early end agree; the
    early end looks at the loss of a whole batch, so results depend on how images are batched.
``pgd``
    Another stream of random numbers. For the rest as ``fgsm``.
``ead``
    The momentum of step k = 0, 1, ... is k / (k + 3), theirs (k + 1) / (k + 4): foolbox has none in its first step.

The random start and the drawn targets are seeded; the paper's are not.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deepneighbors import checks
from deepneighbors.attacks.jsma import JSMA
from deepneighbors.device import resolve
from deepneighbors.errors import InputError

log = logging.getLogger(__name__)

DRAWN, OPTIONAL, NEVER = "drawn", "optional", "never"


@dataclass(frozen=True)
class AttackSettings:
    """What an attack is run with.

    Parameters
    ----------
    norm
        What it keeps small: ``l0``, ``l1``, ``l2`` or ``linf``.
    targets
        ``drawn`` at random where none are given, ``optional`` (none where none are given), or ``never``.
    explicit
        Settings that the code of Cohen et al. (2020) passes.
    defaults
        Settings that it leaves at the default of cleverhans 3.0.1.
    """

    norm: str
    targets: str
    explicit: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Any]:
        """All settings by name."""
        return {**self.defaults, **self.explicit}


# The paper's EAD (Table 1) has no targets; the later released code gives it some.
SETTINGS: dict[str, AttackSettings] = {
    "fgsm": AttackSettings("linf", DRAWN, {"epsilon": 0.1}),
    "jsma": AttackSettings("l0", DRAWN, {"theta": 1.0, "gamma": 0.1}),
    "deepfool": AttackSettings("l2", NEVER, {}, {"candidates": 10, "overshoot": 0.02, "steps": 50}),
    "cw": AttackSettings(
        "l2",
        DRAWN,
        {"confidence": 0.8, "stepsize": 0.01, "initial_const": 0.1},
        {"binary_search_steps": 5, "steps": 1000, "abort_early": True},
    ),
    "pgd": AttackSettings("linf", DRAWN, {"epsilon": 0.02, "stepsize": 0.002}, {"steps": 10, "random_start": True}),
    "ead": AttackSettings(
        "l1",
        OPTIONAL,
        {"confidence": 0.8, "stepsize": 0.01, "initial_const": 0.1, "decision_rule": "L1"},
        {"regularization": 0.01, "binary_search_steps": 9, "steps": 1000, "abort_early": False},
    ),
}

_KEEPS_CLEAN = ("cw", "ead")


def _check_setting(name: str, value: Any) -> None:
    if name in ("abort_early", "random_start"):
        checks.one_of(name, value, (True, False))
    elif name == "decision_rule":
        checks.one_of(name, value, ("L1", "EN"))
    elif name in ("steps", "binary_search_steps"):
        checks.whole(name, value, 1)
    elif name == "candidates":
        checks.whole(name, value, 2)
    elif name in ("confidence", "overshoot"):
        checks.at_least(name, value, 0)
    else:
        checks.positive(name, value)


@dataclass(frozen=True)
class ClassifierAttackResult:
    """What an attack on a classifier made.

    Attributes
    ----------
    x
        Images ``(n, ...)`` in [0, 1].
    success
        Whether the network, asked again about ``x``, answers the target, or without targets another label than it gives
        the clean image; ``(n,)``.
    predictions
        The network's labels of ``x``, ``(n,)``.
    targets
        The wanted labels ``(n,)``, or None.
    """

    x: Tensor
    success: Tensor
    predictions: Tensor
    targets: Tensor | None


def draw_targets(y: Tensor, classes: int, seed: int) -> Tensor:
    """For each label ``(n,)`` one of the other ``classes - 1``, all equally likely; the same for the same seed."""
    checks.whole("classes", classes, 2)
    checks.whole("seed", seed, 0)
    checks.labels("y", y, len(y), classes)
    offset = torch.randint(1, classes, (len(y),), generator=torch.Generator().manual_seed(seed))
    return (y + offset.to(y.device)) % classes


def perturbation_norms(x: Tensor, x_adv: Tensor) -> dict[str, Tensor]:
    """Size ``(n,)`` of each change between images in [0, 1]: ``l0`` (changed channel values), ``l1``, ``l2``, ``linf``."""
    checks.images("x", x)
    checks.images("x_adv", x_adv)
    if x.shape != x_adv.shape:
        raise InputError(f"x_adv has shape {tuple(x_adv.shape)}; it must be that of x, {tuple(x.shape)}")
    delta = (x_adv - x).flatten(1)
    return {
        "l0": (delta != 0).sum(1),
        "l1": delta.abs().sum(1),
        "l2": delta.norm(dim=1),
        "linf": delta.abs().amax(1),
    }


def run_attack(name: str, network: nn.Module, x: Tensor, y: Tensor, *, targets: Tensor | None = None, seed: int = 0,
               batch_size: int = 125, device: str = "cpu", **overrides: Any) -> ClassifierAttackResult:  # fmt: skip
    """Attack images as Cohen et al. (2020) do, in batches in the order given.

    Without targets an attack moves an image away from the label that the network gives it, right or wrong. Where it fails,
    ``cw`` and ``ead`` return the clean image and the others their last iterate, as the paper's code does; it counts both as
    adversarial.

    Parameters
    ----------
    name
        A key of ``SETTINGS``: fgsm, jsma, deepfool, cw, pgd or ead.
    network
        Gives logits ``(n, K)``; in evaluation mode. It is moved to ``device``.
    x, y
        Images ``(n, ...)`` in [0, 1] and their true labels ``(n,)``.
    targets
        Wanted labels ``(n,)``, none of them the true one. By default drawn by ``draw_targets(y, K, seed)`` for all attacks
        but ``deepfool``, which takes none, and ``ead``, which then goes without.
    seed
        Of drawn targets and of the random start. The global random state is left as it was; a GPU draws other starts.
    batch_size
        Images attacked together; 125 in the paper.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    overrides
        Settings to change, by their names in ``SETTINGS[name].values``.

    Returns
    -------
    The images with the network's verdict on them, on the device of ``x``.

    Raises
    ------
    InputError
        An unknown attack, setting or device, images outside [0, 1], labels or targets that do not fit, a network that is
        training.
    """
    values = _settings(name, overrides)
    device = resolve(device)
    _check_input(name, network, x, y, targets)
    checks.whole("seed", seed, 0)
    checks.whole("batch_size", batch_size, 1)
    network, x = network.to(device), x.detach()
    targeted = targets is not None or SETTINGS[name].targets == DRAWN
    attack = _attack(name, values, network, device, targeted=targeted)
    clean, classes = predict_labels(network, x, batch_size, device)
    checks.labels("y", y, len(x), classes)
    if targets is not None:
        checks.labels("targets", targets, len(x), classes)
        targets = targets.to(x.device)
    elif targeted:
        targets = draw_targets(y, classes, seed).to(x.device)
    goal = clean if targets is None else targets

    found = []
    with _frozen(network), _seeded(seed, device), torch.enable_grad():
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            found.append(attack(x[part].to(device), goal[part].to(device)).detach().clamp(0, 1).to(x.device))
            log.info("%s: %d of %d images", name, min(start + batch_size, len(x)), len(x))
    adversarial = torch.cat(found)
    predictions, _ = predict_labels(network, adversarial, batch_size, device)
    success = predictions != clean if targets is None else predictions == targets
    return ClassifierAttackResult(adversarial, success, predictions, targets)


def _settings(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    checks.one_of("name", name, SETTINGS)
    values = SETTINGS[name].values
    for key, value in overrides.items():
        checks.one_of(f"a setting of {name}", key, values)
        _check_setting(key, value)
    return {**values, **overrides}


def _check_input(name: str, network: nn.Module, x: Tensor, y: Tensor, targets: Tensor | None) -> None:
    checks.images("x", x)
    checks.labels("y", y, len(x))
    if not isinstance(network, nn.Module):
        raise InputError(f"network is a {type(network).__name__}; it must be a torch module that gives logits")
    if network.training:
        raise InputError("network is in training mode, where its answers may be random; call network.eval() first")
    if targets is None:
        return
    if SETTINGS[name].targets == NEVER:
        raise InputError(f"targets are given, but {name} takes none; leave them out")
    checks.labels("targets", targets, len(x))
    same = int((targets.to(y.device) == y).sum())
    if same:
        raise InputError(f"targets has {same} true labels among {len(y)}; each target must differ from the label in y")


def predict_labels(network: nn.Module, x: Tensor, batch_size: int, device: str) -> tuple[Tensor, int]:
    """Labels ``(n,)`` of images, on the device of ``x``, and the number of classes."""
    labels = []
    with torch.no_grad():
        for part in x.split(batch_size):
            logits = network(part.to(device))
            if logits.ndim != 2 or logits.shape[1] < 2:
                raise InputError(f"network gives outputs of shape {tuple(logits.shape)}; logits (n, K) of K > 1 are needed")
            labels.append(logits.argmax(1))
    return torch.cat(labels).to(x.device), logits.shape[1]


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Switch the parameters' gradients off for a while: foolbox would add to them at every step."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _seeded(seed: int, device: str) -> Iterator[None]:
    """Seed torch for a while, then restore what it was; GPUs are touched only if the work is there."""
    gpus = list(range(torch.cuda.device_count())) if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        if gpus:
            torch.cuda.manual_seed_all(seed)
        yield


def _attack(
    name: str, values: dict[str, Any], network: nn.Module, device: str, *, targeted: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of images and of the labels to reach, or to leave, that gives adversarial images."""
    if name == "jsma":
        jsma = JSMA(**values)
        return lambda x, goal: jsma(network, x, goal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # foolbox imports a name that SciPy has moved
        import foolbox
    attack, epsilon = _foolbox_attack(foolbox.attacks, name, values)
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=device)
    criterion = foolbox.criteria.TargetedMisclassification if targeted else foolbox.criteria.Misclassification

    def run(x: Tensor, goal: Tensor) -> Tensor:
        found, _, _ = attack(model, x, criterion(goal), epsilons=epsilon)
        return _clean_where_failed(found, x) if name in _KEEPS_CLEAN else found

    return run


def _foolbox_attack(attacks: Any, name: str, values: dict[str, Any]) -> tuple[Any, float | None]:
    """Foolbox's attack, and the radius of its ball or None."""
    if name == "fgsm":
        return attacks.LinfPGD(abs_stepsize=values["epsilon"], steps=1, random_start=False), values["epsilon"]
    if name == "pgd":
        ball = attacks.LinfPGD(
            abs_stepsize=values["stepsize"], steps=values["steps"], random_start=values["random_start"]
        )  # fmt: skip
        return ball, values["epsilon"]
    if name == "deepfool":
        return attacks.L2DeepFoolAttack(**values), None
    if name == "cw":
        return attacks.L2CarliniWagnerAttack(**values), None
    renamed = {"initial_stepsize" if key == "stepsize" else key: value for key, value in values.items()}
    return attacks.EADAttack(**renamed), None


def _clean_where_failed(found: Tensor, x: Tensor) -> Tensor:
    """Replace the black images with which foolbox reports a failure by the clean ones.

    An adversarial image that happens to be black in every value cannot be told from a failure and is replaced too.
    """
    failed = found.flatten(1).amax(1) == 0
    return torch.where(failed.view(-1, *[1] * (x.ndim - 1)), x, found)
