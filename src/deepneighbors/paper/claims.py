"""The papers' claims, each with the query on results that decides it.

A query is an expression of a small language, read with :mod:`ast` and never executed. Parts joined by ``and`` are

- ``A < B``, also ``<=``, ``>``, ``>=``, where a side is a number, ``value(...)``, ``min(...)`` or ``max(...)``;
- ``within(A, target, tolerance)``: ``A`` differs from the number ``target`` by at most ``tolerance``.

``value(experiment='knn_attack', network='knn', attack='mean', norm='l2', metric='accuracy')`` is the one row of the tidy
results with these names; names that are left out are empty, and the dataset is ``mnist``.

A part is decided by intervals. It is true or false only when every combination of numbers in the 95 % intervals of its
values says so, and undecided otherwise; a value without an interval decides nothing. All parts true: the claim holds. No
part true and one false: it does not hold. True parts beside false or undecided ones: it holds in part. Where no part is
decided, a value was not run, or no number decides the sentence, the claim is not tested.
"""

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import pandas as pd

from deepneighbors.errors import InputError
from deepneighbors.report import tables
from deepneighbors.results import NAMES

VERDICTS = ("holds", "holds in part", "does not hold", "not tested")
COLUMNS = ("id", "paper", "chapter", "place", "sentence", "query", "note")
_SIGNS: dict[type, str] = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_PICK: dict[str, Callable[..., float]] = {"min": min, "max": max}
_TRUTH = {True: "true", False: "false", None: "undecided"}


class NotRun(LookupError):
    """No result holds a value that a query asks for."""


@dataclass(frozen=True)
class Claim:
    """A sentence that a paper claims, in our words; ``note`` says how the query reads it."""

    id: str
    paper: str
    chapter: str
    place: str
    sentence: str
    query: str = ""
    note: str = ""


@dataclass(frozen=True)
class Estimate:
    """An interval of the results, and how the page names it."""

    low: float
    high: float
    text: str


@cache
def all_claims() -> tuple[Claim, ...]:
    """Every claim, in the order of the file."""
    source = resources.files(__package__) / "data" / "claims.csv"
    with source.open(encoding="utf-8") as file:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    return tuple(Claim(**{name: row[name] for name in COLUMNS}) for row in frame.to_dict("records"))


