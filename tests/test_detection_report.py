"""Tables of chapter 2: the paper's number stands in its cell, a missing result is *not run*, and settings are compared."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from deepneighbors.experiments import Run
from deepneighbors.report import detection_figures, detection_tables
from deepneighbors.report.detection_tables import (
    NOT_RUN,
    ablation,
    attack_sizes,
    by_method,
    chosen,
    data_words,
    matrix,
    reference,
    without_empty,
)
from deepneighbors.report.figures import Canvas
from deepneighbors.report.notebook import NotRun
from deepneighbors.report.settings import unlike
from deepneighbors.results import Result, auc_row, mean_row, statistic_row, table

NAMES = {"experiment": "nnif", "dataset": "cifar10", "network": reference("clean"), "attack": "cw", "layer": "embedding"}
LINES = [("nnif", "embedding", "NNIF"), ("lid", "embedding", "LID")]


def result(rows, config=None):
    return Result("detection", table(rows), {}, {"config": config or {}})


@pytest.fixture
def known():
    clean, attacked = np.array([0.9, 0.8, 0.7, 0.2]), np.array([0.1, 0.3, 0.6, 0.1])
    return result([
        auc_row(clean, attacked, metric="auc", detector="nnif", **NAMES),
        statistic_row(50, n=4, metric="chosen", detector="nnif", **NAMES),
        statistic_row(0.002, n=8, metric="seconds_per_query", detector="nnif", **NAMES),
        mean_row([0.5, 1.0, 0.9], metric="recall", detector="nnif", **NAMES),
    ])  # fmt: skip


def test_a_matrix_has_the_papers_number_and_ours_in_the_column_of_the_attack(known):
    frame = matrix([("ours", known, "clean"), ("faithful", known, "faithful")], dataset="cifar10", lines=LINES)
    assert list(frame.columns[:2]) == ["Detector", "Source"] and frame.columns[5] == "CW"
    paper, ours, faithful = (frame.iloc[i] for i in range(3))
    assert paper["CW"].startswith("99.05") or paper["CW"].startswith("99.0")  # the paper's figure 2
    assert ours["CW"].startswith("87.5") and ours["CW"].endswith("8")  # 14 of 16 pairs in order, n = 8
    assert ours["FGSM"] == "-" and set(faithful[2:]) == {NOT_RUN}
    assert frame.iloc[4]["CW"] == "-"  # LID was not among the detectors of this result
    bare = matrix([("ours", known, "clean")], dataset="cifar10", lines=LINES, in_paper=False)
    assert list(without_empty(bare).columns) == ["Detector", "Source", "CW"]


def test_the_paper_has_no_line_where_it_has_no_number_and_no_image_is_a_dash():
    nothing = result([statistic_row(float("nan"), n=0, metric="auc", detector="nnif", **NAMES, setting="successful")])
    frame = matrix([("ours", nothing, "clean")], dataset="cifar10", lines=LINES[:1], setting="successful")
    assert list(frame["Source"]) == ["ours"] and frame["CW"].iloc[0].replace("\u00a0", " ") == "- n = 0"


def test_attack_sizes_have_the_share_of_successes_and_the_means():
    names = NAMES | {"layer": ""}
    rows = [
        mean_row([1, 1, 0, 1], metric="success", **names),
        mean_row([1, 0, 0, 1], metric="target_rate", **names),
        mean_row([0.25, 0.75], metric="mean_l2", **names),
    ]
    frame = attack_sizes([("ours", result(rows), "clean"), ("none", NotRun("attacks"), "clean")], dataset="cifar10")
    ours, none = (frame[(frame["Attack"] == "CW") & (frame["Source"] == source)].iloc[0] for source in ("ours", "none"))
    assert ours["Label changed %"].startswith("75.0 [") and ours["Target hit %"].startswith("50.0 [")
    assert ours["L2 if changed"] == "0.500" and ours["L0"] == "-"
    assert none["Label changed %"] == NOT_RUN and none["L2 if changed"] == "-"
    assert len(frame) == 12


def test_the_ablation_has_a_line_a_choice_and_the_papers_number_beside_ours():
    clean, attacked = np.array([0.9, 0.8, 0.7, 0.2]), np.array([0.1, 0.3, 0.6, 0.1])
    names = NAMES | {"attack": "deepfool", "detector": "nnif", "setting": "features=0110"}
    ours = result([auc_row(clean, attacked, metric="auc", **names), mean_row([1, 1, 1, 0], metric="accuracy", **names)])
    frame = ablation([("full", ours, "clean")], dataset="cifar10", in_paper=True).set_index("Features")
    assert len(frame) == 15 and frame.loc["D↑ R↓"].tolist()[0::2] == ["99.79", "99.29"]
    assert frame.loc["D↑ R↓", "AUC, full"].startswith("87.5 [") and frame.loc["D↑ R↓", "accuracy, full"].startswith("75.0 [")
    assert frame.loc["R↑", "AUC, full"] == "-"


def test_a_set_that_is_not_the_official_one_says_what_tested_it():
    def on(images):
        return Result("attacks", table([statistic_row(1, n=1, metric="success", **NAMES)]), {}, {"data_images": images})

    assert data_words("svhn", on([42_000, 10_000])) == "SVHN (tested on 10,000 images held out of the official training set)"
    assert data_words("svhn", on([73_257, 26_032])) == data_words("svhn", NotRun("attacks")) == "SVHN"
    assert data_words("cifar10", on([50_000, 10_000])) == "CIFAR-10"


def test_another_data_set_or_no_result_is_not_run(known):
    frame = matrix([("ours", known, "clean"), ("none", NotRun("detection"), "clean")], dataset="svhn", lines=LINES[:1])
    assert set(frame.iloc[1, 2:]) == set(frame.iloc[2, 2:]) == {NOT_RUN}
    assert frame.iloc[0]["FGSM"].startswith("91.0")
    bare = matrix([("ours", known, "clean")], dataset="mnist", lines=LINES[:1], in_paper=False)
    assert list(bare["Source"]) == ["ours"]


def test_what_was_chosen_and_what_a_method_costs(known):
    frame = chosen(known, "clean")
    assert frame.to_numpy().tolist() == [["NNIF", "embedding", "-", "-", "-", "50", "-", "-"]]
    (line,) = by_method(known, "clean").to_numpy().tolist()
    assert line[:3] == ["NNIF", "-", "CW"] and line[6:8] == ["2", "-"] and line[8].startswith("80.0")
    assert chosen(NotRun("detection"), "clean").empty and by_method(NotRun("fast"), "clean").to_numpy().tolist() == [
        [NOT_RUN]
    ]


def test_only_settings_that_differ_are_listed(known):
    full = Run("nnif_detection", profile="full", device="cpu")
    lowered = replace(full.settings, epochs=30, sizes=(10, 50))
    recorded = result([statistic_row(1.0, n=1, metric="auc", **NAMES)], {**vars(lowered), "sizes": [10, 50], "seed": 0})
    frame = unlike({"detection": recorded, "views": recorded, "fast": NotRun("fast")}, full)
    assert frame.set_index("setting")["recorded"].to_dict() == {"epochs": "30", "sizes": "10, 50"}
    assert set(frame["of"]) == {"all"}
    known = result([statistic_row(1.0, n=1, metric="auc", **NAMES)], {**vars(full.settings), "epochs": 60})
    names = unlike({"detection": recorded, "views": recorded, "attacks": recorded, "gallery": known}, full)
    assert names.set_index(["setting", "recorded"])["of"].to_dict() == {
        ("epochs", "30"): "all but gallery",
        ("epochs", "60"): "gallery",
        ("sizes", "10, 50"): "all but gallery",
    }
    assert unlike({"detection": NotRun("detection")}, full).empty


def test_settings_of_one_experiment_are_compared_with_its_own():
    full = Run("poisoning_ila", profile="full", device="cpu")
    recorded = result([statistic_row(1.0, n=1, metric="auc", **NAMES)], vars(full.of("defences").settings))
    assert full.of("defences").settings.cnn_images < full.settings.cnn_images
    assert unlike({"defences": recorded}, full).empty
    assert "cnn_images" in set(unlike({"mixtures": recorded}, full)["setting"])


def test_a_setting_that_is_no_more_is_listed_and_one_that_is_new_is_not():
    full = Run("poisoning_ila", profile="full", device="cpu")
    config = dict(vars(full.of("defences").settings), cnn_precision="bfloat16", seed=0, profile="full")
    config.pop("ila_samples")
    recorded = result([statistic_row(1.0, n=1, metric="auc", **NAMES)], config)
    assert unlike({"defences": recorded}, full).to_numpy().tolist() == [["cnn_precision", "-", "bfloat16", "defences"]]


def test_a_bar_ends_at_the_auc_and_a_loss_by_all_layers_is_a_dash():
    heights = {
        ("nnif", "embedding", "cw"): 0.9,
        ("nnif", "all", "cw"): 0.8,
        ("lid", "embedding", "cw"): 0.7,
        ("lid", "all", "cw"): 0.75,
    }
    canvas = Canvas(dark=False)
    detection_figures.bars(canvas, [("ours", heights)])
    (axis,) = canvas.figure.axes
    tops = sorted(round(bar.get_y() + bar.get_height(), 3) for bar in axis.patches)
    assert tops == [0.7, 0.75, 0.9]
    assert [round(line.get_ydata()[0], 3) for line in axis.lines if len(line.get_xdata()) == 2][:1] == [0.8]


def test_published_numbers_are_those_of_the_data_set():
    frame = detection_tables.published("svhn")
    assert set(frame["dataset"]) == {"svhn"} and set(frame["paper"]) == {"cohen2020"}
    assert isinstance(frame, pd.DataFrame) and len(frame) > 20
