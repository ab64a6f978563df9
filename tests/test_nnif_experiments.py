"""Chapter 2 on a small problem in both modes: rows follow from scores, slices share targets, views and white box hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import small_run
from sklearn.metrics import roc_auc_score

from deepneighbors import experiments
from deepneighbors.errors import InputError
from deepneighbors.experiments.nnif_detection import attacking, cases, training
from deepneighbors.experiments.nnif_detection.tables import VIEWS
from deepneighbors.networks.thin_resnet import ThinResNet
from deepneighbors.profiles import NnifDetection

SMALL = NnifDetection(
    dataset="mnist", train_images=1_500, validation_images=60, fast_validation=50, fast_test=50, slow_validation=30,
    slow_test=30, blocks=1, epochs=2, one_cycle=True, attacks=("fgsm", "cw"), view_attacks=("fgsm",),
    ablation_attacks=("fgsm",), search_steps=2, steps=40, dknn_k=(0.2,), lid_k=(8,), epsilons=(1e-2,),
    sizes=(10, 20), helpful=20, adaptive_images=12, adaptive_steps=40, subset=500,
    estimator_queries=3, estimator_training=100, lissa=(1, 1, 50),
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, on_few_test_digits):
    """A run of the small problem with a store of its own."""
    with small_run("nnif_detection", SMALL, tmp_path_factory.mktemp("artifacts")) as small:
        yield small


def trained(precision, *changes):
    """The network of the small problem with these settings."""
    chosen = experiments.Run("nnif_detection", profile="smoke", device="cpu", changes=(*changes, f"precision={precision}"))
    return chosen.store.get(cases.cases(chosen)[0].weights, chosen.context)


@pytest.fixture(scope="module")
def detection(run):
    return experiments.compute(run, "detection")


def select(table, **names):
    for name, value in names.items():
        table = table[table[name] == value]
    return table


def test_the_network_is_trained_once_for_both_modes(run):
    clean, faithful = cases.cases(run)
    assert clean.weights.key == faithful.weights.key
    reached = run.store.get(clean.weights, run.context).values["accuracy"]
    assert all(reached[mode]["test"] > 0.4 for mode in training.STATISTICS)


def test_training_in_bfloat16_keeps_the_weights_in_float32_and_learns(run):
    few = ("train_images=500", "epochs=2")
    full, half = (trained(precision, *few) for precision in ("float32", "bfloat16"))
    whole, rounded = full.tensors, half.tensors
    assert {name: (part.shape, part.dtype) for name, part in rounded.items()} == {
        name: (part.shape, part.dtype) for name, part in whole.items()
    }
    assert rounded["conv.weight"].dtype == torch.float32
    reached = [network.values["accuracy"]["clean"]["test"] for network in (full, half)]
    assert reached[1] > 0.2 and abs(reached[1] - reached[0]) < 0.05  # chance is 0.1
    with pytest.raises(InputError, match="precision is 'half'; allowed are float32, bfloat16"):
        trained("half")


def test_training_in_bfloat16_takes_the_same_first_steps(run):
    whole, rounded = (trained(precision, "train_images=250", "epochs=1").tensors for precision in ("float32", "bfloat16"))
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        start = dict(ThinResNet(classes=10, channels=1, blocks=1).named_parameters())
    steps = [torch.cat([(part[name] - start[name]).flatten() for name in start]).detach() for part in (whole, rounded)]
    difference = (steps[1] - steps[0]).norm() / steps[0].norm()
    assert 0 < difference < 0.15  # it is rounded, and 7 % was seen


def test_every_cell_has_its_auc(run, detection):
    for case, attack, detector, layer in [
        (mode, a, d, layer)
        for mode in run.settings.modes
        for a in run.settings.attacks
        for d in (*cases.DETECTORS, *cases.CONTROLS)
        for layer in (("embedding", "all") if d in ("lid", "mahalanobis", "nnif") else ("embedding",))
    ]:
        key = f"{case}|{attack}|{detector}|{layer}"
        clean, attacked = detection.arrays[f"{key}|clean"], detection.arrays[f"{key}|attacked"]
        names = {"network": f"thin_resnet34/{case}", "attack": attack, "detector": detector, "layer": layer, "setting": ""}
        (value,) = select(detection.table, metric="auc", **names)["value"]
        labels = np.repeat([0, 1], [len(clean), len(attacked)])
        assert value == pytest.approx(
            roc_auc_score(labels, np.concatenate([clean, attacked])), abs=5e-3
        )  # kept in single precision


def test_pixels_off_the_grid_betray_an_attack_until_they_are_rounded(run, detection):
    plain = select(detection.table, detector="off_grid", metric="auc", attack="fgsm", setting="")["value"]
    assert len(plain) == 2 and (plain > 0.99).all()
    for case in cases.cases(run):
        rounded = case.detected("off_grid", "embedding", "fgsm", view="rounded")
        clean, attacked = cases.scores_of(run.store.get(rounded, run.context))
        assert len(set(clean) | set(attacked)) == 1  # nothing to tell them by


def test_targets_do_not_depend_on_the_slice(run):
    case = cases.cases(run)[0]
    (node,) = case.attacked("fgsm", "test")
    whole = run.store.get(node, run.context).tensors["x"]
    part = attacking.attack.node(node.config | {"start": 25, "stop": 50}, node.inputs)
    assert torch.equal(run.store.get(part, run.context).tensors["x"], whole[25:])


def test_one_image_at_a_time_is_instance_norm(run):
    """In faithful mode a detector that sees single images sees another function: DkNN's and NNIF's features change."""
    clean, faithful = cases.cases(run)
    for case, same in ((clean, True), (faithful, False)):
        plain, single = (
            run.store.get(case.features("logit_margin", "fgsm", "test", "clean", view), run.context).tensors["0"]
            for view in ("plain", "single")
        )
        assert torch.allclose(plain, single, atol=1e-3) == same


def test_mixed_batches_change_nothing_with_running_statistics(run):
    case = cases.cases(run)[0]
    for shown in ("clean", "attacked"):
        plain, mixed = (
            run.store.get(case.features("mahalanobis", "fgsm", "test", shown, view), run.context).tensors["0.01"]
            for view in ("plain", "mixed")
        )
        torch.testing.assert_close(plain[:, [case.embedding]], mixed, rtol=1e-3, atol=1e-2)


def test_a_mode_and_the_views_may_have_fewer_images(tmp_path):
    fewer = replace(SMALL, fast_test=40, fast_validation=30, faithful_n=24)
    with small_run("nnif_detection", fewer, tmp_path) as capped:
        counts = [[case.images("fgsm", part) for part in ("test", "validation")] for case in cases.cases(capped)]
        views = [case.images("fgsm", "test") for case in cases.cases(capped, 20)]
    assert counts == [[40, 30], [24, 12]]
    assert views == [20, 20]


def test_calibrating_images_teach_nothing(run):
    case = cases.cases(run)[0]
    validation = run.store.get(case.features("dknn", "fgsm", "validation", "clean"), run.context).tensors
    nnif = run.store.get(case.features("nnif", "fgsm", "validation", "clean"), run.context).tensors
    count = len(nnif["10"])
    assert all(len(rows) == count - count // 3 for rows in validation.values())


def test_the_white_box_counts_what_passes_both(run):
    result = experiments.compute(run, "white_box")
    table = result.table
    (adaptive,) = select(table, attack="adaptive", metric="evaded")["value"]
    assert adaptive == pytest.approx(result.arrays["adaptive|evaded"].mean())
    (plain,) = select(table, attack="cw", metric="evaded")["value"]
    assert adaptive >= plain
    assert len(select(table, attack="cw_opt", metric="auc", setting="white_box")) == 4 * len(run.settings.modes)


def test_estimators_are_compared_with_the_exact_one(run):
    table = experiments.compute(run, "estimators").table
    for metric in ("spearman", "top_overlap"):
        same = select(table, metric=metric, setting="last_layer")["value"]
        assert (same > 1 - 1e-6).all() and len(same) == len(run.settings.modes)
    assert (select(table, metric="seconds_per_query")["value"] > 0).all()
    assert len(select(table, metric="auc")) == 8 * len(run.settings.modes)


def test_the_gallery_shows_training_images_and_counts_helpful_neighbours(run, monkeypatch):
    from deepneighbors.experiments.nnif_detection import gallery

    monkeypatch.setattr(gallery, "ATTACK", "fgsm")
    result = experiments.compute(run, "gallery")
    shares = select(result.table, metric="helpful_neighbor_share")
    assert len(shares) == 2 * len(run.settings.modes) and shares["value"].between(0, 1).all()
    images = training.images_of(cases.cases(run)[0].data)
    node = run.store.get(gallery._gallery_nodes(run)["clean"])
    near, base = node.tensors["clean|near"], node.tensors["plane|training"]
    assert near.shape[1] == gallery.NEAR and len(base) == len(images.x["train"])
    shown = result.arrays["clean|clean|helpful|x"][0, 0] / 255
    place = node.tensors["clean|helpful"][node.tensors["examples"][0], 0]
    assert np.allclose(shown, images.x["train"][place], atol=1e-6)
    assert (result.arrays["clean|clean|y"] == result.arrays["clean|true|y"]).all()  # the network is right before
    assert (result.arrays["clean|attacked|y"] != result.arrays["clean|true|y"]).all()  # and wrong after


def test_the_auc_of_one_feature_is_that_of_its_density(run):
    result = experiments.compute(run, "densities")
    clean, attacked = (result.arrays[f"clean|fgsm|d_up|{shown}"] for shown in ("clean", "attacked"))
    (value,) = select(result.table, detector="d_up", network="thin_resnet34/clean")["value"]
    expected = roc_auc_score(np.repeat([1, 0], [len(clean), len(attacked)]), -np.concatenate([clean, attacked]))
    assert value == pytest.approx(expected, abs=1e-5)


def test_attacks_report_success_and_size(run):
    table = experiments.compute(run, "attacks").table
    assert set(select(table, metric="success")["attack"]) == {"fgsm", "cw"}
    sizes = select(table, metric="mean_linf_all", attack="fgsm")["value"]
    assert (sizes <= 0.1 + 1e-6).all() and (sizes > 0.09).all()


def test_ablation_unseen_attacks_and_views_have_all_their_cells(run):
    planned = {
        name: experiment.nodes(run) for name, experiment in experiments.CHAPTERS["nnif_detection"].experiments.items()
    }
    modes = len(run.settings.modes)
    assert len(planned["ablation"]) == 15 * modes
    assert len(planned["generalisation"]) == (4 + 3) * modes  # four detectors, three of them also on all layers
    assert len(planned["views"]) == sum(map(len, VIEWS.values())) * modes


def test_a_mask_chooses_columns_of_the_embedding(run):
    case = cases.cases(run)[0]
    assert case.layers == 9 and case.embedding == 7
    assert case.columns("nnif", "embedding", "0101") == [29, 31]
    assert case.columns("nnif", "embedding") == [28, 29, 30, 31] and case.columns("nnif", "all") == []
    assert case.columns("lid", "embedding") == [7] and case.columns("dknn", "embedding") == []
