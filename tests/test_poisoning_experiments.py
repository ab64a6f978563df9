"""Poison of chapter 3 on a small problem: secml's figures, Deep kNN from kept labels, shares, removal, rows from arrays."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import small_run
from scipy import stats
from sklearn.metrics import roc_auc_score

from deepneighbors import data, profiles
from deepneighbors.attacks.poisoning import first_images
from deepneighbors.dknn_training import CREDIBILITIES, neighbor_share, training_credibility, training_neighbors
from deepneighbors.errors import InputError
from deepneighbors.experiments import base
from deepneighbors.experiments.poisoning_ila import (
    classifier,
    defending,
    low_credibility,
    many_labels,
    mixtures,
    plan,
    poisoned_training,
    poisons,
    rows,
    searching,
    shares,
    training,
)
from deepneighbors.results import auc_row, mean_row
from deepneighbors.store import Artifact, Context

SMALL = replace(
    profiles.SETTINGS["poisoning_ila"]["smoke"], seeds=1, svm_images=(20, 40, 30), svm_iterations=3, svm_points=8,
    cnn_images=300, cnn_epochs=2, cnn_batch=50, counted_epochs=(1, 2), neighbors=12, calibration_images=50,
    evaluated_images=200, clean_points=30, sweep_epochs=(1, 2), sweep_k=(4, 12), share_sizes=(60,), share_epochs=(1,),
    share_seeds=2, share_queries=20, memorised_images=60, memorised_epochs=2, label_pairs=2, pair_points=3,
    poison_attacks=("svm_poisoning", "patch"), backdoor_rates=(0.05,), retrained=("credibility",),
    classifier_cases=("1-9-15-l1",),
)  # fmt: skip
EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        classifier.POISONED_CLASSIFIER, mixtures.MIXTURES, poisoned_training.POISONED_TRAINING,
        low_credibility.LOW_CREDIBILITY, shares.NEIGHBOR_SHARE, many_labels.MANY_LABELS, defending.DEFENCES,
    )
}  # fmt: skip
CHAPTER = base.Chapter("poisoning_ila", "Poison", EXPERIMENTS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the small problem with a store of its own."""
    with small_run("poisoning_ila", SMALL, tmp_path_factory.mktemp("artifacts")) as small:
        yield small


@pytest.fixture(scope="module")
def results(run):
    """Results by name, computed when asked for."""
    done = {}

    def result(name):
        if name not in done:
            done[name] = base.compute(run, CHAPTER, name)
        return done[name]

    return result


def select(table, **names):
    for name, value in names.items():
        table = table[table[name] == value]
    return table


def the(table, **names):
    (value,) = select(table, **names)["value"]
    return value


def test_the_tutorial_s_poison_has_secml_s_figures():
    config = {"attack": "svm_poisoning", "norm": "l1", "digits": [5, 9], "points": 15, "iterations": 100,
              "images": [100, 500, 500], "seed": 0}  # fmt: skip
    made = poisons.poison_points(config, (), None)
    assert made.values["clean"]["test_accuracy"] == pytest.approx(0.936)
    assert made.values["poisoned"]["test_accuracy"] == pytest.approx(0.504)
    assert made.values["flipped"]["test_accuracy"] == pytest.approx(0.948)
    assert made.values["poisoned"]["loss"] == pytest.approx(3.597245300, abs=1e-6)
    mnist = data.load("mnist")
    assert torch.equal(made.tensors["truth"], mnist.y_train[made.tensors["source"]])
    assert (made.tensors["truth"] != made.tensors["y"]).all()
    assert float((made.tensors["start"] - mnist.x_train[made.tensors["source"]]).abs().max()) <= 1e-3 + 1e-6


def test_every_seed_draws_other_images_of_the_same_digits():
    mnist, seen = data.load("mnist"), []
    for seed in range(3):
        train, validation, test, y_test = poisons.tutorial_images((1, 9), (20, 40, 10), seed)
        assert torch.bincount(mnist.y_train[torch.cat([train, validation])]).nonzero().flatten().tolist() == [1, 9]
        assert (len(train), len(validation), len(test)) == (20, 40, 10) and torch.equal(y_test, mnist.y_test[test])
        seen += torch.cat([train, validation]).tolist()
    assert len(set(seen)) == len(seen) == 180
    first, _ = first_images(torch.arange(60_000)[:, None], mnist.y_train, (1, 9), 60)
    assert sorted(seen[:60]) == first.flatten().tolist()


