"""Tables of the book: MyST directives for the page, plain HTML for Jupyter and Colab.

A cell holds inline Markdown. :func:`compare` puts the paper's value beside ours; :func:`grid` shows any data
frame.
"""

import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from deepneighbors.errors import InputError

NOT_RUN = "*not\N{NO-BREAK SPACE}run*"
NOTHING = "-"
RECALLED = "†"
OUTDATED = "‡"
KINDS = ("percent", "plain")
NAMES = ("experiment", "dataset", "network", "attack", "detector", "norm", "layer", "metric", "setting")
_PERCENT = re.compile(r"(^|_)(accuracy|success|auc|rate|share|kept|rejected|accepted|coverage)(_|$)")
_SPACE = "\N{NO-BREAK SPACE}"
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
class Table:
    """A numbered table: ``header`` and ``rows`` of inline Markdown, a caption, a label for references."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    name: str
    notes: Sequence[str] = ()
    align: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_label(self.name, self.caption)
        for row in self.rows:
            if len(row) != len(self.header):
                raise InputError(f"a row of table {self.name!r} has {len(row)} cells; the header has {len(self.header)}")

    def markdown(self) -> str:
        """The MyST directive, with the notes below it."""
        align = list(self.align) or ["left"] * len(self.header)
        rule = ["---:" if side == "right" else "---" for side in align]
        lines = [_line(self.header), _line(rule, escape=False), *map(_line, self.rows)]
        # Tildes: the line that opens a fence of backticks may hold no other backtick, and captions do.
        directive = [f"~~~{{table}} {one_line(self.caption)}", f":name: {self.name}", "", *lines, "~~~"]
        notes = [f"```{{container}} table-note\n{one_line(note)}\n```" for note in self.notes]
        return "\n\n".join(["\n".join(directive), *notes]) + "\n"

    def html(self) -> str:
        """The same table for a notebook that does not know MyST."""
        head = "".join(f"<th>{inline_html(cell)}</th>" for cell in self.header)
        body = "".join("<tr>" + "".join(f"<td>{inline_html(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        notes = "".join(f"<p><small>{inline_html(note)}</small></p>" for note in self.notes)
        caption = f"<caption>{inline_html(self.caption)}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"

    def __str__(self) -> str:
        return "\n".join([self.caption, *("  ".join(row) for row in [self.header, *self.rows]), *self.notes])

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/markdown": self.markdown(), "text/html": self.html(), "text/plain": str(self)}


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
    full profile and shows what full does.

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
    if profile == "full" and all(line[ours].removesuffix(OUTDATED) == line[again] for line in lines):
        left_out.add(again)
    kept = [place for place in range(len(header)) if place not in left_out]
    header, align, *lines = ([line[place] for place in kept] for line in (header, align, *lines))
    return Table(header, lines, caption, name, notes, align)


def grid(frame: pd.DataFrame, *, caption: str, name: str, notes: Sequence[str] = (), align: Sequence[str] = ()) -> Table:
    """Any data frame as a numbered table: its columns are the header, the index is not shown."""
    rows = [[_cell(value) for value in line] for line in frame.itertuples(index=False, name=None)]
    numeric = ["right" if pd.api.types.is_numeric_dtype(kind) else "left" for kind in frame.dtypes]
    return Table([str(column) for column in frame.columns], rows, caption, name, notes, align or numeric)


def percent(metric: str, kind: str = "") -> bool:
    """Whether the page shows this metric in percent; the files always hold fractions."""
    return kind == "percent" if kind else bool(_PERCENT.search(metric))


def number(value: float, *, as_percent: bool = False, n: float = 0) -> str:
    """Ours: percent with one decimal (two from n = 1,000), anything else with three significant digits."""
    if not math.isfinite(value):
        return NOTHING
    if as_percent:
        return f"{100 * value:.{2 if n >= 1000 else 1}f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def estimate(value: float, low: float, high: float, n: float, *, as_percent: bool = False, whole: bool = False) -> str:
    """``95.74 % [95.31, 96.14] n = 9,250``; parts that are missing are left out.

    An interval stays on one line where it is ``whole``; where columns are many it has to break.
    """
    if not math.isfinite(value):
        return f"{NOTHING} n{_SPACE}={_SPACE}{_count(n)}"
    text = number(value, as_percent=as_percent, n=n) + (f"{_SPACE}%" if as_percent else "")
    if math.isfinite(low) and math.isfinite(high):
        ends = (number(end, as_percent=as_percent, n=n) for end in (low, high))
        between = f",{_SPACE}" if whole else ", "
        text += f" [{between.join(ends)}]"
    return f"{text} n{_SPACE}={_SPACE}{_count(n)}"


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
    text = f"{100 * paper.value:.4g}{_SPACE}%" if as_percent else f"{paper.value:.4g}"
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
    text = f"{100 * gap:+.2f}{_SPACE}points" if as_percent else f"{gap:+#.3g}"
    tolerance = getattr(paper, "tolerance", None)
    if tolerance is None or not math.isfinite(tolerance):
        return text
    limit = f"{100 * tolerance:.3g}" if as_percent else f"{tolerance:.3g}"
    return f"{text} ({'within' if abs(gap) <= tolerance + 1e-12 else 'beyond'} {limit})"


def _count(n: float) -> str:
    return f"{int(n):,}" if math.isfinite(n) else "?"


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    return number(value) if isinstance(value, float) else str(value)


def _line(cells: Sequence[str], escape: bool = True) -> str:
    texts = [one_line(cell).replace("|", "\\|") if escape else cell for cell in cells]
    return f"| {' | '.join(texts)} |"


def one_line(text: str) -> str:
    """Text for a directive's argument or a table's cell: one line, single spaces; no-break spaces stay."""
    return re.sub(r"[ \t\r\n]+", " ", text).strip()


def check_label(name: str, caption: str) -> None:
    """Refuse a label that cannot be referred to, and an empty caption."""
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise InputError(f"the label {name!r} is not allowed; use lower-case letters, digits and hyphens")
    if not caption.strip():
        raise InputError(f"{name!r} has no caption; each table and figure needs one")


def inline_html(text: str) -> str:
    """The little of Markdown that captions and cells use, as HTML: roles, code, strong, emphasis, links."""
    text = html.escape(one_line(text), quote=False)
    text = re.sub(r"\{[\w:.-]+\}`([^`]+)`", r"\1", text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"\*([^*]+)\*", r"<em>\1</em>", text)
    return re.sub(r"\[([^\]]+)\]\((https?://[^)\s]+)\)", r'<a href="\2">\1</a>', text)
