"""The papers' numbers in the vocabulary of our results: value, place, and a tolerance with its reason.

``kind`` says how a number is known: ``published`` (read in the paper or the slides), ``code`` (printed by, or derived
from, the authors' released code and arrays), ``recalled`` (from memory of a text that could not be read; check first).
"""

import math
from dataclasses import dataclass
from functools import cache
from importlib import resources

import pandas as pd

from deepneighbors.errors import InputError

PAPERS = ("sitawarin2019", "cohen2020", "report2021")  # a file of numbers each; the first also has its follow-up's
KINDS = ("published", "code", "recalled")
NAMES = ("paper", "experiment", "dataset", "network", "attack", "detector", "norm", "layer", "metric", "setting")
COLUMNS = (*NAMES, "value", "place", "kind", "tolerance", "reason")


@dataclass(frozen=True)
class PaperValue:
    """One number of a paper: a fraction or a plain number, never a percentage.

    ``tolerance`` is the difference that we accept, with its ``reason``; None: no such limit.
    """

    value: float
    place: str
    kind: str
    tolerance: float | None = None
    reason: str = ""

    def verdict(self, value: float, ci_low: float = math.nan, ci_high: float = math.nan) -> str:
        """``within`` or ``outside`` the tolerance; empty when no tolerance was set, or ``value`` is NaN.

        Outside needs the whole interval of ``value`` beyond the tolerance; without an interval the value itself counts.
        """
        if self.tolerance is None or not math.isfinite(value):
            return ""
        low = ci_low if math.isfinite(ci_low) else value
        high = ci_high if math.isfinite(ci_high) else value
        slack = self.tolerance + 1e-12
        return "within" if low <= self.value + slack and high >= self.value - slack else "outside"


def table() -> pd.DataFrame:
    """Every number, one a row, with the columns ``COLUMNS``; a tolerance that was not set is NaN. A copy."""
    return _read().copy()


def papers() -> tuple[str, ...]:
    """Citation keys of the papers with numbers."""
    return tuple(sorted(_read()["paper"].unique()))


def lookup(
    *,
    paper: str,
    experiment: str,
    metric: str,
    network: str = "",
    attack: str = "",
    norm: str = "",
    setting: str = "",
    dataset: str = "mnist",
    detector: str = "",
    layer: str = "",
) -> PaperValue | None:
    """The paper's number with exactly these names, or None when the paper has no such number.

    Raises:
        InputError: no number of this paper is known at all.
    """
    if paper not in papers():
        raise InputError(f"paper is {paper!r}; allowed are {', '.join(papers())}")
    return _index().get((paper, experiment, dataset, network, attack, detector, norm, layer, metric, setting))


def constant(name: str, *, paper: str = "sitawarin2019", layer: str = "") -> float:
    """A constant of the authors' method, such as ``knn_eta``: the mean distance to the 75th neighbour.

    Raises:
        InputError: there is no such constant.
    """
    found = _read().query("experiment == 'constant'")
    found = found[found["paper"] == paper]
    chosen = found[(found["metric"] == name) & (found["layer"] == layer)]
    if len(chosen) != 1:
        known = ", ".join(sorted(set(found["metric"]))) or "none"
        raise InputError(f"the constant {name!r} of {paper} (layer {layer!r}) is not known; constants are {known}")
    return float(chosen["value"].iloc[0])


@cache
def _read() -> pd.DataFrame:
    folder = resources.files(__package__) / "data"
    numbers = ("value", "tolerance")
    texts = {name: str for name in COLUMNS if name not in numbers}
    frames = []
    for paper in PAPERS:
        with (folder / f"values_{paper}.csv").open(encoding="utf-8") as file:
            frames.append(pd.read_csv(file, dtype=texts, keep_default_na=False, na_values={"tolerance": [""]}))
    frame = pd.concat(frames, ignore_index=True)
    return frame.astype(dict.fromkeys(numbers, float))[list(COLUMNS)]


@cache
def _index() -> dict[tuple[str, ...], PaperValue]:
    found: dict[tuple[str, ...], PaperValue] = {}
    for row in _read().to_dict("records"):
        tolerance = None if math.isnan(row["tolerance"]) else float(row["tolerance"])
        key = tuple(str(row[name]) for name in NAMES)
        found[key] = PaperValue(float(row["value"]), row["place"], row["kind"], tolerance, row["reason"])
    return found