@pytest.mark.parametrize("digits", [(1, 9), (5, 9), (0, 1)])
def test_both_digits_are_mixed_in_the_draw_of_every_seed(digits):
    y, seen = data.load("mnist").y_train, []
    for seed in range(9):
        train, validation, _, _ = poisons.tutorial_images(digits, (100, 500, 500), seed)
        for part in (train, validation):
            share = float((y[part] == digits[0]).float().mean())
            assert 0.3 < share < 0.7
        seen += torch.cat([train, validation]).tolist()
    assert len(set(seen)) == len(seen) == 9 * 600


def test_evading_images_reach_the_optimum_of_a_linear_function():
    generator = np.random.default_rng(0)
    x, direction = generator.random((6, 30)), np.repeat(generator.normal(size=(1, 30)), 6, 0)
    moved = poisons.evade(x, direction, 0.7)
    assert moved.min() >= 0 and moved.max() <= 1
    assert np.linalg.norm(moved - x, axis=1) == pytest.approx(np.full(6, 0.7))
    reached = ((moved - x) * direction).sum(1)
    for _ in range(200):
        step = generator.normal(size=x.shape) + 3 * direction
        other = (x + 0.7 * step / np.linalg.norm(step, axis=1, keepdims=True)).clip(0, 1)
        assert (((other - x) * direction).sum(1) <= reached + 1e-9).all()
    far = poisons.evade(x, direction, 50.0)  # the box is the only limit
    assert np.array_equal(far, np.where(direction > 0, 1.0, 0.0))


def test_training_sets_hold_what_they_say():
    mnist, none = data.load("mnist"), {"images": 200, "digits": [], "seed": 3}
    tensors = {"x": torch.full((4, 1, 28, 28), 0.5), "start": torch.zeros(4, 1, 28, 28),
               "y": torch.tensor([1, 9, 1, 9]), "truth": torch.tensor([9, 1, 9, 1])}  # fmt: skip
    points = [Artifact("", tensors, {}, {})]
    for attack, shown in (("svm_poisoning", "x"), ("random_flip", "start")):
        found = poisons.training_set(none | {"attack": attack}, points)
        assert torch.equal(found.x[200:], tensors[shown]) and torch.equal(found.y[200:], tensors["y"])
        assert torch.equal(found.truth[200:], tensors["truth"]) and found.poisoned.nonzero().flatten().tolist() == [
            200, 201, 202, 203
        ]  # fmt: skip
        assert torch.equal(found.x[:200], mnist.x_train[:200])
    found = poisons.training_set(none | {"attack": "patch", "rate": 0.1, "alpha": 0.2}, ())
    assert int(found.poisoned.sum()) == 20 and torch.equal(found.truth, mnist.y_train[:200])
    assert (found.y[found.poisoned] == poisons.TARGET).all() and (found.truth[found.poisoned] != poisons.TARGET).all()
    assert torch.equal((found.x != mnist.x_train[:200]).flatten(1).any(1), found.poisoned)
    less = training.without(found, found.poisoned.nonzero().flatten())
    assert len(less.y) == 180 and not less.poisoned.any() and torch.equal(less.x, mnist.x_train[:200][~found.poisoned])
    pair = poisons.training_set({"attack": "none", "images": 30, "digits": [1, 9], "seed": 0}, ())
    assert torch.bincount(pair.y).tolist()[1::8] == [15, 15] and not pair.poisoned.any()
    with pytest.raises(InputError, match="attack is 'witches'"):
        poisons.training_set(none | {"attack": "witches"}, ())
    with pytest.raises(InputError, match="poisoned points is 4; it must be a whole number from 1 to 3"):
        poisons.training_set(none | {"attack": "svm_poisoning", "images": 3}, points)


def test_kept_labels_give_the_credibilities_and_shares_of_the_library(run):
    case = poisoned_training.main_set(run, "svm_poisoning", 0, norm="l1")
    artifact = run.store.get(case.search("all", test=20), run.context)
    trained, points = (run.store.get(node, run.context) for node in (case.network, *case.points_nodes))
    found = poisons.training_set(case.data, [points])
    network = training.load_network(trained, case.last, "cpu")
    config = {"k": 12, "metric": "cosine", "calibration": 50, "test": 20, "data": case.data}
    dknn = searching.index(config, network, found, "cpu")
    held = searching.held_out(config)
    seen, calibration = (searching.Seen.of(artifact, group) for group in ("train", "calibration"))
    for trimmed in (False, True):
        dknn.trim_zeros = trimmed
        dknn.calibrate(*held["calibration"])
        for own in ("out", "in"):
            shown = seen.with_self() if own == "in" else seen
            expected = training_credibility(dknn, leave_self_out=own == "out")
            said = searching.conclude(shown, calibration, k=12, trimmed=trimmed)
            for name in CREDIBILITIES:
                np.testing.assert_allclose(said.credibility[name], expected[name], rtol=1e-6)
            assert np.array_equal(said.labels, expected.labels.numpy())
            near = training_neighbors(dknn, leave_self_out=own == "out")
            layers = neighbor_share(near, found.poisoned)
            np.testing.assert_allclose(shown.share(12), torch.stack([layers[name] for name in dknn.layers], 1), rtol=1e-6)
    test = searching.Seen.of(artifact, "test")
    labels = searching.conclude(test, calibration, k=12, trimmed=True).labels
    assert np.array_equal(labels, dknn.predict(held["test"][0]).numpy())


