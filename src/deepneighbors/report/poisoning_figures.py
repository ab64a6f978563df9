"""Figures of chapter 3 on poisoned training data, drawn from saved results."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from deepneighbors.report.figures import Canvas
from deepneighbors.report.poisoning_tables import (
    CREDIBILITIES,
    DEFENCES,
    LAYERS,
    POISONS,
    QUERIES,
    Label,
    by_layer,
    one,
    options,
    read,
)
from deepneighbors.results import Result

MARKERS = "osD^vPX*"
_TENTHS = np.linspace(0, 1, 11)
_STEP = 1.15  # from one picture of a line to the next, in their width
Sample = tuple[str, np.ndarray, np.ndarray]  # words, credibilities, whether the answers are right


@dataclass(frozen=True)
class Tile:
    """A digit ``(1, 28, 28)`` in [0, 1], or a change whose colours are full at plus and minus ``change``, and its title."""

    pixels: np.ndarray
    title: str = ""
    change: float = 0.0
    wrong: bool = False


def strip(axis: Axes, tiles: Sequence[Tile], canvas: Canvas, words: str, *, columns: int = 0) -> None:
    """A line of pictures in one axis, as many to its width as ``columns``, with words at their left."""
    for place, tile in enumerate(tiles):
        most = tile.change
        limits: dict[str, Any] = (
            {"cmap": "PuOr", "vmin": -most, "vmax": most} if most else {"cmap": "gray", "vmin": 0, "vmax": 1}
        )
        left = _STEP * place
        extent = (left, left + 1.0, 0.0, 1.0)
        axis.imshow(tile.pixels.reshape(28, 28).astype(float), interpolation="nearest", extent=extent, **limits)
        colour = canvas.palette[3] if tile.wrong else canvas.ink
        axis.text(left + 0.5, 1.04, tile.title, fontsize=7, ha="center", va="bottom", color=colour)
    axis.text(-0.08, 0.5, words, fontsize=7, ha="right", va="center")
    axis.set(xlim=(0, _STEP * (max(columns, len(tiles)) - 1) + 1), ylim=(0, 1))
    axis.set_axis_off()


def joined(arrays: Mapping[str, np.ndarray], before: str, after: str) -> np.ndarray:
    """The arrays ``before|seed|after`` of all seeds in one; empty when there are none."""
    pattern = re.compile(rf"{re.escape(before)}\|\d+\|{re.escape(after)}")
    found = [array for key, array in sorted(arrays.items()) if pattern.fullmatch(key)]
    return np.concatenate(found) if found else np.zeros(0)


def curve(axis: Axes, at: Sequence[float] | Sequence[str], numbers: np.ndarray, colour: str, marker: str, words: str, *,
          dash: str = "-") -> None:  # fmt: skip
    """A line through values with their intervals ``(n, 3)``; places without a value are left out."""
    kept = np.isfinite(numbers[:, 0])
    value, low, high = numbers[kept].T
    errors = np.nan_to_num(np.stack([value - low, high - value])).clip(min=0)
    places: list[Any] = [place for place, shown in zip(at, kept, strict=True) if shown]
    axis.errorbar(places, value, yerr=errors, color=colour, marker=marker, ms=4, lw=1.4, ls=dash, capsize=2, label=words)


def ends(line: Mapping[str, Any] | pd.Series) -> np.ndarray:
    """How far the interval of a row reaches below and above its value, ``(2, 1)``; 0 without an interval."""
    low, high = line["value"] - line["ci_low"], line["ci_high"] - line["value"]
    return np.nan_to_num([[low], [high]]).clip(min=0)


def gallery(canvas: Canvas, result: Result, norms: Sequence[Label], columns: int = 8) -> None:
    """Poisoned digits: the training image that each starts from, the optimised point, and the change; one block a norm."""
    shown = [(key.removesuffix("|start"), words) for norm, words in norms for key in sorted(result.arrays)
             if key.startswith(f"{norm}|") and key.endswith("|start")]  # fmt: skip
    _, axes = canvas(3 * len(shown), 1, size=(7, 2.75 * len(shown) + 0.2), squeeze=False)
    for block, (key, words) in enumerate(shown):
        start, moved, y, truth = (result.arrays[f"{key}|{name}"] for name in ("start", "x", "y", "truth"))
        changes = moved[:columns].astype(float) - start[:columns]
        most = float(np.abs(changes).max())
        before = [Tile(x, f"{right}, stored as {label}") for x, right, label in zip(start, truth, y, strict=True)][:columns]
        after = [Tile(x) for x in moved[:columns]]
        between = [Tile(change, f"L2 {np.linalg.norm(change):.2f}", change=most) for change in changes]
        named = (("before", before), (f"after,\n{words}", after), (f"change,\nfull at ±{most:.2f}", between))
        for axis, (name, tiles) in zip(axes[3 * block :, 0], named, strict=False):
            strip(axis, tiles, canvas, name, columns=columns)


def reliability(canvas: Canvas, samples: Sequence[Sample]) -> None:
    """For each sample the accuracy (bars, left) and the number of images (line, right) by tenths of credibility."""
    columns = 2 if len(samples) > 1 else 1
    figure, axes = canvas(-(-len(samples) // columns), columns, size=(7, 2.2 * -(-len(samples) // columns) + 0.3),
                          sharex=True, sharey=True, squeeze=False)  # fmt: skip
    for axis, (words, credibility, right) in zip(axes.flat, samples, strict=False):
        tenth = np.minimum((credibility * 10).astype(int), 9)
        counts = np.bincount(tenth, minlength=10)
        accuracy = np.bincount(tenth, weights=right.astype(float), minlength=10) / np.maximum(counts, 1)
        axis.bar(_TENTHS[:-1] + 0.05, accuracy, 0.09, color=canvas.palette[0], label="accuracy")
        beside = axis.twinx()
        beside.plot(_TENTHS[:-1] + 0.05, counts, color=canvas.palette[3], marker="o", ms=3, lw=1.4, label="images")
        beside.set(ylim=(0, 1.15 * max(1, counts.max())))
        beside.grid(False)
        beside.tick_params(axis="y", labelsize=7, labelcolor=canvas.palette[3])
        axis.set_title(f"{words}, n = {len(credibility)}", fontsize=9)
        axis.set(xlim=(0, 1), ylim=(0, 1.05))
    for axis in axes.flat[len(samples) :]:
        axis.set_axis_off()
    figure.supxlabel("credibility", fontsize=9)
    figure.supylabel("accuracy (bars); images (line)", fontsize=9)


def credibility_distributions(canvas: Canvas, result: Result, norm: str) -> None:
    """Share of points by twentieths of each credibility, with each point among its own neighbours and without.

    The dashed line is the largest credibility of a poisoned point.
    """
    groups = (("clean", "clean"), ("misclassified", "clean, misclassified"), ("poison", "poison"))
    figure, axes = canvas(len(CREDIBILITIES), 2, size=(7, 5.6), sharex=True, sharey=True)
    for line, (name, words) in zip(axes, CREDIBILITIES, strict=True):
        for axis, (own, title) in zip(line, (("in", "among its own neighbours"), ("out", "left out")), strict=True):
            for (part, label), colour, dash in zip(groups, canvas.palette[:2] + canvas.palette[3:], ("-", ":", "-"),
                                                   strict=False):  # fmt: skip
                sample = joined(result.arrays, norm, f"{part}|{own}|{name}")
                counts, edges = np.histogram(sample, np.linspace(0, 1, 21))
                axis.stairs(counts / max(1, len(sample)), edges, color=colour, ls=dash, lw=1.8, label=label)
                if part == "poison" and len(sample):
                    axis.axvline(sample.max(), color=colour, ls="--", lw=1)
            axis.set_title(f"{name} ({words}); {title}", fontsize=8)
            axis.set(xlim=(0, 1), ylim=(0, 1.02))
    axes[0][1].legend(fontsize=7)
    figure.supxlabel("credibility", fontsize=9)
    figure.supylabel("share of points", fontsize=9)


def spread(canvas: Canvas, result: Result, name: str = "c_pred") -> None:
    """Standard deviation and maximum of the credibility of each poisoned set, and of as many clean points of its network.

    Full marks are of the report's regime, hollow ones of the small set on which training goes on.
    """
    _, axes = canvas(1, 2, size=(7, 3.5), sharex=True, sharey=True)
    attacks = list(dict.fromkeys(key.split("|")[0] for key in result.arrays))
    for axis, (own, title) in zip(axes, (("in", "among its own neighbours"), ("out", "left out")), strict=True):
        for key, sample in result.arrays.items():
            if not key.endswith(f"|{own}|{name}|poison") or not len(sample):
                continue
            place, hollow = attacks.index(key.split("|")[0]), key.split("|")[4] == "memorised"
            clean = result.arrays[key.removesuffix("poison") + "clean"]
            clean = clean[np.linspace(0, len(clean) - 1, min(len(sample), len(clean))).astype(int)]
            axis.scatter(clean.std(), clean.max(), s=14, marker="x", color=canvas.muted, linewidths=0.8)
            colour = canvas.palette[(0, 1, 2, 4, 5)[place % 5]]
            axis.scatter(sample.std(), sample.max(), s=26, marker=MARKERS[place], edgecolors=colour,
                         facecolors="none" if hollow else colour, linewidths=1)  # fmt: skip
        axis.set(title=title, xlabel="standard deviation", xlim=(-0.02, 0.52), ylim=(-0.03, 1.05))
        axis.title.set_fontsize(9)
    marks = [
        Line2D([], [], ls="", marker=MARKERS[i], color=canvas.palette[(0, 1, 2, 4, 5)[i % 5]], label=POISONS.get(a, a))
        for i, a in enumerate(attacks)
    ]
    axes[0].legend(handles=[*marks, Line2D([], [], ls="", marker="x", color=canvas.muted, label="clean")], fontsize=7)
    axes[0].set(ylabel=f"maximum of {name}")


def recovery(canvas: Canvas, table: pd.DataFrame, norm: str, published: float) -> None:
    """Share of misclassified training points to which DkNN gives the true label, by choice; the line is the report's."""
    chosen = table[(table["metric"] == "recovered") & (table["norm"] == norm)]
    lines = [
        (choice_words(parts, line["layer"]), line)
        for line, parts in ((line, read(line["setting"])) for line in chosen.to_dict("records"))
        if parts.get("seeds") == "all" and parts["part"] == "misclassified"
    ]
    _, axis = canvas(size=(7, 0.25 * len(lines) + 1.1))
    for place, (_, line) in enumerate(lines):
        axis.errorbar(line["value"], -place, xerr=ends(line), color=canvas.palette[0], marker="o", ms=4, capsize=2)
    axis.axvline(published, color=canvas.palette[3], ls="--", lw=1.4)
    axis.text(published, 0.6, " report", color=canvas.palette[3], fontsize=8, va="bottom")
    axis.set_yticks([-place for place in range(len(lines))], labels=[words for words, _ in lines], fontsize=7)
    axis.set(xlim=(0, 1), ylim=(-len(lines) + 0.4, 1.6), xlabel="misclassified points with the true label from DkNN")


