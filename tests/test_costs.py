"""Costs of stages: what a result keeps, and what is estimated from it."""

import json

import pytest

from deepneighbors import costs, plan
from deepneighbors.experiments import Run
from deepneighbors.profiles import SETTINGS

SMOKE = SETTINGS["nnif_detection"]["smoke"]


@pytest.fixture(scope="module")
def nodes():
    return plan.nodes_of(Run("nnif_detection", profile="smoke", device="cpu"))


def of(nodes, stage, attack):
    return [node for node in nodes if node.stage.name == stage and costs.label(node, "attack") == attack]


def test_work_counts_images_epochs_and_steps(nodes):
    by_stage = {node.stage.name: node for node in nodes}
    assert costs.work(by_stage["train_thin_resnet"]) == SMOKE.train_images * SMOKE.epochs
    assert {costs.work(node) for node in of(nodes, "attack_classifier", "fgsm")} == {SMOKE.fast_test}
    assert {costs.work(node) for node in of(nodes, "attack_classifier", "deepfool")} == {SMOKE.fast_test * 50}
    search = SMOKE.slow_test * SMOKE.search_steps * SMOKE.steps
    assert {costs.work(node) for node in of(nodes, "attack_classifier", "cw")} == {search}
    assert {costs.work(node) for node in of(nodes, "attack_cw_opt", "cw_opt")} == {search}
    assert costs.work(by_stage["evade"]) == SMOKE.adaptive_images * SMOKE.adaptive_steps
    assert costs.work(by_stage["detect"]) == 1
    paper = plan.nodes_of(Run("nnif_detection", profile="full", device="cpu", n=1_000), ["attacks"])
    assert {costs.work(node) for node in of(paper, "attack_classifier", "cw")} == {500 * 5 * 1_000}


def test_trying_more_of_mahalanobis_costs_more():
    run = Run("nnif_detection", profile="smoke", device="cpu", changes=("epsilons=1e-4,1e-3,1e-2",))
    features = [
        node for node in plan.nodes_of(run) if node.config.get("detector") == "mahalanobis" and "grid" in node.config
    ]
    assert {costs.work(node) for node in features} == {SMOKE.fast_test * 3, SMOKE.slow_test * 3}


def test_a_node_costs_what_others_for_its_attack_did(nodes):
    fast, slow = of(nodes, "attack_classifier", "fgsm"), of(nodes, "attack_classifier", "cw")
    known = costs.Costs([costs.spent([*((node, 4.0) for node in fast), *((node, 50.0) for node in slow)])])
    assert known.seconds(fast[0]) == pytest.approx(4.0) and known.seconds(slow[0]) == pytest.approx(50.0)
    larger = plan.nodes_of(
        Run("nnif_detection", profile="smoke", device="cpu", changes=(f"slow_test={2 * SMOKE.slow_test}",))
    )
    assert sorted(known.seconds(node) for node in of(larger, "attack_classifier", "cw")) == pytest.approx([50.0, 100.0])
    (other,) = of(nodes, "attack_classifier", "jsma")[:1]  # of this stage, for an attack that was not measured
    whole = sum([4.0 * len(fast), 50.0 * len(slow)]) / sum(costs.work(node) for node in (*fast, *slow))
    assert known.seconds(other) == pytest.approx(whole * costs.work(other))
    assert known.seconds(of(nodes, "train_thin_resnet", "")[0]) is None


def test_records_without_parts_give_the_mean_of_a_stage(nodes, tmp_path):
    (tmp_path / "below").mkdir()
    for name, record in (("a", {"count": 1, "seconds": 2.0}), ("b", {"count": 3, "seconds": 18.0})):
        (tmp_path / "below" / f"{name}.json").write_text(json.dumps({"provenance": {"stages": {"detect": record}}}))
    (tmp_path / "old.json").write_text(json.dumps({"provenance": {"config": {}}}))
    detect = next(node for node in nodes if node.stage.name == "detect")
    assert costs.Costs.recorded(tmp_path / "nothing", tmp_path).seconds(detect) == 5.0
    assert costs.Costs.recorded(tmp_path / "nothing").seconds(detect) is None


def test_each_stage_has_the_costs_of_the_first_folder_that_knows_it(nodes, tmp_path):
    detect = next(node for node in nodes if node.stage.name == "detect")
    attack, other = of(nodes, "attack_classifier", "fgsm")[0], of(nodes, "attack_classifier", "cw")[0]
    kept = {
        "own": costs.spent([(attack, 4.0)]),
        "others": costs.spent([(attack, 400.0), (other, 900.0), (detect, 7.0)]),
    }
    for name, record in kept.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.json").write_text(json.dumps({"provenance": {"stages": record}}))
    known = costs.Costs.recorded(tmp_path / "own", tmp_path / "others")
    assert known.seconds(attack) == pytest.approx(4.0)
    assert known.seconds(other) == pytest.approx(4.0 * costs.work(other) / costs.work(attack))
    assert known.seconds(detect) == pytest.approx(7.0)