def test_a_case_with_its_own_label_among_its_neighbours_cannot_be_fully_credible_elsewhere():
    labels = np.full((1, 4, 5), 3, dtype=np.uint8)
    clean = searching.Seen(labels, labels > 5, *(np.array([3]) for _ in range(3)), np.array([False]))
    poison = replace(clean, y=np.array([7]), own=np.array([True]))
    assert poison.nonconformity(k=5)[0, 3] == 0
    assert poison.with_self().nonconformity(k=5)[0, 3] == 4  # one in each of four layers
    assert poison.with_self().share(5).tolist() == [[0.2] * 4]


def test_means_over_seeds_have_student_s_interval():
    values = [0.2, 0.5, 0.8]
    made = [rows.share_row(np.full(4, v), "share", {"experiment": "poisoning", "seed": s}) for s, v in enumerate(values)]
    empty = rows.share_row(np.zeros(0), "share", {"experiment": "poisoning", "seed": 3})
    *kept, pooled = plan.over_all_seeds([*made, empty], seed=0)
    assert len(kept) == 4 and pooled["setting"] == "seeds=all" and pooled["n"] == 3
    low, high = stats.t.interval(0.95, 2, loc=0.5, scale=stats.sem(values))
    assert (pooled["value"], pooled["ci_low"], pooled["ci_high"]) == pytest.approx((0.5, low, high))
    assert len(plan.over_all_seeds(made, seed=0, single=lambda row: row["seed"] == 1)) == 2


def test_intervals_stay_within_what_a_number_can_be():
    names = {"experiment": "poisoning", "setting": "x=1"}
    made = [
        mean_row([value], metric=metric, seed=seed, **names)
        for metric in ("memorised", "misclassified", "share_growth")
        for seed, value in enumerate((0.2, 0.9, 1.0))
    ]
    found = {row["metric"]: row for row in plan.over_all_seeds(made, seed=0) if row["setting"] == "x=1;seeds=all"}
    low, high = stats.t.interval(0.95, 2, loc=0.7, scale=np.std([0.2, 0.9, 1.0], ddof=1) / 3**0.5)
    ends = {metric: (row["ci_low"], row["ci_high"]) for metric, row in found.items()}
    assert low < 0 and high > 1
    assert ends["share_growth"] == pytest.approx((low, high))
    assert ends["memorised"] == (0.0, 1.0) and ends["misclassified"] == pytest.approx((0.0, high))


def test_counts_and_credibilities_follow_from_the_network_and_the_arrays(run, results):
    result = results("poisoned_training")
    case = poisoned_training.main_set(run, "svm_poisoning", 0, norm="l1")
    trained = run.store.get(case.network, run.context).tensors
    for epoch in (1, 2):
        wrong = trained[f"{epoch}|labels|train"] != trained["y"]
        for part, flags in (("train", wrong), ("poison", wrong[-8:]), ("train_clean", wrong[:-8])):
            where = {"metric": "misclassified", "setting": f"part={part};epoch={epoch}"}
            assert the(result.table, **where) == int(flags.sum())
            assert select(result.table, **where)["n"].item() == len(flags)
    for own in ("in", "out"):
        for name in CREDIBILITIES:
            sample = result.arrays[f"l1|0|poison|{own}|{name}"]
            assert len(sample) == 8
            where = f"credibility={name};part=poison;self={own}"
            assert the(result.table, metric="mean_credibility", setting=where) == pytest.approx(sample.mean(), rel=1e-4)
            assert the(result.table, metric="max_credibility", setting=where) == pytest.approx(sample.max(), rel=1e-4)
    recovered = select(result.table, metric="recovered")
    assert {"distance=l2", "distance=cosine"} <= {part for text in recovered["setting"] for part in text.split(";")}
    assert set(recovered["layer"]) == {"", *searching.LAYERS} and recovered["setting"].str.contains("trimmed=yes").any()


