# %% [markdown]
# # Attacks on kNN and Deep kNN
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/deep-neighbors/deep-neighbors-under-attack/blob/main/notebooks/knn_dknn_attack.ipynb)
#
# {cite:t}`sitawarin2019` attack two classifiers that decide by neighbours: kNN on pixels, and Deep kNN (DkNN,
# {cite:t}`papernot2018`), in which the neighbours of several layers of a network vote. This chapter regenerates their
# tables and figures from the raw digits, says which numbers hold, and measures how far the attacks are from the best
# possible one.
#
# ## What the paper claims
#
# 1. kNN is not robust: a gradient attack fools it, and does so "moderately" better than naive attacks.
# 2. DkNN falls to the gradient attack on every digit, at a smaller distance than any attack before.
# 3. DkNN needs a larger perturbation than an undefended network.
# 4. The credibility that DkNN reports would filter adversarial digits: promising, but not very effective.
#
# The [scorecard](scorecard.ipynb) gives the verdicts; this page shows what is behind them.

# %% tags=["remove-cell"]
# In Colab the repository is not there yet: fetch it, with its data and recorded results.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("deepneighbors") is None:
    source = ("https://github.com/deep-neighbors/deep-neighbors-under-attack", "book")
    subprocess.run(["git", "clone", "-q", "--depth", "1", *source], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "book"], check=True)
    sys.path.insert(0, "book/src")
    del source

# %% [markdown]
# ## Settings
#
# A profile fixes every number of the experiments: `smoke` takes seconds, `quick` minutes, `full` is the paper's scale.
# `full` shows the recorded results unless there is a GPU or `recompute` is true. All settings are in `profiles/`; the folded
# cell lists those of this run.

# %% tags=["parameters"]
profile = "quick"
seed = 0
device = "auto"
recompute = False

# %% tags=["hide-input"]
from deepneighbors.report import notebook

chapter = notebook.start("knn_dknn_attack", globals(), parameters=("profile", "seed", "device", "recompute"))

# %% tags=["hide-cell"]
from dataclasses import asdict

import pandas as pd

from deepneighbors.networks import MnistCNN
from deepneighbors.paper import values
from deepneighbors.profiles import SETTINGS
from deepneighbors.report import attack_figures as draw
from deepneighbors.report.comparison import row, select
from deepneighbors.report.settings import show_unlike
from deepneighbors.report.tables import estimate

settings = pd.DataFrame(
    {"setting": list(asdict(chapter.run.settings)), "value": [str(v) for v in asdict(chapter.run.settings).values()]}
)
chapter.grid(
    settings,
    name="tab-settings",
    caption=f"Settings of this run ({chapter.run.profile} profile). Sources stand in `profiles/`.",
)

# %% [markdown]
# Where recorded results of the full profile were made with other settings than the profile's, a table names them here.

# %% tags=["hide-input"]
show_unlike(chapter, name="tab-unlike", caption="Settings of the recorded results that are not those of the full profile.")

# %% [markdown]
# ## The classifiers
#
# **kNN.** Images are scaled to unit norm; the distance of two is the chord
# $d(x, x') = \lVert x/\lVert x\rVert - x'/\lVert x'\rVert \rVert_2 = \sqrt{2 - 2\cos(x, x')}$. The $k$ nearest of the
# 60,000 training digits vote; ties go to the smallest label. Search here is exact, one matrix product and a running
# top-$k$; the authors used locality-sensitive hashing for DkNN.
#
# **DkNN.** Let $\Omega_l(x)$ be the labels of the $k$ nearest training digits in layer $l$. The nonconformity of $x$
# with label $j$ counts neighbours of other labels over all layers,
#
# $$\alpha(x, j) = \sum_l \bigl|\{ i \in \Omega_l(x) : i \ne j \}\bigr| .$$
#
# With the nonconformity $A$ of held-out digits and their true labels, the p-value of label $j$ and the prediction are
#
# $$p_j(x) = \frac{|\{a \in A : a \ge \alpha(x, j)\}|}{|A|}, \qquad \hat y = \operatorname{argmax}_j p_j(x).$$
#
# The largest p-value, $\max_j p_j(x)$, is the *credibility* of the prediction.
#
# The network has three convolutions and a linear layer; all four outputs are used. For 750 digits set aside to
# calibrate, see `calibration_split`: the split is that of the released code, to the digit. Attacked digits are drawn
# from the other 9,250 in a fixed random order: both classifiers have fewer of MNIST's first 5,000 test digits right than of
# its last, so that the first n in file order would flatter the attacks.
#
# ## The attacks
#
# **Mean attack.** Walk from $x$ towards the nearest mean of another class and bisect for the border.
#
# **Gradient attack.** Choose $m$ guides $x_i$, the nearest training digits of another class, and minimise
#
# $$ -\,c \sum_l \sum_{i=1}^{m} \sigma\bigl(a\,(\eta_l - d_l(x', x_i))\bigr) + \lVert x' - x \rVert_2^2 .$$
#
# The sigmoid is a soft version of "guide $i$ is among the $k$ nearest", with $\eta_l$ the mean distance of clean digits
# to their $k$-th neighbour ({numref}`fig-threshold`). A change of variable keeps pixels in the box, and $c$ is searched
# for each digit.
#
# **Feature adversary** {cite:p}`sabour2016`, used by {cite:t}`papernot2018` to evaluate DkNN: match the first-layer
# representation of one guide.
#
# **Minimum norm.** The authors' successor {cite:p}`sitawarin2020` takes guides from both classes, finds them again as
# the image moves, and uses hinges at the current distance to the $k$-th neighbour. Ours, the *vote-margin attack*,
# softens the vote itself at its current border and separates direction from norm: the radius shrinks while the vote is
# lost and grows while it holds, so that no constant is searched. Every result of every attack is judged again by the
# classifier; only verified successes count.

