"""Does ILA transfer at a layer that was chosen before, on other networks and digits than those it is now tried on?

The layer is chosen by the first seeds: it is the one whose least gain over its own random guide, over the targets, is the
largest. Further seeds then draw sources, targets and digits anew, and no choice has seen any of them. In a setting,
``stage=explored`` means the first seeds, at each layer that could be chosen, and ``stage=further`` the others: at the chosen
layer (``choice=explored``), at the one that was ``fixed`` before either, and at those of the ``blind`` rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from deepneighbors import checks
from deepneighbors.errors import InputError
from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.poisoning_ila import crafting, plan, pooled, sources, transfer
from deepneighbors.experiments.poisoning_ila.crafting import CHOICES, Cell, Crafted, Line
from deepneighbors.experiments.poisoning_ila.transfer import NAMES, PLAIN, RIVALS
from deepneighbors.results import table
from deepneighbors.store import Artifact, Context, Node, Payload, stage

EXPLORED = "explored"
USES = tuple(module.__name__ for module in (crafting, plan, pooled, sources, transfer))


@stage("select_fresh_digits", uses=(*sources.NETWORKS, *sources.DIGITS))
def select_fresh(config: dict, inputs: Sequence[Artifact], context: Context) -> Payload:
    """Digits as those of other seeds are found, without theirs, which are the inputs after the ``networks``."""
    wanted, networks = config["images"], inputs[: config["networks"]]
    taken = torch.cat([selected.tensors["indices"] for selected in inputs[config["networks"] :]])
    share = sources.test_order()[config["skip"] :][config["member"] :: config["members"]]
    try:
        found = sources.select(config | {"images": wanted + int(torch.isin(share, taken).sum())}, networks, context)
    except InputError:
        raise InputError(
            f"ila_confirming_images is {wanted}, but fewer test digits of this seed that no other seed attacks are "
            "classified correctly by every network; ask for fewer, or train on more digits"
        ) from None
    indices = found.tensors["indices"]
    return Payload(tensors={"indices": indices[~torch.isin(indices, taken)][:wanted].contiguous()})


def confirming_seeds(run: Run) -> list[int]:
    """The further seeds."""
    return [run.seed + run.settings.seeds + member for member in range(run.settings.ila_confirming_seeds)]


def digits_node(run: Run, seed: int) -> Node:
    """Digits of a further seed."""
    s, seeds = run.settings, confirming_seeds(run)
    networks = [*(sources.source_node(run, seed, name) for name in _sources(run)), *sources.target_nodes(run, seed)]
    config = {
        "images": s.ila_confirming_images, "skip": s.ila_layer_images, "member": seeds.index(seed), "members": len(seeds),
        "networks": len(networks),
    }  # fmt: skip
    others = (sources.selected_node(run, other) for other in sources.seeds_of(run))
    return select_fresh.node(config, (*networks, *others))


def _nodes(run: Run) -> Nodes:
    nodes: dict[str, Node] = {}
    for source in _sources(run):
        nodes |= {cell.name: crafting.transfer_node(run, cell) for cell in _cells(run, source, sources.seeds_of(run))}
        for cell in _cells(run, source, confirming_seeds(run)):
            nodes[cell.name] = crafting.transfer_node(run, cell, digits_node(run, cell.seed))
    return nodes


def _sources(run: Run) -> tuple[str, ...]:
    for source in run.settings.ila_confirmed:
        checks.one_of("ila_confirmed", source, run.settings.ila_sources)
    return run.settings.ila_confirmed


def _cells(run: Run, source: str, seeds: Sequence[int]) -> list[Cell]:
    return [Cell(seed, source, run.settings.ila_layer_epsilon) for seed in seeds]


def _summarise(run: Run, found: Mapping[str, Artifact]) -> Summary:
    rows, setting = [], f"epsilon={run.settings.ila_layer_epsilon:g}"
    for source in _sources(run):
        first, fresh = (
            {cell.seed: Crafted.of(found[cell.name], run.settings.ila_targets) for cell in _cells(run, source, seeds)}
            for seeds in (sources.seeds_of(run), confirming_seeds(run))
        )
        rows += _explored_rows(run, source, setting, first)
        layer = chosen_layer(first, run.settings.ila_targets)
        fresh = {seed: replace(cell, layers=cell.layers | {EXPLORED: layer}) for seed, cell in fresh.items()}
        rows += _fresh_rows(run, source, f"{setting};stage=further", fresh)
    return table(rows), {}


def candidates(cell: Crafted) -> list[str]:
    """Layers that may be chosen: those where ILAP was run, without the logits, the last."""
    return [layer for name, layer, more in cell.wrong if name == "ilap" and not more][:-1]


def chosen_layer(crafted: Mapping[int, Crafted], targets: tuple[str, ...]) -> str:
    """The layer whose least mean difference to its random guide, over targets, is the largest; of equal ones the first."""

    def least(layer: str) -> float:
        gains = [[paired.mean() for paired in _pairs(crafted, layer, target)] for target in targets]
        return float(np.mean(gains, axis=1).min())

    return max(candidates(next(iter(crafted.values()))), key=least)


def _pairs(crafted: Mapping[int, Crafted], layer: str, target: str) -> list[np.ndarray]:
    return [transfer.paired(cell, layer, "random_guide", target) for cell in crafted.values()]


def _explored_rows(run: Run, source: str, setting: str, crafted: Mapping[int, Crafted]) -> list[dict]:
    """What the choice saw: the difference to the random guide at each layer, over the first seeds."""
    rows = []
    for layer in candidates(next(iter(crafted.values()))):
        for target in run.settings.ila_targets:
            names: dict[str, Any] = NAMES | {"attack": "ilap", "layer": layer, "network": f"{source}->{target}"}
            names |= {"metric": "difference", "setting": f"{setting};stage=explored;minus=random_guide"}
            rows.append(pooled.pooled_mean_row(_pairs(crafted, layer, target), seed=run.seed, **names))
    return rows


def _fresh_rows(run: Run, source: str, setting: str, crafted: Mapping[int, Crafted]) -> list[dict]:
    """Success of the attacks, and differences to their rivals, over the further seeds."""
    rows = []
    for name in PLAIN:
        lines: dict[int, Line] = dict.fromkeys(crafted, (name, "", ""))
        rows += transfer.line_rows(run, source, crafted, lines, {"attack": name, "setting": setting}, single=True)
    for choice in (*CHOICES, EXPLORED):
        for name in ("ilap", "random_guide"):
            lines = {seed: (name, cell.layers[choice], "") for seed, cell in crafted.items()}
            names = {"attack": name, "layer": transfer.common_layer(crafted, choice)}
            names["setting"] = transfer.join(setting, f"choice={choice}")
            rows += transfer.line_rows(run, source, crafted, lines, names, single=True)
        for rival in RIVALS:
            rows += transfer.difference_rows(run, source, crafted, setting, choice=choice, rival=rival)
    return rows


CONFIRMATION = Experiment("confirmation", _nodes, _summarise, uses=USES)
