"""Tables of the book: MyST directives for the page, plain HTML for Jupyter and Colab.

A cell holds inline Markdown. :func:`grid` shows any data frame; :mod:`deepneighbors.report.comparison` puts the paper's
values beside ours.
"""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from deepneighbors.errors import InputError

NOT_RUN = "*not\N{NO-BREAK SPACE}run*"
NOTHING = "-"
_PERCENT = re.compile(r"(^|_)(accuracy|success|auc|rate|share|kept|rejected|accepted|coverage)(_|$)")
SPACE = "\N{NO-BREAK SPACE}"


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
        return f"{NOTHING} n{SPACE}={SPACE}{_count(n)}"
    text = number(value, as_percent=as_percent, n=n) + (f"{SPACE}%" if as_percent else "")
    if math.isfinite(low) and math.isfinite(high):
        ends = (number(end, as_percent=as_percent, n=n) for end in (low, high))
        between = f",{SPACE}" if whole else ", "
        text += f" [{between.join(ends)}]"
    return f"{text} n{SPACE}={SPACE}{_count(n)}"


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