def choice_words(parts: Mapping[str, str], layer: str) -> str:
    """A choice of DkNN in words."""
    own = {"in": "self in", "out": "self out"}[parts.get("self", "out")]
    words = [f"epoch {parts['epoch']}", parts["distance"], f"k = {parts['k']}", own]
    return ", ".join([*words, *([f"{layer} alone"] if layer else []), *(["trimmed"] if "trimmed" in parts else [])])


def neighbor_shares(canvas: Canvas, table: pd.DataFrame, published: pd.DataFrame, epoch: str) -> None:
    """Share of poisoned neighbours by layer and, below, over the base rate; crosses are the report's Table 1."""
    sizes = options(table, "clean", metric="poisoned_neighbor_share")
    _, axes = canvas(2, len(sizes), size=(7, 5.2), sharex=True, sharey="row", squeeze=False)
    for column, size in enumerate(sizes):
        share, enrichment = axes[0][column], axes[1][column]
        for (query, words), colour, marker in zip(QUERIES, canvas.palette, MARKERS, strict=False):
            parts = {"clean": size, "kind": "poisoned", "epoch": epoch, "queries": query}
            if not query.startswith("test"):
                parts["self"] = "out"
            for axis, metric in ((share, "poisoned_neighbor_share"), (enrichment, "enrichment")):
                curve(axis, LAYERS, by_layer(table, LAYERS, parts, metric=metric), colour, marker, words)
            theirs = published[published["setting"].str.contains(f"queries={query};")].set_index("layer")["value"]
            if len(theirs):
                share.plot(LAYERS, theirs.reindex(LAYERS), ls="", marker="x", ms=8, mew=2, color=colour)
        base = one(table, {"clean": size, "kind": "poisoned"}, metric="base_rate")
        if base is not None:
            share.axhline(base["value"], color=canvas.ink, ls="--", lw=1)
        enrichment.axhline(1, color=canvas.ink, ls="--", lw=1)
        share.set_title(f"{int(size):,} clean points, epoch {epoch}", fontsize=9)
        share.set(ylim=(0, None))
    axes[0][0].set(ylabel="share of neighbours")
    axes[1][0].set(ylabel="over the base rate")
    axes[0][0].legend(fontsize=7)