def test_the_base_rate_and_the_shares_of_table_1(results):
    table = results("neighbor_share").table
    base_rate = 8 / 68
    assert select(table, metric="base_rate")["value"].unique() == pytest.approx([base_rate])
    table = table[table["setting"].str.startswith("clean=60;kind=poisoned;epoch=1;queries=test_correct")]
    for layer in searching.LAYERS:
        single = select(table, metric="poisoned_neighbor_share", layer=layer)
        pooled = single[single["setting"].str.endswith("seeds=all")]["value"].item()
        each = single[~single["setting"].str.endswith("seeds=all")]["value"]
        assert len(each) == 2 and pooled == pytest.approx(each.mean(), rel=1e-4)
        assert the(table, metric="enrichment", layer=layer) == pytest.approx(pooled / base_rate, rel=1e-4)


def test_every_query_finds_all_poison_when_all_points_are_neighbours(run):
    case = shares._set(run, 60, 0, "poisoned")
    artifact = run.store.get(case.search("all", test=5, epoch=1, k=67), run.context)
    train = searching.Seen.of(artifact, "train")
    assert train.share(67)[~train.own] == pytest.approx(8 / 67) and train.share(67)[train.own] == pytest.approx(7 / 67)
    assert train.with_self().share(68).shape == (68, 4)