# %% tags=["hide-input"]
chapter.figure(
    draw.plane,
    name="fig-plane",
    caption="Attacks in the plane, computed by the library on 1-NN with two classes. Left: the mean attack walks towards the mean (cross) of the other class. Right: the gradient attack is pulled towards its guides, and the exact smallest step. Numbers are L2 distances.",
    alt="Two panels with two clouds of points and the decision regions of 1-NN. An arrow from a starred point crosses the border towards the other class's mean in the left panel; two arrows cross it in the right panel, the exact one the shorter.",
)

# %% tags=["hide-input"]
clean_knn = chapter.shown("knn_attack")
chapter.figure(
    lambda canvas: draw.soft_threshold(canvas, chapter.value(clean_knn, metric="eta", layer="pixels")),
    needs=[clean_knn],
    name="fig-threshold",
    caption="The sigmoid as a soft threshold at η, the mean distance of clean digits to their 75th neighbour. At the released steepness it is nearly a straight line over the distances that occur.",
    alt="Weight of a guide against its distance: a dashed step at eta and four sigmoids of increasing steepness; the released one, with a equal to 4, falls slowly.",
)

# %% [markdown]
# ## Results on kNN
#
# *As released* runs what the authors' code did, mistakes included; *corrected* is the method as their slides describe it,
# without those mistakes; *strongest* is ours. The accuracy counts digits that keep their label. The distance is over
# successes, and includes digits that were wrong before the attack, as in the paper; the row *right before* leaves those
# out.

# %% tags=["hide-input"]
knn = chapter.result("knn_attack")
NEW = {"in_paper": False}
chapter.compare(
    knn,
    headings=("Attack", "Version"),
    rows=[
        row(("none", ""), "accuracy", network="knn", attack="none"),
        row(
            ("mean", "as released"),
            "accuracy",
            network="knn/released",
            attack="mean",
            norm="l2",
            paper={"network": "knn"},
        ),
        row(
            ("mean", "as released"),
            "mean_l2",
            network="knn/released",
            attack="mean",
            norm="l2",
            paper={"network": "knn"},
        ),
        row(("mean", "corrected"), "accuracy", network="knn", attack="mean", norm="l2"),
        row(("mean", "corrected"), "mean_l2", network="knn", attack="mean", norm="l2"),
        row(
            ("gradient", "as released"),
            "accuracy",
            network="knn/released",
            attack="gradient",
            norm="l2",
            setting="",
            paper={"network": "knn"},
        ),
        row(
            ("gradient", "as released"),
            "mean_l2",
            network="knn/released",
            attack="gradient",
            norm="l2",
            setting="",
            paper={"network": "knn"},
        ),
        row(("gradient", "corrected"), "accuracy", network="knn", attack="gradient", norm="l2"),
        row(("gradient", "corrected"), "mean_l2", network="knn", attack="gradient", norm="l2"),
        row(
            ("minimum norm", "rules of 2020"),
            "accuracy",
            network="knn/released",
            attack="minimum_norm",
            norm="l2",
            **NEW,
        ),
        row(
            ("minimum norm", "rules of 2020"),
            "mean_l2",
            network="knn/released",
            attack="minimum_norm",
            norm="l2",
            **NEW,
        ),
        row(("vote margin", "strongest"), "accuracy", network="knn", attack="minimum_norm", norm="l2", **NEW),
        row(("vote margin", "strongest"), "mean_l2", network="knn", attack="minimum_norm", norm="l2", **NEW),
        row(
            ("vote margin", "strongest, right before"),
            "mean_l2_initially_correct",
            network="knn",
            attack="minimum_norm",
            norm="l2",
            **NEW,
        ),
        row(
            ("gradient, Linf 0.2", "as released"),
            "accuracy",
            network="knn/released",
            attack="gradient",
            norm="linf",
            setting="epsilon=0.2",
            paper={"network": "knn"},
        ),
        row(
            ("gradient, Linf 0.3", "as released"),
            "accuracy",
            network="knn/released",
            attack="gradient",
            norm="linf",
            setting="epsilon=0.3",
            **NEW,
        ),
        row(
            ("vote margin, Linf", "strongest"),
            "mean_linf",
            network="knn",
            attack="minimum_norm",
            norm="linf",
            **NEW,
        ),
    ],
    name="tab-knn",
    caption="Attacks on kNN (the paper's table of results on kNN). Published values follow the slides of the talk, and for the Linf ball the authors' notebook.",
)

# %% [markdown]
# ### Numbers that do not re-run, and why
#
# - **The mean attack's failures.** Walking from a raw image (norm about nine) to a class mean of *norm one* leaves so
#   much of the image in place that large images keep their label. {numref}`tab-artefacts` counts the failures over all
#   9,250 digits: with such means they are as many as the paper prints, with means at the image's own scale there are none.
#   The published distance is not explained by this: the digits that do change are nearer.
# - **Distances near eight.** Later released code returns an image of norm one, whose distance to the raw image is about
#   its norm less one, whatever the attack did.
# - **The gradient attack's distance.** The published histogram has two humps. {numref}`fig-artefact` sets it beside our
#   distances, as returned and scaled to norm one, and {numref}`tab-artefacts` gives the total variation distance of each,
#   and of the mixture that fits best, to the published one. It counts failures too, which that code returned as empty
#   images. The cause stays open, since the authors' saved images are not among what they released.

# %% tags=["hide-input"]
knn_shown, dknn_shown = chapter.shown("knn_attack"), chapter.shown("dknn_attack")