def share_controls(canvas: Canvas, table: pd.DataFrame, size: str) -> None:
    """Why the share grows with depth: other networks and flips, training time, memorised points, separability."""
    epochs = options(table[table["setting"].str.contains(f"clean={size};")], "epoch", metric="poisoned_neighbor_share")
    kinds = (("poisoned", "trained with poison"), ("clean_network", "trained without it"), ("random_flip", "random flips"))
    _, axes = canvas(2, 2, size=(7, 5.8))
    last = {"clean": size, "epoch": epochs[-1]}
    for (kind, words), colour, marker in zip(kinds, canvas.palette, MARKERS, strict=False):
        at = {**last, "kind": kind}
        shares = by_layer(table, LAYERS, {**at, "queries": "poison", "self": "out"}, metric="poisoned_neighbor_share")
        curve(axes[0][0], LAYERS, shares, colour, marker, words)
        curve(axes[1][1], LAYERS, by_layer(table, LAYERS, at, metric="probe_auc"), colour, marker, f"probe, {words}")
    shown = (("poison", "poison"), ("poison_memorised", "memorised"), ("poison_unmemorised", "not memorised"))
    for (query, words), colour, marker in zip(shown, canvas.palette, MARKERS, strict=False):
        for own, dash in (("out", "-"), ("in", ":")):
            parts = {**last, "kind": "poisoned", "queries": query, "self": own}
            curve(axes[1][0], LAYERS, by_layer(table, LAYERS, parts, metric="poisoned_neighbor_share"), colour, marker,
                  words if own == "out" else "", dash=dash)  # fmt: skip
    for (query, own), colour, marker in zip((("poison", "out"), ("test_misclassified", "")), canvas.palette, MARKERS,
                                            strict=False):  # fmt: skip
        where = {"clean": size, "kind": "poisoned", "queries": query} | ({"self": own} if own else {})
        found = _by_epoch(table, epochs, where, metric="share_growth")
        curve(axes[0][1], epochs, found, colour, marker, f"growth, {dict(QUERIES)[query]}")
    found = _by_epoch(table, epochs, {"clean": size, "kind": "poisoned"}, metric="memorised")
    curve(axes[0][1], epochs, found, canvas.palette[2], "D", "memorised", dash="--")
    purity = by_layer(table, LAYERS, {**last, "kind": "poisoned"}, metric="label_purity")
    curve(axes[1][1], LAYERS, purity, canvas.ink, "v", "label purity", dash=":")
    titles = ("share by layer, poison", "growth and training time", "memorised? (dotted: self in)", "probe AUC, purity")
    for axis, title in zip(axes.flat, titles, strict=True):
        axis.set_title(title, fontsize=9)
        axis.legend(fontsize=6)
    axes[0][1].set(xlabel="epoch")
    low, high = axes[1][1].get_ylim()
    axes[1][1].set_ylim(low - 0.4 * (high - low), high)  # room for the legend


