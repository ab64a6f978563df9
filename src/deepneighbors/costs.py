"""What stages cost: seconds by stage, attack and detector, kept with each result, and estimates of others from them.

Time is taken as proportional to :func:`work`: to the images of a node, and the epochs or the steps of an attack over them.
"""

import inspect
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from deepneighbors.attacks.classifier import SETTINGS
from deepneighbors.attacks.cw_opt import CWOpt
from deepneighbors.store import Node

# Settings that repeat all the work of an image, and their values where a config leaves them to the attack.
_REPEATS = ("epochs", "steps", "search_steps", "binary_search_steps")
_DEFAULTS: dict[str, Mapping[str, Any]] = {
    **{attack: settings.values for attack, settings in SETTINGS.items()},
    "cw_opt": {name: option.default for name, option in inspect.signature(CWOpt).parameters.items()},
}


@cache
def label(node: Node, name: str) -> str:
    """Attack or detector of a node: its config's, or the one that all its inputs agree on; empty where they do not."""
    config = node.config
    for part in (config, *(part for part in config.values() if isinstance(part, dict))):
        own = part.get(name)
        if isinstance(own, str):
            return own if own.replace("_", "").isalnum() else ""
    known = {found for found in (label(upstream, name) for upstream in node.inputs) if found}
    return known.pop() if len(known) == 1 else ""


def work(node: Node) -> int:
    """Images of a node, times epochs and steps of an attack, as its config names them; never less than 1.

    Images are those of a slice, ``images`` or ``train_images``. Mahalanobis' preprocessing is tried with each number of its
    ``grid``.
    """
    config = node.config
    sliced = config["stop"] - config["start"] if "stop" in config else None
    sizes = (sliced, config.get("images"), config.get("train_images"))
    images = next((size for size in sizes if isinstance(size, int)), 1)
    options = config.get("options")
    values = {**_DEFAULTS.get(str(config.get("attack")), {}), **config, **(options if isinstance(options, dict) else {})}
    repeats = [values[name] for name in _REPEATS if isinstance(values.get(name), int)]
    if config.get("detector") == "mahalanobis":
        repeats.append(len(config.get("grid", ())))
    return math.prod(max(1, count) for count in (images, *repeats))


def spent(nodes: Iterable[tuple[Node, float]]) -> dict[str, dict[str, Any]]:
    """Nodes and their seconds, summed up for a result's provenance: by stage, and in it by ``attack/detector``."""
    found: dict[str, dict[str, Any]] = {}
    for node, seconds in nodes:
        stage = found.setdefault(node.stage.name, {"count": 0, "seconds": 0.0, "parts": {}})
        part = stage["parts"].setdefault(_part(node), {"count": 0, "seconds": 0.0, "work": 0})
        part["work"] += work(node)
        for total in (stage, part):
            total["count"] += 1
            total["seconds"] = round(total["seconds"] + seconds, 3)
    return found


def _part(node: Node) -> str:
    return f"{label(node, 'attack')}/{label(node, 'detector')}"


class Costs:
    """Estimates of a node's seconds: by work and what it is for, else by work, else the mean of its stage.

    Parameters
    ----------
    records
        What :func:`spent` gives; records without ``parts`` serve for means alone.
    """

    def __init__(self, records: Iterable[Mapping[str, Mapping[str, Any]]]):
        means: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        rates: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for record in records:
            for stage, total in record.items():
                _add(means[stage], total["seconds"], total["count"])
                for name, part in total.get("parts", {}).items():
                    for key in ((stage, name), (stage, "")):
                        _add(rates[key], part["seconds"], part["work"])
        self.means = {stage: seconds / count for stage, (seconds, count) in means.items()}
        self.rates = {key: seconds / units for key, (seconds, units) in rates.items()}

    @classmethod
    def recorded(cls, *folders: Path) -> "Costs":
        """From the results in these folders and below: each stage's from the first folder that has it."""
        known = cls(())
        for folder in folders:
            origins = (json.loads(path.read_text()).get("provenance", {}) for path in sorted(folder.rglob("*.json")))
            found = cls(origin["stages"] for origin in origins if "stages" in origin)
            known.rates |= {key: rate for key, rate in found.rates.items() if key[0] not in known.means}
            known.means = found.means | known.means
        return known

    def seconds(self, node: Node) -> float | None:
        """Estimate for one node; None where its stage was never measured."""
        stage = node.stage.name
        for key in ((stage, _part(node)), (stage, "")):
            if key in self.rates:
                return self.rates[key] * work(node)
        return self.means.get(stage)


def _add(total: list[float], seconds: float, count: float) -> None:
    total[0] += seconds
    total[1] += count