def cell(result, network, attack, metric):
    """One number with its interval and n, as a cell."""
    if not result:
        return "*not run*"
    one = select(result.table, network=network, attack=attack, norm="l2", metric=metric)
    return estimate(one["value"], one["ci_low"], one["ci_high"], one["n"], as_percent=metric == "accuracy")


def version(words, result, network, attack, metric, title):
    """A line: the paper's number, then ours as released, corrected and strongest."""
    names = {"paper": "sitawarin2019", "experiment": result.name, "network": network, "attack": attack, "norm": "l2"}
    printed = values.lookup(metric=metric, **names)
    return {
        "Attack": f"{words}, {title}",
        "paper": f"{100 * printed.value:.4g} %" if metric == "accuracy" else f"{printed.value:.4g}",
        "as released": cell(result, f"{network}/released", attack, metric),
        "corrected": cell(result, network, attack, metric),
        "strongest": cell(result, network, "minimum_norm", metric),
    }


lines_ = [
    version(f"{attack} on {words}", result, network, attack, metric, title)
    for words, result, network in (("kNN", knn_shown, "knn"), ("DkNN", dknn_shown, "mnist_cnn"))
    for attack in ("mean", "gradient")
    for metric, title in (("accuracy", "accuracy"), ("mean_l2", "mean L2"))
]
chapter.grid(
    pd.DataFrame(lines_),
    name="tab-versions",
    caption=f"The numbers in question: the paper's, and ours as the released code runs, corrected, and with the strongest attack in its place ({chapter.source(knn_shown, dknn_shown)}).",
)

# %% tags=["hide-input"]
artefacts = chapter.result("artefacts")
gradient = {"network": "knn/released", "attack": "gradient", "norm": "l2"}
chapter.compare(
    artefacts,
    headings=("Question",),
    rows=[
        row(
            "mean attack on kNN, means of norm 1",
            "failures",
            network="knn/released",
            attack="mean",
            kind="plain",
            **NEW,
        ),
        row("mean attack on kNN, means of norm 1", "mean_l2", network="knn/released", attack="mean", **NEW),
        row("mean attack on kNN, raw means", "failures", network="knn", attack="mean", kind="plain", **NEW),
        row(
            "mean attack on kNN, raw means, output of norm 1",
            "mean_l2_unit_output",
            network="knn",
            attack="mean",
            **NEW,
        ),
        row("gradient attack, outputs of norm 1", "mean_l2_unit_output", **gradient, **NEW),
        row(
            "published histogram to ours, as returned",
            "histogram_distance",
            setting="as returned",
            kind="plain",
            **gradient,
            **NEW,
        ),
        row(
            "published histogram to ours, norm 1",
            "histogram_distance",
            setting="unit outputs",
            kind="plain",
            **gradient,
            **NEW,
        ),
        row(
            "published histogram to the best mixture",
            "histogram_distance",
            setting="best mixture",
            kind="plain",
            **gradient,
            **NEW,
        ),
        row(
            "share of norm-1 outputs in that mixture",
            "unit_output_share",
            setting="best mixture",
            **gradient,
            **NEW,
        ),
        row(
            "mean attack on DkNN, search by votes",
            "accuracy",
            network="mnist_cnn/released",
            attack="mean",
            **NEW,
        ),
        row(
            "of those digits, kept right by tied p-values",
            "tied_share",
            network="mnist_cnn/released",
            attack="mean",
            **NEW,
        ),
        row("mean attack on DkNN, search by p-values", "accuracy", network="mnist_cnn", attack="mean", **NEW),
    ],
    name="tab-artefacts",
    caption="Tests of the explanations. Total variation is 0 for equal histograms and 1 for disjoint ones.",
)

# %% tags=["hide-input"]
shown = chapter.shown("artefacts")
published = values.table().query("experiment == 'artefacts' and metric == 'histogram_count'")
chapter.figure(
    lambda canvas: draw.distance_histogram(
        canvas,
        published,
        {"ours, as returned": shown.arrays["gradient|l2"], "ours, scaled to norm 1": shown.arrays["gradient|unit_output"]},
    ),
    name="fig-artefact",
    caption=f"Distances of the gradient attack on kNN: the histogram printed in the authors' notebook, and ours ({chapter.source(shown)}).",
    alt="Histogram with two humps near 3 and 9 from the authors' notebook; our distances form the left hump, our outputs scaled to norm one the right one.",
    needs=[shown],
)

# %% [markdown]
# ## Results on DkNN
#
# The search of the released mean attack asks for the label with most votes, the evaluation for the largest p-value; near
# the border two labels often share that, and the smaller label wins. All digits that this leaves us are such ties, and
# none is left when the same question is asked twice ({numref}`tab-artefacts`). But they are far fewer here
# than in the paper: how many there are depends on the network, and that number does not re-run.

# %% tags=["hide-input"]
dknn = chapter.result("dknn_attack")
RELEASED = {"network": "mnist_cnn/released", "paper": {"network": "mnist_cnn"}}
OURS = {"network": "mnist_cnn", "norm": "l2", "attack": "minimum_norm", "in_paper": False}


def lines(words, version, *metrics, **names):
    """One row for each metric of an attack."""
    return [row((words, version), metric, **names) for metric in metrics]


