"""Tables that put the paper's values beside ours: which row of the tidy results each line shows, and how far it is off."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from deepneighbors.errors import InputError
from deepneighbors.report.tables import NOT_RUN, NOTHING, SPACE, Table, estimate, percent

RECALLED = "†"
OUTDATED = "‡"
KINDS = ("percent", "plain")
NAMES = ("experiment", "dataset", "network", "attack", "detector", "norm", "layer", "metric", "setting")
_WORDS = {
    "mean_l2": "mean L2",
    "mean_linf": "mean Linf",
    "mean_l2_initially_correct": "mean L2",
    "mean_l2_unit_output": "mean L2, scaled",
    "mean_credibility": "credibility",
    "credibility_auc": "AUC",
    "histogram_distance": "total variation",
    "ratio_to_exact": "ratio to exact",
    "lower_bound_l2": "lower bound, L2",
    "auc": "AUC",
}


@dataclass(frozen=True)
class Row:
    """One line of a comparison: what it is called, which result it shows, and which value of the paper.

    ``names`` select one row of the tidy results; ``paper`` replaces some of them where the paper's value has
    other names, and None says that the paper has no such value. ``kind`` is ``percent`` or ``plain``; empty
    follows the metric.
    """

    label: tuple[str, ...]
    metric: str
    names: Mapping[str, str] = field(default_factory=dict)
    paper: Mapping[str, str] | None = field(default_factory=dict)
    kind: str = ""


def row(
    label: str | Sequence[str],
    metric: str,
    *,
    paper: Mapping[str, str] | None = None,
    in_paper: bool = True,
    kind: str = "",
    **names: str,
) -> Row:
    """A :class:`Row` with the names of the result as keywords; ``in_paper=False``: the paper has no value."""
    for name in [*names, *(paper or {})]:
        if name not in NAMES:
            raise InputError(f"a row of a table cannot select by {name!r}; allowed are {', '.join(NAMES)}")
    if kind and kind not in KINDS:
        raise InputError(f"kind is {kind!r}; allowed are {', '.join(KINDS)}")
    labels = (label,) if isinstance(label, str) else tuple(label)
    return Row(labels, metric, names, (paper or {}) if in_paper else None, kind)


def select(table: pd.DataFrame, **names: str) -> pd.Series:
    """The one row of a tidy table that has these names; InputError if there is none or more than one."""
    for name in names:
        if name not in NAMES:
            raise InputError(f"results have no name {name!r}; allowed are {', '.join(NAMES)}")
    found = _matching(table, names)
    asked = ", ".join(f"{name}={value!r}" for name, value in names.items())
    if len(found) == 0:
        raise InputError(f"no result has {asked}")
    if len(found) > 1:
        differ = [name for name in NAMES if found[name].fillna("").nunique() > 1]
        raise InputError(f"{len(found)} results have {asked}; say also {' or '.join(differ) or 'the seed'}")
    return found.iloc[0]


def compare(
    rows: Sequence[Row],
    *,
    full: pd.DataFrame | None,
    this: pd.DataFrame | None,
    lookup: Callable[..., Any],
    caption: str,
    name: str,
    headings: Sequence[str] = ("",),
    profile: str = "",
    outdated: frozenset[str] = frozenset(),
    partial: bool = False,
) -> Table:
    """Paper, full profile, this run, and the difference to the paper of full (of this run until full is run).

    Where the paper has none of the numbers, its column and the difference are left out; so is this run where it is the
    full profile and shows nothing that full does not.

    Parameters
    ----------
    full, this
        Tidy results; None, or a row that is not there, is shown as *not run*.
    lookup
        Takes the names of a row and returns the paper's value (``value``, ``kind``, ``tolerance``) or None.
    outdated
        Experiments whose full result was recorded by an earlier version of the code; they are marked.
    partial
        A row that no result has is *not run*, because results may have been computed for fewer attacks; otherwise such a
        row is a mistake.
    """
    header = [
        *headings,
        "quantity",
        "paper",
        "full",
        f"this run ({profile})" if profile else "this run",
        "difference",
    ]
    places = [None if table is None else _Places(table) for table in (full, this)]
    lines = [_compare_line(entry, places, lookup, outdated, partial) for entry in rows]
    shown = " ".join(cell for line in lines for cell in line)
    notes = []
    if RECALLED in shown:
        notes.append(f"{RECALLED} recalled from the paper, whose text could not be read here; check before citing.")
    if OUTDATED in shown:
        notes.append(f"{OUTDATED} recorded by an earlier version of the code.")
    align = ["left"] * (len(headings) + 1) + ["right"] * 4
    paper, ours, again, difference = range(len(headings) + 1, len(header))
    left_out = {paper, difference} if all(line[paper] == NOTHING for line in lines) else set()
    if profile == "full" and all(line[again] in (line[ours].removesuffix(OUTDATED), NOT_RUN) for line in lines):
        left_out.add(again)
    kept = [place for place in range(len(header)) if place not in left_out]
    header, align, *lines = ([line[place] for place in kept] for line in (header, align, *lines))
    return Table(header, lines, caption, name, notes, align)


def _compare_line(
    entry: Row,
    results: "Sequence[_Places | None]",
    lookup: Callable[..., Any],
    outdated: frozenset[str],
    partial: bool,
) -> list[str]:
    as_percent = percent(entry.metric, entry.kind)
    paper = _paper_value(entry, lookup)
    ours = _find(results, entry, partial)
    mark = OUTDATED if ours[0] is not None and ours[0]["experiment"] in outdated else ""
    full_cell, this_cell = (_ours(found, as_percent) for found in ours)
    best = ours[0] if ours[0] is not None else ours[1]
    cells = [
        _paper_cell(paper, as_percent),
        full_cell + mark,
        this_cell,
        _difference(best, paper, as_percent),
    ]
    return [*entry.label, _WORDS.get(entry.metric, entry.metric.replace("_", " ")), *cells]


def _paper_value(entry: Row, lookup: Callable[..., Any]) -> Any:
    if entry.paper is None:
        return None
    return lookup(**{**entry.names, "metric": entry.metric, **entry.paper})


def _paper_cell(paper: Any, as_percent: bool) -> str:
    if paper is None:
        return NOTHING
    text = f"{100 * paper.value:.4g}{SPACE}%" if as_percent else f"{paper.value:.4g}"
    return text + (RECALLED if paper.kind == "recalled" else "")


class _Places:
    """Rows of a table by their names, of which a page asks hundreds: to compare whole columns for each takes seconds."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table
        self._known: dict[tuple[str, ...], dict[tuple[str, ...], list[int]]] = {}

    def __getitem__(self, names: Mapping[str, str]) -> list[int]:
        """Places of the rows that have these names."""
        asked = tuple(names)
        if asked not in self._known:
            places: dict[tuple[str, ...], list[int]] = {}
            for place, values in enumerate(zip(*(_texts(self.table[name]) for name in asked), strict=True)):
                places.setdefault(values, []).append(place)
            self._known[asked] = places
        return self._known[asked].get(tuple(names.values()), [])


