"""ILA's experiments on few digits: the attacks' invariants, the hierarchical bootstrap, and rows against brute force."""

import numpy as np
import pytest
import torch

from deepneighbors import data, profiles, splits
from deepneighbors.errors import InputError
from deepneighbors.experiments import base
from deepneighbors.experiments.poisoning_ila import (
    confirmation,
    crafting,
    ila_credibility,
    pooled,
    sources,
    transfer,
    why_it_failed,
)
from deepneighbors.experiments.poisoning_ila.crafting import Budget, Crafted
from deepneighbors.networks import DeepCNN
from deepneighbors.store import Artifact, Context

EPSILON, SEEDS, FRESH = 0.3, (3, 4), (5, 6)
EXPERIMENTS = (
    transfer.TRANSFER, confirmation.CONFIRMATION, why_it_failed.WHY_IT_FAILED, ila_credibility.ILA_CREDIBILITY,
)  # fmt: skip
TINY = ("seeds=2", "ila_train_images=600", "ila_epochs=2", "ila_test_images=100", "ila_sources=deep", "ila_images=12",
        "ila_targets=mnist_cnn,mlp", "ila_layer_images=6", "ila_steps=2", "ila_samples=2", "ila_k=9", "ila_database=200",
        "ila_credibility_images=8", "ila_confirming_seeds=2", "ila_confirming_images=10")  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("DEEPNEIGHBORS_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
    yield base.Run("poisoning_ila", profile="smoke", seed=SEEDS[0], device="cpu", changes=TINY)
    patch.undo()


@pytest.fixture(scope="module")
def results(run):
    chapter = base.Chapter("poisoning_ila", "", {experiment.name: experiment for experiment in EXPERIMENTS})
    return {name: base.compute(run, chapter, name) for name in chapter.experiments}


@pytest.fixture(scope="module")
def cell(run, results):
    """The cell of the first seed."""
    return run.store.get(crafting.transfer_node(run, crafting.Cell(SEEDS[0], "deep", EPSILON)))


def value(result, **names):
    """The one row's value."""
    rows = result.table
    for name, wanted in names.items():
        rows = rows[rows[name] == wanted]
    assert len(rows) == 1, rows
    return rows["value"].item()


def test_accuracies_are_those_of_the_networks_and_their_mean_over_seeds(run, results):
    reached = [run.store.get(sources.source_node(run, seed, "deep")).values["accuracy"] for seed in SEEDS]
    names = {"metric": "accuracy", "network": "deep"}
    for seed, accuracy in zip(SEEDS, reached, strict=True):
        assert value(results["transfer"], setting="role=source", seed=seed, **names) == pytest.approx(accuracy)
    mean = value(results["transfer"], setting="role=source;seeds=all", **names)
    assert mean == pytest.approx(np.mean(reached), rel=1e-4)


def test_too_few_common_digits_are_refused():
    network = Artifact("", DeepCNN().state_dict(), {"architecture": "deep"}, {})  # not trained: right by chance alone
    config = {"images": 5_000, "skip": 0, "member": 0, "members": 40}
    with pytest.raises(InputError, match="ila_images is 5000, but only [0-9]+ test digits"):
        sources.select(config, (network,), Context("cpu"))
    taken = Artifact("", {"indices": torch.arange(9)}, {}, {})
    with pytest.raises(InputError, match="ila_confirming_images is 5000, but fewer test digits"):
        confirmation.select_fresh(config | {"networks": 1}, (network, taken), Context("cpu"))


@pytest.fixture(scope="module")
def crafted():
    """Images, and what each line makes of them, on a network that is not trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DeepCNN().eval().requires_grad_(False)
    x, y = data.load("mnist").x_test[:4], data.load("mnist").y_test[:4]
    budget = Budget(epsilon=0.2, steps=2, samples=2, seed=1)
    layers = ("b0c1", "b2c1", "fc")
    return x, dict(crafting.attacks(network, x, y, budget, layers, chosen=("b0c1", "b2c1"), fixed="b0c1"))


def test_every_attack_stays_in_the_ball_and_in_the_box(crafted):
    x, made = crafted
    assert len(made) == 5 + 2 + 2 * 3 + 3 * 2 + 2
    for line, z in made.items():
        assert z.shape == x.shape and z.min() >= 0 and z.max() <= 1, line
        assert 0 < (z - x).abs().max() <= 0.2 + 1e-6, line


def test_sign_noise_has_exactly_the_radius_before_it_is_clipped(crafted):
    x, made = crafted
    change = (made[("sign_noise", "", "")] - x).abs()
    inside = (x >= 0.2) & (x <= 0.8)
    assert inside.any()
    torch.testing.assert_close(change[inside], torch.full_like(change[inside], 0.2))
    assert (change[x == 0].round(decimals=5).unique() == torch.tensor([0.0, 0.2])).all()  # up, or clipped
    assert not torch.equal(Budget(0.2, 2, 2, 1).random_guide(x), made[("sign_noise", "", "")])


def test_shortened_changes_have_at_most_the_length_and_the_same_direction(crafted):
    x, made = crafted
    z = made[("ilap", "b0c1", "")]
    long = crafting.lengths(z, x)
    wanted = long * torch.tensor([0.5, 1.0, 2.0, 0.25])
    short = crafting.shortened(z, x, wanted)
    torch.testing.assert_close(crafting.lengths(short, x), long * torch.tensor([0.5, 1.0, 1.0, 0.25]))
    cosine = torch.nn.functional.cosine_similarity((short - x).flatten(1), (z - x).flatten(1))
    torch.testing.assert_close(cosine, torch.ones(4))
    assert torch.equal(crafting.shortened(x, x, wanted), x)


def test_two_stages_together_have_the_steps_of_one(crafted):
    budget = Budget(epsilon=0.2, steps=5, samples=1, seed=0)
    assert budget.single == {"epsilon": 0.2, "steps": 10, "step_size": 0.04}
    assert budget.half == {"epsilon": 0.2, "steps": 5}  # whose step is epsilon / steps


def test_the_hierarchical_interval_has_the_width_of_the_normal_theory():
    """Seeds of mean N(0, 0.5), images N(mean, 1): the mean's variance is that of the seeds' means, plus 1 / all images."""
    generator = np.random.default_rng(0)
    centres = generator.normal(0, 0.5, 40)
    groups = [centre + generator.normal(0, 1, 50) for centre in centres]
    low, high = pooled.hierarchical_interval(groups, resamples=4000)
    means = np.array([group.mean() for group in groups])
    half = 2.0227 * np.sqrt(40 / 39) * np.sqrt(means.var() / 40 + 1 / (40 * 50))  # the quantile of t with 39 degrees
    assert (low + high) / 2 == pytest.approx(means.mean(), abs=0.02)
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)


def test_the_interval_of_five_seeds_covers_as_often_as_it_says():
    """Paired differences of -1, 0 and 1 whose mean varies from seed to seed by 0.1; percentiles alone cover 85 %."""
    generator, hits = np.random.default_rng(0), 0
    for trial in range(200):
        centres = generator.normal(0.2, 0.1, 5)
        groups = [generator.choice([-1, 0, 1], 200, p=[0.1, 0.7 - c, 0.2 + c]) for c in centres]
        low, high = pooled.hierarchical_interval(groups, resamples=300, seed=trial)
        hits += low <= 0.3 <= high
    assert 0.92 <= hits / 200 <= 0.99  # binomial sd 1.5 points


@pytest.mark.parametrize("levels", [3, 400])  # counts of levels are drawn where they are few, images where they are many
def test_one_seed_gives_the_bootstrap_of_its_images(levels):
    sample = np.random.default_rng(1).integers(levels, size=400) / levels
    low, high = pooled.hierarchical_interval([sample], resamples=4000)
    assert high - low == pytest.approx(2 * 1.96 * sample.std() / 20, rel=0.08)


def test_seeds_that_differ_widen_the_interval_and_equal_images_have_wilsons():
    apart = [np.repeat([0, 1], [90, 10]), np.repeat([0, 1], [10, 90])]
    low, high = pooled.hierarchical_interval(apart)
    assert low < 0.15 and high > 0.85  # both seeds of one kind are a quarter of the draws each
    assert pooled.hierarchical_interval([np.zeros(10), np.zeros(10)])[1] == pytest.approx(3.8416 / 23.8416, rel=1e-3)


def test_pooled_rows_weigh_seeds_alike_and_leave_out_empty_ones():
    names = {"experiment": "ila", "metric": "success", "setting": "epsilon=0.1"}
    row = pooled.pooled_mean_row([np.ones(10), np.zeros(30), np.array([])], seed=7, **names)
    assert (row["value"], row["n"], row["seed"], row["setting"]) == (0.5, 40, 7, "epsilon=0.1;seeds=all")
    assert pooled.pooled_mean_row([np.array([])], **names)["n"] == 0


def test_scores_are_compared_as_by_brute_force():
    generator = np.random.default_rng(2)
    clean, other = generator.integers(0, 8, 40) / 8, generator.integers(2, 9, 30) / 8
    pairs = (other[:, None] > clean) + 0.5 * (other[:, None] == clean)
    assert pooled.detection_auc(clean, other) == pytest.approx(pairs.mean())
    best = max((other >= t).mean() for t in np.linspace(0, 2, 401) if (clean >= t).mean() <= 0.05)
    assert pooled.tpr_at_fpr_5(clean, other) == pytest.approx(best)
    names = {"experiment": "ila", "metric": "auc"}
    row = pooled.pooled_score_row([(clean, other), (clean, clean), (clean, other[:9])], pooled.detection_auc, **names)
    assert row["value"] == pytest.approx((pairs.mean() + 0.5) / 2) and row["n"] == 30 + 40
    assert row["ci_low"] < row["value"] < row["ci_high"]


def test_each_seed_attacks_digits_of_its_own_that_all_its_networks_have_right(run, results):
    drawn = {seed: sources.selected_node(run, seed) for seed in SEEDS}
    drawn |= {seed: confirmation.digits_node(run, seed) for seed in FRESH}
    kept = {seed: run.store.get(node).tensors["indices"] for seed, node in drawn.items()}
    calibration, _ = splits.calibration_split(data.load("mnist").y_test)
    choosing = sources.test_order()[:6]
    everything = torch.cat([*kept.values(), calibration, choosing])
    assert len(everything.unique()) == len(everything) == 2 * 12 + 2 * 10 + 750 + 6
    for seed, indices in kept.items():
        nodes = [sources.source_node(run, seed, "deep"), *sources.target_nodes(run, seed)]
        assert len({node.key for node in nodes}) == 3
        x, y = sources.digits_at(indices, "cpu")
        for node in nodes:
            assert torch.equal(sources.load_network(run.store.get(node), "cpu")(x).argmax(1), y)


def test_rows_follow_from_what_the_networks_say(run, results, cell):
    table, lines = results["transfer"], [tuple(line) for line in cell.values["lines"]]
    wrong = (cell.tensors["said"] != cell.tensors["y"]).numpy()
    names = {"seed": SEEDS[0], "network": "deep->mlp", "metric": "transfer_success"}
    for attack, layer in (("fgsm", ""), ("naa", "b0c1")):
        setting = "epsilon=0.3;choice=fixed" if layer else "epsilon=0.3"
        shown = value(table, attack=attack, setting=setting, **names)
        assert shown == pytest.approx(wrong[lines.index((attack, layer, "")), 2].mean(), abs=1e-5)
    blind = cell.values["blind"]
    chosen = {"attack": "ilap", "seed": SEEDS[0], "network": "deep->mlp"}
    ours = wrong[lines.index(("ilap", blind, "")), 2]
    for rival, layer in (("random_guide", blind), ("ifgsm", ""), ("mi_di", "")):
        shown = value(table, metric="difference", setting=f"epsilon=0.3;choice=blind;minus={rival}", **chosen)
        assert shown == pytest.approx(ours.mean() - wrong[lines.index((rival, layer, "")), 2].mean(), abs=1e-5)


def _crafted(gains):
    """One seed's cell whose ILAP fools so many of ten images more than its random guide, by layer and target."""
    wrong = {}
    for layer, by_target in gains.items():
        for attack, add in (("ilap", 1), ("random_guide", 0)):
            wrong[(attack, layer, "")] = {t: np.arange(10) < 3 + add * more for t, more in by_target.items()}
    return Crafted(wrong, {}, {})


def test_the_layer_is_chosen_by_its_least_gain_over_targets_and_the_logits_are_no_candidate():
    first = _crafted({"a": {"s": 5, "t": 0}, "b": {"s": 2, "t": 2}, "fc": {"s": 7, "t": 7}})
    second = _crafted({"a": {"s": 5, "t": 1}, "b": {"s": 2, "t": 1}, "fc": {"s": 7, "t": 7}})
    assert confirmation.candidates(first) == ["a", "b"]
    assert confirmation.chosen_layer({0: first, 1: second}, ("s", "t")) == "b"
    assert confirmation.chosen_layer({0: first, 1: second}, ("s",)) == "a"


def test_the_chosen_layer_is_tried_on_seeds_that_did_not_choose_it(run, results):
    """The choice again from the first seeds' artefacts, and its rows again from the further seeds'."""

    def gain(seed, layer, target):
        digits = confirmation.digits_node(run, seed) if seed in FRESH else None
        found = run.store.get(crafting.transfer_node(run, crafting.Cell(seed, "deep", EPSILON), digits))
        lines = [tuple(line) for line in found.values["lines"]]
        wrong = (found.tensors["said"] != found.tensors["y"]).numpy()[:, 1 + target]
        ours, theirs = (wrong[lines.index((name, layer, ""))].mean() for name in ("ilap", "random_guide"))
        return ours - theirs

    layers = DeepCNN.layers[:-1]
    least = {layer: min(np.mean([gain(seed, layer, t) for seed in SEEDS]) for t in (0, 1)) for layer in layers}
    chosen = max(layers, key=least.__getitem__)
    setting, names = (
        "epsilon=0.3;stage=further;choice=explored;minus=random_guide",
        {"network": "deep->mlp", "metric": "difference"},
    )
    for seed in FRESH:
        assert value(results["confirmation"], layer=chosen, setting=setting, seed=seed, **names) == pytest.approx(
            gain(seed, chosen, 1), abs=1e-5
        )
    for layer in layers:
        shown = value(
            results["confirmation"], layer=layer, setting="epsilon=0.3;stage=explored;minus=random_guide;seeds=all", **names
        )
        assert shown == pytest.approx(np.mean([gain(seed, layer, 1) for seed in SEEDS]), abs=1e-5)


def test_matched_rows_are_no_longer_than_their_reference(cell):
    lines, l2 = [tuple(line) for line in cell.values["lines"]], cell.tensors["l2"]
    reference = l2[lines.index(("ifgsm", "", ""))]
    matched = [row for row, line in enumerate(lines) if line[2] == "l2=ifgsm"]
    assert {lines[row][0] for row in matched} == {*transfer.PLAIN, "ilap", "random_guide", "fia", "naa"}
    for row in matched:
        assert (l2[row] <= reference * (1 + 1e-5)).all()
        longer = l2[lines.index((*lines[row][:2], ""))] >= reference
        torch.testing.assert_close(l2[row][longer], reference[longer])


def test_pooled_rows_are_means_of_the_seeds(results):
    for result in results.values():
        table = result.table[result.table["metric"] != "accuracy"]
        singles = table[~table["setting"].str.contains("seeds=all")]
        keys = ["network", "attack", "detector", "layer", "metric", "setting"]
        means = singles[singles["n"] > 0].groupby(keys)["value"].mean()
        together = table[table["setting"].str.contains("seeds=all")].copy()
        together["setting"] = together["setting"].str.removesuffix(";seeds=all")
        shown = together.set_index(keys)["value"]
        common = means.index.intersection(shown.index)
        assert len(common) > 20
        np.testing.assert_allclose(shown[common], means[common], atol=1e-5)
        assert set(singles["seed"]) == set(FRESH if result.name == "confirmation" else SEEDS)
        assert set(together["seed"]) == {SEEDS[0]}


def test_reasons_change_what_they_name_and_nothing_else(run, results):
    table = results["why_it_failed"].table
    assert {s.split(";")[0] for s in table["setting"]} == {"reason=" + r for r in ("none", "epsilon", "step_size", "start")}
    plain = {"attack": "ifgsm", "network": "deep->mlp", "seed": SEEDS[1], "metric": "transfer_success"}
    shown = {r: value(results["why_it_failed"], setting=f"reason={r};epsilon=0.3", **plain) for r in ("none", "step_size")}
    assert shown["none"] == shown["step_size"]  # the starting attack is the same
    assert shown["none"] == value(results["transfer"], setting="epsilon=0.3", **plain)
    assert why_it_failed.REASONS["all"] == why_it_failed.Choices("mnist_cnn", 0.015, "fgsm", 1.0)


def test_deep_knn_sees_what_brute_force_finds(run, results):
    """Votes of the source's Deep kNN on ILA's examples, by sorting cosines; and the rows that follow from them."""
    look = next(look for look in ila_credibility._looks(run) if not look.black_box and look.cell.seed == SEEDS[0])
    node = look.node(run)
    seen, network = run.store.get(node), sources.load_network(run.store.get(node.inputs[0]), "cpu")
    z = run.store.get(node.inputs[2]).tensors["x|ilap|b0c1|"]
    digits, k, line = data.load("mnist"), 9, "ilap|b0c1|"
    features = (network.b0c1(network.b0c0(images)).flatten(1) for images in (digits.x_train[:200], z))
    rows, query = map(torch.nn.functional.normalize, features)
    near = (query @ rows.T).topk(k).indices
    votes = torch.nn.functional.one_hot(digits.y_train[near], 10).sum(1)
    assert torch.equal(seen.tensors[f"votes|{line}"][:, 0].long(), votes)
    share = votes[torch.arange(8), seen.tensors["y"]].float().mean() / k
    names = {"network": "deep", "attack": "ilap", "seed": SEEDS[0]}
    setting = "epsilon=0.3;source_layer=b0c1"
    found = value(results["ila_credibility"], metric="true_label_share", layer="b0c1", setting=setting, **names)
    assert found == pytest.approx(float(share), abs=1e-5)


def test_clean_digits_are_right_and_no_credibility_exceeds_that_of_the_prediction(results):
    table, arrays = results["ila_credibility"].table, results["ila_credibility"].arrays
    clean = table[(table["attack"] == "none") & (table["metric"] == "accuracy") & (table["detector"] == "")]
    assert len(clean) == 6 and (clean["value"] == 1).all()
    for network in ("deep", "deep->mnist_cnn"):
        for attack in ("none", "ilap", "sign_noise"):
            name = f"{network}|{attack}|0.3"
            assert (arrays[f"{name}|network"] <= arrays[f"{name}|predicted"]).all()
        assert not arrays[f"{network}|none|0.3|fooled"].any()
    assert arrays["gallery|deep|ilap|near_x"].shape == (8, 4, 5, 1, 28, 28)
    change = arrays["gallery|deep|ilap|x"].astype(float) - arrays["gallery|clean|x"][:8]
    assert 0 < np.abs(change).max() <= EPSILON + 1e-3


def test_a_second_run_computes_nothing(run, results, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a stage ran again")

    monkeypatch.setattr(crafting.transfer.__class__, "__call__", refuse)
    again = base.Run("poisoning_ila", profile="smoke", seed=SEEDS[0], device="cpu", changes=TINY)
    for experiment in EXPERIMENTS:
        for node in experiment.nodes(again).values():
            again.store.get(node)


def test_settings_of_every_profile_can_be_planned():
    for profile in profiles.PROFILES:
        plan = base.Run("poisoning_ila", profile=profile, device="cpu")
        assert all(experiment.nodes(plan) for experiment in EXPERIMENTS)


@pytest.mark.parametrize(
    ("experiment", "change", "message"),
    [
        (transfer.TRANSFER, "ila_sources=mlp", "source is 'mlp'; allowed are mnist_cnn, deep"),
        (confirmation.CONFIRMATION, "ila_confirmed=lenet", "ila_confirmed is 'lenet'; allowed are mnist_cnn, deep"),
        (transfer.TRANSFER, "ila_targets=vgg", "architecture is 'vgg'; allowed are mnist_cnn, deep, cnn, lenet, mlp"),
    ],
)
def test_unknown_networks_are_refused(experiment, change, message):
    run = base.Run("poisoning_ila", profile="smoke", device="cpu", changes=(change,))
    with pytest.raises(InputError, match=message):
        experiment.nodes(run)