L2 = ("accuracy", "mean_l2", "mean_credibility")
chapter.compare(
    dknn,
    headings=("Attack", "Version"),
    rows=[
        *lines("none", "", "accuracy", "mean_credibility", network="mnist_cnn", attack="none"),
        *lines("mean", "as released", *L2, attack="mean", norm="l2", **RELEASED),
        *lines("mean", "corrected", *L2, network="mnist_cnn", attack="mean", norm="l2", in_paper=False),
        *lines("feature adversary", "as released", *L2, attack="feature_adversary", norm="l2", **RELEASED),
        *lines("gradient", "as released", *L2, attack="gradient", norm="l2", **RELEASED),
        *lines("gradient", "corrected", *L2, network="mnist_cnn", attack="gradient", norm="l2", in_paper=False),
        *lines("vote margin", "strongest", *L2, **OURS),
        row(("vote margin", "strongest, right before"), "mean_l2_initially_correct", **OURS),
        *lines(
            "feature adversary, Linf 0.2",
            "as released",
            "accuracy",
            "mean_credibility",
            attack="feature_adversary",
            norm="linf",
            setting="epsilon=0.2",
            **RELEASED,
        ),
        *lines(
            "feature adversary, Linf 0.3",
            "as released",
            "accuracy",
            "mean_credibility",
            attack="feature_adversary",
            norm="linf",
            setting="epsilon=0.3",
            **RELEASED,
        ),
        *lines("gradient, Linf 0.2", "as released", *L2, attack="gradient", norm="linf", setting="epsilon=0.2", **RELEASED),
        *lines("gradient, Linf 0.3", "as released", *L2, attack="gradient", norm="linf", setting="epsilon=0.3", **RELEASED),
        *lines(
            "vote margin, Linf",
            "strongest",
            "accuracy",
            "mean_linf",
            "mean_credibility",
            network="mnist_cnn",
            attack="minimum_norm",
            norm="linf",
            in_paper=False,
        ),
    ],
    name="tab-dknn",
    caption="Attacks on DkNN (the paper's table of results on DkNN). Credibility is the mean over successes; for no attack, over all clean digits.",
)

# %% tags=["hide-input"]
chapter.figure(
    lambda canvas: draw.robustness_curves(
        canvas,
        [
            (
                "kNN",
                knn_shown,
                [
                    ("knn|mean|l2|", "mean"),
                    ("knn/released|gradient|l2|", "gradient, as released"),
                    ("knn/released|minimum_norm|l2|", "rules of 2020"),
                    ("knn|minimum_norm|l2|", "vote margin"),
                ],
            ),
            (
                "DkNN",
                dknn_shown,
                [
                    ("mnist_cnn|mean|l2|", "mean"),
                    ("mnist_cnn/released|feature_adversary|l2|", "feature adversary"),
                    ("mnist_cnn/released|gradient|l2|", "gradient, as released"),
                    ("mnist_cnn|minimum_norm|l2|", "vote margin"),
                ],
            ),
        ],
    ),
    name="fig-robustness",
    caption=f"Accuracy against the size of the L2 perturbation ({chapter.source(knn_shown, dknn_shown)}). A digit falls at its smallest verified perturbation. A digit on which an attack fails never falls there. The rules of 2020 attack fewer digits than the others.",
    alt="Two panels of falling curves, kNN and DkNN. The vote-margin attack's curve is the lowest in both, on kNN beside that of the rules of 2020 above 5; the mean attack's is the highest over most of the range.",
    needs=[knn_shown, dknn_shown],
)

# %% tags=["hide-input"]
dknn_histogram = values.table().query("experiment == 'dknn_attack' and metric == 'histogram_count'")
dknn_histogram = dknn_histogram[dknn_histogram["setting"].str.startswith("guides=75;")]
distances = {
    words: dknn_shown.arrays[f"{key}|l2"][dknn_shown.arrays[f"{key}|success"]]
    for key, words in (
        ("mnist_cnn/released|gradient|l2|", "ours, gradient"),
        ("mnist_cnn|minimum_norm|l2|", "ours, vote margin"),
    )
    if dknn_shown
}
chapter.figure(
    lambda canvas: draw.distance_histogram(canvas, dknn_histogram, distances),
    name="fig-dknn-distances",
    caption=f"Distances of successful attacks on DkNN: the authors' histogram of the gradient attack, and ours ({chapter.source(dknn_shown)}).",
    alt="Histogram with one hump near 2 from the authors' notebook. Ours of the gradient attack follows it; the vote-margin attack's lies to the left.",
    needs=[dknn_shown],
)

# %% [markdown]
# ## Linf balls and credibility
#
# Credibility of a success grows with the radius: further from the border, more layers agree on the wrong label. A
# filter tuned on minimum-norm examples, which sit on the border, looks better than it is.

# %% tags=["hide-input"]
epsilon = chapter.result("dknn_epsilon")
chapter.compare(
    epsilon,
    headings=("Attack", "Radius"),
    rows=[
        row((words, f"{e:g}"), metric, network="mnist_cnn", attack=attack, norm="linf", setting=f"epsilon={e:g}")
        for attack, words in (("gradient", "gradient"), ("feature_adversary", "feature adversary"))
        for e in chapter.run.settings.epsilons
        for metric in ("accuracy", "mean_credibility")
    ],
    name="tab-epsilon",
    caption="DkNN in Linf balls (the paper's figures of accuracy and credibility against the radius).",
)

# %% tags=["hide-input"]
curve = chapter.shown("dknn_epsilon")
paper_curves = values.table().query("experiment == 'dknn_epsilon'")
chapter.figure(
    lambda canvas: draw.curves(
        canvas, curve.table, paper_curves, [("gradient", "gradient"), ("feature_adversary", "feature adversary")]
    ),
    name="fig-epsilon",
    caption=f"DkNN in Linf balls, ours with 95 % intervals ({chapter.source(curve)}) and the authors' (crosses).",
    alt="Left: accuracy falls with the radius, to zero from 0.3 on for the gradient attack and slowly for the feature adversary. Right: mean credibility of the successes rises with the radius. The authors' crosses lie on our points or close to them.",
    needs=[curve],
)

