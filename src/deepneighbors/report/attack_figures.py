"""Figures of chapter 1, drawn from saved results; the plane's figures from a small problem solved on the spot."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from deepneighbors.attacks import GradientAttack, MeanAttack, Schedule
from deepneighbors.knn import KNNClassifier
from deepneighbors.report.figures import Canvas
from deepneighbors.results import Result
from deepneighbors.voronoi import minimum_perturbation

Label = tuple[str, str]  # key of an array or row, and the words for it


def _image(axis: Axes, pixels: np.ndarray, canvas: Canvas, title: str = "") -> None:
    axis.imshow(pixels.reshape(28, 28).astype(float), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    if title:
        axis.set_title(title, fontsize=8, pad=2, color=canvas.ink)


def plane_problem() -> tuple[KNNClassifier, torch.Tensor, torch.Tensor]:
    """Two classes of 20 points in the unit square, 1-NN by L2, and one point to attack."""
    generator = torch.Generator().manual_seed(4)
    y = torch.arange(40) % 2
    centres = torch.tensor([[0.32, 0.4], [0.7, 0.62]])
    x = (centres[y] + 0.12 * torch.randn(40, 2, generator=generator)).clamp(0, 1)
    return KNNClassifier(k=1, metric="l2").fit(x, y), torch.tensor([[0.25, 0.5]]), torch.tensor([0])


def plane(canvas: Canvas) -> None:
    """Where the mean attack, the gradient attack and the exact smallest step end in the plane."""
    classifier, point, label = plane_problem()
    figure, axes = canvas(1, 2, size=(7, 3.3), sharey=True)
    gradient = GradientAttack(guides=3, constant=1.0, steepness=20.0, schedule=Schedule(steps=200))
    exact = minimum_perturbation(point[0], 0, classifier.x_, classifier.labels_)
    ends = [
        {"mean": MeanAttack(steps=12)(classifier, point, label).x[0]},
        {"gradient": gradient(classifier, point, label).x[0], "exact": torch.as_tensor(exact.x_adv)},
    ]
    means = torch.stack([classifier.x_[classifier.labels_ == c].mean(0) for c in (0, 1)])
    for axis, found in zip(axes, ends, strict=True):
        _plane_background(axis, canvas, classifier)
        axis.scatter(point[:, 0], point[:, 1], s=60, marker="*", color=canvas.ink, zorder=4)
        for (name, end), colour in zip(found.items(), canvas.palette[3:], strict=False):
            axis.annotate(
                "",
                end.tolist(),
                point[0].tolist(),
                arrowprops={"arrowstyle": "->", "color": colour, "lw": 2, "shrinkA": 0, "shrinkB": 0},
            )
            axis.plot([], [], color=colour, lw=2, label=f"{name}: {float((end - point[0]).norm()):.3f}")
        axis.legend(loc="upper left", fontsize=8)
    axes[0].scatter(means[:, 0], means[:, 1], s=70, marker="X", color=canvas.palette[:2], edgecolors=canvas.ink, zorder=4)
    axes[0].set(ylabel="second pixel")


def _plane_background(axis: Axes, canvas: Canvas, classifier: KNNClassifier) -> None:
    side = torch.linspace(0, 1, 160)
    region = classifier.predict(torch.cartesian_prod(side, side)).reshape(160, 160).T
    axis.contourf(side, side, region, levels=[-0.5, 0.5, 1.5], colors=canvas.palette[:2], alpha=0.15)
    for c, marker in ((0, "o"), (1, "s")):
        chosen = classifier.x_[classifier.labels_ == c]
        axis.scatter(chosen[:, 0], chosen[:, 1], s=12, marker=marker, color=canvas.palette[c], linewidths=0)
    axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="first pixel")


def soft_threshold(canvas: Canvas, eta: float) -> None:
    """The sigmoid that replaces the test ``d < eta``, at several steepnesses."""
    figure, axis = canvas(size=(5.5, 3))
    d = np.linspace(0, 1.3, 400)
    axis.plot(d, d < eta, color=canvas.ink, lw=1.2, ls="--", label="hard: d < η")
    for a, colour in zip((1, 4, 16, 64), canvas.palette, strict=False):
        axis.plot(d, 1 / (1 + np.exp(-a * (eta - d))), color=colour, label=f"a = {a}" + (" (released)" if a == 4 else ""))
    axis.axvline(eta, color=canvas.muted, lw=0.8)
    axis.set(xlabel="distance to a guide image", ylabel="weight of the guide")
    axis.legend(fontsize=8)


def digit_grid(canvas: Canvas, result: Result, rows: Sequence[Label], columns: int) -> None:
    """One row of digits for each attack; titles give the label that the classifier assigns and the L2 distance."""
    figure, axes = canvas(len(rows), columns, size=(7, 1.05 * len(rows) + 0.2), squeeze=False)
    arrays = result.arrays
    for line, (key, words) in zip(axes, rows, strict=True):
        for column, axis in enumerate(line):
            title = ""
            if f"{key}|label" in arrays:
                cross = "" if arrays[f"{key}|success"][column] else " ✗"
                title = f"{arrays[f'{key}|label'][column]} ({arrays[f'{key}|l2'][column]:.1f}){cross}"
            elif f"{key}|y" in arrays:
                title = str(arrays[f"{key}|y"][column])
            _image(axis, arrays[f"{key}|x"][column], canvas, title)
        line[0].set_ylabel(words, rotation=0, ha="right", va="center", fontsize=8, labelpad=4)


def neighbor_panels(canvas: Canvas, result: Result, rows: Sequence[Label], layers: Sequence[str], shown: int) -> None:
    """The attacked digit, then its nearest training digits in each layer."""
    columns = 1 + len(layers) * shown
    figure, axes = canvas(len(rows), columns, size=(7, 0.66 * len(rows) + 0.4), squeeze=False)
    for line, (key, words) in zip(axes, rows, strict=True):
        _image(line[0], result.arrays[f"{key}|x"][-1], canvas)
        line[0].set_ylabel(words, rotation=0, ha="right", va="center", fontsize=7, labelpad=4)
        for i, layer in enumerate(layers):
            images = result.arrays[f"neighbors|{key}|{layer}|x"]
            labels = result.arrays[f"neighbors|{key}|{layer}|y"]
            for j in range(shown):
                axis = line[1 + i * shown + j]
                _image(axis, images[j], canvas, str(labels[j]))
                axis.title.set_fontsize(7)
    for i, layer in enumerate(layers):
        axes[-1][1 + i * shown + shown // 2].set_xlabel(layer, fontsize=8)


def curves(canvas: Canvas, table: pd.DataFrame, paper: pd.DataFrame, attacks: Sequence[Label]) -> None:
    """Accuracy and credibility of successes against the Linf radius, ours with intervals, the paper's as crosses."""
    figure, axes = canvas(1, 2, size=(7, 3))
    for axis, metric, words in zip(
        axes, ("accuracy", "mean_credibility"), ("accuracy", "mean credibility of successes"), strict=True
    ):
        for (attack, name), colour in zip(attacks, canvas.palette, strict=False):
            ours = _against_epsilon(table, attack, metric)
            low, high = (
                ours["value"] - ours["ci_low"].fillna(ours["value"]),
                ours["ci_high"].fillna(ours["value"]) - ours["value"],
            )
            axis.errorbar(
                ours["epsilon"], ours["value"], yerr=[low, high], color=colour, marker="o", ms=3, capsize=2, label=name
            )
            theirs = _against_epsilon(paper, attack, metric)
            axis.plot(theirs["epsilon"], theirs["value"], ls="", marker="x", color=colour, label=f"{name}, paper")
        axis.set(xlabel="radius ε (Linf)", ylabel=words, ylim=(-0.02, 1.02))
    axes[1].legend(fontsize=7, loc="upper left")


