"""Tidy results: one row a number, each with its n, its interval, and what produced it.

A row names the experiment, what was attacked, how, and the metric; ``value`` is a plain number (a fraction,
a distance), never a percentage. Names that do not apply are empty, an interval that was not computed is NaN.
Intervals are 95 % and treat the trained networks and the data split as fixed: they say how much the number
would move on other test images, not with another training run.
"""

import hashlib
import io
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from deepneighbors.errors import InputError
from deepneighbors.intervals import auc, auc_interval, bootstrap_interval, sample_of, wilson_interval

NAMES = ("experiment", "dataset", "network", "attack", "detector", "norm", "layer", "metric", "setting")
NUMBERS = ("value", "ci_low", "ci_high")
COLUMNS = (
    *("experiment", "dataset", "network", "attack", "detector", "norm", "layer", "metric"),
    *("value", "ci_low", "ci_high", "n", "seed", "setting"),
)
FRACTIONS = ("accuracy", "success", "credibility_auc", "mean_credibility")
NO_INTERVAL = (math.nan, math.nan)


def statistic_row(
    value: float, *, n: int, ci: tuple[float, float] = NO_INTERVAL, seed: int = 0, **names: str
) -> dict[str, Any]:
    """A row for any number, with the interval given.

    Args:
        value: the number; it may be NaN only when ``n`` is 0.
        n: how many cases it rests on.
        ci: lower and upper end, or NaN twice.
        seed: the seed of the run.
        names: values of the name columns, among them ``experiment`` and ``metric``. ``dataset`` is ``mnist``
            unless given.
    """
    unknown = sorted(names.keys() - set(NAMES))
    if unknown:
        raise InputError(f"The result column {unknown[0]!r} does not exist; the names are {', '.join(NAMES)}.")
    row = dict.fromkeys(COLUMNS, "") | {"dataset": "mnist"} | names
    low, high = ci
    return row | {"value": float(value), "ci_low": float(low), "ci_high": float(high), "n": n, "seed": seed}


def mean_row(
    sample: ArrayLike, *, metric: str, experiment: str, seed: int = 0, resamples: int = 1000, **names: str
) -> dict[str, Any]:
    """The mean of a sample with its 95 % interval.

    The interval is the percentile bootstrap. Where the sample holds only zeros and ones it is Wilson's
    instead, because the bootstrap of a sample without a single success has width zero, whatever its size.
    A single number that is neither has no interval. An empty sample gives NaN with n = 0.

    Args:
        sample: 1-d, finite numbers or bools, one a case.
        resamples: bootstrap samples.
        names: as in ``statistic_row``.
    """
    numbers = sample_of(sample, "sample")
    names |= {"metric": metric, "experiment": experiment}
    if numbers.size == 0:
        return statistic_row(math.nan, n=0, ci=NO_INTERVAL, seed=seed, **names)
    if np.isin(numbers, (0, 1)).all():
        ci = wilson_interval(int(numbers.sum()), numbers.size)
    elif numbers.size == 1:
        ci = NO_INTERVAL
    else:
        ci = bootstrap_interval(numbers, resamples=resamples, seed=seed)
    return statistic_row(float(numbers.mean()), n=numbers.size, ci=ci, seed=seed, **names)