# %% [markdown]
# ## Does credibility filter adversarial digits?
#
# The paper's filter accepts what has a credibility above 0.1. Beside clean and adversarial digits, the table has images
# that are no digits: turned by a quarter, inverted, with shuffled pixels, and noise. *Trimmed* drops calibration scores
# of zero, as the cleverhans implementation does, which raises every p-value between 0 and 1 without changing a label.

# %% tags=["hide-input"]
credibility = chapter.result("credibility")


def accepted(words, attack, norm="", setting="", network="mnist_cnn", **more):
    """Rows of one kind of image: what the filter accepts, and the AUC against clean digits."""
    at = ";".join(filter(None, (setting, "threshold=0.1")))
    names = {"network": network, "attack": attack, "norm": norm}
    rows = [row(words, "accepted", setting=at, **names, **more)]
    if attack != "none":
        rows.append(row(words, "credibility_auc", setting=setting, **names, **more))
    return rows


chapter.compare(
    credibility,
    headings=("Images",),
    rows=[
        *accepted("clean", "none"),
        *accepted("clean, trimmed calibration", "none", network="mnist_cnn/trimmed", in_paper=False),
        *accepted(
            "gradient, Linf 0.2", "gradient", "linf", "epsilon=0.2", "mnist_cnn/released", paper={"network": "mnist_cnn"}
        ),
        *accepted(
            "gradient, Linf 0.3", "gradient", "linf", "epsilon=0.3", "mnist_cnn/released", paper={"network": "mnist_cnn"}
        ),
        *accepted("gradient, L2", "gradient", "l2", "", "mnist_cnn/released", in_paper=False),
        *accepted("vote margin, L2", "minimum_norm", "l2", in_paper=False),
        *[line for kind in ("rotated", "inverted", "shuffled", "noise") for line in accepted(kind, kind, in_paper=False)],
    ],
    name="tab-credibility",
    caption="What a filter at credibility 0.1 accepts, and the AUC of credibility between clean digits and each kind of image.",
)

# %% tags=["hide-input"]
filtered = chapter.shown("credibility")
KINDS = [
    ("mnist_cnn|none||", "clean"),
    ("mnist_cnn/released|gradient|linf|epsilon=0.2", "gradient, Linf 0.2"),
    ("mnist_cnn/released|gradient|linf|epsilon=0.3", "gradient, Linf 0.3"),
    ("mnist_cnn|minimum_norm|l2|", "vote margin, L2"),
    ("mnist_cnn|rotated||", "rotated digits"),
]
chapter.figure(
    lambda canvas: draw.credibility_histograms(
        canvas, filtered, [kind for kind in KINDS if f"{kind[0]}|credibility" in filtered.arrays]
    ),
    name="fig-credibility",
    caption=f"Credibility of clean, adversarial and rotated digits; the line is the filter at 0.1 ({chapter.source(filtered)}). More than half of the calibration digits have nonconformity zero, hence the gap below one.",
    alt="Histograms of credibility. Clean digits pile up at one and spread evenly below a half; of the gradient attack's digits most are below 0.1 at Linf 0.2 and fewer than half at Linf 0.3; nearly all of the vote-margin attack's are, and about seven in eight rotated digits.",
    needs=[filtered],
)

# %% [markdown]
# ## An attacker who knows the filter
#
# The attacks above stop caring once the label is wrong. The *credible attack* goes on: in a fixed ball it moves votes of
# every layer to one wrong label and keeps the iterate of highest credibility.

# %% tags=["hide-input"]
adaptive = chapter.result("adaptive")
chapter.compare(
    adaptive,
    headings=("Ball",),
    rows=[
        row(ball, metric, network="mnist_cnn", attack="credible", norm=norm, setting=setting, in_paper=False)
        for ball, norm, setting in (
            ("Linf 0.2", "linf", "epsilon=0.2"),
            ("Linf 0.3", "linf", "epsilon=0.3"),
            ("L2 2.164", "l2", "epsilon=2.164"),
            ("L2 4", "l2", "epsilon=4"),
        )
        for metric in ("accuracy", "mean_credibility", "accepted", "credibility_auc")
    ],
    name="tab-adaptive",
    caption="The credible attack on DkNN. Credibility is the mean over successes; accepted is the share of them above 0.1; the AUC is against clean digits. An L2 of 2.164 is the published mean distance of the gradient attack.",
)

# %% tags=["hide-input"]
chapter.figure(
    lambda canvas: draw.filter_curves(
        canvas,
        filtered,
        [
            (key, words)
            for key, words in [
                *KINDS[:4],
                ("mnist_cnn|credible|linf|epsilon=0.2", "credible attack, Linf 0.2"),
                ("mnist_cnn|credible|linf|epsilon=0.3", "credible attack, Linf 0.3"),
            ]
            if f"{key}|credibility" in filtered.arrays
        ],
    ),
    name="fig-filter",
    caption=f"What passes a credibility filter against its threshold ({chapter.source(filtered)}).",
    alt="Accepted share against the threshold. Clean digits fall slowly from one; the vote-margin attack's fall at once; the credible attack's lie above the clean ones at Linf 0.3, and well below them at Linf 0.2.",
    needs=[filtered],
)

# %% [markdown]
# ## The digits
#
# The paper's digits, attacked again. Titles give the assigned label and the L2 distance; ✗ marks a failed attack.