def test_coordinates_keep_all_distances():
    rows = torch.rand(9, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = shares.coordinates(rows)
    assert found.shape == (9, 9) and torch.equal(shares.coordinates(rows.T), rows.T)
    torch.testing.assert_close(torch.cdist(found, found), torch.cdist(rows, rows))


def test_a_probe_tells_separable_poison_and_not_chance(results):
    aucs = select(results("neighbor_share").table, metric="probe_auc")
    assert set(aucs["layer"]) == set(searching.LAYERS) and aucs["value"].between(0, 1).all()
    assert aucs["setting"].str.contains("kind=clean_network").any()


def test_low_variance_and_low_maximum_are_told_from_a_random_draw():
    generator = np.random.default_rng(1)
    clean = generator.random(500)
    names = {"experiment": "poisoning", "seed": 0}

    def p_values(poison):
        return {row["metric"]: row["value"] for row in low_credibility._tests(poison, clean, names)}

    low = p_values(0.2 + 0.05 * generator.random(30))
    assert low["low_variance_p"] < 0.01 and low["low_maximum_p"] < 0.01 and low["ks_p"] < 0.01
    same = p_values(clean[:60])
    assert min(same["low_variance_p"], same["low_maximum_p"], same["ks_p"]) > 0.02
    wide = p_values(np.tile([0.0, 1.0], 15))
    assert wide["low_variance_p"] == 1 and wide["low_maximum_p"] == 1


def test_credibility_tables_follow_from_the_arrays(results):
    result = results("low_credibility")
    sample = result.arrays["svm_poisoning|l1||0|report|out|c_label|poison"]
    where = "credibility=c_label;regime=report;self=out;points=all"
    found = select(result.table, attack="svm_poisoning", setting=where)
    assert the(found, metric="sd_credibility") == pytest.approx(sample.std(ddof=1), rel=1e-3, abs=1e-6)
    clean = result.arrays["svm_poisoning|l1||0|report|out|c_label|clean"]
    assert the(found, metric="ks_distance") == pytest.approx(stats.ks_2samp(sample, clean).statistic, rel=1e-4)
    memorised = select(result.table, metric="memorised")
    assert set(memorised["setting"].str.extract("regime=(\\w+)")[0]) == {"report", "memorised"}


def test_detection_and_removal_follow_from_the_scores(run, results):
    result = results("defences")
    for _, _, case in defending._cases(run):
        scored = run.store.get(defending._scored(case), run.context).tensors
        poisoned = scored["poisoned"].numpy()
        count = round(SMALL.removal * poisoned.sum())
        for detector, form in defending.MAIN.items():
            names = {"attack": case.attack, "detector": detector, "seed": 0}
            where = ";".join(filter(None, (f"rate={case.rate:g}" if case.rate else "", form)))
            expected = roc_auc_score(poisoned, scored[f"scores/{detector}|{form}"])
            assert the(result.table, metric="auc", setting=where, **names) == pytest.approx(expected, abs=1e-5)
            removed = scored[f"removed/{detector}"]
            assert len(removed) == count == len(removed.unique())
            lost = plan.setting(rate=f"{case.rate:g}" if case.rate else "", rule="budget")
            clean = int((~scored["poisoned"][removed]).sum())
            assert the(result.table, metric="removed_clean", setting=lost, **names) == clean
            assert the(result.table, metric="recall", setting=lost, **names) == pytest.approx(
                (count - clean) / poisoned.sum(), rel=1e-4
            )
        again = run.store.get(defending._retrained(case, "credibility"), run.context).tensors
        before = run.store.get(case.network, run.context).tensors
        assert torch.equal(again["y"], before["y"])  # answers on the whole set, whatever was removed
        assert not torch.equal(again[f"{case.last}|weights|fc.weight"], before[f"{case.last}|weights|fc.weight"])
    patch = select(result.table, attack="patch", metric="success")
    assert set(patch["experiment"]) == {"backdoor"} and set(patch["n"]) <= {1, int((trained_test(run) != 0).sum())}


def trained_test(run):
    return run.store.get(plan.Poisoned(run, "none", 0).network, run.context).tensors["y_test"]


def test_networks_learn_the_digits_and_their_labels_are_those_of_the_plain_network():
    recipe = {
        "data": {"attack": "none", "images": 1_000, "digits": (), "seed": 0}, "checkpoints": (1, 4), "batch_size": 50,
        "learning_rate": 1e-3, "test_images": 500, "seed": 0, "removed": "",
    }  # fmt: skip
    made = Artifact("", training.train(recipe, (), Context("cpu")).tensors, {}, {})
    reached = [float((made.tensors[f"{epoch}|labels|test"] == made.tensors["y_test"]).float().mean()) for epoch in (1, 4)]
    assert reached[1] > max(0.85, reached[0])
    network, mnist = training.load_network(made, 4, "cpu"), data.load("mnist")
    for part, x in (("test", mnist.x_test[:500]), ("train", mnist.x_train[:1_000])):
        assert torch.equal(network(x).argmax(1).to(torch.uint8), made.tensors[f"4|labels|{part}"])


def test_auc_of_many_labels_follows_from_its_arrays(results):
    result = results("many_labels")
    poison, clean = (result.arrays[f"0|c_label|{part}"] for part in ("poison", "clean"))
    assert len(poison) == 2 * SMALL.pair_points
    where = {"metric": "auc", "setting": "pairs=2;credibility=c_label;self=out"}
    row = auc_row(clean, poison, metric="auc", experiment="poisoning")
    assert the(result.table, **where) == pytest.approx(row["value"], abs=1e-5)
    assert the(result.table, metric="base_rate", setting="pairs=2") == pytest.approx(6 / 306, rel=1e-4)
    assert len(many_labels.label_pairs(45)) == 45 and many_labels.label_pairs(3) == ((0, 1), (1, 8), (4, 5))


def test_readings_of_the_mixtures_count_what_they_say(results):
    result = results("mixtures")
    table = result.table[~result.table["setting"].str.contains("bin=") & ~result.table["setting"].str.endswith("seeds=all")]
    accuracy = select(table, metric="accuracy", attack="svm_poisoning")
    counts = {reading: set(accuracy[accuracy["setting"].str.contains(f"reading={reading}")]["n"]) for reading in "AB"}
    assert counts == {"A": {15}, "B": {15}}
    wrong = {key.split("|")[2]: array.sum() for key, array in result.arrays.items() if key.endswith("wrong_label")}
    assert wrong["A"] == 15 and wrong["B"] == 4 and wrong["C"] == 0
    evasion = select(table, attack="evasion", metric="mean_credibility")
    assert set(evasion["n"]) == {50}


def test_the_poisoned_classifier_has_three_accuracies_and_an_evasion(results):
    table = results("poisoned_classifier").table
    for training_ in ("clean", "flipped", "poisoned"):
        where = f"digits=1-9;points=15;training={training_}"
        assert 0 <= the(table, metric="accuracy", setting=where, network="linear_svm") <= 1
    shown = select(table, attack="evasion")
    clean, evading = (the(shown, setting=f"digits=1-9;shown={name}") for name in ("clean", "evading"))
    assert clean > evading


@pytest.mark.parametrize("case", ["5-9-15", "5-9-x-l1", "5-9-15-l7"])
def test_a_case_that_cannot_be_read_is_refused(case):
    with pytest.raises(InputError, match="give it like 5-9-15-l1"):
        classifier.parse(case)


def test_every_node_of_every_profile_can_be_planned_once():
    for profile in profiles.PROFILES:
        planned = base.Run("poisoning_ila", profile=profile, device="cpu")
        for experiment in EXPERIMENTS.values():
            walked = list(planned.store.walk(*experiment.nodes(planned).values()))
            asked = {(n.stage.name, n.config_json, tuple(i.key for i in n.inputs)) for n in walked}
            assert len(walked) == len(asked) == len({n.key for n in walked})
