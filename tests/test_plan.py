"""The plan of a run: tasks hold every node once and after what they need; states and costs are those of the store."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from conftest import small_run

from deepneighbors import cli, plan, profiles
from deepneighbors.errors import InputError
from deepneighbors.experiments import CHAPTERS, Run, base, compute

POISONED = "poisoned_classifier"


@pytest.fixture
def run(tmp_path):
    """The smallest run that has two kinds of stages: points of a poisoned classifier, and images that evade it."""
    settings = profiles.SETTINGS["poisoning_ila"]["smoke"]
    with small_run("poisoning_ila", settings, tmp_path) as small:
        yield small


@pytest.mark.parametrize("profile", ["smoke", "full"])
@pytest.mark.parametrize("chapter", list(CHAPTERS))
def test_tasks_hold_every_node_once_and_after_what_it_needs(chapter, profile):
    run = Run(chapter, profile=profile, device="cpu")
    found = plan.tasks(run)
    nodes = [node for task in found for node in task.nodes]
    assert sorted(node.key for node in nodes) == sorted(node.key for node in plan.nodes_of(run))
    assert max(len(task.nodes) for task in found) <= plan.BATCH
    maker = {node.key: task.name for task in found for node in task.nodes}
    earlier: set[str] = set()
    for task in found:
        assert {node.stage.name for node in task.nodes} == {task.stage}
        wanted = {maker[upstream.key] for node in task.nodes for upstream in node.inputs}
        assert wanted == set(task.needs) <= earlier
        earlier.add(task.name)
    assert len(earlier) == len(found)


def test_a_task_is_of_one_attack_and_one_detector():
    found = plan.tasks(Run("nnif_detection", profile="smoke", device="cpu"))
    scored = [
        task for task in found if task.stage == "detector_features" and task.attack == "fgsm" and task.detector == "lid"
    ]
    assert scored
    for node in (node for task in scored for node in task.nodes):
        assert node.config["detector"] == "lid"
        assert "fgsm" in {upstream.config.get("attack") for upstream in node.inputs}


def test_other_settings_make_other_tasks_of_the_same_kind():
    names = [{task.name for task in plan.tasks(Run("poisoning_ila", profile="smoke", seed=seed, device="cpu"))}
             for seed in (0, 0, 1)]  # fmt: skip
    assert names[0] == names[1] and names[0].isdisjoint(names[2])
    assert {name.rsplit("-", 1)[0] for name in names[0]} == {name.rsplit("-", 1)[0] for name in names[2]}


def test_a_computed_task_leaves_its_artefacts_and_a_receipt(run):
    for task in plan.tasks(run, [POISONED]):
        assert not task.receipt.exists()
        receipt = json.loads(plan.compute(run, task.name, [POISONED]).read_text())
        assert receipt["task"] == task.name
        assert set(receipt["artifacts"]) == {node.key for node in task.nodes}
        for node in task.nodes:
            assert run.store.state(node) == "done"
            on_disk = json.loads((run.store.folder(node) / "manifest.json").read_text())
            assert receipt["artifacts"][node.key] == on_disk


def test_a_receipt_can_be_written_elsewhere(run, tmp_path, capsys):
    task = plan.tasks(run, [POISONED])[0]
    place = tmp_path / "elsewhere" / "receipt.json"
    assert plan.compute(run, task.name, [POISONED], receipt=place) == place
    assert json.loads(place.read_text())["task"] == task.name and not task.receipt.exists()
    assert cli.main(["run", "poisoning_ila", "--profile", "smoke", "--receipt", "x.json"]) == 2
    assert "--receipt is 'x.json' without --task" in capsys.readouterr().err


def test_an_unknown_task_is_refused_before_any_work(run):
    with pytest.raises(InputError, match="task is 'poisoning_ila/mnist/poison_points/any-any-0', which is not in the plan"):
        plan.compute(run, "poisoning_ila/mnist/poison_points/any-any-0")
    assert not list(run.store.root.rglob("manifest.json"))


def costs(run):
    return {cost.stage: cost for cost in plan.stage_costs(run, [POISONED])}


def test_costs_are_means_of_what_is_done_times_what_is_left(run):
    before = costs(run)["poison_points"]
    assert (before.done, before.damaged, before.seconds, before.left, before.source) == (0, 0, None, None, "")
    nodes = [node for task in plan.tasks(run, [POISONED]) for node in task.nodes if node.stage.name == "poison_points"]
    assert before.missing == len(nodes) > 0
    run.store.get(nodes[0])
    again = Run("poisoning_ila", profile="smoke", seed=1, device="cpu")
    assert costs(again)["poison_points"].seconds is None  # other nodes
    (run.store.folder(nodes[0]) / "values.json").write_text("{}")
    damaged = costs(run)["poison_points"]
    assert (damaged.done, damaged.damaged, damaged.missing) == (0, 1, len(nodes) - 1)
    compute(Run("poisoning_ila", profile="smoke", device="cpu"), POISONED)  # in another process, as it were
    done = costs(run)["poison_points"]
    assert (done.done, done.missing, done.damaged, done.left, done.source) == (len(nodes), 0, 0, 0.0, "this store")
    spent = [json.loads((run.store.folder(node) / "manifest.json").read_text())["seconds"] for node in nodes]
    assert done.seconds == pytest.approx(sum(spent) / len(spent))


@pytest.mark.parametrize("place", ["recorded", "costs"])  # with results, and of few images where no result has any
def test_a_cost_that_is_recorded_serves_where_the_store_has_none(place, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPNEIGHBORS_ARTIFACTS", str(tmp_path / "store"))
    monkeypatch.setenv("DEEPNEIGHBORS_RECORDED", str(tmp_path / "recorded"))
    folder = tmp_path / place / "poisoning_ila"
    folder.mkdir(parents=True)
    for name, count, seconds in ((POISONED, 4, 10.0), ("mixtures", 1, 5.0)):
        spent = {"poison_points": {"count": count, "seconds": seconds}}
        (folder / f"{name}.json").write_text(json.dumps({"provenance": {"stages": spent}}))
    cost = costs(Run("poisoning_ila", profile="full", device="cpu"))["poison_points"]
    assert (cost.seconds, cost.source, cost.left) == (3.0, "recorded", 3.0 * cost.missing)
    assert costs(Run("poisoning_ila", profile="quick", device="cpu"))["poison_points"].source == ""


def test_results_keep_what_each_stage_cost(run):
    result = compute(run, POISONED)
    nodes = plan.nodes_of(run, [POISONED])
    spent = result.provenance["stages"]
    assert {name: one["count"] for name, one in spent.items()} == {
        name: sum(node.stage.name == name for node in nodes) for name in spent
    }
    assert sum(one["seconds"] for one in spent.values()) == pytest.approx(result.provenance["stage_seconds"], abs=0.1)


def test_a_result_names_the_commit_that_it_began_at(run, monkeypatch):
    states = iter([{"commit": "first", "dirty": False}, {"commit": "second", "dirty": True}])
    monkeypatch.setattr(base, "git_state", lambda: next(states))
    assert compute(run, POISONED).provenance["commit"] == "first"


def test_recorded_states_tell_other_settings_and_older_code(run, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPNEIGHBORS_RECORDED", str(tmp_path / "recorded"))
    full = Run("poisoning_ila", profile="full", device="cpu")
    assert set(plan.recorded_states(full).values()) == {"not run"}
    result = compute(run, POISONED)
    smaller = result.provenance | {"code_fingerprint": CHAPTERS["poisoning_ila"].experiments[POISONED].code(full)}
    for origin, state in ((smaller, "other settings"), (smaller | {"code_fingerprint": "0"}, "older code")):
        object.__setattr__(result, "provenance", origin)
        result.save(tmp_path / "recorded" / "poisoning_ila")
        assert plan.recorded_states(full)[POISONED] == state
    planned = asdict(full.settings)
    planned.pop("ila_samples")  # a setting that is newer than the result
    object.__setattr__(result, "provenance", smaller | {"config": json.loads(json.dumps(planned))})
    result.save(tmp_path / "recorded" / "poisoning_ila")
    assert plan.recorded_states(full)[POISONED] == "recorded"


def test_the_command_prints_stages_tasks_and_runs_one(run, capsys):
    arguments = ["poisoning_ila", "--profile", "smoke"]
    assert cli.main(["plan", *arguments]) == 0
    out = capsys.readouterr().out
    assert "poisoning_ila/mnist/poison_points" in out and "not known" in out
    assert cli.main(["plan", *arguments, "--json"]) == 0
    tasks = json.loads(capsys.readouterr().out)
    assert [task["name"] for task in tasks] == [task.name for task in plan.tasks(run)]
    first = next(task for task in tasks if task["stage"] == "evasion_points")
    assert cli.main(["run", *arguments, "--device", "cpu", "--task", first["name"]]) == 0
    assert capsys.readouterr().out.strip() == first["receipt"]
    assert cli.main(["run", *arguments, "--task", first["name"], "--experiment", "gallery"]) == 2
    assert "experiment is 'gallery'" in capsys.readouterr().err


def test_depth_keeps_apart_tasks_that_need_each_other(run):
    trained = [task for task in plan.tasks(run) if task.stage == "train_on_poison"]
    scored = {task.name for task in plan.tasks(run) if task.stage == "score_training"}
    assert any(scored & set(task.needs) for task in trained)  # a network is trained anew without what another's scores flag


def test_tasks_are_of_one_data_set_and_the_table_of_all(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPNEIGHBORS_ARTIFACTS", str(tmp_path))
    assert cli.main(["plan", "nnif_detection", "--profile", "full", "--json"]) == 0
    assert {task["dataset"] for task in json.loads(capsys.readouterr().out)} == {"cifar10"}
    assert cli.main(["plan", "nnif_detection", "--profile", "full"]) == 0
    out = capsys.readouterr().out
    assert all(f"nnif_detection/{name}/detect " in out for name in ("cifar10", "cifar100", "svhn"))


def made_up(shape, run):
    """Tasks of one node each: for each its stage and the places of those that it needs."""
    node, tasks = plan.nodes_of(run, [POISONED])[0], []
    for place, (stage, needs) in enumerate(shape):
        tasks.append(plan.Task(f"c{place}", "mnist", stage, "", "", (node,), tuple(tasks[need].name for need in needs)))
    return tasks


def test_makespan_of_one_worker_is_the_sum_and_of_many_the_longest_path(run):
    seconds = {"a": 1.0, "b": 2.0, "c": 4.0}
    tasks = made_up([("a", []), ("b", [0]), ("c", [0]), ("b", [1, 2]), ("c", [])], run)
    taken = [plan.makespan(tasks, lambda task: seconds[task.stage], workers) for workers in (1, 2, 99)]
    assert taken == [13.0, 9.0, 7.0]


def test_makespan_keeps_the_bound_of_list_scheduling():
    tasks = plan.tasks(Run("nnif_detection", profile="smoke", device="cpu"))
    generator = np.random.default_rng(0)
    for _ in range(5):
        seconds = {task.name: float(generator.exponential()) for task in tasks}
        longest = plan.makespan(tasks, lambda task, known=seconds: known[task.name], len(tasks))
        for workers in (1, 3, 7):
            taken = plan.makespan(tasks, lambda task, known=seconds: known[task.name], workers)
            best = max(sum(seconds.values()) / workers, longest)
            assert best - 1e-9 <= taken <= (2 - 1 / workers) * best + 1e-9