# %% tags=["hide-input"]
gallery = chapter.shown("gallery")
chapter.figure(
    lambda canvas: draw.digit_grid(
        canvas,
        gallery,
        [
            ("clean", "clean"),
            ("knn/released|gradient|l2|", "kNN, gradient L2"),
            ("knn/released|gradient|linf|epsilon=0.2", "kNN, gradient Linf 0.2"),
            ("knn|minimum_norm|l2|", "kNN, vote margin"),
            ("mnist_cnn/released|gradient|l2|", "DkNN, gradient L2"),
            ("mnist_cnn/released|gradient|linf|epsilon=0.2", "DkNN, gradient Linf 0.2"),
            ("mnist_cnn|minimum_norm|l2|", "DkNN, vote margin"),
        ],
        7,
    ),
    name="fig-gallery",
    caption=f"The seven digits of the paper's gallery under attack ({chapter.source(gallery)}).",
    alt="Grid of handwritten digits: a clean row and six rows of adversarial versions with their assigned labels. Changes on kNN look like strokes of another digit; on DkNN some are faint.",
    needs=[gallery],
)

# %% tags=["hide-input"]
chapter.figure(
    lambda canvas: draw.neighbor_panels(
        canvas,
        gallery,
        [
            ("clean", "clean"),
            ("mnist_cnn|mean|l2|", "mean"),
            ("mnist_cnn/released|feature_adversary|l2|", "feature adv., L2"),
            ("mnist_cnn/released|feature_adversary|linf|epsilon=0.2", "feature adv., Linf"),
            ("mnist_cnn/released|gradient|l2|", "gradient, L2"),
            ("mnist_cnn/released|gradient|linf|epsilon=0.2", "gradient, Linf"),
            ("mnist_cnn|minimum_norm|l2|", "vote margin"),
        ],
        MnistCNN.layers,
        3,
    ),
    name="fig-neighbors",
    caption=f"One digit of the paper and its three nearest training digits in each layer, clean and attacked ({chapter.source(gallery)}). Labels stand above. The feature adversary fails in the Linf ball of 0.2.",
    alt="Rows of small digits: the attacked image, then three neighbours in each of four layers. For the clean image all neighbours share its label; for the attacks that succeed the last layer shows another label first; the feature adversary in the Linf ball keeps the true label in the last two layers.",
    needs=[gallery],
)

# %% tags=["hide-input"]
layers = chapter.result("layers")
layers_shown = chapter.shown("layers")
chapter.figure(
    lambda canvas: draw.layer_shares(
        canvas,
        layers_shown.table,
        [
            ({"attack": "none"}, "clean"),
            ({"attack": "feature_adversary", "norm": "l2"}, "feature adversary"),
            ({"network": "mnist_cnn/released", "attack": "gradient", "norm": "l2"}, "gradient, L2"),
            (
                {"network": "mnist_cnn/released", "attack": "gradient", "norm": "linf", "setting": "epsilon=0.2"},
                "gradient, Linf 0.2",
            ),
            ({"attack": "minimum_norm", "norm": "l2"}, "vote margin"),
        ],
        MnistCNN.layers,
    ),
    name="fig-layers",
    caption=f"Share of the neighbours with the true and with the assigned label, layer by layer, over successful attacks ({chapter.source(layers_shown)}).",
    alt="Two panels over the four layers. Under attack the share of the true label falls from the first layer to the last while that of the assigned label rises.",
    needs=[layers_shown],
)

# %% [markdown]
# ## How far from the best possible attack?
#
# For $k = 1$ the smallest perturbation is a quadratic program: to make $x_j$ the nearest, $x'$ must be nearer to it than
# to every digit of the true class {cite:p}`wang2019,yang2020`. We solve it within the pixel box, with a certificate from
# the dual. For $k = 75$ only a lower bound is within reach.

# %% tags=["hide-input"]
exact = chapter.result("exact")
chapter.compare(
    exact,
    headings=("Classifier", "Attack"),
    rows=[
        *[
            row(
                (words, name),
                metric,
                network=f"knn/1nn_{kind}",
                attack=attack,
                norm="l2",
                kind="plain",
                in_paper=False,
            )
            for kind, words in (("l2", "1-NN, Euclidean"), ("cosine", "1-NN, cosine"))
            for attack, name, metrics in (
                ("exact", "exact", ("mean_l2", "certified_gap")),
                ("mean", "mean", ("mean_l2", "ratio_to_exact")),
                ("gradient", "gradient, corrected", ("mean_l2", "ratio_to_exact")),
                ("minimum_norm", "vote margin", ("mean_l2", "ratio_to_exact")),
            )
            for metric in metrics
        ],
        row(
            ("75-NN, cosine", "any"),
            "lower_bound_l2",
            network="knn",
            attack="exact",
            norm="l2",
            kind="plain",
            in_paper=False,
        ),
    ],
    name="tab-exact",
    caption="Attacks on 1-NN against the exact optimum, over digits that 1-NN has right. The ratio is the mean over digits of distance to optimum. The bound for 75-NN averages all digits, with 0 for those that are wrong already.",
)

# %% tags=["hide-input"]
exact_shown = chapter.shown("exact")
chapter.figure(
    lambda canvas: draw.optimum(
        canvas, exact_shown, [("mean", "mean"), ("gradient", "gradient, corrected"), ("minimum_norm", "vote margin")]
    ),
    name="fig-optimum",
    caption=f"Distance of each attack over the exact optimum on 1-NN ({chapter.source(exact_shown)}). A curve ends where the attack fails.",
    alt="Share of digits within a ratio of the optimum, for Euclidean and cosine 1-NN. The vote-margin attack's curve rises first, the mean attack's last.",
    needs=[exact_shown],
)

# %% tags=["hide-input"]
chapter.result("sweep")
sweep = chapter.shown("sweep")
chapter.figure(
    lambda canvas: draw.sweeps(canvas, sweep.table, [("gradient", "gradient, corrected"), ("minimum_norm", "vote margin")]),
    name="fig-sweep",
    caption=f"Mean L2 of successes on kNN against one choice at a time ({chapter.source(sweep)}); bars are 95 % intervals. Success rates differ; they stand in `results/full/knn_dknn_attack/sweep.csv`.",
    alt="Three panels: mean distance against the number of guides, of steps and of neighbours, for the gradient and the vote-margin attack, the latter lower except at 25 steps, where the gradient attack fools a third of the digits only, and with one neighbour, where they tie.",
    needs=[sweep],
)