def _against_epsilon(table: pd.DataFrame, attack: str, metric: str) -> pd.DataFrame:
    chosen = table[(table["attack"] == attack) & (table["metric"] == metric)].copy()
    chosen["epsilon"] = [float(setting.removeprefix("epsilon=")) for setting in chosen["setting"]]
    return chosen.sort_values("epsilon")


def credibility_histograms(canvas: Canvas, result: Result, rows: Sequence[Label]) -> None:
    """Share of images by tenths of credibility; the line is the filter at 0.1."""
    figure, axes = canvas(len(rows), 1, size=(6, 1.05 * len(rows) + 0.6), sharex=True, squeeze=False)
    bins = np.linspace(0, 1, 11)
    for axis, (key, words), colour in zip(axes[:, 0], rows, canvas.palette * 3, strict=False):
        sample = result.arrays[f"{key}|credibility"]
        axis.hist(sample, bins, weights=np.full(len(sample), 1 / len(sample)), color=colour)
        axis.axvline(0.1, color=canvas.ink, lw=1, ls="--")
        axis.set(ylim=(0, 1), yticks=[0, 0.5, 1])
        axis.text(0.98, 0.78, f"{words}, n = {len(sample)}", transform=axis.transAxes, ha="right", fontsize=8)
    axes[-1, 0].set(xlabel="credibility")
    figure.supylabel("share of images", fontsize=9)