def evaluate(results: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Decide every claim.

    Parameters
    ----------
    results
        Tidy results by profile, the preferred first. A claim is decided by the first profile that has all its values.

    Returns
    -------
    DataFrame
        Columns claim, paper, place, verdict (one of ``VERDICTS``) and evidence, one row a claim.
    """
    rows = [(claim.sentence, claim.paper, claim.place, *decide(claim, results)) for claim in all_claims()]
    return pd.DataFrame(rows, columns=["claim", "paper", "place", "verdict", "evidence"])


def decide(claim: Claim, results: Mapping[str, pd.DataFrame]) -> tuple[str, str]:
    """Verdict and evidence of one claim; the evidence names each part's values, intervals and n.

    Raises:
        InputError: the query is not of the language, or names more than one result.
    """
    if not claim.query:
        return "not tested", claim.note
    missing = ""
    for profile, table in results.items():
        try:
            parts = [_decide_part(part, table) for part in parse(claim.query)]
        except NotRun as error:
            missing = missing or str(error)
            continue
        texts = "; ".join(f"{text}: {_TRUTH[truth]}" for truth, text in parts)
        return _combine([truth for truth, _ in parts]), f"{claim.note} {texts} ({profile} profile)".strip()
    return "not tested", f"Not run: {missing}" if missing else ""


def parse(query: str) -> list[ast.expr]:
    """The parts of a query that ``and`` joins, checked to be of the language.

    Raises:
        InputError: with the part that is not allowed.
    """
    try:
        tree = ast.parse(query, mode="eval").body
    except SyntaxError as error:
        raise InputError(f"the query {query!r} cannot be read: {error.msg}") from error
    parts = tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]
    for part in parts:
        _check_part(part)
    return parts


def selectors(query: str) -> list[dict[str, str]]:
    """The names of each ``value(...)`` of a query, as written."""
    found = (node for part in parse(query) for node in ast.walk(part))
    return [_names(node) for node in found if isinstance(node, ast.Call) and _called(node) == "value"]


def _combine(truths: list[bool | None]) -> str:
    decided = {truth for truth in truths if truth is not None}
    if not decided:
        return "not tested"
    if decided == {False}:
        return "does not hold"
    return "holds" if None not in truths and decided == {True} else "holds in part"


def _check_part(part: ast.expr) -> None:
    if isinstance(part, ast.Compare) and len(part.ops) == 1 and type(part.ops[0]) in _SIGNS:
        operands = [part.left, part.comparators[0]]
    elif isinstance(part, ast.Call) and _called(part) == "within" and len(part.args) == 3 and not part.keywords:
        operands = [part.args[0]]
        if not all(_is_number(argument) for argument in part.args[1:]):
            raise _refused(part, "the last two arguments of within must be numbers")
    else:
        raise _refused(part, "a part must be one comparison or within(value, target, tolerance)")
    for operand in operands:
        _check_operand(operand)


def _check_operand(node: ast.expr) -> None:
    if _is_number(node):
        return
    name = _called(node)
    if isinstance(node, ast.Call) and name in _PICK and node.args and not node.keywords:
        for argument in node.args:
            _check_operand(argument)
    elif isinstance(node, ast.Call) and name == "value" and not node.args:
        if unknown := sorted(_names(node).keys() - set(NAMES)):
            raise _refused(node, f"results have no name {unknown[0]!r}; allowed are {', '.join(NAMES)}")
    else:
        raise _refused(node, "allowed are numbers, value(name='...'), min(...) and max(...)")


def _decide_part(part: ast.expr, table: pd.DataFrame) -> tuple[bool | None, str]:
    """Truth (None: undecided) and text of one part."""
    if isinstance(part, ast.Call):
        found = _estimate(part.args[0], table)
        target, tolerance = _number(part.args[1]), _number(part.args[2])
        return _within(found, target, tolerance), f"{found.text} within {tolerance:g} of {target:g}"
    assert isinstance(part, ast.Compare)
    sign = _SIGNS[type(part.ops[0])]
    left, right = _estimate(part.left, table), _estimate(part.comparators[0], table)
    lesser, greater = (left, right) if "<" in sign else (right, left)
    return _less(lesser, greater, strict="=" not in sign), f"{left.text} {sign} {right.text}"


def _less(left: Estimate, right: Estimate, *, strict: bool) -> bool | None:
    if left.high < right.low or (not strict and left.high == right.low):
        return True
    return False if left.low > right.high or (strict and left.low == right.high) else None


def _within(found: Estimate, target: float, tolerance: float) -> bool | None:
    slack = tolerance + 1e-12
    if target - slack <= found.low and found.high <= target + slack:
        return True
    return False if found.high < target - slack or found.low > target + slack else None


def _estimate(node: ast.expr, table: pd.DataFrame) -> Estimate:
    if isinstance(node, ast.Constant):
        return Estimate(_number(node), _number(node), f"{_number(node):g}")
    assert isinstance(node, ast.Call)
    name = _called(node)
    if name == "value":
        return _value(table, _names(node))
    parts = [_estimate(argument, table) for argument in node.args]
    low, high = _PICK[name](part.low for part in parts), _PICK[name](part.high for part in parts)
    return Estimate(low, high, f"{name} of ({', '.join(part.text for part in parts)})")


def _value(table: pd.DataFrame, names: Mapping[str, str]) -> Estimate:
    """The one row of these names; without an interval it lies anywhere."""
    asked = dict.fromkeys(NAMES, "") | {"dataset": "mnist"} | dict(names)
    words = ", ".join(names.values())
    for name, value in asked.items():
        table = table[table[name] == value]
    if len(table) > 1:
        raise InputError(f"{len(table)} results are called {words}; a claim needs one")
    if table.empty or not math.isfinite(table.iloc[0]["value"]):
        raise NotRun(words)
    row = table.iloc[0]
    numbers = tuple(float(row[column]) for column in ("value", "ci_low", "ci_high", "n"))
    shown = tables.estimate(*numbers, as_percent=tables.percent(asked["metric"]))
    label = " ".join(filter(None, (asked["attack"].replace("_", " "), f"on `{asked['network']}`", asked["setting"])))
    low, high = (-math.inf, math.inf) if math.isnan(numbers[1]) else numbers[1:3]
    return Estimate(low, high, f"{asked['metric'].replace('_', ' ')} of {label} {shown}")


def _names(node: ast.Call) -> dict[str, str]:
    found = {}
    for keyword in node.keywords:
        if keyword.arg is None or not isinstance(keyword.value, ast.Constant) or not isinstance(keyword.value.value, str):
            raise _refused(node, "value takes names as name='text'")
        found[keyword.arg] = keyword.value.value
    return found


def _called(node: ast.expr) -> str:
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _number(node: ast.expr) -> float:
    assert isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    return float(node.value)


def _refused(node: ast.expr, why: str) -> InputError:
    return InputError(f"the query has {ast.unparse(node)!r}; {why}")
