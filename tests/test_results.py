"""Intervals against closed forms and simulation, the AUC against all pairs, and results through the disk."""

import math

import numpy as np
import pandas as pd
import pytest

from deepneighbors import results
from deepneighbors.errors import InputError
from deepneighbors.intervals import auc, auc_interval, bootstrap_interval, wilson_interval
from deepneighbors.results import Result, auc_row, mean_row, statistic_row

NAMES = {
    "experiment": "knn_attack",
    "metric": "mean_l2",
    "network": "knn",
    "attack": "gradient",
    "norm": "l2",
}


def test_bootstrap_covers_the_mean_of_a_normal_as_often_as_it_says():
    generator = np.random.default_rng(1)
    samples = generator.normal(3, 2, size=(400, 100))
    ends = np.array([bootstrap_interval(row, seed=i) for i, row in enumerate(samples)])
    covered = ((ends[:, 0] <= 3) & (ends[:, 1] >= 3)).mean()
    assert 0.91 <= covered <= 0.98  # 95 %, with a standard error of 1.1 points
    # The width is that of the normal interval, within the spread of 100 draws.
    assert np.median(ends[:, 1] - ends[:, 0]) == pytest.approx(2 * 1.96 * 2 / 10, rel=0.05)


def test_bootstrap_does_not_depend_on_its_blocks(monkeypatch):
    sample = np.random.default_rng(0).gamma(2, size=50)
    whole = bootstrap_interval(sample, resamples=300)
    monkeypatch.setattr("deepneighbors.intervals._CELLS", 700)
    assert bootstrap_interval(sample, resamples=300) == whole