# %% [markdown]
# ## Future work of the paper, done
#
# **An adversarially trained network.** DkNN on a network trained against an L2 adversary, attacked by the method of 2019
# and by ours. The authors claimed robustness for such a defence {cite:p}`sitawarin2019followup` and later withdrew the claim,
# because a stronger attack removed it.
#
# **Weighted voting.** A neighbour at distance $d$ weighs $\exp(-d^2 / (t\, d_k^2))$, scaled so that the weights add up to
# $k$; $t$ is the temperature. The attack knows the weights.
#
# **The undefended network**, for the claim that DkNN needs larger perturbations: its softmax under the attack of
# {cite:t}`carlini2017` and projected gradients, by foolbox {cite:p}`rauber2020`.

# %% tags=["hide-input"]
undefended, robust = chapter.result("undefended"), chapter.result("robust_network")
SOFTMAX = {"experiment": "undefended", "network": "mnist_cnn/softmax"}
chapter.compare(
    undefended,
    headings=("Classifier", "Attack"),
    rows=[
        row(("network's softmax", "none"), "accuracy", attack="none", in_paper=False, **SOFTMAX),
        row(("network's softmax", "Carlini & Wagner"), "accuracy", attack="carlini_wagner", norm="l2", **SOFTMAX),
        row(("network's softmax", "Carlini & Wagner"), "mean_l2", attack="carlini_wagner", norm="l2", **SOFTMAX),
        row(
            ("network's softmax", "PGD, Linf 0.2"),
            "accuracy",
            attack="pgd",
            norm="linf",
            setting="epsilon=0.2",
            **SOFTMAX,
        ),
    ],
    name="tab-undefended",
    caption="The undefended network without neighbours.",
)

# %% tags=["hide-input"]
ROBUST = {"network": "mnist_cnn/robust"}
chapter.compare(
    robust,
    headings=("Classifier", "Attack"),
    rows=[
        row(("robust softmax", "none"), "accuracy", network="mnist_cnn/robust/softmax", attack="none"),
        row(
            ("robust softmax", "Carlini & Wagner"),
            "mean_l2",
            network="mnist_cnn/robust/softmax",
            attack="carlini_wagner",
            norm="l2",
        ),
        *lines("DkNN on the robust network", "none", "accuracy", attack="none", **ROBUST),
        *lines(
            "DkNN on the robust network",
            "gradient, as released",
            "accuracy",
            "mean_l2",
            attack="gradient",
            norm="l2",
            **ROBUST,
        ),
        *lines(
            "DkNN on the robust network", "vote margin", "accuracy", "mean_l2", attack="minimum_norm", norm="l2", **ROBUST
        ),
    ],
    paper="sitawarin2019followup",
    name="tab-robust",
    caption="DkNN on an adversarially trained network, beside the numbers in the code of its authors' follow-up. Theirs for the softmax and for DkNN come from two networks, so they cannot be set against each other; beside our vote margin stands their minimum-norm attack.",
)

# %% tags=["hide-input"]
weighted = chapter.result("weighted_voting")
chapter.compare(
    weighted,
    headings=("Votes", "Attack"),
    rows=[
        line
        for setting in ["uniform", *(f"temperature={t:g}" for t in SETTINGS["knn_dknn_attack"]["full"].temperatures)]
        for line in (
            row(
                (setting, "none"),
                "accuracy",
                network="mnist_cnn/weighted",
                attack="none",
                setting=setting,
                in_paper=False,
            ),
            row(
                (setting, "vote margin"),
                "accuracy",
                network="mnist_cnn/weighted",
                attack="minimum_norm",
                setting=setting,
                in_paper=False,
            ),
            row(
                (setting, "vote margin"),
                "mean_l2",
                network="mnist_cnn/weighted",
                attack="minimum_norm",
                setting=setting,
                in_paper=False,
            ),
        )
    ],
    name="tab-weighted",
    caption="DkNN with votes weighted by distance.",
)

# %% [markdown]
# ## What we think
#
# The half of the paper on DkNN is sound: with exact neighbours in place of hashing, a network of our own and all of the
# paper's digits, its gradient attack and feature adversary re-run close to the published numbers, in Linf balls of every
# radius too ({numref}`tab-epsilon`), the mean attack does so in its distance though not in its accuracy, and the main claim
# stands. The half on kNN is right in its conclusion and wrong in most of its numbers. The accuracy under the mean attack as
# released re-runs to the last printed place, but it is the work of means at the wrong scale: a mean attack at the right one
# beats the published gradient attack, a correctly run gradient attack beats that, and a minimum-norm attack beats both.
# Credibility is not a defence: of an attacker who asks for it, the filter passes nearly every success at Linf 0.3 or L2 4,
# about half at Linf 0.2 and a third at L2 2.164 ({numref}`tab-adaptive`).
#
# The future work ends as its authors' retraction did ({numref}`tab-robust`). On the adversarially trained network the
# attack of 2019 needs a clearly larger distance against DkNN than Carlini & Wagner's against the network's own softmax, as
# if the neighbours had added robustness; our attack brings the two together. Adversarial training helps, the neighbours
# on top of it hardly do. Against votes weighted by distance ({numref}`tab-weighted`) our attack needs a larger distance, the
# more so the sharper the weights, beyond the intervals, and misses a few digits. An upper bound cannot tell a stronger
# classifier from one that suits our attack less.
#
# ## Limits
#
# - One data set of small images, one network, one training seed; intervals are over digits. In an earlier run on a CPU, with
#   the same seed, DkNN accepted more of the noise and of the inverted digits than the intervals of {numref}`tab-credibility`
#   allow: training again moves such numbers more than other digits do.
# - Minimum distances are upper bounds except where they are called exact.
# - The text of the paper was not at hand: published values come from the slides of the talk and from the authors'
#   notebooks. Values marked † are recalled and must be checked before they are cited.
# - The two main tables attack the paper's 9,250 digits, but for the slowest attacks and most balls on DkNN, which attack 1,000,
#   as do the credible attack and the future work. The exact optimum is found for 500, the choices of {numref}`fig-sweep` are
#   tried on 100. Each number has its n beside it.
# - The adversarially trained network is trained for 5 epochs of 4 steps in a ball of radius 2, the follow-up's for 70
#   epochs of 40 steps in one of radius 4.
#
# ## Exercises
#
# Each runs in seconds on a small problem. Try first, then open the solution.

