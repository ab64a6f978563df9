"""Do examples of the Intermediate Level Attack fool other networks, and more than its controls do?

Rows of one seed have its number; rows over all seeds have the run's, and a setting that ends in ``seeds=all``. A row of
an attack at a layer that was chosen beforehand says how in its setting: ``choice=fixed`` or ``choice=blind``; over seeds
whose blind choices differ, its ``layer`` is empty. ``stage=start``: what ILA starts from. ``l2=ifgsm``: each change is
shortened until it is no longer than that of I-FGSM on the same image.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from deepneighbors.experiments.base import Experiment, Nodes, Run, Summary
from deepneighbors.experiments.poisoning_ila import crafting, plan, pooled, sources
from deepneighbors.experiments.poisoning_ila.crafting import CHOICES, REFERENCE, START, VARIANTS, Cell, Crafted, Line
from deepneighbors.intervals import wilson_interval
from deepneighbors.results import mean_row, statistic_row, table
from deepneighbors.store import Artifact

USES = tuple(module.__name__ for module in (crafting, plan, pooled, sources))
NAMES: dict[str, str] = {"experiment": "ila"}
STARTS = (REFERENCE, "mi_di")  # what ILA starts from, after half of their steps
PLAIN = ("sign_noise", "fgsm", REFERENCE, "mifgsm", "mi_di")
CHOSEN = (("ilap", ""), ("random_guide", ""), ("ilaf", ""), ("ila++", ""), ("ilap", "start=mi_di"), ("fia", ""), ("naa", ""))
# What ILAP at a chosen layer is compared with, image by image: the same layer's random guide, and attacks of equal steps.
RIVALS = ("random_guide", REFERENCE, "sign_noise", "mi_di")


def _nodes(run: Run) -> Nodes:
    nodes = {f"choice|{seed}|{name}": sources.choice_node(run, seed, name) for seed, name in _sources(run)}
    nodes |= {f"source|{seed}|{name}": sources.source_node(run, seed, name) for seed, name in _sources(run)}
    for seed in sources.seeds_of(run):
        named = zip(run.settings.ila_targets, sources.target_nodes(run, seed), strict=True)
        nodes |= {f"target|{seed}|{name}": node for name, node in named}
    return nodes | {cell.name: crafting.transfer_node(run, cell) for cell in crafting.cells(run, run.settings.ila_epsilons)}


def _sources(run: Run) -> list[tuple[int, str]]:
    return [(seed, name) for seed in sources.seeds_of(run) for name in run.settings.ila_sources]


def _summarise(run: Run, found: Mapping[str, Artifact]) -> Summary:
    s, rows = run.settings, _network_rows(run, found)
    for source in s.ila_sources:
        for epsilon in s.ila_epsilons:
            group = {seed: Cell(seed, source, epsilon).name for seed in sources.seeds_of(run)}
            crafted = {seed: Crafted.of(found[name], s.ila_targets) for seed, name in group.items()}
            rows += _cell_rows(run, source, epsilon, crafted)
    rows_of_choice, arrays = _choices(run, found)
    return table(rows + rows_of_choice), arrays


def _network_rows(run: Run, found: Mapping[str, Artifact]) -> list[dict]:
    """Accuracy of every network on the test digits, and its mean over seeds."""
    rows = []
    for name in (name for name in found if name.startswith(("source|", "target|"))):
        role, seed, network = name.split("|")
        values = found[name].values
        names: dict[str, Any] = NAMES | {"network": network, "metric": "accuracy", "setting": f"role={role}"}
        count = values["images"]
        ci = wilson_interval(round(values["accuracy"] * count), count)
        rows.append(statistic_row(values["accuracy"], n=count, ci=ci, seed=int(seed), **names))
    return plan.over_all_seeds(rows, seed=run.seed)


def _cell_rows(run: Run, source: str, epsilon: float, crafted: Mapping[int, Crafted]) -> list[dict]:
    """Rows of one source at one radius, over all seeds and, of what was chosen beforehand, for each seed."""
    rows: list[dict] = []
    setting = f"epsilon={epsilon:g}"
    some = next(iter(crafted.values()))
    for name, layer, more in some.wrong:
        if name in ("ilap", "random_guide") and not more:
            lines: dict[int, Line] = dict.fromkeys(crafted, (name, layer, more))
            rows += line_rows(run, source, crafted, lines, {"attack": name, "layer": layer, "setting": setting})
    for name in STARTS:
        names = {"attack": name, "setting": join(setting, START)}
        rows += line_rows(run, source, crafted, dict.fromkeys(crafted, (name, "", START)), names, single=True)
    for length in ("", f"l2={REFERENCE}"):
        for name in PLAIN:
            names = {"attack": name, "setting": join(setting, length)}
            lines = dict.fromkeys(crafted, (name, "", length))
            rows += line_rows(run, source, crafted, lines, names, single=not length)
        for choice in CHOICES:
            for name, start in CHOSEN:
                if choice == "blind" and name in ("fia", "naa"):
                    continue  # they are run at the fixed layer only
                if length and (start or name in VARIANTS):
                    continue
                names = {"attack": name, "layer": common_layer(crafted, choice)}
                names["setting"] = join(setting, f"choice={choice}", start, length)
                lines = {seed: (name, cell.layers[choice], join(start, length)) for seed, cell in crafted.items()}
                rows += line_rows(run, source, crafted, lines, names, single=not length)
    for choice, length, rival in product(CHOICES, ("", f"l2={REFERENCE}"), RIVALS):
        rows += difference_rows(run, source, crafted, setting, choice=choice, rival=rival, length=length)
    return rows


def join(*parts: str) -> str:
    """Parts of a setting in one, without empty ones."""
    return ";".join(filter(None, parts))


def common_layer(crafted: Mapping[int, Crafted], choice: str) -> str:
    """The chosen layer where all seeds share it, otherwise nothing."""
    layers = {cell.layers[choice] for cell in crafted.values()}
    return layers.pop() if len(layers) == 1 else ""


def line_rows(run: Run, source: str, crafted: Mapping[int, Crafted], lines: Mapping[int, Line], names: dict[str, str], *,
              single: bool = False) -> list[dict]:  # fmt: skip
    """Success on the source and on each target, and length, of one line a seed; with ``single`` also seed by seed."""
    rows = []
    for metric, network, samples in _samples(run, source, crafted, lines):
        full: dict[str, Any] = NAMES | names | {"metric": metric, "network": network}
        if single:
            for seed, sample in samples.items():
                rows.append(mean_row(sample, seed=seed, **full))
        rows.append(pooled.pooled_mean_row(list(samples.values()), seed=run.seed, **full))
    return rows


def _samples(
    run: Run, source: str, crafted: Mapping[int, Crafted], lines: Mapping[int, Line]
) -> Iterator[tuple[str, str, dict[int, np.ndarray]]]:
    yield "success", source, {seed: cell.wrong[lines[seed]][""] for seed, cell in crafted.items()}
    yield "mean_l2", source, {seed: cell.l2[lines[seed]] for seed, cell in crafted.items()}
    for target in run.settings.ila_targets:
        samples = {seed: cell.wrong[lines[seed]][target] for seed, cell in crafted.items()}
        yield "transfer_success", f"{source}->{target}", samples


def difference_rows(run: Run, source: str, crafted: Mapping[int, Crafted], setting: str, *, choice: str, rival: str,
                    length: str = "") -> list[dict]:  # fmt: skip
    """Success of ILAP at a chosen layer less that of a rival, paired by image; also seed by seed without ``length``."""
    rows = []
    for target in run.settings.ila_targets:
        samples = {seed: paired(cell, cell.layers[choice], rival, target, length) for seed, cell in crafted.items()}
        names: dict[str, Any] = NAMES | {"attack": "ilap", "layer": common_layer(crafted, choice)}
        names |= {"network": f"{source}->{target}", "metric": "difference"}
        names["setting"] = join(setting, f"choice={choice}", f"minus={rival}", length)
        if not length:
            rows += [mean_row(sample, seed=seed, **names) for seed, sample in samples.items()]
        rows.append(pooled.pooled_mean_row(list(samples.values()), seed=run.seed, **names))
    return rows


def paired(cell: Crafted, layer: str, rival: str, target: str, length: str = "") -> np.ndarray:
    """1 where ILAP at the layer fools the target and the rival does not, -1 the other way round, ``(n,)``."""
    other = (rival, layer if rival == "random_guide" else "", length)
    return cell.wrong[("ilap", layer, length)][target].astype(int) - cell.wrong[other][target]


def _choices(run: Run, found: Mapping[str, Artifact]) -> tuple[list[dict], dict[str, np.ndarray]]:
    """How often the blind rule chose each layer, and the disturbance curves ``(seeds, candidates, layers)``."""
    rows, arrays = [], {}
    for source in run.settings.ila_sources:
        made = [found[f"choice|{seed}|{source}"] for seed in sources.seeds_of(run)]
        chosen = Counter(one.values["layer"] for one in made)
        for layer in made[0].values["candidates"]:
            names: dict[str, Any] = NAMES | {"network": source, "layer": layer, "metric": "chosen"}
            names["setting"] = _choice_setting(run)
            ci = wilson_interval(chosen[layer], len(made))
            rows.append(statistic_row(chosen[layer] / len(made), n=len(made), ci=ci, seed=run.seed, **names))
        arrays[f"disturbance|{source}"] = np.stack([one.tensors["curves"].numpy() for one in made])
        arrays[f"layers|{source}"] = np.array(made[0].values["layers"])
    return rows, arrays


def _choice_setting(run: Run) -> str:
    return pooled.over_seeds(f"epsilon={run.settings.ila_layer_epsilon:g};choice=blind")


TRANSFER = Experiment("transfer", _nodes, _summarise, uses=USES)