def _find(results: Sequence[_Places | None], entry: Row, partial: bool) -> list[pd.Series | None]:
    """The row in each result, None where it was not run; that no run of the experiment has it is a mistake or partial."""
    names = {**entry.names, "metric": entry.metric}
    experiment: dict[str, str] = {key: names[key] for key in ("experiment", "dataset") if key in names}
    ran = {
        i: result
        for i, result in enumerate(results)
        if result is not None and (result[experiment] if experiment else len(result.table))
    }
    # A profile may leave out a setting that another has. Where none has it, select says so.
    known = {i: result for i, result in ran.items() if result[names]} or ({} if partial else ran)
    return [_one(known[i], names) if i in known else None for i in range(len(results))]


def _one(result: _Places, names: Mapping[str, str]) -> pd.Series:
    places = result[names]
    return result.table.iloc[places[0]] if len(places) == 1 else select(result.table, **names)  # which says what is wrong


def _matching(table: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    for name, value in names.items():
        table = table[_texts(table[name]) == value]
    return table


def _texts(column: pd.Series) -> pd.Series:
    return column.fillna("").astype(str)


def _ours(found: pd.Series | None, as_percent: bool) -> str:
    if found is None:
        return NOT_RUN
    return estimate(found["value"], found["ci_low"], found["ci_high"], found["n"], as_percent=as_percent, whole=True)


def _difference(ours: pd.Series | None, paper: Any, as_percent: bool) -> str:
    if ours is None or paper is None or not math.isfinite(ours["value"]):
        return NOTHING
    gap = ours["value"] - paper.value
    text = f"{100 * gap:+.2f}{SPACE}points" if as_percent else f"{gap:+#.3g}"
    tolerance = getattr(paper, "tolerance", None)
    if tolerance is None or not math.isfinite(tolerance):
        return text
    limit = f"{100 * tolerance:.3g}" if as_percent else f"{tolerance:.3g}"
    return f"{text} ({'within' if abs(gap) <= tolerance + 1e-12 else 'beyond'} {limit})"