# %%
import torch

from deepneighbors import attacks, data
from deepneighbors.dknn import DeepKNN
from deepneighbors.knn import KNNClassifier
from deepneighbors.training import fit_classifier

digits = data.load("mnist")
x_train, y_train = digits.x_train[:2000], digits.y_train[:2000]
x, y = digits.x_test[:40], digits.y_test[:40]
small = KNNClassifier(k=15).fit(x_train, y_train)
with torch.random.fork_rng():
    torch.manual_seed(0)
    network = fit_classifier(MnistCNN(), x_train, y_train, epochs=1, learning_rate=2e-3)

# %% [markdown]
# **1.** Cosine kNN does not see the length of an image. Use this to shrink the result of the mean attack without losing
# a single success.

# %% tags=["hide-cell"]
found = attacks.MeanAttack()(small, x, y)
flat, origin = found.x.flatten(1), x.flatten(1)
scale = (flat * origin).sum(1) / (flat * flat).sum(1)  # the point of the ray through x' that is nearest to x
nearer = (flat * scale[:, None]).clamp(0, 1).view_as(x)
still = small.predict(nearer) != y
before = found.distance[still].mean()
after = (nearer - x).flatten(1).norm(dim=1)[still].mean()
assert after < before
{"still adversarial": int(still.sum()), "before": round(float(before), 3), "after": round(float(after), 3)}

# %% [markdown]
# **2.** Search the mean attack on DkNN by votes and then by p-values. How many of the failures of the first are ties?

# %% tags=["hide-cell"]
deep = DeepKNN(network, MnistCNN.layers, k=15).fit(x_train, y_train)
deep.calibrate(digits.x_test[1000:1200], digits.y_test[1000:1200])
by_votes = attacks.MeanAttack(oracle="votes")(deep, x, y)
p = deep.p_values(by_votes.x)
own = p.gather(1, y[:, None])
ties = ((p == own).sum(1) > 1) & ~by_votes.success
by_p = attacks.MeanAttack(oracle="predict")(deep, x, y)
{
    "failures by votes": int((~by_votes.success).sum()),
    "of them tied": int(ties.sum()),
    "failures by p-values": int((~by_p.success).sum()),
}

# %% [markdown]
# **3.** On clean digits, the p-value of the *true* label should be uniform up to ties. Check it against the definition:
# the share of digits whose p-value is at most $t$ must not exceed $t$ by more than chance.

# %% tags=["hide-cell"]
held, labels = digits.x_test[1200:1600], digits.y_test[1200:1600]
p = deep.p_values(held).gather(1, labels[:, None]).flatten()
shares = {t: round(float((p <= t).float().mean()), 3) for t in (0.05, 0.1, 0.2, 0.4)}
assert all(share <= t + 4 * (t * (1 - t) / 200) ** 0.5 for t, share in shares.items())
shares

# %% [markdown]
# **4.** For 1-NN, the plane half-way between $x$'s nearest digit and one of another class must be crossed before that one is
# nearer. The distance to the nearest such plane is a lower bound on any attack: compare it with the vote-margin attack.

# %% tags=["hide-cell"]
nearest = KNNClassifier(k=1, metric="l2").fit(x_train, y_train)
margin = attacks.VoteMarginAttack(guides=20, steps=200, softness=0.02)(nearest, x, y)
distances = torch.cdist(x.flatten(1), x_train.flatten(1))
same = y[:, None] == y_train[None]
i = distances.masked_fill(~same, float("inf")).argmin(1)  # nearest digit of the true class
gap = (distances**2 - (distances**2).gather(1, i[:, None])).clamp(min=0)
apart = torch.cdist(x_train[i].flatten(1), x_train.flatten(1)).clamp(min=1e-6)
bound = (gap / (2 * apart)).masked_fill(same, float("inf")).amin(1)
won = margin.success
assert (bound[won] <= margin.distance[won] + 1e-3).all()
{"bound": round(float(bound[won].mean()), 3), "attack": round(float(margin.distance[won].mean()), 3)}

# %% [markdown]
# **5.** Trim the zeros from the calibration scores, as cleverhans does. Do labels change? What does a filter at 0.1 accept?

# %% tags=["hide-cell"]
trimmed = DeepKNN(network, MnistCNN.layers, k=15, trim_zeros=True).fit(x_train, y_train)
trimmed.calibrate(digits.x_test[1000:1200], digits.y_test[1000:1200])
plain, raised = deep.evaluate(held), trimmed.evaluate(held)
assert (raised.credibility >= plain.credibility - 1e-6).all()
{
    "labels that change": int((plain.labels != raised.labels).sum()),
    "accepted": round(float((plain.credibility > 0.1).float().mean()), 3),
    "accepted, trimmed": round(float((raised.credibility > 0.1).float().mean()), 3),
}