def auc_row(
    clean_scores: ArrayLike,
    other_scores: ArrayLike,
    *,
    metric: str,
    experiment: str,
    seed: int = 0,
    resamples: int = 1000,
    **names: str,
) -> dict[str, Any]:
    """The AUC of telling clean from other by a score that is higher for clean, with its 95 % interval.

    The interval is the percentile bootstrap in which clean and other are drawn apart. ``n`` counts both.

    Args:
        clean_scores, other_scores: 1-d finite numbers.
        names: as in ``statistic_row``.
    """
    clean, other = sample_of(clean_scores, "clean_scores"), sample_of(other_scores, "other_scores")
    names |= {"metric": metric, "experiment": experiment}
    if clean.size == 0 or other.size == 0:
        return statistic_row(math.nan, n=0, ci=NO_INTERVAL, seed=seed, **names)
    ci = auc_interval(clean, other, resamples=resamples, seed=seed)
    return statistic_row(auc(clean, other), n=clean.size + other.size, ci=ci, seed=seed, **names)


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table in the order of the columns, checked."""
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    validate(frame)
    return frame


def validate(table: pd.DataFrame) -> None:
    """Refuse a table that is no tidy result.

    Raises:
        InputError: with the first row that is wrong, and what is allowed.
    """
    if list(table.columns) != list(COLUMNS):
        raise InputError(f"The columns of a result must be {', '.join(COLUMNS)}, not {', '.join(table.columns)}.")
    for index, row in enumerate(table.to_dict("records")):
        problem = _problem(row)
        if problem:
            raise InputError(f"Row {index} of the result ({row['experiment']}, {row['metric']}): {problem}.")
    keys = [*NAMES, "seed"]
    repeated = table[table.duplicated(keys)]
    if len(repeated):
        names = ", ".join(str(repeated.iloc[0][key]) for key in keys if repeated.iloc[0][key] != "")
        raise InputError(f"The result holds two rows with the same names ({names}).")


def _problem(row: dict[str, Any]) -> str | None:
    for name in NAMES:
        if not isinstance(row[name], str) or row[name] != row[name].strip() or not row[name].isprintable():
            return f"{name} is {row[name]!r} and must be a string on one line"
    if not row["experiment"] or not row["metric"]:
        return "experiment and metric must not be empty"
    if any(not _is_integer(row[name]) or row[name] < 0 for name in ("n", "seed")):
        return f"n is {row['n']!r} and seed {row['seed']!r}; both must be integers of at least 0"
    if any(not isinstance(row[name], float | int) for name in NUMBERS):
        return "value, ci_low and ci_high must be numbers"
    return _problem_of_numbers(row["metric"], row["n"], *(float(row[name]) for name in NUMBERS))


def _problem_of_numbers(metric: str, n: int, value: float, low: float, high: float) -> str | None:
    if not math.isfinite(value):
        return None if n == 0 and math.isnan(value) else f"the value {value} must be finite, or NaN with n = 0"
    if metric in FRACTIONS and not 0 <= value <= 1:
        return f"the value {value} of {metric} must lie in 0 to 1"
    if math.isnan(low) and math.isnan(high):
        return None
    if not (math.isfinite(low) and math.isfinite(high) and low <= value <= high):
        return f"the interval {low} to {high} must be finite and hold the value {value}"
    return None


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def to_csv(table: pd.DataFrame) -> str:
    """CSV text with six significant digits, the same for the same table on every machine."""
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def read_csv(source: str | os.PathLike | io.StringIO) -> pd.DataFrame:
    """A checked table from a CSV file that ``to_csv`` wrote."""
    try:
        frame = pd.read_csv(
            source,
            dtype={name: str for name in NAMES},
            keep_default_na=False,
            na_values={name: [""] for name in NUMBERS},
        )
        frame = frame.astype({name: float for name in NUMBERS})
        validate(frame)
    except (ValueError, KeyError) as error:
        what = os.fspath(source) if isinstance(source, str | os.PathLike) else "The text"
        raise InputError(f"{what} is no result: {error}") from error
    return frame


@dataclass(frozen=True)
class Result:
    """A named table with the arrays that its figures are drawn from, and where both come from.

    The table is checked, and rounded to the six digits that are kept on disk, so that a result is the same
    before and after ``save``.
    """

    name: str
    table: pd.DataFrame
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        validate(self.table)
        object.__setattr__(self, "table", read_csv(io.StringIO(to_csv(self.table))))
        for name, array in self.arrays.items():
            if np.asarray(array).dtype.hasobject:
                raise InputError(f"The array {name!r} of {self.name} holds Python objects, and must hold numbers.")

    def save(self, folder: str | os.PathLike) -> None:
        """Write ``<name>.csv``, ``<name>.npz`` when there are arrays, and last ``<name>.json``.

        Each file is replaced as a whole. The JSON holds the provenance and the SHA-256 of the other two.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = {f"{self.name}.csv": to_csv(self.table).encode()}
        if self.arrays:
            files[f"{self.name}.npz"] = _npz_bytes(self.arrays)
        checksums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        document = {"name": self.name, "files": checksums, "provenance": self.provenance}
        files[f"{self.name}.json"] = (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
        for name, data in files.items():
            _replace_file(folder / name, data)
        if not self.arrays:
            (folder / f"{self.name}.npz").unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | os.PathLike, name: str) -> "Result":
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such result.
            InputError: its files do not belong together.
        """
        folder = Path(folder)
        document = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        files = {file: (folder / file).read_bytes() for file in document["files"]}
        for file, data in files.items():
            if hashlib.sha256(data).hexdigest() != document["files"][file]:
                raise InputError(f"{folder / file} does not belong to {name}.json; run the experiment again.")
        arrays = _npz_arrays(files[f"{name}.npz"]) if f"{name}.npz" in files else {}
        text = io.StringIO(files[f"{name}.csv"].decode())
        return cls(name, read_csv(text), arrays, document["provenance"])


def read_all(folder: str | os.PathLike) -> pd.DataFrame:
    """All results below a folder as one table, by path; empty when there are none."""
    frames = [read_csv(path) for path in sorted(Path(folder).rglob("*.csv"))]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(COLUMNS))


def _npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: np.asarray(arrays[name]) for name in sorted(arrays)})  # type: ignore
    return buffer.getvalue()


def _npz_arrays(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _replace_file(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
