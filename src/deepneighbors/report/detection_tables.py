"""Tables of chapter 2 in the shape that the paper prints: lines of detectors, columns of attacks."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from deepneighbors.experiments.nnif_detection.tables import MASKS
from deepneighbors.paper import values
from deepneighbors.report.notebook import NotRun
from deepneighbors.report.tables import NOT_RUN, NOTHING, estimate, number
from deepneighbors.results import Result

_SPACE = "\N{NO-BREAK SPACE}"
Label = tuple[str, str]  # a name in the results, and the words for it

ATTACKS: tuple[Label, ...] = (
    ("fgsm", "FGSM"), ("jsma", "JSMA"), ("deepfool", "DeepFool"), ("cw", "CW"), ("pgd", "PGD"), ("ead", "EAD"),
)  # fmt: skip
DETECTORS: tuple[Label, ...] = (("dknn", "DkNN"), ("lid", "LID"), ("mahalanobis", "Mahalanobis"), ("nnif", "NNIF"))
CONTROLS: tuple[Label, ...] = (
    ("nnif_unsmoothed", "NNIF, loss without smoothing"), ("random_of_class", "random of the class"),
    ("nearest_of_class", "nearest of the class"), ("class_mean", "distance to class mean"),
    ("logit_margin", "logit margin"), ("max_softmax", "max softmax"), ("off_grid", "off-grid pixels"),
)  # fmt: skip
METHODS = {
    "nnif": "NNIF", "nnif_mahalanobis": "NNIF, Mahalanobis", "nnif_index_exact": "NNIF, exact index",
    "nnif_index_approximate": "NNIF, approximate index", "neighbor_influence": "neighbour influence",
    "d_up_threshold": "threshold on D↑",
}  # fmt: skip
SIZES = {
    "L2 if changed": "mean_l2", "L0": "mean_l0_all", "L1": "mean_l1_all", "L2": "mean_l2_all", "L∞": "mean_linf_all",
}  # fmt: skip
DATASETS = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "svhn": "SVHN"}
OFFICIAL = {"svhn": (73_257, 26_032)}  # images to train and to test on, where other versions of a set are about
CIFAR10 = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FEATURES: tuple[Label, ...] = (("r_up", "R↑"), ("d_up", "D↑"), ("r_down", "R↓"), ("d_down", "D↓"))


def matrix(
    sources: Sequence[tuple[str, Result | NotRun, str]], *, dataset: str, lines: Sequence[tuple[str, str, str]],
    attacks: Sequence[Label] = ATTACKS, metric: str = "auc", setting: str = "", in_paper: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """A table in percent as the paper prints it: a block of lines a detector, the paper's first, and a column an attack.

    The paper's line is left out where it has nothing.

    Parameters
    ----------
    sources
        Words for a line, the result that it shows, and the mode; *not run* where it has none of this data set or mode.
    lines
        (detector, layer, words).
    """
    rows = []
    for detector, layer, words in lines:
        names = {"experiment": "nnif", "dataset": dataset, "detector": detector, "layer": layer, "metric": metric}
        names["setting"] = setting
        printed = [_paper_cell(attack=a, **names) for a, _ in attacks] if in_paper else []
        if set(printed) - {NOTHING}:
            rows.append([words, "paper", *printed])
        for title, result, mode in sources:
            ours = {**names, "network": reference(mode)}
            rows.append([words, title, *(_cell(result, attack=a, **ours) for a, _ in attacks)])
    return pd.DataFrame(rows, columns=["Detector", "Source", *(words for _, words in attacks)])


def without_empty(frame: pd.DataFrame) -> pd.DataFrame:
    """The table less columns that are dashes in every line: attacks that were left out of all results."""
    return frame.loc[:, [set(frame[column]) != {NOTHING} for column in frame]]


def data_words(dataset: str, result: Result | NotRun) -> str:
    """Name of a data set; with a result that was computed on other images than the official ones, it says so."""
    images = tuple(result.provenance.get("data_images", ())) if isinstance(result, Result) else ()
    if dataset in OFFICIAL and images and images != OFFICIAL[dataset]:
        return f"{DATASETS[dataset]} (tested on {images[1]:,} images held out of the official training set)"
    return DATASETS[dataset]


def _paper_cell(**names: str) -> str:
    found = values.lookup(paper="cohen2020", network="thin_resnet34/faithful", **names)
    return NOTHING if found is None else f"{100 * found.value:.4g}"


def _cell(result: Result | NotRun, **names: str) -> str:
    """Percent with one decimal, its interval and n: six columns of these fit a page."""
    if isinstance(result, NotRun):
        return NOT_RUN
    table = result.table
    known = table[(table["dataset"] == names["dataset"]) & (table["network"] == names["network"])]
    row = _row(table, **names)
    if row is None:
        return NOT_RUN if known.empty else NOTHING
    count = f"n{_SPACE}={_SPACE}{int(row['n']):,}"
    if row["n"] == 0:
        return f"{NOTHING} {count}"
    value, low, high = (f"{100 * row[column]:.1f}" for column in ("value", "ci_low", "ci_high"))
    return f"{value} [{low}, {high}] {count}"


def _row(table: pd.DataFrame, **names: str) -> dict[Any, Any] | None:
    for name, value in names.items():
        table = table[table[name] == value]
    if table.empty:
        return None
    (row,) = table.to_dict("records")
    return row


def attack_sizes(sources: Sequence[tuple[str, Result | NotRun, str]], *, dataset: str) -> pd.DataFrame:
    """How often an attack changes the label and hits its target, and the mean size of its change, as in `matrix`.

    ``L2 if changed`` is over images whose label has changed; the other norms are over all, as detectors see them.
    """
    rows = []
    for attack, words in ATTACKS:
        for title, result, mode in sources:
            names = {"experiment": "nnif", "dataset": dataset, "network": reference(mode), "attack": attack}
            means = [
                None if isinstance(result, NotRun) else _row(result.table, metric=metric, **names)
                for metric in SIZES.values()
            ]
            cells = (_cell(result, metric=metric, **names) for metric in ("success", "target_rate"))
            rows.append([words, title, *cells, *("-" if mean is None else number(mean["value"]) for mean in means)])
    return pd.DataFrame(rows, columns=["Attack", "Source", "Label changed %", "Target hit %", *SIZES])


def ablation(sources: Sequence[tuple[str, Result | NotRun, str]], *, dataset: str, in_paper: bool) -> pd.DataFrame:
    """NNIF on DeepFool at the embedding in percent: a line a choice of features; AUC, then accuracy, a column a source."""
    rows = []
    for mask in MASKS:
        names = {"experiment": "nnif", "dataset": dataset, "attack": "deepfool", "detector": "nnif", "layer": "embedding"}
        names["setting"] = f"features={mask}"
        cells = []
        for metric in ("auc", "accuracy"):
            cells += [_paper_cell(metric=metric, **names)] if in_paper else []
            cells += [_cell(result, metric=metric, network=reference(mode), **names) for _, result, mode in sources]
        rows.append([chosen_features(mask), *cells])
    titles = [*(["paper"] if in_paper else []), *(title for title, _, _ in sources)]
    return pd.DataFrame(rows, columns=["Features", *(f"{words}, {t}" for words in ("AUC", "accuracy") for t in titles)])


def chosen_features(mask: str) -> str:
    """``0110`` as ``D↑ R↓``."""
    return " ".join(words for digit, (_, words) in zip(mask, FEATURES, strict=True) if digit == "1")


def reference(mode: str) -> str:
    """Name of a mode's network in the results."""
    return f"thin_resnet34/{mode}"


