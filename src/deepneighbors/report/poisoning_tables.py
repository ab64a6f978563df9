"""Rows of chapter 3 for its tables and figures: settings are read part by part, and those over all seeds are chosen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from deepneighbors.errors import InputError
from deepneighbors.report.comparison import NAMES, Row, row
from deepneighbors.report.notebook import NotRun
from deepneighbors.report.tables import NOT_RUN, NOTHING, estimate, percent
from deepneighbors.results import Result

Label = tuple[str, str]  # a name in the results, and the words for it

SEEDS = {"seeds": "all"}
PAPER = "report2021"
LAYERS = ("relu1", "relu2", "relu3", "fc")
QUERIES: tuple[Label, ...] = (
    ("test_correct", "test, right"), ("test_misclassified", "test, misclassified"), ("poison", "poison itself"),
    ("clean_train", "clean training"),
)  # fmt: skip
CREDIBILITIES: tuple[Label, ...] = (
    ("c_pred", "of DkNN's label"), ("c_dnn", "of the network's label"), ("c_label", "of the stored label"),
)  # fmt: skip
POISONS = {
    "none": "none", "svm_poisoning": "SVM poisoning", "logistic_poisoning": "logistic poisoning",
    "random_flip": "random flips", "patch": "patch", "blended": "blended", "evasion": "evasion",
}  # fmt: skip
DEFENCES: tuple[tuple[str, str, str], ...] = (  # detector, the form that is removed and retrained on, words
    ("credibility", "credibility=c_label;self=out", "c_label, self out"), ("deep_knn", "", "deep kNN"),
    ("activation_clustering", "reduction=ica", "activation clustering"), ("spectral", "centred=yes", "spectral signatures"),
    ("loss", "", "training loss"), ("random", "", "random"),
)  # fmt: skip
ATTACKS = {
    "none": "clean", "sign_noise": "sign noise", "fgsm": "FGSM", "ifgsm": "I-FGSM", "mifgsm": "MI-FGSM", "mi_di": "MI-DI",
    "ilap": "ILAP", "random_guide": "random guide", "ilaf": "ILAF", "ila++": "ILA++", "fia": "FIA", "naa": "NAA",
}  # fmt: skip
NETWORKS = {"mnist_cnn": "report's network", "deep": "deep", "cnn": "CNN", "lenet": "LeNet", "mlp": "MLP"}


def read(setting: str) -> dict[str, str]:
    """A setting as parts: ``epoch=6;self=out`` is ``{"epoch": "6", "self": "out"}``."""
    return dict(part.split("=", 1) for part in setting.split(";") if part)


def pooled(table: pd.DataFrame, parts: Mapping[str, str] | None = None, **names: str) -> pd.DataFrame:
    """Rows over all seeds whose setting has exactly these parts, in any order, and whose columns these names."""
    wanted = frozenset({**(parts or {}), **SEEDS}.items())
    kept = np.ones(len(table), dtype=bool)
    for name, value in names.items():
        kept &= np.asarray(table[name], dtype=object) == value
    settings = np.asarray(table["setting"], dtype=object)
    return table.iloc[[place for place in np.flatnonzero(kept) if _parts(settings[place]) == wanted]]


@cache
def _parts(setting: str) -> frozenset[tuple[str, str]]:
    return frozenset(read(setting).items())


def one(table: pd.DataFrame, parts: Mapping[str, str] | None = None, **names: str) -> pd.Series | None:
    """The one row of :func:`pooled`; None where there is none."""
    found = pooled(table, parts, **names)
    if len(found) > 1:
        raise InputError(f"{len(found)} results have {dict(parts or {}) | names}; name more of them")
    return None if found.empty else found.iloc[0]


def options(table: pd.DataFrame, part: str, **names: str) -> list[str]:
    """Values of a part of the settings, as they come; numbers in their order."""
    for name, value in names.items():
        table = table[table[name] == value]
    found = list(dict.fromkeys(said[part] for said in map(read, table["setting"]) if part in said))
    return sorted(found, key=float) if all(_is_number(value) for value in found) else found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def by_layer(table: pd.DataFrame, layers: Sequence[str], parts: Mapping[str, str], **names: str) -> np.ndarray:
    """Value and ends of the interval ``(layers, 3)`` over all seeds; NaN for a layer without a row."""
    found = pooled(table, parts, **names).set_index("layer").reindex(list(layers))
    return found[["value", "ci_low", "ci_high"]].to_numpy(float)


def lines(
    results: Sequence[Result | NotRun], label: Callable[[dict[str, str], dict[str, str]], Sequence[str] | None], *,
    metrics: Sequence[str], paper: Callable[[dict[str, str], dict[str, str]], Mapping[str, str] | None] | None = None,
    kind: str = "", width: int = 1,
) -> list[Row]:  # fmt: skip
    """Rows of a comparison for everything over all seeds that one of the results has.

    Parameters
    ----------
    label
        From a row's names and the parts of its setting to the words of its line; None leaves the row out.
    paper
        From the same to the names of the report's number; None, or no function: it has none.
    width
        Words of a line, for the one that stands where no result was run.
    """
    rows: dict[tuple[str, ...], Row] = {}
    for result in (result for result in results if isinstance(result, Result)):
        for names in result.table[result.table["metric"].isin(metrics)][list(NAMES)].to_dict("records"):
            parts = read(names["setting"])
            words = label(names, parts) if parts.pop("seeds", "") == "all" else None
            if words is not None and tuple(names.values()) not in rows:
                rows[tuple(names.values())] = _line(words, names, paper(names, parts) if paper else None, kind)
    ordered = sorted(rows.values(), key=lambda found: metrics.index(found.metric))
    return ordered or [row(("-",) * width, metrics[0], in_paper=False)]


def _line(words: Sequence[str], names: dict[str, Any], paper: Mapping[str, str] | None, kind: str) -> Row:
    given = {name: value for name, value in names.items() if name != "metric"}
    return row(words, names["metric"], paper=paper, in_paper=paper is not None, kind=kind, **given)


def first_draw(result: Result | NotRun) -> pd.DataFrame | None:
    """The rows of seed 0 alone, which has secml's own draw; None where it was not run."""
    if isinstance(result, NotRun):
        return None
    table = result.table
    return table[(table["seed"] == 0) & ~table["setting"].str.endswith("seeds=all")]


