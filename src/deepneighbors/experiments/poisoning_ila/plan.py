"""The nodes that experiments of chapter 3 share: poison, training sets, networks, searches; and the names of their rows."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from deepneighbors import checks
from deepneighbors.experiments.base import Run
from deepneighbors.experiments.poisoning_ila import poisons, pooled, searching, training
from deepneighbors.results import NAMES, statistic_row
from deepneighbors.store import Node

REPORT = (1, 9)  # the report's digits
TUTORIAL = (5, 9)  # secml's
CNN = "mnist_cnn"
# What every summary of poison calls, besides its own module.
SUMMARY = (__name__, pooled.__name__, searching.__name__, "deepneighbors.experiments.poisoning_ila.rows")


def seeds(run: Run, count: int | None = None) -> range:
    """The seeds of a run."""
    return range(run.seed, run.seed + (run.settings.seeds if count is None else count))


def poison_node(run: Run, attack: str, seed: int, *, norm: str = "l1", digits: Sequence[int] = REPORT,
                points: int | None = None) -> Node:  # fmt: skip
    """Points made against a linear classifier; those of ``random_flip`` are where the SVM attack starts."""
    s = run.settings
    config = {
        "attack": "svm_poisoning" if attack == "random_flip" else attack, "norm": norm, "digits": digits,
        "points": points or s.svm_points, "iterations": s.svm_iterations, "images": s.svm_images, "seed": seed,
    }  # fmt: skip
    return poisons.poison_points.node(config)


def evasion_node(run: Run, seed: int, *, digits: Sequence[int] = REPORT) -> Node:
    """secml's evasion points: 25 images within an L2 radius of 2.5."""
    config = {"digits": digits, "images": run.settings.svm_images, "points": 25, "radius": 2.5, "seed": seed}
    return poisons.evasion_points.node(config)


@dataclass(frozen=True)
class Poisoned:
    """A training set with its network.

    Parameters
    ----------
    attack
        Of :data:`deepneighbors.experiments.poisoning_ila.poisons.ATTACKS`.
    norm
        Of a linear attack.
    rate
        Of a backdoor.
    images, digits
        Of the clean set; ``digits`` empty for all ten.
    epochs, batch
        Of training; the checkpoints are ``epochs``.
    pairs
        Label pairs of a linear attack, with ``points`` for each.
    """

    run: Run
    attack: str
    seed: int
    norm: str = ""
    rate: float = 0.0
    images: int = 0
    digits: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    batch: int = 0
    pairs: tuple[tuple[int, int], ...] = (REPORT,)
    points: int = 0

    @property
    def data(self) -> dict:
        """Config of the training set."""
        images = self.images or self.run.settings.cnn_images
        config: dict[str, Any] = {"attack": self.attack, "images": images, "digits": self.digits, "seed": self.seed}
        if self.attack in poisons.BACKDOORS:
            config |= {"rate": self.rate, "alpha": self.run.settings.blend}
        return config

    @property
    def points_nodes(self) -> tuple[Node, ...]:
        """The points made against a linear classifier, pair by pair."""
        if self.attack not in (*poisons.LINEAR, "random_flip"):
            return ()
        options: dict[str, Any] = {"norm": self.norm or "l1", "points": self.points or None}
        return tuple(poison_node(self.run, self.attack, self.seed, digits=pair, **options) for pair in self.pairs)

    @property
    def recipe(self) -> dict:
        """Config of training."""
        s = self.run.settings
        return {
            "data": self.data, "checkpoints": self.epochs or (s.cnn_epochs,), "batch_size": self.batch or s.cnn_batch,
            "learning_rate": 1e-3, "test_images": s.calibration_images + s.evaluated_images, "seed": self.seed,
        }  # fmt: skip

    @property
    def network(self) -> Node:
        """The network that was trained on the set."""
        return training.train.node({**self.recipe, "removed": ""}, self.points_nodes)

    @property
    def last(self) -> int:
        """Last epoch."""
        return max(self.recipe["checkpoints"])

    def search(self, points: int | str, *, test: int = 0, epoch: int | None = None, metric: str = "cosine",
               k: int | None = None, network: Node | None = None) -> Node:  # fmt: skip
        """Neighbours of training points and test images; ``network`` may be one that was trained on another set."""
        s = self.run.settings
        checks.one_of("epoch", epoch or self.last, self.recipe["checkpoints"])
        config = {
            "data": self.data, "epoch": epoch or self.last, "metric": metric, "k": k or s.neighbors, "points": points,
            "test": test, "calibration": s.calibration_images,
        }  # fmt: skip
        return searching.search_training.node(config, (network or self.network, *self.points_nodes))

    def names(self, **more: Any) -> dict[str, Any]:
        """Columns that name the rows of this set."""
        experiment = "backdoor" if self.attack in poisons.BACKDOORS else "poisoning"
        return {
            "experiment": experiment, "network": CNN, "attack": self.attack, "norm": self.norm, "seed": self.seed, **more
        }  # fmt: skip


def setting(**parts: object) -> str:
    """``name=value`` parted by semicolons, in the order given; parts that are empty or None are left out."""
    return ";".join(f"{name}={value}" for name, value in parts.items() if value not in ("", None))


_SHARES = (
    "accuracy", "success", "recovered", "memorised", "poison_label", "poisoned_neighbor_share", "label_purity", "auc",
    "probe_auc", "average_precision", "precision", "recall", "tpr_at_fpr_1", "tpr_at_fpr_5", "mean_credibility",
    "max_credibility", "low_variance_p", "low_maximum_p", "ks_distance", "ks_p",
)  # fmt: skip
_POSITIVE = ("misclassified", "removed_clean", "sd_credibility", "enrichment", "val_loss", "median_l2", "mean_l2")
# What a number cannot leave; Student's t knows nothing of that.
BOUNDS = dict.fromkeys(_SHARES, (0.0, 1.0)) | dict.fromkeys(_POSITIVE, (0.0, math.inf))


def over_all_seeds(rows: Iterable[dict], *, seed: int, single: Callable[[dict], bool] = lambda row: True) -> list[dict]:
    """The rows, and for each name its mean over seeds with Student's t interval; a network is one case.

    ``n`` of the added rows counts seeds; a seed whose number rests on no case is left out, and one seed has no interval.
    Of the rows of one seed those stay for which ``single`` holds.
    """
    rows = list(rows)
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in NAMES), []).append(row)
    means = []
    for names, group in groups.items():
        values = np.array([row["value"] for row in group if row["n"] > 0])
        columns = dict(zip(NAMES, names, strict=True))
        columns["setting"] = pooled.over_seeds(columns["setting"])
        value = float(values.mean()) if len(values) else float("nan")
        (low, high), (least, most) = _t_interval(values), BOUNDS.get(columns["metric"], (-math.inf, math.inf))
        ci = max(low, least), min(high, most)
        means.append(statistic_row(value, n=len(values), ci=ci, seed=seed, **columns))
    return [row for row in rows if single(row)] + means


def _t_interval(values: np.ndarray) -> tuple[float, float]:
    if len(values) < 2:
        return float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half