def published(dataset: str) -> pd.DataFrame:
    """The paper's numbers on a data set, as a tidy table."""
    table = values.table()
    return table[(table["paper"] == "cohen2020") & (table["dataset"] == dataset)]


def chosen(result: Result | NotRun, mode: str) -> pd.DataFrame:
    """The hyper-parameter of each detector, layer and attack."""
    rows = []
    for detector, words in DETECTORS:
        for layer in ("embedding", "all"):
            cells = [_number(result, mode, "chosen", detector=detector, layer=layer, attack=a) for a, _ in ATTACKS]
            if any(cell is not None for cell in cells):
                rows.append([words, layer, *("-" if cell is None else f"{cell:g}" for cell in cells)])
    return pd.DataFrame(rows, columns=["Detector", "Layers", *(words for _, words in ATTACKS)])


def by_method(result: Result | NotRun, mode: str) -> pd.DataFrame:
    """Fast detectors: a line for each method and attack, with its cost."""
    if isinstance(result, NotRun):
        return pd.DataFrame([[NOT_RUN]], columns=["Method"])
    table = result.table[result.table["network"] == reference(mode)]
    rows = []
    for detector, setting in table[table["metric"] == "auc"][["detector", "setting"]].drop_duplicates().to_numpy():
        for attack, words in ATTACKS:
            names = {"detector": detector, "setting": setting, "attack": attack}
            mine = table[(table[list(names)] == pd.Series(names)).all(axis=1)].set_index("metric")
            if len(mine):
                cells = [_shown(mine, metric) for metric in ("auc", "tpr_at_fpr_5", "false_positive_rate", "recall")]
                spent = f"{1e3 * mine.loc['seconds_per_query', 'value']:.3g}"
                ready = _row(table, detector=detector, setting=setting, metric="preparation_seconds")
                prepared = "-" if ready is None else f"{ready['value']:.3g}"
                rows.append([METHODS.get(detector, detector), setting or "-", words, *cells[:3], spent, prepared, cells[3]])
    columns = ["Method", "Setting", "Attack", "AUC", "Detected", "False positives", "ms an image", "s to prepare", "Recall"]
    return pd.DataFrame(rows, columns=columns)


def _shown(rows: pd.DataFrame, metric: str) -> str:
    if metric not in rows.index:
        return "-"
    row = rows.loc[metric]
    return estimate(row["value"], row["ci_low"], row["ci_high"], row["n"], as_percent=True)


def _number(result: Result | NotRun, mode: str, metric: str, **names: str) -> float | None:
    if isinstance(result, NotRun):
        return None
    table = result.table[(result.table["network"] == reference(mode)) & (result.table["metric"] == metric)]
    for name, value in names.items():
        table = table[table[name] == value]
    return None if table.empty else float(table["value"].iloc[0])
