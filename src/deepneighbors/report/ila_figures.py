"""Figures of chapter 3 on the Intermediate Level Attack, drawn from saved results."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from deepneighbors.report.figures import Canvas
from deepneighbors.report.poisoning_figures import MARKERS, Tile, curve, ends, strip
from deepneighbors.report.poisoning_tables import ATTACKS, NETWORKS, Label, by_layer, one, options, pooled
from deepneighbors.results import Result

SOURCE_LAYERS = {"mnist_cnn": ("relu1", "relu2", "relu3", "fc"),
                 "deep": ("b0c0", "b0c1", "b1c0", "b1c1", "b2c0", "b2c1", "fc")}  # fmt: skip
DKNN_LAYERS = {"mnist_cnn": ("relu1", "relu2", "relu3", "fc"), "deep": ("b0c1", "b1c1", "b2c1", "fc")}
CHOSEN = ("ilap", "random_guide", "ilaf", "ila++", "fia", "naa")  # attacks at a layer that was fixed beforehand
RIVALS: tuple[Label, ...] = (
    ("sign_noise", "sign noise"), ("random_guide", "random guide"), ("ifgsm", "I-FGSM, as many steps"), ("mi_di", "MI-DI"),
)  # fmt: skip
REASONS: tuple[Label, ...] = (
    ("none", "this chapter's settings"), ("epsilon", "radius of the code"), ("step_size", "step of the code"),
    ("start", "from FGSM"), ("source", "shallow source"), ("all", "all of these"),
)  # fmt: skip
_ENDS = ["value", "ci_low", "ci_high"]


def words_of(network: str) -> str:
    """``deep->cnn`` as ``deep → CNN``."""
    return " → ".join(NETWORKS.get(part, part) for part in network.split("->"))


def targets(table: pd.DataFrame, source: str) -> list[str]:
    """Networks that the examples of a source were shown to."""
    found = table.loc[table["metric"] == "transfer_success", "network"]
    return list(dict.fromkeys(name.split("->")[1] for name in found if name.startswith(f"{source}->")))


def examples(canvas: Canvas, result: Result, network: str, attacks: Sequence[str], columns: int = 8) -> None:
    """Digits, and for each attack its examples and their changes; titles are the labels of the network that is asked."""
    arrays = result.arrays
    shown = [attack for attack in attacks if f"gallery|{network}|{attack}|x" in arrays]
    clean, y = arrays["gallery|clean|x"], arrays["gallery|clean|y"]
    columns = min(columns, len(y))
    _, axes = canvas(1 + 2 * len(shown), 1, size=(7, 0.95 * (1 + 2 * len(shown)) + 0.2), squeeze=False)
    strip(axes[0, 0], [Tile(x, str(label)) for x, label in zip(clean, y, strict=True)][:columns], canvas, "clean")
    for attack, top, bottom in zip(shown, axes[1::2, 0], axes[2::2, 0], strict=True):
        images, changes = [], []
        for i in range(columns):
            label, moved = arrays[f"gallery|{network}|{attack}|label"][i], arrays[f"gallery|{network}|{attack}|x"][i]
            change, fooled = moved.astype(float) - clean[i], label != y[i]
            images.append(Tile(moved, f"{label} ✗" if fooled else str(label), wrong=fooled))
            changes.append(Tile(change, f"L2 {np.linalg.norm(change):.1f}", change=float(np.abs(change).max())))
        strip(top, images, canvas, ATTACKS.get(attack, attack))
        strip(bottom, changes, canvas, "change")


def transfer_by_layer(canvas: Canvas, table: pd.DataFrame, source: str, epsilon: str) -> None:
    """Transfer of ILAP and of a random guide at each layer of the source, one panel a target; lines: attacks without one."""
    shown, layers = targets(table, source), SOURCE_LAYERS[source]
    rows = -(-len(shown) // 2)
    figure, axes = canvas(rows, 2, size=(7, 2.2 * rows + 0.4), sharex=True, sharey=True, squeeze=False)
    at = {"epsilon": epsilon}
    for axis, target in zip(axes.flat, shown, strict=False):
        names = {"network": f"{source}->{target}", "metric": "transfer_success"}
        for attack, colour, marker in zip(("ilap", "random_guide"), canvas.palette[:2], "os", strict=True):
            curve(axis, layers, by_layer(table, layers, at, attack=attack, **names), colour, marker, ATTACKS[attack])
        flat = (("ifgsm", "--"), ("sign_noise", ":"), ("mi_di", "-."))
        for (attack, dash), colour in zip(flat, canvas.palette[2:], strict=False):
            found = one(table, at, attack=attack, **names)
            if found is not None:
                axis.axhline(found["value"], color=colour, ls=dash, lw=1.4, label=ATTACKS[attack])
        axis.set_title(words_of(names["network"]), fontsize=9)
        axis.set(ylim=(0, 1.02))
        axis.tick_params(axis="x", labelsize=8, rotation=30)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    axes[0][0].legend(fontsize=6.5)
    figure.supylabel("transfer success", fontsize=9)


def transfer_by_radius(canvas: Canvas, table: pd.DataFrame, source: str, attacks: Sequence[str]) -> None:
    """Transfer of each attack against the radius, ILA's kind at the layer fixed beforehand; one panel a target."""
    shown, epsilons = targets(table, source), options(table, "epsilon", metric="transfer_success")
    rows = -(-len(shown) // 2)
    figure, axes = canvas(rows, 2, size=(7, 2.2 * rows + 0.4), sharex=True, sharey=True, squeeze=False)
    for axis, target in zip(axes.flat, shown, strict=False):
        names = {"network": f"{source}->{target}", "metric": "transfer_success"}
        for attack, colour, marker in zip(attacks, canvas.palette, MARKERS, strict=False):
            at = {"choice": "fixed"} if attack in CHOSEN else {}
            found = [one(table, {"epsilon": e, **at}, attack=attack, **names) for e in epsilons]
            numbers = np.array([[np.nan] * 3 if row is None else row[_ENDS] for row in found], float)
            curve(axis, [float(e) for e in epsilons], numbers, colour, marker, ATTACKS[attack])
        axis.set_title(words_of(names["network"]), fontsize=9)
        axis.set(ylim=(0, 1.02))
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    axes[0][0].legend(fontsize=6.5)
    figure.supxlabel("radius ε (Linf)", fontsize=9)
    figure.supylabel("transfer success", fontsize=9)


def differences(canvas: Canvas, table: pd.DataFrame, sources: Sequence[str], epsilon: str, choice: str = "fixed") -> None:
    """Transfer of ILAP less that of each rival, paired by image, with intervals; hollow: at the L2 length of I-FGSM."""
    sources = [source for source in sources if targets(table, source)]
    _, axes = canvas(1, len(sources), size=(7, 3.9), sharex=True, squeeze=False)
    for axis, source in zip(axes[0], sources, strict=True):
        shown = targets(table, source)
        for r, ((rival, _), colour, marker) in enumerate(zip(RIVALS, canvas.palette, MARKERS, strict=False)):
            for length, fill, shift in (("", colour, 0.0), ("ifgsm", "none", 0.09)):
                parts = {"epsilon": epsilon, "choice": choice, "minus": rival} | ({"l2": length} if length else {})
                for place, target in enumerate(shown):
                    row = one(table, parts, attack="ilap", network=f"{source}->{target}", metric="difference")
                    if row is not None:
                        axis.errorbar(row["value"], -place + 0.3 - 0.2 * r - shift, xerr=ends(row), marker=marker, ms=5,
                                      capsize=2, color=colour, markerfacecolor=fill, lw=1, ls="")  # fmt: skip
        axis.axvline(0, color=canvas.ink, lw=1)
        axis.set_yticks([-place for place in range(len(shown))], labels=[NETWORKS.get(t, t) for t in shown], fontsize=8)
        axis.set_title(f"from {NETWORKS.get(source, source)}", fontsize=9)
        axis.set(xlabel="difference in success")
    marks = [
        Line2D([], [], ls="", marker=marker, color=colour, label=f"less {words}")
        for (_, words), colour, marker in zip(RIVALS, canvas.palette, MARKERS, strict=False)
    ]
    axes[0][0].figure.legend(handles=marks, fontsize=7, ncols=4, loc="outside upper center")


def confirmation(canvas: Canvas, table: pd.DataFrame, source: str, epsilon: str) -> None:
    """ILAP less its random guide: at each layer over the seeds that choose one, and at three choices over further seeds."""
    shown, layers = targets(table, source), SOURCE_LAYERS[source][:-1]
    _, (left, right) = canvas(1, 2, size=(7, 4.2))
    explored = {"epsilon": epsilon, "stage": "explored", "minus": "random_guide"}
    for t, (target, colour, marker) in enumerate(zip(shown, canvas.palette, MARKERS, strict=False)):
        names = {"attack": "ilap", "network": f"{source}->{target}", "metric": "difference"}
        numbers = by_layer(table, layers, explored, **names)
        places = [place + 0.14 * (t - (len(shown) - 1) / 2) for place in range(len(layers))]
        curve(left, places, numbers, colour, marker, NETWORKS.get(target, target))
    left.axhline(0, color=canvas.ink, lw=1)
    left.set_title("seeds that choose the layer", fontsize=9)
    left.set_ylabel("gain over the random guide", fontsize=9)
    left.set_xticks(range(len(layers)), labels=layers)
    chosen = table.loc[table["setting"].str.contains("choice=explored;minus="), "layer"].iloc[0]
    words = {"explored": f"chosen ({chosen})", "fixed": "fixed", "blind": "blind"}
    for c, (choice, colour, marker) in enumerate(zip(words, canvas.palette, MARKERS, strict=False)):
        for place, target in enumerate(shown):
            parts = {"epsilon": epsilon, "stage": "further", "choice": choice, "minus": "random_guide"}
            row = one(table, parts, attack="ilap", network=f"{source}->{target}", metric="difference")
            if row is not None:
                right.errorbar(row["value"], 0.2 - 0.2 * c - place, xerr=ends(row), color=colour, marker=marker, ms=5,
                               capsize=2, lw=1)  # fmt: skip
        right.plot([], [], color=colour, marker=marker, ls="", label=words[choice])
    right.axvline(0, color=canvas.ink, lw=1)
    right.margins(x=0.09)  # a number at the very end of the axis would be cut off
    right.set_yticks([-place for place in range(len(shown))], labels=[NETWORKS.get(t, t) for t in shown], fontsize=8)
    right.set_title("further seeds", fontsize=9)
    right.set_xlabel("gain over the random guide", fontsize=9)
    for axis in (left, right):
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def reasons(canvas: Canvas, table: pd.DataFrame) -> None:
    """Transfer of the starting attack, of ILAP and of a random guide, under each likely reason of the report's failure."""
    shown = [(name, words) for name, words in REASONS if table["setting"].str.contains(f"reason={name};").any()]
    names = list(dict.fromkeys(n.split("->")[1] for n in table.loc[table["metric"] == "transfer_success", "network"]))
    rows = -(-len(names) // 2)
    figure, axes = canvas(rows, 2, size=(7, 1.9 * rows + 0.5), sharex=True, sharey=True, squeeze=False)
    lines = (("start", "starting attack, all steps"), ("ilap", "ILAP"), ("random_guide", "random guide"))
    for axis, target in zip(axes.flat, names, strict=False):
        for (attack, words), colour, marker, shift in zip(lines, canvas.palette, MARKERS, (0.2, 0, -0.2), strict=False):
            for place, (reason, _) in enumerate(shown):
                row = _of_reason(table, reason, attack, target)
                if row is not None:
                    axis.errorbar(row["value"], shift - place, xerr=ends(row), color=colour, marker=marker, ms=4, capsize=2)
            axis.plot([], [], color=colour, marker=marker, ls="", label=words)
        axis.set_title(f"on {NETWORKS.get(target, target)}", fontsize=9)
        axis.set(xlim=(-0.02, 1.02))
        axis.set_yticks([-place for place in range(len(shown))], labels=[words for _, words in shown], fontsize=8)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    axes[0][0].legend(fontsize=6.5)
    figure.supxlabel("transfer success", fontsize=9)


def _of_reason(table: pd.DataFrame, reason: str, attack: str, target: str) -> pd.Series | None:
    chosen = table[table["setting"].str.contains(f"reason={reason};") & table["setting"].str.endswith("seeds=all")]
    chosen = chosen[(chosen["metric"] == "transfer_success") & chosen["network"].str.endswith(f"->{target}")]
    others = chosen["attack"].isin(("ilap", "random_guide"))
    chosen = chosen[~others] if attack == "start" else chosen[chosen["attack"] == attack]
    return None if chosen.empty else chosen.iloc[0]


def disturbance(canvas: Canvas, result: Result, sources: Sequence[str]) -> None:
    """Disturbance of every layer when ILAP pushes one, mean over seeds; large marks are the pushed layers' own."""
    shown = [source for source in sources if f"disturbance|{source}" in result.arrays]
    _, axes = canvas(1, len(shown), size=(7, 3.3), squeeze=False)
    for axis, source in zip(axes[0], shown, strict=True):
        layers = [str(layer) for layer in result.arrays[f"layers|{source}"]]
        curves = result.arrays[f"disturbance|{source}"].mean(0)
        dashes = ["-", "--", "-.", ":"] * 2
        for row, colour, dash, marker in zip(range(len(curves)), canvas.palette, dashes, MARKERS, strict=False):
            axis.plot(layers, curves[row], color=colour, ls=dash, lw=1.4, label=layers[row])
            axis.plot(layers[row], curves[row, row], color=colour, marker=marker, ms=8, ls="")
        axis.set_title(NETWORKS.get(source, source), fontsize=9)
        axis.set(xlabel="layer")
        axis.tick_params(axis="x", labelsize=8, rotation=30)
        axis.legend(fontsize=6.5, title="pushed", title_fontsize=7)
    axes[0][0].set_ylabel("disturbance over the guide's", fontsize=9)


def neighbors(canvas: Canvas, result: Result, network: str, example: int = 0) -> None:
    """A digit and its ILA example with the nearest training digits in each layer of Deep kNN; titles are stored labels."""
    layers, arrays = DKNN_LAYERS[network.split("->")[-1]], result.arrays
    shown = arrays[f"gallery|{network}|ilap|near_x"].shape[2]
    _, axes = canvas(2 * len(layers), 1, size=(0.72 * (1 + shown) + 0.7, 1.55 * len(layers) + 0.3), squeeze=False)
    truth = arrays["gallery|clean|y"][example]
    for row, axis in enumerate(axes[:, 0]):
        layer, attack = row // 2, ("none", "ilap")[row % 2]
        key = f"gallery|{network}|{attack}"
        x = arrays["gallery|clean|x"] if attack == "none" else arrays[f"{key}|x"]
        label = arrays[f"{key}|label"][example]
        tiles = [Tile(x[example], f"network: {label}", wrong=label != truth)]
        for j in range(shown):
            stored, near = arrays[f"{key}|near_y"][example, layer, j], arrays[f"{key}|near_x"][example, layer, j] / 255
            tiles.append(Tile(near, str(stored), wrong=stored != truth))
        strip(axis, tiles, canvas, f"{layers[layer]},\n{'clean' if attack == 'none' else 'ILA'}")


def example_fooled(result: Result, network: str) -> int:
    """The first example of the gallery whose ILA image fools the network; 0 when there is none."""
    fooled = result.arrays[f"gallery|{network}|ilap|label"] != result.arrays["gallery|clean|y"]
    return int(fooled.argmax())


def true_shares(canvas: Canvas, table: pd.DataFrame, networks: Sequence[str], epsilon: str, attacks: Sequence[str],
                source_layers: Mapping[str, str]) -> None:  # fmt: skip
    """Share of neighbours with the true label, layer by layer of Deep kNN, for each attack; one panel a Deep kNN."""
    known = [network for network in networks if (table["network"] == network).any()]
    rows = -(-len(known) // 2)
    figure, axes = canvas(rows, 2, size=(7, 2.4 * rows + 0.3), sharey=True, squeeze=False)
    for axis, network in zip(axes.flat, known, strict=False):
        layers, source = DKNN_LAYERS[network.split("->")[-1]], network.split("->")[0]
        for attack, colour, marker in zip(attacks, canvas.palette, MARKERS, strict=False):
            parts = attack_parts(attack, epsilon, source_layers[source])
            numbers = by_layer(table, layers, parts, attack=attack, network=network, metric="true_label_share")
            curve(axis, layers, numbers, colour, marker, ATTACKS[attack])
        axis.set_title(f"Deep kNN of {words_of(network)}" if "->" in network else f"{words_of(network)}'s own", fontsize=8)
        axis.set(ylim=(0, 1.02))
    for axis in axes.flat[len(known) :]:
        axis.set_axis_off()
    axes[0][0].legend(fontsize=6.5)
    figure.supylabel("neighbours with the true label", fontsize=9)


def attack_parts(attack: str, epsilon: str, layer: str) -> dict[str, str]:
    """Parts of the setting under which Deep kNN's rows of an attack stand; ``layer`` is the source's fixed one."""
    return {"epsilon": epsilon} | ({"source_layer": layer} if attack in CHOSEN else {})


def credibilities(canvas: Canvas, result: Result, network: str, epsilon: str, attacks: Sequence[str]) -> None:
    """Share of images by tenths of Deep kNN's credibility: clean (outline) beside the examples that fool the network."""
    known = [attack for attack in attacks if f"{network}|{attack}|{epsilon}|predicted" in result.arrays]
    clean = result.arrays[f"{network}|none|{epsilon}|predicted"].astype(float)
    figure, axes = canvas(len(known), 1, size=(6, 1.15 * len(known) + 0.6), sharex=True, squeeze=False)
    bins = np.linspace(0, 1, 11)
    for axis, attack, colour in zip(axes[:, 0], known, canvas.palette, strict=False):
        key = f"{network}|{attack}|{epsilon}"
        sample = result.arrays[f"{key}|predicted"].astype(float)[result.arrays[f"{key}|fooled"]]
        for part, options_ in ((sample, {"color": colour, "fill": True, "alpha": 0.7}), (clean, {"color": canvas.ink})):
            counts, _ = np.histogram(part, bins)
            axis.stairs(counts / max(1, len(part)), bins, **options_)
        axis.text(0.98, 0.75, f"{ATTACKS[attack]}, n = {len(sample)}", transform=axis.transAxes, ha="right", fontsize=8)
        axis.set(ylim=(0, 1), xlim=(0, 1))
    axes[-1, 0].set(xlabel="credibility of DkNN's label")
    figure.supylabel("share of images", fontsize=9)


def detection_by_radius(canvas: Canvas, table: pd.DataFrame, networks: Sequence[str], attacks: Sequence[str],
                        source_layers: Mapping[str, str]) -> None:  # fmt: skip
    """AUC of one less credibility against the radius, examples that fool the network only; one panel a Deep kNN."""
    epsilons = options(table, "epsilon", metric="auc")
    known = [network for network in networks if (table["network"] == network).any()]
    rows = -(-len(known) // 2)
    figure, axes = canvas(rows, 2, size=(7, 2.4 * rows + 0.3), sharex=True, sharey=True, squeeze=False)
    for axis, network in zip(axes.flat, known, strict=False):
        layer = source_layers[network.split("->")[0]]
        for attack, colour, marker in zip(attacks, canvas.palette, MARKERS, strict=False):
            numbers = []
            for epsilon in epsilons:
                parts = attack_parts(attack, epsilon, layer) | {"credibility": "predicted", "over": "fooled"}
                found = pooled(table, parts, attack=attack, network=network, metric="auc", detector="credibility")
                numbers.append([np.nan] * 3 if found.empty else found.iloc[0][_ENDS].to_numpy(float))
            curve(axis, [float(e) for e in epsilons], np.array(numbers, float), colour, marker, ATTACKS[attack])
        axis.axhline(0.5, color=canvas.muted, lw=0.8)
        axis.set_title(f"Deep kNN of {words_of(network)}" if "->" in network else f"{words_of(network)}'s own", fontsize=8)
        axis.set(ylim=(0.3, 1.02))
    for axis in axes.flat[len(known) :]:
        axis.set_axis_off()
    axes[0][0].legend(fontsize=6.5)
    figure.supxlabel("radius ε (Linf)", fontsize=9)
    figure.supylabel("AUC", fontsize=9)