def filter_curves(canvas: Canvas, result: Result, rows: Sequence[Label]) -> None:
    """Share that passes the filter against its threshold, clean and attacked."""
    figure, axis = canvas(size=(6, 3.4))
    thresholds = np.linspace(0, 1, 201)
    for (key, words), colour, dash in zip(rows, canvas.palette * 2, ["-", "--", "-.", ":"] * 4, strict=False):
        sample = np.sort(result.arrays[f"{key}|credibility"])
        passed = 1 - np.searchsorted(sample, thresholds, side="right") / len(sample)
        axis.plot(thresholds, passed, color=colour, ls=dash, label=words)
    axis.axvline(0.1, color=canvas.muted, lw=0.8)
    axis.set(xlabel="threshold on credibility", ylabel="share accepted", xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)


def robustness_curves(canvas: Canvas, panels: Sequence[tuple[str, Result, Sequence[Label]]], norm: str = "l2") -> None:
    """Accuracy against the size of the perturbation: a digit falls at its smallest verified one.

    An attack looks alike in all panels.
    """
    figure, axes = canvas(1, len(panels), size=(7, 3.3), squeeze=False, sharey=True)
    attacks = dict.fromkeys(words for _, _, rows in panels for _, words in rows)
    styles = dict(zip(attacks, zip(canvas.palette * 2, ["-", "--", "-.", ":"] * 4, strict=False), strict=False))
    size = np.linspace(0, 6, 241)
    for axis, (title, result, rows) in zip(axes[0], panels, strict=True):
        for key, words in rows:
            colour, dash = styles[words]
            reached = np.where(result.arrays[f"{key}|success"], result.arrays[f"{key}|{norm}"], np.inf)
            left = 1 - np.searchsorted(np.sort(reached), size, side="right") / len(reached)
            axis.plot(size, left, color=colour, ls=dash)
        axis.set(title=title, xlabel="L2 perturbation", xlim=(0, 6), ylim=(0, 1))
    axes[0][0].set(ylabel="accuracy")
    lines = [Line2D([], [], color=colour, ls=dash, label=words) for words, (colour, dash) in styles.items()]
    figure.legend(handles=lines, loc="outside upper center", ncols=3, fontsize=8)


def optimum(canvas: Canvas, result: Result, rows: Sequence[Label]) -> None:
    """Distance of each attack on 1-NN over the exact optimum, as the share of digits within a ratio."""
    figure, axes = canvas(1, 2, size=(7, 3), sharey=True)
    for axis, (metric, title) in zip(axes, (("l2", "Euclidean 1-NN"), ("cosine", "cosine 1-NN")), strict=True):
        exact = result.arrays[f"{metric}|exact"]
        for (attack, words), colour in zip(rows, canvas.palette, strict=False):
            ratio = np.sort(np.nan_to_num(result.arrays[f"{metric}|{attack}"] / exact, nan=np.inf))
            ratio = ratio[: int(np.isfinite(ratio).sum())]
            axis.step(ratio, np.arange(1, len(ratio) + 1) / len(exact), where="post", color=colour, label=words)
        axis.set(title=title, xlabel="distance / exact optimum", xscale="log", ylim=(0, 1.02))
        axis.axvline(1, color=canvas.muted, lw=0.8)
    axes[0].set(ylabel="share of digits")
    axes[0].legend(fontsize=7)


