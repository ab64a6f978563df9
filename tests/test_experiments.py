"""The chapter's experiments at the smoke profile: checked requests, the same rows from a second run, one key a setting."""

import ast
import dataclasses
import types

import numpy as np
import pytest

from deepneighbors import experiments, fingerprint, plan, profiles
from deepneighbors.errors import InputError
from deepneighbors.experiments import base
from deepneighbors.experiments.knn_dknn_attack import artefacts, stages
from deepneighbors.experiments.knn_dknn_attack.tables import dknn_attacks, knn_attacks
from deepneighbors.results import to_csv


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A smoke run with a store of its own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("DEEPNEIGHBORS_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
    yield experiments.Run("knn_dknn_attack", profile="smoke", device="cpu")
    patch.undo()


@pytest.fixture(scope="module")
def knn_result(run):
    return experiments.compute(run, "knn_attack")


def test_rows_follow_from_the_arrays(knn_result):
    table, arrays = knn_result.table, knn_result.arrays
    for line in ("knn|mean|l2|", "knn|minimum_norm|l2|"):
        network, attack, norm, _ = line.split("|")
        chosen = table[(table["network"] == network) & (table["attack"] == attack) & (table["norm"] == norm)]
        values = chosen.set_index("metric")["value"]
        won = arrays[f"{line}|success"]
        assert values["accuracy"] == pytest.approx(1 - won.mean())
        assert values["mean_l2"] == pytest.approx(arrays[f"{line}|l2"][won].mean(), rel=1e-4)


def test_a_second_run_computes_nothing(run, knn_result, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a stage ran again")

    monkeypatch.setattr(stages.ATTACK["mean"].__class__, "__call__", refuse)
    again = experiments.compute(experiments.Run("knn_dknn_attack", profile="smoke", device="cpu"), "knn_attack")
    assert to_csv(again.table) == to_csv(knn_result.table)


def test_recorded_results_are_found_by_profile(run, knn_result):
    found = experiments.recorded("knn_dknn_attack", "knn_attack", profile="smoke")
    assert to_csv(found.table) == to_csv(knn_result.table)
    assert experiments.recorded("knn_dknn_attack", "sweep", profile="smoke") is None


def test_provenance_tells_what_made_it(knn_result):
    origin = knn_result.provenance
    assert origin["config"]["profile"] == "smoke" and origin["config"]["knn_images"] == 6
    assert origin["code_fingerprint"] == experiments.code_fingerprint("knn_dknn_attack", "knn_attack", profile="smoke")
    assert origin["data_fingerprint"] == "0e5eab0450d8b821"


@pytest.mark.parametrize("chapter", experiments.CHAPTERS)
def test_every_node_of_every_profile_can_be_planned(chapter):
    for profile in profiles.PROFILES:
        run = experiments.Run(chapter, profile=profile, device="cpu")
        for experiment in experiments.CHAPTERS[chapter].experiments.values():
            nodes = experiment.nodes(run)
            walked = list(run.store.walk(*nodes.values()))
            asked = {(n.stage.name, n.config_json, tuple(i.key for i in n.inputs)) for n in walked}
            assert len(walked) == len(asked) == len({n.key for n in walked})


def test_a_slice_keeps_its_key_when_more_digits_are_attacked():
    few, many = (experiments.Run("knn_dknn_attack", profile="full", device="cpu", n=n) for n in (512, 1024))
    for lines in (knn_attacks, dknn_attacks):
        first = next(iter(lines(few)[1].nodes().values()))
        assert first.key == next(iter(lines(many)[1].nodes().values())).key


def test_a_smaller_result_never_replaces_a_recorded_one(knn_result, tmp_path):
    fewer = dataclasses.replace(knn_result, table=knn_result.table.assign(n=knn_result.table["n"].clip(upper=1)))
    assert base.record(knn_result, tmp_path, seed=0)
    assert not base.record(fewer, tmp_path, seed=0)
    counts = knn_result.table["n"].where(knn_result.table.index > 0, knn_result.table["n"] - 1)
    one_less = dataclasses.replace(knn_result, table=knn_result.table.assign(n=counts))
    assert base.record(one_less, tmp_path, seed=0)
    assert not base.record(knn_result, tmp_path / "other", seed=1)
    assert base.record(knn_result, tmp_path, seed=0)


def test_n_caps_what_is_attacked():
    run = experiments.Run("knn_dknn_attack", profile="full", device="cpu", n=100)
    assert run.settings.knn_images == run.settings.dknn_images == 100
    assert run.settings.clean_images == 9250
    assert dataclasses.asdict(run.settings)["curve_images"] == 6


def test_results_of_several_data_sets_lie_apart():
    digits, colours = (experiments.Run("nnif_detection", profile="full", device="cpu", dataset=d) for d in ("mnist", "svhn"))
    assert digits.folder.as_posix() == "nnif_detection/mnist" and colours.folder.as_posix() == "nnif_detection/svhn"
    assert experiments.Run("knn_dknn_attack", device="cpu").folder.as_posix() == "knn_dknn_attack"
    assert colours.settings.dataset == "svhn"


def test_outsiders_keep_shape_and_box():
    x, _ = stages.digits_of({"start": 0, "stop": 5}, "cpu")
    for kind in stages.OUT_OF_DISTRIBUTION:
        made = stages.outsiders(kind, x, 0)
        assert made.shape == x.shape and made.min() >= 0 and made.max() <= 1
        assert not (made == x).all()
    shuffled = stages.outsiders("shuffled", x, 0)
    assert np.allclose(shuffled.flatten(1).sort().values, x.flatten(1).sort().values)


def test_unit_output_distance_is_the_norm_less_one_along_the_image():
    x = np.full((2, 1, 4, 4), 0.5)
    assert artefacts._distance_of_unit_output(0.3 * x, x) == pytest.approx([1.0, 1.0])  # norm 2, less 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chapter": "knn"}, "chapter is 'knn'; allowed are knn_dknn_attack"),
        ({"profile": "fast"}, "profile is 'fast'; allowed are smoke, quick, full"),
        ({"seed": -1}, "seed is -1"),
        ({"device": "tpu"}, "device is 'tpu'; allowed are auto, cpu, cuda"),
        ({"n": 0}, "n is 0"),
        ({"dataset": "svhn"}, "dataset is 'svhn'; allowed are mnist"),
        ({"chapter": "nnif_detection", "dataset": "cifar"}, "allowed are mnist, cifar10, cifar100, svhn"),
        ({"changes": ("epoch=3",)}, "setting is 'epoch'; allowed are"),
        ({"changes": ("dataset=svhn",)}, "setting is 'dataset'; allowed are"),
        ({"changes": ("epochs",)}, "setting 'epochs' cannot be read; give it like epochs=1"),
        ({"changes": ("epochs=3.5",)}, "setting 'epochs=3.5' cannot be read"),
        ({"changes": ("one_cycle=1",)}, "give it like one_cycle=True"),
        ({"chapter": "nnif_detection", "changes": ("lissa=1,2",)}, "give it like lissa=1,2,100"),
        (
            {"chapter": "nnif_detection", "changes": ("estimator_training=199", "lissa=1,2,100")},
            "estimator_training is 199, but lissa=1,2,100 takes 200 training images; ask for 200 or more",
        ),
    ],  # fmt: skip
)
def test_bad_requests_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        experiments.Run(**{"chapter": "knn_dknn_attack", **options})


