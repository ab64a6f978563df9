"""Figures and tables of chapter 3 draw what arrays and rows hold: heights, places, counts and labels."""

import numpy as np
import pandas as pd
import pytest

from deepneighbors.errors import InputError
from deepneighbors.experiments.poisoning_ila import ila_credibility, scoring, searching, sources, why_it_failed
from deepneighbors.networks import DeepCNN, MnistCNN
from deepneighbors.report import ila_figures, poisoning_figures
from deepneighbors.report.figures import Canvas
from deepneighbors.report.notebook import NotRun
from deepneighbors.report.poisoning_tables import (
    ATTACKS,
    CREDIBILITIES,
    DEFENCES,
    LAYERS,
    NETWORKS,
    Choice,
    by_layer,
    first_draw,
    lines,
    matrix,
    one,
    options,
    pooled,
    read,
)
from deepneighbors.report.tables import NOT_RUN
from deepneighbors.results import Result, statistic_row, table

CNN = {"experiment": "poisoning", "network": "mnist_cnn", "attack": "svm_poisoning", "norm": "l1"}


def line(value, setting, *, n=5, half=0.02, seed=0, **names):
    ci = (value - half, value + half) if half else (float("nan"), float("nan"))
    return statistic_row(value, n=n, ci=ci, seed=seed, setting=setting, **(CNN | names))


def result(rows, arrays=None, name="some"):
    return Result(name, table(rows), arrays or {}, {"config": {}})


@pytest.fixture
def canvas():
    return Canvas(dark=False)


def axes_of(canvas):
    return [axis for axis in canvas.figure.axes if axis.axison]


def points(axis):
    """Places of the marks of all error bars of an axis: ``{label: (x, y)}``."""
    found = {}
    for container in axis.containers:
        data = container.lines[0] if hasattr(container, "lines") else None
        if data is not None:
            found[container.get_label()] = (list(data.get_xdata()), np.asarray(data.get_ydata(), float))
    return found


def strips(canvas):
    """Of each line of pictures their titles, and then the words at their left."""
    return [[text.get_text() for text in axis.texts] for axis in canvas.figure.axes]


def titles(canvas):
    return [axis.get_title() for axis in canvas.figure.axes]


# --- Names ------------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_experiments():
    assert tuple(name for name, _ in CREDIBILITIES) == scoring.CREDIBILITIES
    assert {(detector, form) for detector, form, _ in DEFENCES} == set(scoring.MAIN.items())
    assert searching.LAYERS == LAYERS == MnistCNN.layers == ila_figures.SOURCE_LAYERS["mnist_cnn"]
    assert ila_figures.SOURCE_LAYERS["deep"] == DeepCNN.layers
    assert ila_figures.DKNN_LAYERS == ila_credibility.LAYERS
    assert set(NETWORKS) == set(sources.ARCHITECTURES)
    assert [name for name, _ in ila_figures.REASONS] == list(why_it_failed.REASONS)


# --- Rows -------------------------------------------------------------------------------------------------------


def test_a_setting_is_read_and_rows_over_all_seeds_are_chosen_whatever_the_order_of_parts():
    assert read("epoch=6;self=out") == {"epoch": "6", "self": "out"} and read("") == {}
    frame = table([
        line(0.1, "a=1;b=2;seeds=all", metric="m"), line(0.2, "a=1;b=2", metric="m"), line(0.3, "a=1;seeds=all", metric="m"),
        line(0.4, "a=1;b=2;seeds=all", metric="other"),
    ])  # fmt: skip
    assert pooled(frame, {"b": "2", "a": "1"}, metric="m")["value"].tolist() == [0.1]
    assert one(frame, {"a": "1"}, metric="m")["value"] == 0.3 and one(frame, {"a": "7"}, metric="m") is None
    with pytest.raises(InputError, match="2 results have"):
        one(frame, {"a": "1", "b": "2"})


def test_options_are_in_the_order_of_numbers():
    frame = table([line(0.1, f"epoch={epoch};seeds=all", metric="m") for epoch in (20, 6, 40)])
    assert options(frame, "epoch", metric="m") == ["6", "20", "40"]