def sweeps(canvas: Canvas, table: pd.DataFrame, attacks: Sequence[Label]) -> None:
    """Mean L2 of successes against guides, steps and k."""
    figure, axes = canvas(1, 3, size=(7, 2.7), sharey=True)
    for axis, (choice, words) in zip(axes, (("guides", "guides m"), ("steps", "steps"), ("k", "neighbours k")), strict=True):
        for (attack, name), colour in zip(attacks, canvas.palette, strict=False):
            mine = table[(table["attack"] == attack) & (table["metric"] == "mean_l2") & (table["n"] > 0)].copy()
            mine = mine[mine["setting"].str.startswith(f"{choice}=")]
            at = mine["setting"].str.split("=").str[1].astype(float)
            order = np.argsort(at.to_numpy())
            values = mine[["value", "ci_low", "ci_high"]].to_numpy(float)[order]
            errors = np.nan_to_num(np.abs(values[:, 1:] - values[:, :1]).T)
            axis.errorbar(
                at.to_numpy()[order], values[:, 0], yerr=errors, marker="o", ms=3, capsize=2, color=colour, label=name
            )
        settings = table.loc[table["setting"].str.startswith(f"{choice}="), "setting"].str.split("=").str[1]
        ticks = sorted(set(settings.astype(int)))
        axis.set(xlabel=words, xscale="log")
        axis.set_xticks(ticks, labels=map(str, ticks))
        axis.tick_params(axis="x", labelsize=7)
        axis.minorticks_off()
    axes[0].set(ylabel="mean L2 of successes")
    axes[0].legend(fontsize=7)


def layer_shares(
    canvas: Canvas, table: pd.DataFrame, rows: Sequence[tuple[Mapping[str, str], str]], layers: Sequence[str]
) -> None:
    """Share of the neighbours with the true and with the assigned label, layer by layer."""
    figure, axes = canvas(1, 2, size=(7, 3), sharey=True)
    metrics = (("true_neighbor_share", "true label"), ("predicted_neighbor_share", "assigned label"))
    for axis, (metric, title) in zip(axes, metrics, strict=True):
        for (names, words), colour in zip(rows, canvas.palette * 2, strict=False):
            mine = table[table["metric"] == metric]
            for column, value in names.items():
                mine = mine[mine[column] == value]
            mine = mine.set_index("layer").reindex(layers)
            if mine["value"].notna().any():
                axis.plot(list(layers), mine["value"], marker="o", ms=3, color=colour, label=words)
        axis.set(title=title, ylim=(0, 1.02))
    axes[0].set(ylabel="share of the 75 neighbours")
    axes[0].legend(fontsize=7)


def distance_histogram(canvas: Canvas, published: pd.DataFrame, samples: Mapping[str, np.ndarray]) -> None:
    """Published counts of an attack's distances (settings ``bin=low-high``), and samples of ours in the same bins."""
    figure, axis = canvas(size=(6, 3.2))
    bins = published["setting"].str.extract(r"bin=([\d.]+)-([\d.]+)").astype(float).sort_values(0)
    counts = published.loc[bins.index, "value"].to_numpy(float)
    edges = np.append(bins[0].to_numpy(), bins[1].max())
    axis.stairs(counts / counts.sum(), edges, fill=True, color=canvas.muted, alpha=0.5, label="published")
    for (words, sample), colour in zip(samples.items(), canvas.palette, strict=False):
        ours, _ = np.histogram(np.clip(sample, edges[0], edges[-1] - 1e-6), edges)
        axis.stairs(ours / max(1, ours.sum()), edges, color=colour, lw=2, label=words)
    axis.set(xlabel="L2 distance", ylabel="share of digits")
    axis.legend(fontsize=8)
