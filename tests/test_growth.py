"""The page on the cost of growth, on numbers that grow by known laws."""

import json

import numpy as np
import pytest

from deepneighbors import plan, results
from deepneighbors.experiments import Run
from deepneighbors.report import growth

SIZES = (1_000, 10_000, 100_000)


def measured(exponent=1.0, gib=1e-5):
    rows = []
    for size in SIZES:
        names = {"experiment": "growth", "detector": "exact_search", "setting": f"points={size}"}
        for metric, value in (
            ("seconds_per_query", 2e-6 * size**exponent), ("fit_seconds", 1.0), ("memory_gib", gib * size),
        ):  # fmt: skip
            rows.append(results.statistic_row(value, n=100, metric=metric, **names))
    return results.table(rows)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_slope_is_the_exponent(exponent):
    points, values = growth.curves(measured(exponent), "seconds_per_query")["exact_search"]
    assert points.tolist() == list(SIZES)
    assert growth.slope(points, values) == pytest.approx(exponent, abs=1e-4)
    assert np.isnan(growth.slope(points[:2], values[:2]))  # one size from 10,000 points on


def test_a_machine_ends_where_its_memory_does():
    (line,) = growth.summary(measured(), memory_gib=24.0).to_dict("records")
    assert line["Largest size"] == "100,000" and line["Memory"] == "1.0 GiB" and line["Preparation"] == "1.0 s"
    assert float(line["24 GiB end at"]) == pytest.approx(24e5)
    assert line["A query"] == "200 ms" and line["Recall"] == "-"
    (small,) = growth.summary(measured(gib=1e-9)).to_dict("records")
    assert small["24 GiB end at"] == "-"  # nothing that can be told from what a process holds anyway


def test_machines_are_simulated_from_recorded_costs(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPNEIGHBORS_RECORDED", str(tmp_path))
    run = Run("poisoning_ila", profile="full", device="cpu")
    assert growth.on_machines([run])["Machines"].tolist() == [growth.NOT_RUN]
    nodes = plan.nodes_of(run)
    spent = {node.stage.name: {"count": 2, "seconds": 20.0} for node in nodes}
    (tmp_path / "poisoning_ila").mkdir()
    (tmp_path / "poisoning_ila" / "defences.json").write_text(json.dumps({"provenance": {"stages": spent}}))
    frame = growth.on_machines([run], (1, 4))
    assert frame["Machines"].tolist() == ["1", "4"]
    assert frame["Wall time"][0] == f"{10 * len(nodes) / 3600:.1f} h"
    assert 1 < float(frame["Speed-up"][1]) <= 4