def test_by_layer_has_the_layers_order_and_gaps():
    frame = table([line(value, "seeds=all", metric="m", layer=layer) for layer, value in (("fc", 0.4), ("relu1", 0.1))])
    numbers = by_layer(frame, LAYERS, {}, metric="m")
    assert numbers[0].tolist() == pytest.approx([0.1, 0.08, 0.12]) and numbers[3, 0] == 0.4
    assert np.isnan(numbers[1:3]).all()


def test_lines_are_the_union_of_what_results_have_by_metric_and_only_over_all_seeds():
    full = result([line(0.5, "epoch=6;seeds=all", metric="m"), line(0.6, "epoch=6", metric="m")])
    quick = result([line(0.4, "epoch=3;seeds=all", metric="m"), line(3.0, "epoch=6;seeds=all", metric="k"),
                    line(0.5, "epoch=6;seeds=all", metric="m")])  # fmt: skip
    rows = lines([full, NotRun("x"), quick], lambda names, parts: (parts["epoch"],), metrics=("k", "m"),
                 paper=lambda names, parts: {"setting": "theirs"} if parts["epoch"] == "6" else None)  # fmt: skip
    assert [(row.metric, row.label[0]) for row in rows] == [("k", "6"), ("m", "6"), ("m", "3")]
    assert rows[1].paper == {"setting": "theirs"} and rows[2].paper is None
    assert rows[1].names["setting"] == "epoch=6;seeds=all"
    none = lines([NotRun("x")], lambda names, parts: ("-",), metrics=("m",), width=3)
    assert [row.label for row in none] == [("-", "-", "-")]


def test_a_matrix_has_a_line_for_each_choice_and_source():
    ours = result([line(0.5, "rate=0.1;seeds=all", metric="auc", detector="loss", half=0)])
    frame = matrix([("full", NotRun("x")), ("this run", ours)],
                   [Choice("loss", {"detector": "loss"}), Choice("random", {"detector": "random"})],
                   [Choice("a tenth", {}, {"rate": "0.1"})], heading="Defence", metric="auc")  # fmt: skip
    assert frame.columns.tolist() == ["Defence", "Source", "a tenth"]
    assert frame["a tenth"].tolist()[0] == NOT_RUN and frame["a tenth"].tolist()[1].startswith("50.0")
    assert frame["a tenth"].tolist()[3] == "-"  # was run, without this detector
    assert matrix([("full", NotRun("x"))], [], [Choice("a")], heading="Set").to_numpy().tolist() == [[NOT_RUN, "-", "-"]]


def test_a_matrix_has_no_line_of_dashes_beside_numbers():
    few = result([line(0.5, "rate=0.1;seeds=all", metric="auc", detector="loss", half=0)])
    more = result([line(0.5, "rate=0.1;seeds=all", metric="auc", detector=name, half=0) for name in ("loss", "random")])
    frame = matrix([("full", more), ("this run", few)],
                   [Choice(name, {"detector": name}) for name in ("loss", "random", "spectral")],
                   [Choice("a tenth", {}, {"rate": "0.1"})], heading="Defence", metric="auc")  # fmt: skip
    assert list(zip(frame["Defence"], frame["Source"], frame["a tenth"] == "-", strict=True)) == [
        ("loss", "full", False), ("loss", "this run", False), ("random", "full", False),
        ("spectral", "full", True), ("spectral", "this run", True),
    ]  # fmt: skip


def test_the_first_draw_is_seed_0_alone():
    both = result(
        [line(0.1, "x=1", metric="m"), line(0.2, "x=1", metric="m", seed=1), line(0.3, "x=1;seeds=all", metric="m")]
    )
    assert first_draw(both)["value"].tolist() == [0.1] and first_draw(NotRun("x")) is None


# --- Poison -----------------------------------------------------------------------------------------------------


def test_the_gallery_shows_start_point_and_change(canvas):
    start, moved = np.zeros((3, 1, 28, 28), "float16"), np.zeros((3, 1, 28, 28), "float16")
    moved[1, 0, 4, 5], moved[2, 0, 0, 0] = 0.5, 1.0
    arrays = {"l1|7|start": start, "l1|7|x": moved, "l1|7|y": np.array([9, 1, 9]), "l1|7|truth": np.array([1, 9, 1])}
    poisoning_figures.gallery(canvas, result([line(0.1, "", metric="m")], arrays), [("l1", "one"), ("l2", "all")], columns=4)
    assert [len(axis.images) for axis in canvas.figure.axes] == [3, 3, 3]  # the fourth column has no point
    change = canvas.figure.axes[2].images[1]
    assert change.get_array()[4, 5] == 0.5 and change.get_clim() == (-1, 1)  # full at the largest of the line
    said = strips(canvas)
    assert said[0] == ["1, stored as 9", "9, stored as 1", "1, stored as 9", "before"]
    assert said[2][1] == "L2 0.50" and "±1.00" in said[2][-1]