def _by_epoch(table: pd.DataFrame, epochs: Sequence[str], parts: Mapping[str, str], **names: str) -> np.ndarray:
    # A set of random flips has the same parts and another attack.
    names = {"attack": "svm_poisoning", **names}
    rows = [one(table, {**parts, "epoch": epoch}, **names) for epoch in epochs]
    empty = np.full(3, np.nan)
    return np.stack([empty if row is None else row[["value", "ci_low", "ci_high"]].to_numpy(float) for row in rows])


def cases(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Attack and rate of every poisoned set that defences were tried on."""
    chosen = table[(table["metric"] == "accuracy") & (table["attack"] != "none") & (table["detector"] == "")]
    return list(dict.fromkeys((line["attack"], read(line["setting"]).get("rate", "")) for line in chosen.to_dict("records")))


def case_words(attack: str, rate: str) -> str:
    """A poisoned set in words."""
    return f"{POISONS.get(attack, attack)}, {float(rate):.2g}" if rate else POISONS.get(attack, attack)


def detection(canvas: Canvas, table: pd.DataFrame, metrics: Sequence[Label]) -> None:
    """How well each defence finds the poison, one panel a metric, one mark an attack."""
    found, forms = cases(table), [defence for defence in DEFENCES if (table["detector"] == defence[0]).any()]
    _, axes = canvas(len(metrics), 1, size=(7, 2.3 * len(metrics) + 0.9), sharex=True, squeeze=False)
    width = 0.7 / max(1, len(found))
    for axis, (metric, words) in zip(axes[:, 0], metrics, strict=True):
        for c, (attack, rate) in enumerate(found):
            parts = [read(form) | ({"rate": rate} if rate else {}) for _, form, _ in forms]
            rows = [one(table, p, attack=attack, detector=d[0], metric=metric) for p, d in zip(parts, forms, strict=True)]
            numbers = np.array([[np.nan] * 3 if row is None else row[["value", "ci_low", "ci_high"]] for row in rows], float)
            places = [d + (c - (len(found) - 1) / 2) * width for d in range(len(forms))]
            curve(axis, places, numbers, canvas.palette[c % 10], MARKERS[c % 8], case_words(attack, rate), dash="")
        axis.set(ylabel=words, ylim=(-0.03, 1.05))
    axes[-1, 0].set_xticks(range(len(forms)), labels=[words for *_, words in forms], rotation=20, ha="right", fontsize=8)
    axes[0, 0].legend(fontsize=6.5, ncols=2)


def after_removal(canvas: Canvas, table: pd.DataFrame) -> None:
    """Test accuracy and, for a backdoor, its success after the flagged points were removed and the network trained anew.

    Solid lines: nothing removed. Dashed: the clean training set.
    """
    found = cases(table)
    retrained = set(table.loc[table["metric"] == "accuracy", "detector"])
    forms = [defence for defence in DEFENCES if defence[0] in retrained]
    _, axes = canvas(len(found), 2, size=(7, 1.25 * len(found) + 1), sharex=True, squeeze=False)
    clean = one(table, {"removed": "nothing"}, attack="none", metric="accuracy")
    for line, (attack, rate) in zip(axes, found, strict=True):
        for axis, metric, colour in zip(line, ("accuracy", "success"), canvas.palette, strict=False):
            where = {"rate": rate} if rate else {}
            before = one(table, {**where, "removed": "nothing"}, attack=attack, detector="", metric=metric)
            if before is None:
                axis.set_axis_off()
                continue
            rows = [one(table, {**where, "removed": "flagged"}, attack=attack, detector=d[0], metric=metric) for d in forms]
            numbers = np.array([[np.nan] * 3 if row is None else row[["value", "ci_low", "ci_high"]] for row in rows], float)
            curve(axis, list(range(len(forms))), numbers.reshape(-1, 3), colour, "o", metric, dash="")
            axis.axhline(before["value"], color=canvas.ink, lw=1)
            if metric == "accuracy" and clean is not None:
                axis.axhline(clean["value"], color=canvas.muted, ls="--", lw=1)
            axis.set_title(f"{case_words(attack, rate)}: {metric}", fontsize=8)
            axis.tick_params(labelsize=7)
    for axis in axes[-1]:
        axis.set_xticks(range(len(forms)), labels=[words for *_, words in forms], rotation=35, ha="right", fontsize=7)
