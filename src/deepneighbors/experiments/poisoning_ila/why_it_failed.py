"""Why the report's Intermediate Level Attack did not work: each likely reason alone, and all of them together.

Everything else stays as in the transfer experiment: the deep source at radius 0.3, ten steps of I-FGSM and ten of ILAP.
The released code takes a radius of 0.03 on pixels from -1 to 1, which is 0.015 on [0, 1], and steps of length 1; the report
names FGSM only as its starting attack, and its network is shallow. That the released code starts no ILA from FGSM at all,
and clips to [-1, 1] what lies in [0, 1], is not repeated here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.poisoning_ila import crafting, pooled, sources
from deepneighbors.experiments.poisoning_ila.sources import FIXED_LAYERS
from deepneighbors.results import mean_row, table
from deepneighbors.store import Artifact, Node


@dataclass(frozen=True)
class Choices:
    """How ILA is run; the defaults work."""

    source: str = "deep"
    epsilon: float = 0.3
    start: str = "ifgsm"
    step_size: float | None = None


_BEST = Choices()
REASONS = {
    "none": _BEST,
    "epsilon": replace(_BEST, epsilon=0.03 / 2),
    "step_size": replace(_BEST, step_size=1.0),
    "start": replace(_BEST, start="fgsm"),
    "source": replace(_BEST, source="mnist_cnn"),
    "all": Choices("mnist_cnn", 0.03 / 2, "fgsm", 1.0),
}


def _nodes(run: Run) -> Nodes:
    seeds = sources.seeds_of(run)
    return {f"{seed}|{reason}": _node(run, seed, choices) for seed in seeds for reason, choices in _used(run)}


def _used(run: Run) -> list[tuple[str, Choices]]:
    """The reasons whose source is among the run's."""
    return [(reason, choices) for reason, choices in REASONS.items() if choices.source in run.settings.ila_sources]


def _node(run: Run, seed: int, choices: Choices) -> Node:
    config = {
        "budget": crafting.budget_of(run, seed, choices.epsilon), "layer": FIXED_LAYERS[choices.source],
        "start": choices.start, "step_size": choices.step_size,
    }  # fmt: skip
    inputs = (sources.source_node(run, seed, choices.source), sources.selected_node(run, seed))
    return crafting.variant.node(config, (*inputs, *sources.target_nodes(run, seed)))


def _summarise(run: Run, found: Mapping[str, Artifact]) -> Summary:
    """Transfer of the starting attack, ILAP and its random control under each reason, by seed and over seeds."""
    rows = []
    for reason, choices in _used(run):
        made = {seed: found[f"{seed}|{reason}"] for seed in sources.seeds_of(run)}
        wrong = {seed: one.tensors["said"].numpy() != one.tensors["y"].numpy() for seed, one in made.items()}
        setting = f"reason={reason};epsilon={choices.epsilon:g}"
        for row, attack in enumerate(next(iter(made.values())).values["attacks"]):
            for column, target in enumerate(("", *run.settings.ila_targets)):
                names: dict[str, Any] = {
                    "experiment": "ila", "attack": attack, "setting": setting,
                    "layer": "" if attack == choices.start else FIXED_LAYERS[choices.source],
                    "metric": "transfer_success" if target else "success",
                    "network": f"{choices.source}->{target}" if target else choices.source,
                }  # fmt: skip
                samples = {seed: one[row, column] for seed, one in wrong.items()}
                rows += [mean_row(sample, seed=seed, **names) for seed, sample in samples.items()]
                rows.append(pooled.pooled_mean_row(list(samples.values()), seed=run.seed, **names))
    return table(rows), {}


WHY_IT_FAILED = Experiment(
    "why_it_failed", _nodes, _summarise, uses=tuple(module.__name__ for module in (crafting, pooled, sources))
)
