"""Figures of chapter 2, drawn from saved results."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from sklearn.metrics import roc_curve

from deepneighbors.report.detection_tables import ATTACKS, CONTROLS, DETECTORS, FEATURES, Label
from deepneighbors.report.figures import Canvas
from deepneighbors.results import Result


def image(axis: Axes, pixels: np.ndarray, canvas: Canvas, title: str = "", *, wrong: bool = False) -> None:
    """One picture ``(channels, height, width)`` of bytes, without axes."""
    shown = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    axis.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    if title:
        axis.set_title(title, fontsize=6, pad=2, color=canvas.palette[3] if wrong else canvas.ink)


def plane(canvas: Canvas, result: Result, mode: str, example: int = 0) -> None:
    """Figure 1: an image and its adversarial twin with their nearest and most helpful training images, in a plane."""
    _, axes = canvas(1, 2, size=(7, 3.5), sharex=True, sharey=True)
    arrays = {key.removeprefix(f"{mode}|"): array for key, array in result.arrays.items() if key.startswith(f"{mode}|")}
    marks = (
        ("clean", "near", "o", 0), ("attacked", "near", "v", 1),
        ("clean", "helpful", "s", 0), ("attacked", "helpful", "^", 1),
    )  # fmt: skip
    for axis, kind, title in zip(axes, ("near", "helpful"), ("25 nearest neighbours", "25 most helpful"), strict=True):
        back = arrays["plane|background"]
        axis.scatter(back[:, 0], back[:, 1], s=3, color=canvas.muted, alpha=0.35, linewidths=0, rasterized=True)
        for shown, of, marker, colour in marks:
            if of == kind:
                points = arrays[f"plane|{shown}|{kind}"][example]
                words = f"of the {'clean' if shown == 'clean' else 'adversarial'} image"
                axis.scatter(points[:, 0], points[:, 1], s=22, marker=marker, color=canvas.palette[colour],
                             alpha=0.75, linewidths=0, label=words)  # fmt: skip
        for shown, marker, words in (("clean", "*", "clean image"), ("attacked", "X", "adversarial image")):
            point = arrays[f"plane|{shown}"][example]
            axis.scatter(*point, s=110, marker=marker, color=canvas.ink, edgecolors="white", linewidths=0.6, label=words,
                         zorder=4)  # fmt: skip
        axis.set(title=title, xlabel="first component")
        axis.legend(fontsize=6.5, loc="best")
    axes[0].set(ylabel="second component")


def examples(canvas: Canvas, result: Result, mode: str, names: Sequence[str]) -> None:
    """Images before and after the attack, each with its most helpful and most harmful training images."""
    arrays = {key.removeprefix(f"{mode}|"): array for key, array in result.arrays.items() if key.startswith(f"{mode}|")}
    count, shown = len(arrays["true|y"]), arrays["clean|helpful|x"].shape[1]
    _, axes = canvas(2 * count, 1 + 2 * shown, size=(7, 1.12 * count + 0.4), squeeze=False)
    for i in range(count):
        for j, version in enumerate(("clean", "attacked")):
            line, predicted = axes[2 * i + j], int(arrays[f"{version}|y"][i])
            image(line[0], arrays[f"{version}|x"][i], canvas, names[predicted], wrong=predicted != arrays["true|y"][i])
            line[0].set_ylabel(version, rotation=0, ha="right", va="center", fontsize=6)
            for k, kind in enumerate(("helpful", "harmful")):
                for s in range(shown):
                    label = names[int(arrays[f"{version}|{kind}|y"][i, s])]
                    image(line[1 + k * shown + s], arrays[f"{version}|{kind}|x"][i, s], canvas, label)
    for k, words in enumerate(("most helpful", "most harmful")):
        axes[-1][1 + k * shown + shown // 2].set_xlabel(words, fontsize=8)


def bars(canvas: Canvas, panels: Sequence[tuple[str, Mapping[tuple[str, str, str], float]]]) -> None:
    """Figure 2: AUC by attack and detector; solid at the embedding, hatched what all layers add (a loss is a dash).

    Each panel maps (detector, layer, attack) to an AUC.
    """
    figure, axes = canvas(len(panels), 1, size=(7, 2.1 * len(panels) + 0.5), sharex=True, squeeze=False)
    width = 0.8 / len(DETECTORS)
    for axis, (title, found) in zip(axes[:, 0], panels, strict=True):
        for d, ((detector, _), colour) in enumerate(zip(DETECTORS, canvas.palette, strict=False)):
            for a, (attack, _) in enumerate(ATTACKS):
                place = a + (d - 1.5) * width
                solid, all_layers = found.get((detector, "embedding", attack)), found.get((detector, "all", attack))
                if solid is not None:
                    axis.bar(place, solid, width * 0.92, color=colour)
                if solid is not None and all_layers is not None and all_layers > solid:
                    axis.bar(place, all_layers - solid, width * 0.92, bottom=solid, color="none", edgecolor=colour,
                             hatch="////", lw=0.6)  # fmt: skip
                elif solid is not None and all_layers is not None:
                    axis.plot([place - width / 2, place + width / 2], [all_layers] * 2, color=canvas.ink, lw=1.2)
        axis.set(ylim=(0, 1.01), ylabel="AUC", title=title)
        axis.axhline(0.5, color=canvas.muted, lw=0.6)
        axis.set_xticks(range(len(ATTACKS)), labels=[words for _, words in ATTACKS])
    keys = [Patch(color=colour, label=words) for (_, words), colour in zip(DETECTORS, canvas.palette, strict=False)]
    figure.legend(handles=keys, fontsize=7, ncols=4, loc="outside upper center")


def bar_heights(table: pd.DataFrame, network: str) -> dict[tuple[str, str, str], float]:
    """AUC by (detector, layer, attack) of a tidy table, ours or the paper's, for :func:`bars`."""
    chosen = table[(table["metric"] == "auc") & (table["setting"] == "") & (table["network"] == network)]
    return {(row["detector"], row["layer"], row["attack"]): float(row["value"]) for row in chosen.to_dict("records")}


