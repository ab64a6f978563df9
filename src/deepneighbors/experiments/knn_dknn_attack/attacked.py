"""One attack of a table: its stages over slices of the digits, and the rows that they make."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deepneighbors.experiments.base import Run
from deepneighbors.experiments.knn_dknn_attack import stages
from deepneighbors.results import auc_row, mean_row
from deepneighbors.store import Artifact, Node

EXAMPLES = 24  # images of each attack that are kept for galleries


def knn(run: Run, **options: Any) -> dict:
    """Config of the kNN classifier on pixels; ``options`` replace the paper's."""
    return {
        "kind": "knn",
        "k": run.settings.k,
        "metric": "cosine",
        "database": run.settings.knn_database,
        **options,
    }


def dknn(run: Run, **options: Any) -> dict:
    """Config of DkNN; ``options`` replace the paper's."""
    return {
        "kind": "dknn",
        "k": run.settings.k,
        "metric": "cosine",
        "database": run.settings.dknn_database,
        **options,
    }


def train_node(run: Run, **robust: Any) -> Node:
    """The trained network; with ``robust`` (epsilon, steps, step_size) against an L2 adversary."""
    copied = ("train_images", "test_images", "epochs", "learning_rate", "one_cycle")
    config = {name: getattr(run.settings, name) for name in copied} | {"seed": run.seed}
    if robust:
        config |= {
            "robust": robust,
            "train_images": run.settings.robust_train_images,
            "epochs": run.settings.robust_epochs,
            "learning_rate": 2e-3,
            "one_cycle": True,
        }
    return stages.train.node(config)


def clean_node(run: Run, classifier: dict, network: Node | None = None, *, images: int | None = None) -> Node:
    """The classifier on clean digits."""
    inputs = (network,) if network else ()
    return stages.clean.node({"classifier": classifier, "images": images or run.settings.clean_images}, inputs)


@dataclass(frozen=True)
class Attacked:
    """An attack on a classifier, as one line of a table.

    Parameters
    ----------
    network, attack, norm, setting
        Names in the tidy results.
    kind, options
        Attack stage and its arguments.
    classifier
        Config of the classifier; ``inputs`` are its network, where it has one, and its clean stage.
    images, batch
        Digits attacked, and digits of a slice: a multiple of the attack's own batch.
    positions
        Attack these digits of the paper's order instead, in one slice.
    """

    network: str
    attack: str
    norm: str
    kind: str
    classifier: dict
    inputs: tuple[Node, ...]
    images: int
    batch: int = 100
    options: dict = field(default_factory=dict)
    setting: str = ""
    positions: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """Name of its arrays and nodes."""
        return "|".join((self.network, self.attack, self.norm, self.setting))

    def nodes(self) -> dict[str, Node]:
        """Its slices, by ``label#number``."""
        starts = range(0, self.images, self.batch)
        parts: list[dict] = [{"start": start, "stop": min(start + self.batch, self.images)} for start in starts]
        if self.positions:
            parts = [{"positions": self.positions}]
        made, common = stages.ATTACK[self.kind], {"classifier": self.classifier, "options": self.options}
        return {f"{self.label}#{i}": made.node(common | part, self.inputs) for i, part in enumerate(parts)}

    def gather(self, artifacts: Mapping[str, Artifact]) -> dict[str, np.ndarray]:
        """Its arrays over all slices."""
        parts = [artifacts[name].tensors for name in self.nodes()]
        return {key: np.concatenate([part[key].numpy() for part in parts]) for key in parts[0]}

    def names(self, **more: Any) -> dict[str, Any]:
        """Columns that name its rows."""
        return {
            "network": self.network,
            "attack": self.attack,
            "norm": self.norm,
            "setting": self.setting,
            **more,
        }

    def rows(
        self, run: Run, experiment: str, found: Mapping[str, np.ndarray], clean: Mapping[str, np.ndarray]
    ) -> list[dict]:
        """Accuracy, success and mean distances; for DkNN the credibility of the successes against clean digits.

        ``success`` and ``mean_*_initially_correct`` count only digits that the classifier had right; the paper counts all.
        """
        won = found["success"].astype(bool)
        right = clean["label"][: len(won)] == found["y"]
        samples = {
            "accuracy": ~won, "success": won[right], "mean_l2": found["l2"][won], "mean_linf": found["linf"][won],
            "mean_l2_initially_correct": found["l2"][won & right],
        }  # fmt: skip
        if "p_values" in found:
            credibility = found["p_values"].max(1)[won]
            samples |= {"mean_credibility": credibility, "accepted": credibility > 0.1}
        names = self.names(experiment=experiment)
        rows = [mean_row(sample, seed=run.seed, **names, metric=metric) for metric, sample in samples.items()]
        if "p_values" in found:
            rows.append(auc_row(clean["p_values"].max(1), credibility, metric="credibility_auc", seed=run.seed, **names))
        return rows

    def arrays(self, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What figures need: per-image distances and verdicts, and the first images."""
        kept = {"success": found["success"].astype(bool), "y": found["y"].astype(np.uint8),
                "label": found["label"].astype(np.uint8), "x": found["x"][:EXAMPLES].astype(np.float16)}  # fmt: skip
        kept |= {norm: found[norm].astype(np.float32) for norm in ("l2", "linf")}
        if "p_values" in found:
            kept["p_values"] = found["p_values"].astype(np.float16)
            kept["votes"] = found["votes"].round().astype(np.uint8)
        return {f"{self.label}|{key}": array for key, array in kept.items()}


def all_nodes(attacks: Iterable[Attacked]) -> dict[str, Node]:
    """Slices of several attacks."""
    return {name: node for attack in attacks for name, node in attack.nodes().items()}


def clean_rows(run: Run, experiment: str, network: str, said: Mapping[str, Any]) -> list[dict]:
    """Accuracy and credibility without attack, from the clean stage's tensors."""
    y, label = said["y"].numpy(), said["label"].numpy()
    names: dict[str, Any] = {"network": network, "attack": "none", "experiment": experiment, "seed": run.seed}
    rows = [mean_row(label == y, metric="accuracy", **names)]
    if "p_values" in said:
        credibility = said["p_values"].numpy().max(1)
        rows.append(mean_row(credibility, metric="mean_credibility", **names))
        rows.append(mean_row(credibility > 0.1, metric="accepted", **names))
    return rows


def numpy_of(artifact: Artifact) -> dict[str, np.ndarray]:
    """Tensors of an artefact as arrays."""
    return {name: tensor.numpy() for name, tensor in artifact.tensors.items()}