@pytest.mark.parametrize(
    "successes, n, expected",  # Newcombe (1998), table I, score method without continuity correction
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_matches_published_values(successes, n, expected):
    assert wilson_interval(successes, n) == pytest.approx(expected, abs=5e-5)


def test_wilson_ends_solve_the_score_equation():
    for end in wilson_interval(7, 50):
        assert abs(0.14 - end) / math.sqrt(end * (1 - end) / 50) == pytest.approx(1.959964, rel=1e-6)


@pytest.mark.parametrize("levels", [3, 10**6])  # many ties, and none
def test_auc_matches_all_pairs(levels):
    generator = np.random.default_rng(levels)
    clean, other = generator.integers(levels, size=80) + levels // 5, generator.integers(levels, size=60)
    differences = clean[:, None] - other[None, :]
    expected = (differences > 0).mean() + (differences == 0).mean() / 2
    assert auc(clean, other) == pytest.approx(expected, abs=1e-12)
    assert auc(other, clean) == pytest.approx(1 - expected, abs=1e-12)


def test_auc_interval_has_the_width_of_the_normal_theory():
    generator = np.random.default_rng(3)
    clean, other = generator.normal(1, 1, 400), generator.normal(0, 1, 400)
    low, high = auc_interval(clean, other)
    a = auc(clean, other)
    # Hanley & McNeil (1982), eq. 1
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = math.sqrt((a * (1 - a) + 399 * (q1 - a * a) + 399 * (q2 - a * a)) / 400**2)
    assert low < a < high
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_mean_row_chooses_the_interval_by_the_sample():
    zeros = mean_row(np.zeros(20, bool), **NAMES | {"metric": "accuracy"})
    assert (zeros["value"], zeros["n"]) == (0, 20)
    assert (zeros["ci_low"], zeros["ci_high"]) == pytest.approx((0, 0.1611), abs=5e-5)
    lengths = mean_row([1.5, 2.5, 3.5], **NAMES)
    assert lengths["value"] == 2.5 and 1.5 <= lengths["ci_low"] < 2.5 < lengths["ci_high"] <= 3.5
    single = mean_row([2.5], **NAMES)
    assert single["value"] == 2.5 and math.isnan(single["ci_low"])
    empty = mean_row([], **NAMES)
    assert math.isnan(empty["value"]) and empty["n"] == 0
    results.table([zeros, lengths, single | {"setting": "one"}, empty | {"setting": "none"}])


@pytest.mark.parametrize(
    "sample, sentence", [([1.0, math.nan], "index 1"), ([[1.0]], "one dimension"), ([math.inf], "index 0")]
)
def test_samples_that_are_no_numbers_are_refused(sample, sentence):
    with pytest.raises(InputError, match=sentence):
        mean_row(sample, **NAMES)


def test_unknown_name_is_refused():
    with pytest.raises(InputError, match="'netwrok'.*network"):
        statistic_row(1, n=1, netwrok="knn", **NAMES)


def _table():
    rows = [
        mean_row(np.random.default_rng(0).gamma(2, size=40), **NAMES),
        mean_row([True, False, True], **NAMES | {"metric": "accuracy"}, seed=3),
        mean_row([], **NAMES | {"metric": "success", "attack": "none"}, setting="epsilon=0.2"),
        auc_row([0.9, 0.8], [0.1, 0.9], **NAMES | {"metric": "credibility_auc"}),
        statistic_row(1 / 3, n=7, **NAMES | {"layer": "conv1"}),
    ]
    return results.table(rows)


@pytest.mark.parametrize(
    "column, value, sentence",
    [
        ("value", math.inf, "finite"),
        ("value", math.nan, "n = 0"),
        ("ci_low", 1e6, "interval"),
        ("ci_high", math.nan, "interval"),
        ("n", -1, "at least 0"),
        ("metric", "", "empty"),
        ("network", "a\nb", "one line"),
    ],
)
def test_rows_that_are_wrong_are_refused(column, value, sentence):
    table = _table()
    table.loc[0, column] = value
    with pytest.raises(InputError, match=f"Row 0 .*{sentence}"):
        results.validate(table)


def test_fractions_columns_and_repeats_are_checked():
    table = _table()
    with pytest.raises(InputError, match="0 to 1"):
        results.table([statistic_row(98.8, n=10, **NAMES | {"metric": "accuracy"})])
    with pytest.raises(InputError, match="columns"):
        results.validate(table.drop(columns="setting"))
    with pytest.raises(InputError, match="same names.*gradient"):
        results.validate(pd.concat([table, table.iloc[:1]]))


def _result(**changes):
    parts = {
        "name": "knn_attack",
        "table": _table(),
        "arrays": {"b": np.eye(2), "a": np.arange(3, dtype=np.uint8)},
        "provenance": {"commit": "abc", "config": {"k": 5}, "seconds": 1.5},
    }
    return Result(**parts | changes)


def test_a_result_is_the_same_after_the_disk(tmp_path):
    result = _result()
    result.save(tmp_path)
    loaded = Result.load(tmp_path, "knn_attack")
    pd.testing.assert_frame_equal(loaded.table, result.table)
    assert loaded.provenance == result.provenance
    assert loaded.arrays.keys() == result.arrays.keys()
    for name, array in result.arrays.items():
        assert loaded.arrays[name].dtype == array.dtype and (loaded.arrays[name] == array).all()
    pd.testing.assert_frame_equal(results.read_all(tmp_path), result.table)


def test_saving_again_gives_the_same_bytes_and_leaves_nothing_else(tmp_path):
    _result().save(tmp_path / "one")
    Result.load(tmp_path / "one", "knn_attack").save(tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["knn_attack.csv", "knn_attack.json", "knn_attack.npz"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    _result(arrays={}).save(tmp_path / "one")
    assert not (tmp_path / "one" / "knn_attack.npz").exists()


@pytest.mark.parametrize("file", ["knn_attack.csv", "knn_attack.npz"])
def test_files_that_do_not_belong_together_are_refused(tmp_path, file):
    _result().save(tmp_path)
    path = tmp_path / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=file):
        Result.load(tmp_path, "knn_attack")


def test_no_pickles_and_no_foreign_tables(tmp_path):
    with pytest.raises(InputError, match="'bad'"):
        _result(arrays={"bad": np.array([{}])})
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="other.csv"):
        results.read_all(tmp_path)
    assert list(results.read_all(tmp_path / "nowhere").columns) == list(results.COLUMNS)
