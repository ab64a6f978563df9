"""The attacks of the transfer experiments as stages: what every network says of each attack's images, and their size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from deepneighbors.attacks.feature_importance import FIA, NAA
from deepneighbors.attacks.ila import ILAF, ILAP, regression_guide
from deepneighbors.attacks.iterated import IteratedFGSM, sign_noise
from deepneighbors.experiments.base import Run
from deepneighbors.experiments.poisoning_ila.sources import (
    DIGITS,
    FIXED_LAYERS,
    NETWORKS,
    choice_node,
    digits_at,
    load_network,
    seeds_of,
    selected_node,
    source_node,
    target_nodes,
)
from deepneighbors.store import Artifact, Context, Node, Payload, stage
from deepneighbors.training import predict_logits

ATTACKS = (
    *(f"deepneighbors.attacks.{name}" for name in ("ila", "iterated", "feature_importance", "classifier", "base")),
    *NETWORKS,
    *DIGITS,
)
REFERENCE = "ifgsm"  # whose L2 length the matched rows have, and which ILA is compared with at as many steps
START = "stage=start"  # of an attack whose first half ILA starts from
VARIANTS = ("ilaf", "ila++")  # of ILAP, whose rows serve for them at matched length
CHOICES = ("fixed", "blind")  # of the layer: before any training, and by the disturbance curves of the source
Line = tuple[str, str, str]  # attack, layer of the source, what else tells it from others


@dataclass(frozen=True)
class Budget:
    """What an attack may spend: radius, steps of ILA after as many of its start, altered images, and the random seed."""

    epsilon: float
    steps: int
    samples: int
    seed: int

    @property
    def single(self) -> dict:
        """An attack without a second stage: as many steps as both together, each as long."""
        return {"epsilon": self.epsilon, "steps": 2 * self.steps, "step_size": self.epsilon / self.steps}

    @property
    def half(self) -> dict:
        """One of two stages."""
        return {"epsilon": self.epsilon, "steps": self.steps}

    def random_guide(self, x: Tensor) -> Tensor:
        """Images with signs of their own, drawn apart from the noise that is itself a control."""
        return sign_noise(x, self.epsilon, seed=2 * self.seed + 1)


def attacks(network: nn.Module, x: Tensor, y: Tensor, budget: Budget, layers: Sequence[str], *, chosen: Sequence[str],
            fixed: str) -> Iterator[tuple[Line, Tensor]]:  # fmt: skip
    """Noise and attacks on the output; ILAP and its random control at every layer; its variants at the chosen layers; and
    FIA and NAA at the fixed one. ILA's starting attacks, ``stage=start``, are the first half of the steps of I-FGSM and of
    MI-DI.
    """
    yield ("sign_noise", "", ""), sign_noise(x, budget.epsilon, seed=2 * budget.seed)
    yield ("fgsm", "", ""), IteratedFGSM(epsilon=budget.epsilon, steps=1)(network, x, y)
    path = IteratedFGSM(**budget.single).path(network, x, y)
    diverse = IteratedFGSM(momentum=1.0, diversity=0.5, seed=budget.seed, **budget.single).path(network, x, y)
    yield (REFERENCE, "", ""), path[-1]
    yield ("mi_di", "", ""), diverse[-1]
    yield ("mifgsm", "", ""), IteratedFGSM(momentum=1.0, **budget.single)(network, x, y)
    path, diverse, noise = path[: budget.steps], diverse[budget.steps - 1], budget.random_guide(x)
    yield (REFERENCE, "", START), path[-1]
    yield ("mi_di", "", START), diverse
    for layer in layers:
        ilap = ILAP(layer, **budget.half)
        yield ("ilap", layer, ""), ilap(network, x, guide=path[-1]).x
        yield ("random_guide", layer, ""), ilap(network, x, guide=noise).x
        if layer in chosen:
            yield ("ilaf", layer, ""), ILAF(layer, **budget.half)(network, x, guide=path[-1]).x
            yield ("ila++", layer, ""), ilap(network, x, direction=regression_guide(network, layer, x, y, path)).x
            yield ("ilap", layer, "start=mi_di"), ilap(network, x, guide=diverse).x
    for name, attack in (("fia", FIA), ("naa", NAA)):
        yield (name, fixed, ""), attack(fixed, samples=budget.samples, seed=budget.seed, **budget.single)(network, x, y)


def shortened(z: Tensor, x: Tensor, length: Tensor) -> Tensor:
    """Images moved back towards ``x`` until none is further from it, in L2, than its ``length``; shorter ones stay."""
    change = z - x
    factor = (length / lengths(z, x).clamp_min(torch.finfo(x.dtype).tiny)).clamp(max=1)
    return (x + factor.view(-1, *[1] * (x.ndim - 1)) * change).clamp(0, 1)


def lengths(z: Tensor, x: Tensor) -> Tensor:
    """L2 length of the change of each image ``(n,)``."""
    return (z - x).flatten(1).norm(dim=1)


@stage("ila_transfer", uses=ATTACKS)
def transfer(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """All attacks from one source at one radius.

    Inputs: the source, the digits, the source's chosen layer, and the targets. ``said`` are labels ``(lines, networks, n)``
    by the source and then the targets, ``l2`` lengths ``(lines, n)``. Images are kept of the first ``kept`` digits for the
    lines whose images Deep kNN is asked about.
    """
    source, selected, choice, *targets = inputs
    networks = [load_network(trained, context.device) for trained in (source, *targets)]
    x, y = digits_at(selected.tensors["indices"], context.device)
    blind, fixed, budget = choice.values["layer"], config["fixed"], Budget(**config["budget"])
    chosen = (fixed, blind)
    seen = _Seen(networks, x, context.device)
    for line, z in attacks(networks[0], x, y, budget, choice.values["layers"], chosen=chosen, fixed=fixed):
        seen.add(line, z)
    kept, images = config["kept"], {}
    for line, z in seen.images.items():
        if line[0] not in VARIANTS and line[1] in ("", *chosen) and not line[2]:
            seen.add((*line[:2], f"l2={REFERENCE}"), shortened(z, x, seen.reference))
        if kept and line in credibility_lines(fixed):
            images["|".join(line)] = z[:kept].cpu().contiguous()
    return Payload(
        tensors={**seen.tensors(), "y": y.cpu(), **{f"x|{name}": z for name, z in images.items()}},
        values={"lines": [list(line) for line in seen.said], "blind": blind, "fixed": fixed},
    )


def credibility_lines(fixed: str) -> tuple[Line, ...]:
    """The attacks that Deep kNN is asked about."""
    plain = ((name, "", "") for name in ("sign_noise", REFERENCE, "mi_di"))
    return (*plain, *((name, fixed, "") for name in ("ilap", "random_guide", "naa")))


@dataclass
class _Seen:
    """What the networks say of the images of each line."""

    networks: list[nn.Module]
    x: Tensor
    device: str
    said: dict[Line, Tensor] = field(default_factory=dict)
    l2: dict[Line, Tensor] = field(default_factory=dict)
    images: dict[Line, Tensor] = field(default_factory=dict)

    def add(self, line: Line, z: Tensor) -> None:
        """Ask all networks; images are kept of lines that are not shortened."""
        self.said[line] = labels_by(self.networks, z, self.device)
        self.l2[line] = lengths(z, self.x).cpu()
        if REFERENCE not in line[2]:
            self.images[line] = z

    @property
    def reference(self) -> Tensor:
        return self.l2[(REFERENCE, "", "")].to(self.x.device)

    def tensors(self) -> dict[str, Tensor]:
        """Labels as bytes, and lengths, a row a line."""
        return {"said": torch.stack(list(self.said.values())), "l2": torch.stack(list(self.l2.values()))}


def labels_by(networks: Sequence[nn.Module], z: Tensor, device: str) -> Tensor:
    """Labels ``(networks, n)`` as bytes, on the CPU."""
    said = [predict_logits(network, z, batch_size=100, device=device).argmax(1) for network in networks]
    return torch.stack(said).to(torch.uint8)


@stage("ila_variant", uses=ATTACKS)
def variant(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """ILAP at the fixed layer under one set of choices, its starting attack alone, and ILAP along a random guide.

    Inputs: the source, the digits and the targets. ``said`` are labels ``(3, networks, n)`` by the source and the targets.
    """
    source, selected, *targets = inputs
    networks = [load_network(trained, context.device) for trained in (source, *targets)]
    x, y = digits_at(selected.tensors["indices"], context.device)
    network, budget = networks[0], Budget(**config["budget"])
    if config["start"] == "fgsm":
        start = guide = IteratedFGSM(epsilon=budget.epsilon, steps=1)(network, x, y)
    else:
        start, guide = (IteratedFGSM(**options)(network, x, y) for options in (budget.single, budget.half))
    ilap = ILAP(config["layer"], step_size=config["step_size"], **budget.half)
    made = [start, ilap(network, x, guide=guide).x, ilap(network, x, guide=budget.random_guide(x)).x]
    tensors = {"said": torch.stack([labels_by(networks, z, context.device) for z in made]), "y": y.cpu()}
    return Payload(tensors=tensors, values={"attacks": [config["start"], "ilap", "random_guide"]})


@dataclass(frozen=True)
class Cell:
    """One seed, source and radius."""

    seed: int
    source: str
    epsilon: float

    @property
    def name(self) -> str:
        """Name of its node."""
        return f"{self.seed}|{self.source}|{self.epsilon:g}"


def cells(run: Run, epsilons: Sequence[float]) -> list[Cell]:
    """All at some radii, seed by seed."""
    return [Cell(seed, source, e) for seed in seeds_of(run) for source in run.settings.ila_sources for e in epsilons]


def budget_of(run: Run, seed: int, epsilon: float) -> dict:
    """Arguments of :class:`Budget`."""
    return {"epsilon": epsilon, "steps": run.settings.ila_steps, "samples": run.settings.ila_samples, "seed": seed}


def transfer_node(run: Run, cell: Cell, digits: Node | None = None) -> Node:
    """The attacks of a cell, on the digits of its seed or on others; images are kept of the former only."""
    s = run.settings
    shown = digits is None and cell.epsilon in s.ila_credibility_epsilons
    config = {
        "budget": budget_of(run, cell.seed, cell.epsilon),
        "fixed": FIXED_LAYERS[cell.source],
        "kept": s.ila_credibility_images if shown else 0,
    }
    source, choice = (make(run, cell.seed, cell.source) for make in (source_node, choice_node))
    digits = selected_node(run, cell.seed) if digits is None else digits
    return transfer.node(config, (source, digits, choice, *target_nodes(run, cell.seed)))


@dataclass(frozen=True)
class Crafted:
    """What a cell found, by line.

    Parameters
    ----------
    wrong
        Whether each network is wrong ``(n,)``, by ``""`` for the source and by the target's name.
    l2
        Lengths ``(n,)``.
    layers
        The source's layer by choice: ``fixed`` and ``blind``.
    """

    wrong: dict[Line, dict[str, np.ndarray]]
    l2: dict[Line, np.ndarray]
    layers: dict[str, str]

    @classmethod
    def of(cls, found: Artifact, targets: Sequence[str]) -> "Crafted":
        """From the stage's artefact."""
        lines: list[Line] = [tuple(line) for line in found.values["lines"]]
        wrong = found.tensors["said"].numpy() != found.tensors["y"].numpy()
        named = [dict(zip(("", *targets), rows, strict=True)) for rows in wrong]
        l2 = dict(zip(lines, found.tensors["l2"].numpy(), strict=True))
        return cls(dict(zip(lines, named, strict=True)), l2, {name: found.values[name] for name in CHOICES})
