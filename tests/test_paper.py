"""The papers' numbers and claims: complete, of our vocabulary, and decided as the rule says."""

import math

import pandas as pd
import pytest

from deepneighbors import experiments, results
from deepneighbors.attacks.classifier import SETTINGS
from deepneighbors.errors import InputError
from deepneighbors.experiments.knn_dknn_attack import tables as attack_tables
from deepneighbors.experiments.knn_dknn_attack.credibility import filtered_attacks
from deepneighbors.experiments.nnif_detection.cases import DETECTORS, NETWORK
from deepneighbors.experiments.nnif_detection.tables import MASKS
from deepneighbors.experiments.nnif_detection.training import STATISTICS
from deepneighbors.experiments.poisoning_ila import ila_credibility, searching
from deepneighbors.paper import claims, values
from deepneighbors.paper.claims import Claim, decide
from deepneighbors.paper.values import PaperValue
from deepneighbors.profiles import NnifDetection, PoisoningIla

PAPER = "sitawarin2019"
CHAPTER = experiments.CHAPTERS["knn_dknn_attack"]
# What the names of a paper's numbers may be. Experiments: also those whose rows another one's run writes, and constants.
VOCABULARY = {
    "sitawarin2019": {
        "experiment": {*CHAPTER.experiments, "undefended", "constant"},
        "dataset": {"mnist"},
        "network": {"knn", "mnist_cnn", "mnist_cnn/softmax", "mnist_cnn/robust", "mnist_cnn/robust/softmax",
                    "mnist_cnn/robust_knn"},
        "attack": {"", "none", "mean", "naive", "gradient", "feature_adversary", "minimum_norm", "pgd", "carlini_wagner"},
        "norm": {"", "l2", "linf"},
    },
    "cohen2020": {
        "experiment": {"nnif"},
        "dataset": set(NnifDetection.datasets),
        "network": {f"{NETWORK}/{mode}" for mode in STATISTICS},
        "attack": {*SETTINGS, "cw_opt"},
        "detector": set(DETECTORS),
        "layer": {"embedding", "all"},
        "metric": {"auc", "accuracy"},
        "setting": {"", "learned=fgsm", "white_box", *(f"features={mask}" for mask in MASKS)},
    },
    "report2021": {
        "experiment": {"poisoning", "ila"},
        "dataset": {"mnist"},
        "network": {"mnist_cnn", "linear_svm", *(f"deep->{target}" for target in PoisoningIla.ila_targets)},
        "attack": {"svm_poisoning", "ilap"},
        "norm": {"", *PoisoningIla.svm_norms},
        "layer": {"", *searching.LAYERS, *ila_credibility.LAYERS["deep"]},
        "metric": {"misclassified", "recovered", "poisoned_neighbor_share", "base_rate", "accuracy", "val_loss"},
    },
}  # fmt: skip
OURS = {"adaptive"}  # attacks of ours that decide a claim
VOCABULARY["sitawarin2019followup"] = VOCABULARY["sitawarin2019"]


def lookup(experiment, network, attack, metric, **names):
    return values.lookup(paper=PAPER, experiment=experiment, network=network, attack=attack, metric=metric, **names)