def roc_curves(canvas: Canvas, result: Result, mode: str, lines: Sequence[tuple[str, str, str]]) -> None:
    """Detection rate against false positives, one panel an attack; ``lines`` are (detector, layer, words)."""
    attacks = [pair for pair in ATTACKS if f"{mode}|{pair[0]}|{lines[0][0]}|{lines[0][1]}|clean" in result.arrays]
    rows = max(1, -(-len(attacks) // 3))
    _, axes = canvas(rows, 3, size=(7, 0.4 + 2.15 * rows), sharex=True, sharey=True, squeeze=False)
    for axis, (attack, words) in zip(axes.flat, attacks, strict=False):
        for (detector, layer, _), colour, dash in zip(lines, canvas.palette * 2, ["-"] * 4 + ["--"] * 6, strict=False):
            key = f"{mode}|{attack}|{detector}|{layer}"
            clean, attacked = result.arrays[f"{key}|clean"], result.arrays[f"{key}|attacked"]
            false, true, _ = roc_curve(np.repeat([0, 1], [len(clean), len(attacked)]), np.concatenate([clean, attacked]))
            axis.plot(false, true, color=colour, ls=dash, lw=1.3)
        axis.axvline(0.05, color=canvas.muted, lw=0.7)
        axis.set(title=words, xlim=(0, 1), ylim=(0, 1.01))
    for axis in axes.flat[len(attacks) :]:
        axis.set_axis_off()
    handles = [
        Line2D([], [], color=colour, ls=dash)
        for colour, dash in zip((canvas.palette * 2)[: len(lines)], ["-"] * 4 + ["--"] * 6, strict=False)
    ]
    axes.flat[0].legend(handles, [words for _, _, words in lines], fontsize=6.5, loc="lower right")
    axes[0][0].figure.supxlabel("false positives among clean images", fontsize=9)
    axes[0][0].figure.supylabel("adversarial images detected", fontsize=9)


def densities(canvas: Canvas, result: Result, mode: str, attacks: Sequence[Label]) -> None:
    """How each feature of NNIF at the embedding is spread over clean and adversarial images."""
    _, axes = canvas(len(FEATURES), len(attacks), size=(7, 5.6), squeeze=False)
    for column, (attack, words) in enumerate(attacks):
        for row, (feature, name) in enumerate(FEATURES):
            axis = axes[row][column]
            parts = [result.arrays[f"{mode}|{attack}|{feature}|{shown}"] for shown in ("clean", "attacked")]
            low, high = np.quantile(np.concatenate(parts), [0.0, 0.995])
            bins = np.linspace(low, high + 1e-9, 41)
            for part, colour, shown in zip(parts, canvas.palette, ("clean", "adversarial"), strict=False):
                axis.hist(np.clip(part, low, high), bins, density=True, color=colour, alpha=0.55, label=shown)
            axis.set(yticks=[], ylabel=name if column == 0 else "")
            axis.tick_params(axis="x", labelsize=7)
        axes[0][column].set(title=words)
    axes[0][0].legend(fontsize=7)


def estimators(canvas: Canvas, table: pd.DataFrame, network: str, lines: Sequence[Label]) -> None:
    """Cost of each estimator of influence against its agreement with the exact one, and against the AUC that results."""
    _, axes = canvas(1, 2, size=(7, 3.2), sharex=True)
    shown = (("spearman", "rank correlation with exact"), ("auc", "AUC of D↑ alone"))
    for axis, (metric, words) in zip(axes, shown, strict=True):
        for (name, label), colour, marker in zip(lines, canvas.palette * 2, "osD^vPX*", strict=False):
            mine = table[(table["setting"] == name) & (table["network"] == network)].set_index("metric")
            if metric not in mine.index:
                continue
            value, low, high = mine.loc[metric, ["value", "ci_low", "ci_high"]].astype(float)
            errors = None if np.isnan(low) else [[value - low], [high - value]]
            axis.errorbar(mine.loc["seconds_per_query", "value"] * 1e3, value, yerr=errors, marker=marker, ms=6, ls="",
                          capsize=2, color=colour, label=label)  # fmt: skip
        axis.set(xscale="log", xlabel="milliseconds a query", ylabel=words)
    axes[0].legend(fontsize=6.5)


def views(canvas: Canvas, table: pd.DataFrame, attack: str, panels: Sequence[tuple[str, str]]) -> None:
    """AUC of each detector on one attack as it is, after 8-bit rounding, in mixed batches, and one image at a time.

    ``panels`` are (title, network).
    """
    _, axes = canvas(len(panels), 1, size=(7, 2.3 * len(panels) + 0.7), sharex=True, squeeze=False)
    settings = (
        ("plain", "plain"),
        ("rounded", "rounded to 8 bits"),
        ("mixed", "mixed batches"),
        ("single", "one at a time"),
    )
    lines = [*DETECTORS, *CONTROLS]
    shifts = (-0.24, -0.08, 0.08, 0.24)
    for axis, (title, network) in zip(axes[:, 0], panels, strict=True):
        for (setting, words), colour, marker, shift in zip(settings, canvas.palette, "osD^", shifts, strict=False):
            chosen = table[
                (table["attack"] == attack) & (table["metric"] == "auc") & (table["setting"] == setting)
                & (table["network"] == network) & (table["layer"] == "embedding")
            ].set_index("detector")  # fmt: skip
            found = [(i, chosen.loc[name]) for i, (name, _) in enumerate(lines) if name in chosen.index]
            value, low, high = (np.array([float(row[key]) for _, row in found]) for key in ("value", "ci_low", "ci_high"))
            axis.errorbar([i + shift for i, _ in found], value, yerr=np.nan_to_num([value - low, high - value]), ls="",
                          marker=marker, ms=4, capsize=2, color=colour, label=words)  # fmt: skip
        axis.axhline(0.5, color=canvas.muted, lw=0.7)
        axis.set(ylabel="AUC", ylim=(0, 1.02), title=title)
        axis.set_xticks(range(len(lines)), labels=[words for _, words in lines], rotation=35, ha="right", fontsize=7)
    axes[0, 0].legend(fontsize=7, ncols=4, loc="lower left")