def test_changes_come_after_n_and_have_the_type_of_the_setting():
    changes = (
        "slow_test=7",
        "epochs=3",
        "learning_rate=1e-2",
        "one_cycle=false",
        "attacks=fgsm,pgd",
        "steps=none",
        "lissa=1,2,3",
    )
    run = experiments.Run("nnif_detection", profile="smoke", n=11, changes=changes)
    s = run.settings
    assert (s.slow_test, s.fast_test, s.epochs, s.learning_rate, s.one_cycle) == (7, 11, 3, 0.01, False)
    assert (s.attacks, s.steps, s.lissa) == (("fgsm", "pgd"), None, (1, 2, 3))
    assert type(s.learning_rate) is float


# What moves artefacts about but does not change an answer.
INFRASTRUCTURE = ("store", "errors", "checks", "device", "paths", "results", "intervals", "experiments.base")


def stages_of(chapter):
    run = experiments.Run(chapter, profile="smoke", device="cpu")
    planned = [experiment.nodes(run).values() for experiment in experiments.CHAPTERS[chapter].experiments.values()]
    return {node.stage.name: node.stage for nodes in planned for node in run.store.walk(*nodes)}.values()


def named_modules(function):
    """Modules of this package whose objects a function names, directly or through its own module."""
    names = {n.id for d in fingerprint._definitions(function) for n in ast.walk(d) if isinstance(n, ast.Name)}
    for name in names & function.__globals__.keys():
        found = function.__globals__[name]
        module = found.__name__ if isinstance(found, types.ModuleType) else getattr(found, "__module__", None)
        if module and module.startswith("deepneighbors.") and module != function.__module__:
            yield module


@pytest.mark.parametrize("chapter", experiments.CHAPTERS)
def test_a_stage_declares_every_module_that_it_names(chapter):
    for stage in stages_of(chapter):
        for module in named_modules(stage.function):
            if module.removeprefix("deepneighbors.").startswith(INFRASTRUCTURE):
                continue
            declared = any(
                module == use or module.startswith(f"{use}.") or use.startswith(f"{module}.") for use in stage.uses
            )
            assert declared, f"{stage.name} does not declare {module}"


def test_a_profile_may_have_settings_for_one_experiment_and_changes_go_before_them():
    for chapter, by_profile in profiles.EXPERIMENTS.items():
        for profile, own in by_profile.items():
            assert profile in profiles.PROFILES and own.keys() <= experiments.CHAPTERS[chapter].experiments.keys()
    full = experiments.Run("poisoning_ila", profile="full", device="cpu")
    assert full.settings.cnn_images == full.of("mixtures").settings.cnn_images == 60_000
    assert full.of("defences").settings.cnn_images == 3_000
    changed = dataclasses.replace(full, changes=("cnn_images=500",))
    assert changed.of("defences").settings.cnn_images == changed.of("mixtures").settings.cnn_images == 500
    trained = {node.config["data"]["images"] for node in plan.nodes_of(full, ["defences"]) if "data" in node.config}
    assert trained == {3_000}