@dataclass(frozen=True)
class Choice:
    """A line or a column of :func:`matrix`: its words, and the names and parts of a setting that choose its rows."""

    words: str
    names: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)


def matrix(sources: Sequence[tuple[str, Result | NotRun]], rows: Sequence[Choice], columns: Sequence[Choice], *,
           heading: str, **names: str) -> pd.DataFrame:  # fmt: skip
    """Numbers over all seeds: a block of lines for each choice, one a source, and a column for each other choice.

    A source that was run, but has no number of a choice, has no line there if another has one.
    """
    found = []
    for line in rows:
        block = [
            [
                line.words, title,
                *(_matrix_cell(result, line.parts | column.parts, names | line.names | column.names) for column in columns),
            ]
            for title, result in sources
        ]  # fmt: skip
        filled = [cells for cells in block if not {*cells[2:]} <= {NOTHING, NOT_RUN}]
        found += [cells for cells in block if cells in filled or not filled or NOT_RUN in cells]
    nothing = [NOT_RUN, *[NOTHING] * (1 + len(columns))]
    return pd.DataFrame(found or [nothing], columns=[heading, "Source", *(column.words for column in columns)])


def _matrix_cell(result: Result | NotRun, parts: Mapping[str, str], names: Mapping[str, str]) -> str:
    if isinstance(result, NotRun):
        return NOT_RUN
    found = one(result.table, parts, **names)
    if found is None:
        return NOTHING
    return estimate(found["value"], found["ci_low"], found["ci_high"], found["n"], as_percent=percent(names["metric"]))