def test_reliability_bars_are_accuracies_and_the_line_counts(canvas):
    credibility, right = np.array([0.05, 0.0, 0.55, 1.0]), np.array([True, False, True, True])
    poisoning_figures.reliability(canvas, [("some", credibility, right)])
    bars, counts = canvas.figure.axes
    assert [bar.get_height() for bar in bars.patches] == [0.5, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert counts.lines[0].get_ydata().tolist() == [2, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert bars.get_title() == "some, n = 4"


def test_arrays_of_all_seeds_are_joined_and_no_others():
    arrays = {"l1|0|poison|in|c": np.ones(2), "l1|12|poison|in|c": np.ones(3), "l1|0|poison|out|c": np.ones(7),
              "l2|0|poison|in|c": np.ones(9), "l1|0|x|poison|in|c": np.ones(4)}  # fmt: skip
    assert len(poisoning_figures.joined(arrays, "l1", "poison|in|c")) == 5
    assert len(poisoning_figures.joined(arrays, "l3", "poison|in|c")) == 0


def test_credibility_distributions_have_shares_and_the_largest_of_the_poison(canvas):
    arrays = {
        f"l1|{seed}|{part}|{own}|{name}": np.full(4, 0.32 if part == "poison" and own == "in" else 0.9)
        for seed in (0, 1) for part in ("poison", "clean", "misclassified") for own in ("in", "out")
        for name, _ in CREDIBILITIES
    }  # fmt: skip
    arrays["l1|1|poison|in|c_pred"] = np.array([0.32, 0.34, 0.32, 0.32])
    poisoning_figures.credibility_distributions(canvas, result([line(0.1, "", metric="m")], arrays), "l1")
    first = canvas.figure.axes[0]
    by_label = {patch.get_label(): patch.get_data().values for patch in first.patches}
    assert by_label["poison"].sum() == 1 and by_label["poison"][6] == 1  # 0.30 to 0.35
    assert by_label["clean"][18] == 1
    assert [round(mark.get_xdata()[0], 3) for mark in first.lines] == [0.34]
    assert round(canvas.figure.axes[1].lines[0].get_xdata()[0], 3) == 0.9


def test_spread_draws_each_set_at_its_deviation_and_maximum_beside_as_many_clean_points(canvas):
    poison, clean = np.array([0.1, 0.3]), np.linspace(0, 1, 101)
    arrays = {}
    for own in ("in", "out"):
        for regime in ("report", "memorised"):
            key = f"patch||0.1|0|{regime}|{own}|c_pred"
            arrays |= {f"{key}|poison": poison, f"{key}|clean": clean}
    poisoning_figures.spread(canvas, result([line(0.1, "", metric="m")], arrays))
    marks = [mark.get_offsets()[0].tolist() for mark in canvas.figure.axes[0].collections]
    assert marks.count([pytest.approx(0.1), pytest.approx(0.3)]) == 2  # sd 0.1, maximum 0.3
    assert marks.count([pytest.approx(0.5), pytest.approx(1.0)]) == 2  # the first and the last clean point
    hollow = [len(mark.get_facecolors()) == 0 for mark in canvas.figure.axes[0].collections]
    assert hollow.count(True) == 1  # the small set


def test_recovery_has_a_line_for_each_choice_of_misclassified_points(canvas):
    head = "part=misclassified;epoch=6;distance=cosine;k=75;self=out"
    frame = table([
        line(0.3, f"{head};seeds=all", metric="recovered"), line(0.2, f"{head};seeds=all", metric="recovered", layer="fc"),
        line(0.4, f"{head};trimmed=yes;seeds=all", metric="recovered"), line(0.9, head, metric="recovered"),
        line(0.8, head.replace("misclassified", "poison") + ";seeds=all", metric="recovered"),
    ])  # fmt: skip
    poisoning_figures.recovery(canvas, frame, "l1", 0.585)
    (axis,) = canvas.figure.axes
    assert sorted(float(container.lines[0].get_xdata()[0]) for container in axis.containers) == [0.2, 0.3, 0.4]
    words = [label.get_text() for label in axis.get_yticklabels()]
    assert words[0] == "epoch 6, cosine, k = 75, self out" and words[1].endswith("fc alone") and words[2].endswith("trimmed")
    assert 0.585 in [mark.get_xdata()[0] for mark in axis.lines]


QUERIED = (("test_correct", ""), ("test_misclassified", ""), ("poison", "self=out;"), ("poison", "self=in;"),
           ("poison_memorised", "self=out;"), ("clean_train", "self=out;"))  # fmt: skip


@pytest.fixture
def shares():
    rows = [line(50 / 1050, "clean=1000;kind=poisoned;seeds=all", metric="base_rate", half=0)]
    for kind in ("poisoned", "clean_network", "random_flip"):
        for epoch in (6, 20):
            at = f"clean=1000;kind={kind};epoch={epoch}"
            for place, layer in enumerate(LAYERS):
                for query, own in QUERIED:
                    share = 0.05 + 0.1 * place * (kind == "poisoned") + (own == "self=in;") * 0.01
                    setting = f"{at};{own}queries={query};seeds=all"
                    rows.append(line(share, setting, metric="poisoned_neighbor_share", layer=layer))
                    rows.append(line(21 * share, setting, metric="enrichment", layer=layer))
                rows.append(line(0.9, f"{at};seeds=all", metric="probe_auc", layer=layer))
                rows.append(line(0.8, f"{at};seeds=all", metric="label_purity", layer=layer))
            for query, own in (("poison", "self=out;"), ("test_misclassified", "")):
                rows.append(line(0.01 * epoch, f"{at};{own}queries={query};seeds=all", metric="share_growth"))
            rows.append(line(epoch / 40, f"{at};seeds=all", metric="memorised"))
    return table(rows)


def test_shares_and_their_controls(canvas, shares):
    published = pd.DataFrame([
        {"setting": "clean=1000;kind=poisoned;epoch=20;queries=test_correct;seeds=all", "layer": layer, "value": 0.25}
        for layer in LAYERS
    ])  # fmt: skip
    poisoning_figures.neighbor_shares(canvas, shares, published, "20")
    share, enrichment = canvas.figure.axes
    drawn = points(share)
    assert drawn["test, misclassified"][1].tolist() == pytest.approx([0.05, 0.15, 0.25, 0.35])
    assert drawn["poison itself"][1].tolist() == pytest.approx([0.05, 0.15, 0.25, 0.35])  # without the point itself
    assert points(enrichment)["clean training"][1][3] == pytest.approx(21 * 0.35)
    crosses = [mark for mark in share.lines if mark.get_marker() == "x"]
    assert len(crosses) == 1 and crosses[0].get_ydata().tolist() == [0.25] * 4
    assert any(np.allclose(mark.get_ydata(), 50 / 1050) for mark in share.lines if mark.get_linestyle() == "--")
    controls = Canvas(dark=True)
    poisoning_figures.share_controls(controls, shares, "1000")
    by_kind, by_epoch, memorised, probe = (points(axis) for axis in controls.figure.axes)
    assert by_kind["trained with poison"][1][-1] == pytest.approx(0.35)
    assert by_kind["trained without it"][1].tolist() == pytest.approx([0.05] * 4)
    assert by_epoch["memorised"][0] == ["6", "20"] and by_epoch["memorised"][1].tolist() == pytest.approx([0.15, 0.5])
    assert by_epoch["growth, poison itself"][1].tolist() == pytest.approx([0.06, 0.2])
    assert memorised["memorised"][1][-1] == pytest.approx(0.35) and len(memorised["not memorised"][1]) == 0
    assert probe["label purity"][1].tolist() == [0.8] * 4


def test_removal_draws_only_the_defences_that_were_retrained_on(canvas):
    rows = [line(0.97, "removed=nothing;seeds=all", attack="none", metric="accuracy", half=0)]
    for attack, rate in (("svm_poisoning", ""), ("patch", "rate=0.01;")):
        rows.append(line(0.9, f"{rate}removed=nothing;seeds=all", attack=attack, metric="accuracy"))
        rows.append(line(0.95, f"{rate}removed=flagged;seeds=all", attack=attack, metric="accuracy", detector="credibility"))
        rows.append(
            line(0.8, f"{rate}credibility=c_label;self=out;seeds=all", attack=attack, metric="auc", detector="credibility")
        )
        rows.append(line(0.6, f"{rate}seeds=all", attack=attack, metric="auc", detector="loss"))
    rows.append(line(1.0, "rate=0.01;removed=nothing;seeds=all", attack="patch", metric="success", half=0))
    rows.append(line(0.1, "rate=0.01;removed=flagged;seeds=all", attack="patch", metric="success", detector="credibility"))
    frame = table(rows)
    assert poisoning_figures.cases(frame) == [("svm_poisoning", ""), ("patch", "0.01")]
    poisoning_figures.after_removal(canvas, frame)
    accuracy, nothing, patch, success = canvas.figure.axes
    assert not nothing.axison  # poison of a linear classifier has no trigger
    assert points(accuracy)["accuracy"][1].tolist() == [0.95] and points(success)["success"][1].tolist() == [0.1]
    assert {mark.get_ydata()[0] for mark in accuracy.lines if len(mark.get_xdata()) == 2} >= {0.9, 0.97}
    assert success.get_title() == "patch, 0.01: success"
    other = Canvas(dark=False)
    poisoning_figures.detection(other, frame, [("auc", "AUC")])
    (axis,) = other.figure.axes
    assert points(axis)["SVM poisoning"][1].tolist() == [0.8, 0.6]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["c_label, self out", "training loss"]


# --- ILA --------------------------------------------------------------------------------------------------------


@pytest.fixture
def transfer():
    rows = []

    def add(value, setting, attack, metric="transfer_success", layer="", target="cnn"):
        rows.append(line(value, f"{setting};seeds=all", experiment="ila", network=f"deep->{target}", attack=attack, norm="",
                         metric=metric, layer=layer, n=100))  # fmt: skip

    for epsilon in ("0.1", "0.3"):
        size, at = float(epsilon), f"epsilon={epsilon}"
        for target in ("cnn", "mlp"):
            for place, layer in enumerate(DeepCNN.layers):
                add(0.05 * place + size, at, "ilap", layer=layer, target=target)
                add(0.1, at, "random_guide", layer=layer, target=target)
            for attack, value in (("sign_noise", 0.02), ("ifgsm", 0.4), ("mi_di", 0.6)):
                add(value, at, attack, target=target)
            add(size + 0.05, f"{at};choice=fixed", "ilap", layer="b0c1", target=target)
            for rival, value in (("sign_noise", 0.3), ("random_guide", 0.2), ("ifgsm", -0.1), ("mi_di", -0.2)):
                add(value, f"{at};choice=fixed;minus={rival}", "ilap", "difference", "b0c1", target)
                add(value / 2, f"{at};choice=fixed;minus={rival};l2=ifgsm", "ilap", "difference", "b0c1", target)
    return table(rows)


def test_transfer_by_layer_and_by_radius(canvas, transfer):
    assert ila_figures.targets(transfer, "deep") == ["cnn", "mlp"] and ila_figures.targets(transfer, "mnist_cnn") == []
    ila_figures.transfer_by_layer(canvas, transfer, "deep", "0.3")
    drawn = points(canvas.figure.axes[0])
    assert drawn["ILAP"][0] == list(DeepCNN.layers)
    assert drawn["ILAP"][1].tolist() == pytest.approx([0.3 + 0.05 * place for place in range(7)])
    assert drawn["random guide"][1].tolist() == [0.1] * 7
    flat = {mark.get_label(): mark.get_ydata()[0] for mark in canvas.figure.axes[0].lines if len(mark.get_xdata()) == 2}
    assert flat == {"I-FGSM": 0.4, "sign noise": 0.02, "MI-DI": 0.6}
    radius = Canvas(dark=False)
    ila_figures.transfer_by_radius(radius, transfer, "deep", ("ifgsm", "ilap"))
    drawn = points(radius.figure.axes[1])
    assert drawn["ILAP"][0] == [0.1, 0.3] and drawn["ILAP"][1].tolist() == pytest.approx([0.15, 0.35])
    assert titles(radius)[:2] == ["deep → CNN", "deep → MLP"]


def test_differences_stand_at_their_values_full_and_at_equal_length(canvas, transfer):
    ila_figures.differences(canvas, transfer, ("mnist_cnn", "deep"), "0.3")
    (axis,) = canvas.figure.axes  # a source that was not run has no panel
    drawn = sorted(round(float(container.lines[0].get_xdata()[0]), 3) for container in axis.containers)
    assert drawn == sorted([0.3, 0.2, -0.1, -0.2, 0.15, 0.1, -0.05, -0.1] * 2)
    hollow = [container.lines[0].get_markerfacecolor() == "none" for container in axis.containers]
    assert sum(hollow) == 8
    assert [label.get_text() for label in axis.get_yticklabels()] == ["CNN", "MLP"]
    first = axis.containers[0].lines[2][0].get_segments()[0]
    assert first[:, 0].tolist() == pytest.approx([0.28, 0.32])  # the interval


def test_reasons_keep_start_ila_and_control_apart(canvas):
    rows = [
        line(value, f"reason={reason};epsilon=0.3;seeds=all", experiment="ila", network="deep->cnn", attack=attack, norm="",
             metric="transfer_success", n=100)
        for reason, start in (("none", "ifgsm"), ("start", "fgsm"))
        for attack, value in ((start, 0.4), ("ilap", 0.5), ("random_guide", 0.1))
    ]  # fmt: skip
    ila_figures.reasons(canvas, table(rows))
    axis = canvas.figure.axes[0]
    drawn = [(float(c.lines[0].get_xdata()[0]), round(float(c.lines[0].get_ydata()[0]), 1)) for c in axis.containers]
    assert drawn == [(0.4, 0.2), (0.4, -0.8), (0.5, 0.0), (0.5, -1.0), (0.1, -0.2), (0.1, -1.2)]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["this chapter's settings", "from FGSM"]


def test_disturbance_marks_the_pushed_layer(canvas):
    curves = np.arange(2 * 2 * 3).reshape(2, 2, 3).astype(float)
    arrays = {"disturbance|deep": curves, "layers|deep": np.array(["a", "b", "c"])}
    ila_figures.disturbance(canvas, result([line(0.1, "", metric="m")], arrays), ("mnist_cnn", "deep"))
    (axis,) = canvas.figure.axes
    marks = [(mark.get_xdata()[0], mark.get_ydata()[0]) for mark in axis.lines if len(mark.get_xdata()) == 1]
    assert marks == [("a", 3.0), ("b", 7.0)]  # means over the two seeds


@pytest.fixture
def gallery():
    network, x = "deep->mnist_cnn", np.zeros((2, 1, 28, 28), "float16")
    arrays = {"gallery|clean|x": x, "gallery|clean|y": np.array([3, 7])}
    for attack, label in (("none", [3, 7]), ("ilap", [3, 8]), ("ifgsm", [5, 7])):
        key = f"gallery|{network}|{attack}"
        arrays |= {f"{key}|label": np.array(label), f"{key}|near_y": np.full((2, 4, 5), label[1])}
        arrays[f"{key}|near_x"] = np.full((2, 4, 5, 1, 28, 28), 255, np.uint8)
        arrays[f"{key}|x"] = x + np.float16(0.5)
    return result([line(0.1, "", metric="m")], arrays)


def test_examples_mark_those_that_fool(canvas, gallery):
    ila_figures.examples(canvas, gallery, "deep->mnist_cnn", ("ifgsm", "ilap", "naa"))
    changes = ["L2 14.0", "L2 14.0", "change"]
    assert strips(canvas) == [
        ["3", "7", "clean"], ["5 ✗", "7", ATTACKS["ifgsm"]], changes, ["3", "8 ✗", ATTACKS["ilap"]], changes,
    ]  # fmt: skip


def test_neighbours_stand_in_their_layer_with_stored_labels(canvas, gallery):
    assert ila_figures.example_fooled(gallery, "deep->mnist_cnn") == 1
    ila_figures.neighbors(canvas, gallery, "deep->mnist_cnn", 1)
    rows = strips(canvas)
    assert len(rows) == 8 and rows[0] == ["network: 7"] + ["7"] * 5 + ["relu1,\nclean"]
    assert rows[1][:6] == ["network: 8"] + ["8"] * 5 and rows[-1][-1] == "fc,\nILA"
    assert canvas.figure.axes[0].images[1].get_array().max() == 1


def test_the_chosen_layer_stands_beside_what_chose_it(canvas):
    names = {"experiment": "ila", "attack": "ilap", "norm": "", "n": 1000}
    rows = []
    for place, target in enumerate(("cnn", "mlp")):
        common = names | {"network": f"deep->{target}"}
        rows.append(
            line(0.5, "epsilon=0.3;stage=further;seeds=all", metric="transfer_success", **common | {"attack": "fgsm"})
        )
        for at, layer in enumerate(ila_figures.SOURCE_LAYERS["deep"][:-1]):
            setting = "epsilon=0.3;stage=explored;minus=random_guide;seeds=all"
            rows.append(line(0.1 * at + place, setting, metric="difference", layer=layer, **common))
        for at, (choice, layer) in enumerate((("explored", "b1c0"), ("fixed", "b0c1"), ("blind", ""))):
            setting = f"epsilon=0.3;stage=further;choice={choice};minus=random_guide;seeds=all"
            rows.append(line(0.2 * at - place, setting, metric="difference", layer=layer, **common))
    ila_figures.confirmation(canvas, result(rows).table, "deep", "0.3")
    left, right = canvas.figure.axes
    explored = points(left)
    assert explored["MLP"][1] == pytest.approx([1, 1.1, 1.2, 1.3, 1.4, 1.5])
    assert np.round(explored["CNN"][0]).tolist() == [0, 1, 2, 3, 4, 5] and explored["CNN"][0][0] < explored["MLP"][0][0]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["chosen (b1c0)", "fixed", "blind"]
    further = sorted((bars.lines[0].get_ydata()[0], bars.lines[0].get_xdata()[0]) for bars in right.containers)
    assert [x for _, x in further] == pytest.approx([-0.6, -0.8, -1, 0.4, 0.2, 0])  # the first target at the top


def test_what_dknn_sees(canvas):
    network, rows = "deep->mnist_cnn", []
    for epsilon, auc in (("0.1", 0.9), ("0.3", 0.7)):
        for attack, layer in (("ilap", ";source_layer=b0c1"), ("ifgsm", "")):
            at = f"epsilon={epsilon}{layer}"
            common = {"experiment": "ila", "network": network, "attack": attack, "norm": "", "n": 50}
            rows.append(
                line(
                    auc, f"{at};credibility=predicted;over=fooled;seeds=all", metric="auc", detector="credibility", **common
                )
            )
            rows.append(
                line(0.1, f"{at};credibility=network;over=fooled;seeds=all", metric="auc", detector="credibility", **common)
            )
            for place, name in enumerate(LAYERS):
                rows.append(line(1 - 0.2 * place, f"{at};seeds=all", metric="true_label_share", layer=name, **common))
    frame, fixed = table(rows), sources.FIXED_LAYERS
    ila_figures.detection_by_radius(canvas, frame, [network, "deep"], ("ifgsm", "ilap"), fixed)
    drawn = points(canvas.figure.axes[0])
    assert drawn["ILAP"][0] == [0.1, 0.3] and drawn["ILAP"][1].tolist() == [0.9, 0.7]
    assert len(axes_of(canvas)) == 1  # the source's own was not asked
    other = Canvas(dark=False)
    ila_figures.true_shares(other, frame, [network], "0.3", ("none", "ilap"), fixed)
    assert points(other.figure.axes[0])["ILAP"][1].tolist() == pytest.approx([1, 0.8, 0.6, 0.4])
    key, third = f"{network}|ilap|0.3", Canvas(dark=False)
    arrays = {f"{network}|none|0.3|predicted": np.array([0.95, 0.55]), f"{key}|predicted": np.array([0.05, 0.05, 0.95]),
              f"{key}|fooled": np.array([True, True, False])}  # fmt: skip
    ila_figures.credibilities(third, result([line(0.1, "", metric="m")], arrays), network, "0.3", ("ilap", "naa"))
    (axis,) = third.figure.axes
    filled, outline = (patch.get_data().values.tolist() for patch in axis.patches)
    assert filled == [1] + [0] * 9 and outline == [0] * 5 + [0.5] + [0] * 3 + [0.5]
    assert axis.texts[0].get_text() == "ILAP, n = 2"  # only those that fool