# --- Values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "value"),
    [
        (("knn_attack", "knn", "none", "accuracy"), 0.9574),
        (("knn_attack", "knn", "mean", "mean_l2", "l2"), 8.611),
        (("dknn_attack", "mnist_cnn", "mean", "accuracy", "l2"), 0.1313),
        (("dknn_attack", "mnist_cnn", "feature_adversary", "mean_l2", "l2"), 3.459),
        (("knn_attack", "knn", "gradient", "accuracy", "linf", "epsilon=0.2"), 0.8515),
        (("dknn_epsilon", "mnist_cnn", "gradient", "accuracy", "linf", "epsilon=0.05"), 0.9614),
        (("dknn_epsilon", "mnist_cnn", "feature_adversary", "mean_credibility", "linf", "epsilon=0.4"), 0.1383),
        (("credibility", "mnist_cnn", "none", "accepted", "", "threshold=0.1"), 0.9129),
        (("credibility", "mnist_cnn", "gradient", "accepted", "linf", "epsilon=0.2;threshold=0.1"), 0.2843),
        (("credibility", "mnist_cnn", "gradient", "credibility_auc", "linf", "epsilon=0.2"), 0.911),
        (("undefended", "mnist_cnn/softmax", "carlini_wagner", "mean_l2", "l2"), 1.2745653),
        (("artefacts", "knn", "gradient", "histogram_count", "l2", "bin=0.686-2.007"), 684),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_known_values_are_found(names, value):
    names = names + ("", "")[len(names) - 4 :]
    found = lookup(*names[:4], norm=names[4], setting=names[5])
    assert found is not None and found.value == pytest.approx(value, abs=1e-9)


def test_what_a_paper_does_not_have_is_none_and_an_unknown_paper_is_refused():
    assert lookup("knn_attack", "knn", "minimum_norm", "accuracy", norm="l2") is None
    assert lookup("knn_attack", "knn", "mean", "accuracy") is None  # without its norm
    with pytest.raises(InputError, match="paper is 'sitawarin'; allowed are cohen2020, report2021, sitawarin2019"):
        values.lookup(paper="sitawarin", experiment="knn_attack", metric="accuracy")


def test_lookups_are_unique():
    table = values.table()
    repeated = table[table.duplicated(list(values.NAMES), keep=False)]
    assert repeated.empty


@pytest.mark.parametrize("paper", values.papers())
def test_values_are_sound_and_of_the_vocabulary(paper):
    for row in values.table().query("paper == @paper").to_dict("records"):
        for column, allowed in VOCABULARY[paper].items():
            assert row[column] in allowed, row
        assert row["kind"] in values.KINDS and row["place"], row
        assert math.isfinite(row["value"]) and row["value"] >= 0, row
        assert not (row["metric"].startswith(("accuracy", "accepted", "auc", "mean_credibility")) and row["value"] > 1), row
        assert math.isnan(row["tolerance"]) == (row["reason"] == ""), row  # a tolerance has its reason
        assert row["tolerance"] > 0 or math.isnan(row["tolerance"]), row
        assert row["kind"] != "recalled" or math.isnan(row["tolerance"]), row


def test_tables_of_the_nnif_paper_are_complete():
    known = values.table().query("paper == 'cohen2020'")
    plain = known[known["setting"] == ""]
    cells = plain[plain["metric"] == "auc"].groupby(["dataset", "attack", "detector"])["layer"].apply(sorted)
    assert len(cells) == 3 * 6 * 4
    for (_, _, detector), layers in cells.items():
        assert layers == (["embedding"] if detector == "dknn" else ["all", "embedding"])
    assert len(known[known["setting"].str.startswith("features=")]) == 2 * len(MASKS)
    assert len(known[known["setting"] == "learned=fgsm"]) == 3 * 5 * 4


def test_table_1_of_the_report_is_complete_and_above_its_base_rate():
    known = values.table().query("paper == 'report2021' and metric == 'poisoned_neighbor_share'")
    shares = known.pivot(index="setting", columns="layer", values="value")[list(searching.LAYERS)]
    assert shares.to_numpy().round(4).tolist() == [[0.2493, 0.288, 0.2914, 0.2904], [0.253, 0.288, 0.354, 0.3693]]
    (base,) = values.table().query("paper == 'report2021' and metric == 'base_rate'")["value"]
    assert base == pytest.approx(50 / 1050) and shares.to_numpy().min() > 5 * base  # what 1,000 clean points cannot give


@pytest.mark.parametrize(
    ("names", "value"),
    [
        (("misclassified", "part=train;epoch=6;seeds=all"), 414),
        (("recovered", "part=misclassified;epoch=6;distance=cosine;k=75;self=in;seeds=all"), 213 / 364),
        (("misclassified", "by=network;reading=A;digits=1-9;points=50;seeds=all"), 25),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_the_reports_counts_are_found(names, value):
    metric, setting = names
    found = values.lookup(paper="report2021", experiment="poisoning", network="mnist_cnn", attack="svm_poisoning", norm="l1",
                          metric=metric, setting=setting)  # fmt: skip
    assert found is not None and found.value == pytest.approx(value, abs=1e-9)


def test_the_published_histogram_has_adjacent_bins():
    known = values.table().query("experiment == 'artefacts' and metric == 'histogram_count'")
    bins = [setting.removeprefix("bin=").split("-") for setting in known["setting"]]
    assert known["value"].sum() == 9250
    assert [end for _, end in bins[:-1]] == [start for start, _ in bins[1:]]


def test_constants():
    assert values.constant("knn_eta") == pytest.approx(0.6146243)
    assert values.constant("dknn_eta", layer="fc") == pytest.approx(0.194574402)
    with pytest.raises(InputError, match="constant 'eta' of sitawarin2019 .* constants are dknn_eta, knn_eta"):
        values.constant("eta")


def test_the_table_is_a_copy():
    table = values.table()
    table["value"] = 0.0
    assert lookup("knn_attack", "knn", "none", "accuracy").value == 0.9574


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ((0.10,), "within"),
        ((0.12,), "within"),
        ((0.13,), "outside"),
        ((0.13, 0.11, 0.15), "within"),  # the interval reaches the tolerance
        ((0.13, 0.125, 0.135), "outside"),
        ((math.nan,), ""),
    ],
)
def test_verdict_of_a_value(ours, verdict):
    assert PaperValue(0.1, "p", "published", 0.02, "r").verdict(*ours) == verdict
    assert PaperValue(0.1, "p", "published").verdict(*ours) == ""


# --- Claims ----------------------------------------------------------------------------------------------------

MEAN = "value(experiment='e', attack='mean', metric='mean_l2')"
GRADIENT = "value(experiment='e', attack='gradient', metric='mean_l2')"


def tidy(**distances):
    """Results of experiment ``e``: (low, value, high) of the mean L2 of each attack."""
    rows = [
        results.statistic_row(value, n=100, ci=(low, high), experiment="e", attack=attack, metric="mean_l2")
        for attack, (low, value, high) in distances.items()
    ]
    return results.table(rows)


def verdict(query, **distances):
    return decide(Claim("c", PAPER, "", "", "", query), {"quick": tidy(**distances)})[0]


LOW, HIGH, WIDE = (1.9, 2, 2.1), (2.9, 3, 3.1), (2, 2.5, 3)


@pytest.mark.parametrize(
    ("query", "mean", "expected"),
    [
        (f"{GRADIENT} < {MEAN}", HIGH, "holds"),
        (f"{MEAN} >= {GRADIENT}", HIGH, "holds"),
        (f"{GRADIENT} > {MEAN}", HIGH, "does not hold"),
        (f"{GRADIENT} < {MEAN}", WIDE, "not tested"),
        (f"{GRADIENT} < {MEAN} and {GRADIENT} > 1", HIGH, "holds"),
        (f"{GRADIENT} < {MEAN} and {GRADIENT} > 9", HIGH, "holds in part"),
        (f"{GRADIENT} > {MEAN} and {GRADIENT} > 9", HIGH, "does not hold"),
        (f"{GRADIENT} < {MEAN} and {GRADIENT} > 1", WIDE, "holds in part"),
        (f"min({GRADIENT}, {MEAN}) < 2.2", HIGH, "holds"),
        (f"max({GRADIENT}, {MEAN}) < 2.2", HIGH, "does not hold"),
        (f"within({MEAN}, 3, 0.1)", HIGH, "holds"),
        (f"within({MEAN}, 3, 0.05)", HIGH, "not tested"),
        (f"within({MEAN}, 2, 0.5)", HIGH, "does not hold"),
        (f"{MEAN} > 1", (math.nan, 3, math.nan), "not tested"),  # without an interval nothing is decided
    ],
)
def test_a_query_is_decided_by_intervals(query, mean, expected):
    assert verdict(query, gradient=LOW, mean=mean) == expected


def test_a_missing_result_is_not_tested_and_named():
    claim = Claim("c", PAPER, "", "", "", f"{GRADIENT} < {MEAN}")
    assert decide(claim, {"quick": tidy(gradient=LOW)}) == ("not tested", "Not run: e, mean, mean_l2")
    nothing_succeeded = results.table(
        [results.mean_row([], metric="mean_l2", experiment="e", attack=attack) for attack in ("gradient", "mean")]
    )
    assert decide(claim, {"quick": nothing_succeeded})[0] == "not tested"
    assert decide(claim, {})[0] == "not tested"


def test_the_first_profile_with_all_values_decides():
    claim = Claim("c", PAPER, "", "", "", f"{GRADIENT} < {MEAN}")
    quick = tidy(gradient=LOW, mean=HIGH)
    assert decide(claim, {"full": tidy(gradient=HIGH, mean=LOW), "quick": quick})[0] == "does not hold"
    found, evidence = decide(claim, {"full": tidy(gradient=HIGH), "quick": quick})
    assert found == "holds" and evidence.endswith(": true (quick profile)")


def test_evidence_has_values_intervals_and_n():
    claim = Claim("c", PAPER, "", "", "", f"{GRADIENT} < {MEAN}")
    _, evidence = decide(claim, {"full": tidy(gradient=LOW, mean=HIGH)})
    for text in ("2.00 [1.90, 2.10] n = 100", "3.00 [2.90, 3.10] n = 100", "full"):
        assert text in evidence.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    "query",
    [
        "__import__('os').system('true')",
        f"{MEAN}",
        f"{MEAN} < 1 or {MEAN} > 2",
        f"1 < {MEAN} < 2",
        f"{MEAN} == 1",
        "value(experiment='e', metric='m' + 'n') < 1",
        "value(experiment='e', attak='mean') < 1",
        "value('e') < 1",
        "value(**{}) < 1",
        f"within({MEAN}, {GRADIENT}, 1)",
        "x < 1",
        "True < 1",
        "1 <",
    ],
)
def test_what_is_not_of_the_language_is_refused(query):
    with pytest.raises(InputError, match="query"):
        claims.parse(query)


def test_two_results_of_one_name_are_refused():
    table = tidy(mean=HIGH)
    with pytest.raises(InputError, match="2 results are called e, mean, mean_l2; a claim needs one"):
        decide(Claim("c", PAPER, "", "", "", f"{MEAN} > 1"), {"full": pd.concat([table, table.assign(seed=1)])})


@pytest.mark.parametrize("claim", claims.all_claims(), ids=lambda claim: claim.id)
def test_a_claim_is_sound(claim):
    assert claim.paper in values.papers() and claim.chapter in experiments.CHAPTERS
    assert claim.place and claim.sentence.endswith(".")
    assert claim.query or claim.note
    for names in claims.selectors(claim.query) if claim.query else []:
        allowed = VOCABULARY[claim.paper]
        assert names["experiment"] in allowed["experiment"] and names["attack"] in {*allowed["attack"], *OURS}
        assert names["network"].removesuffix("/released") in allowed["network"]


def test_claims_ask_for_rows_that_the_experiments_write(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPNEIGHBORS_ARTIFACTS", str(tmp_path))
    run = experiments.Run(chapter="knn_dknn_attack", profile="smoke", device="cpu")
    lines = {"knn_attack": attack_tables.knn_attacks(run), "dknn_attack": attack_tables.dknn_attacks(run)}
    lines["credibility"] = filtered_attacks(run)
    asked = [names for claim in claims.all_claims() if claim.query for names in claims.selectors(claim.query)]
    for names in asked:
        if names["attack"] == "none" or names["experiment"] not in lines:
            continue
        setting = names.get("setting", "").removesuffix(";threshold=0.1")
        found = [(line.network, line.attack, line.norm, line.setting) for line in lines[names["experiment"]]]
        assert (names["network"], names["attack"], names["norm"], setting) in found


def test_ids_are_unique():
    ids = [claim.id for claim in claims.all_claims()]
    assert len(set(ids)) == len(ids)


FRACTIONS = ("accuracy", "accepted", "auc", "evaded", "helpful_neighbor_share")


def synthetic(shift):
    """A result for each value that a claim asks for: the paper's where it has one, times ``shift``."""
    rows = {}
    for claim in claims.all_claims():
        for names in claims.selectors(claim.query) if claim.query else []:
            network = names["network"].removesuffix("/released").replace("/clean", "/faithful")
            known = values.lookup(paper=claim.paper, **(names | {"network": network}))
            value = min(shift * (known.value if known else 3.0), 1.0 if names["metric"] in FRACTIONS else math.inf)
            ends = (max(0.0, value - 1e-4), min(value + 1e-4, 1.0) if value <= 1 else value + 1e-4)
            rows[tuple(names.items())] = results.statistic_row(value, n=9250, ci=ends, **names)
    return results.table(list(rows.values()))


def test_a_rerun_that_gives_the_papers_numbers_confirms_what_rests_on_them():
    frame = claims.evaluate({"full": synthetic(1.0)})
    assert list(frame.columns) == ["claim", "paper", "place", "verdict", "evidence"]
    found = dict(zip([claim.id for claim in claims.all_claims()], frame["verdict"], strict=True))
    assert found.pop("knn-semantic") == "not tested"
    for mode in ("", "-faithful"):  # the paper's own numbers: all layers detect DeepFool less
        assert found.pop(f"nnif-layers{mode}") == "holds in part"
    # Of these the papers have no number, or not each that the query needs.
    ours = {"nnif-neighbours", "nnif-influence-needed", "nnif-adaptive", "poison-low-credibility",
            "poison-low-credibility-alone", "ila-no-transfer"}  # fmt: skip
    assert {verdict for name, verdict in found.items() if name.removesuffix("-faithful") not in ours} == {"holds"}, found


def test_a_rerun_at_half_the_papers_numbers_contradicts_them():
    frame = claims.evaluate({"full": synthetic(0.5)})
    found = dict(zip([claim.id for claim in claims.all_claims()], frame["verdict"], strict=True))
    assert found["knn-clean"] == found["knn-mean"] == found["knn-gradient"] == "does not hold"
    assert found["dknn-gradient"] == "holds in part"  # the accuracy 0 stays
    assert set(frame["verdict"]) <= set(claims.VERDICTS)


def test_without_results_no_claim_is_tested():
    empty = pd.DataFrame(columns=list(results.COLUMNS))
    assert set(claims.evaluate({"full": empty, "quick": empty})["verdict"]) == {"not tested"}
