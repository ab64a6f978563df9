"""A data set in one mode: the nodes of its network, attacks, features and detectors, and the rows that they make."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from deepneighbors.attacks.classifier import SETTINGS
from deepneighbors.attacks.detector_evasion import threshold_at_fpr
from deepneighbors.experiments.base import Run
from deepneighbors.experiments.nnif_detection import attacking, detecting, training
from deepneighbors.profiles.nnif_detection import NnifDetection
from deepneighbors.results import auc_row, mean_row
from deepneighbors.store import Artifact, Node

NETWORK = "thin_resnet34"
DETECTORS = ("dknn", "lid", "mahalanobis", "nnif")
LAYERED = ("lid", "mahalanobis", "nnif")  # with features of each layer
NEARNESS = ("nnif_unsmoothed", "random_of_class", "nearest_of_class")  # NNIF's features at the embedding, of other images
CONTROLS = (*NEARNESS, "class_mean", "logit_margin", "max_softmax", "off_grid")
_SLICE = 500  # images of an attack's stage, a multiple of the batch of 125
_SEEDS = {name: index for index, name in enumerate((*SETTINGS, "cw_opt"))}  # every attack draws its own targets


@dataclass(frozen=True)
class Case:
    """The network of a run in one mode, ``clean`` or ``faithful``, with at most ``n`` images of a fast attack."""

    run: Run
    mode: str
    n: int | None = None

    @cached_property
    def settings(self) -> NnifDetection:
        """Those of the run, with fewer images where this case or its mode has a number of its own."""
        settings = self.run.settings
        caps = (self.n, settings.faithful_n if self.mode == "faithful" else None)
        known = [n for n in caps if n is not None]
        return settings.with_images(min(known)) if known else settings

    @property
    def data(self) -> dict:
        """Config of the images."""
        s = self.settings
        return {"dataset": s.dataset, "train_images": s.train_images, "validation_images": s.validation_images}

    @property
    def layers(self) -> int:
        """Layers whose activations are features."""
        return 6 * self.settings.blocks + 3

    @property
    def embedding(self) -> int:
        """Place of the embedding among them."""
        return self.layers - 2

    @property
    def weights(self) -> Node:
        """The trained network: one for both modes."""
        copied = ("blocks", "epochs", "learning_rate", "one_cycle", "weight_decay", "precision")
        recipe = {name: getattr(self.settings, name) for name in copied}
        return training.train.node({**self.data, **recipe, "seed": self.run.seed})

    def images(self, attack: str, part: str) -> int:
        """Images attacked of the validation or test part."""
        s = self.settings
        return getattr(s, f"{'slow' if attack in s.slow else 'fast'}_{part}")

    def attacked(self, attack: str, part: str) -> list[Node]:
        """An attack on a part, slice by slice."""
        s, count = self.settings, self.images(attack, part)
        search = {"cw": "binary_search_steps", "ead": "binary_search_steps", "cw_opt": "search_steps"}.get(attack)
        steps = {"steps": s.steps, search: s.search_steps} if search else {}
        config = {
            "data": self.data, "mode": self.mode, "attack": attack, "part": part,
            "seed": 10_000 * (1 + _SEEDS[attack]) + self.run.seed,
            "options": {name: value for name, value in steps.items() if value is not None},
        }  # fmt: skip
        bounds = [{"start": start, "stop": min(start + _SLICE, count)} for start in range(0, count, _SLICE)]
        if attack == "cw_opt":
            config |= {"m": s.helpful}
            return [attacking.attack_cw_opt.node(config | bound, (self.weights,)) for bound in bounds]
        return [attacking.attack.node(config | bound, (self.weights,)) for bound in bounds]

    def features(self, detector: str, attack: str, part: str, shown: str, view: str = "plain") -> Node:
        """Features of the images that an attack has worked on, before (``shown`` is clean) or after it (attacked).

        All layers where images come as they are (``plain``), the embedding in other views; ``embedding`` is plain as well.
        """
        s = self.settings
        grids = {"dknn": s.dknn_k, "lid": s.lid_k, "mahalanobis": s.epsilons}
        grids |= dict.fromkeys(("nnif", *NEARNESS), s.sizes)
        config: dict[str, Any] = {
            "data": self.data, "mode": self.mode, "detector": detector, "part": part,
            "images": self.images(attack, part), "grid": grids.get(detector, ()), "shown": shown,
            "layers": "all" if detector in LAYERED and view == "plain" else "embedding",
            # Rounding changes no clean image: it is stored in 8 bits already.
            "view": "plain" if view == "embedding" or (view, shown) == ("rounded", "clean") else view,
        }  # fmt: skip
        if detector == "dknn":
            config["calibration"] = self.images(attack, "validation")
        if detector in ("nnif", "nnif_unsmoothed") and self.mode == "faithful":
            config["subset"] = s.subset
        seen = self.attacked(attack, part) if shown == "attacked" or view == "mixed" else []
        return detecting.features.node(config, (self.weights, *seen))

    def columns(self, detector: str, layer: str, mask: str = "1111") -> list[int]:
        """Which features of a detector belong to ``embedding`` or to ``all`` layers; for NNIF those of a mask."""
        width = {"nnif": 4, "lid": 1, "mahalanobis": 1}.get(detector, 0)
        kept = [column for column, digit in enumerate(mask) if digit == "1"]
        if detector in NEARNESS:
            return kept
        if width == 0 or (layer == "all" and mask == "1111"):
            return []
        chosen = [self.embedding] if layer == "embedding" else range(self.layers)
        return [width * place + column for place in chosen for column in (kept if width == 4 else [0])]

    def detected(self, detector: str, layer: str, attack: str, *, learned: str = "", mask: str = "1111",
                 view: str = "plain") -> Node:  # fmt: skip
        """A detector's scores of one attack; ``learned`` is the attack that it has seen, by default the same."""
        parts = ((learned or attack, "validation"), (attack, "test"))
        inputs = [
            self.features(detector, name, part, shown, view) for name, part in parts for shown in ("clean", "attacked")
        ]
        columns = self.columns(detector, layer, mask) if view == "plain" else []
        config = {"detector": detector, "columns": columns, "folds": 5}
        return detecting.detect.node(config, inputs)

    def evaded(self, learned: str) -> Node:
        """The adaptive attack on NNIF at the embedding, which has learned from one attack."""
        inputs = (
            self.weights,
            self.features("nnif", learned, "validation", "clean"),
            self.features("nnif", learned, "validation", "attacked"),
            self.detected("nnif", "embedding", learned),
        )
        s = self.settings
        config = {"data": self.data, "mode": self.mode, "images": s.adaptive_images, "steps": s.adaptive_steps}
        return attacking.evade.node(config | {"columns": self.columns("nnif", "embedding")}, inputs)

    def rows(self, scores: tuple[np.ndarray, np.ndarray], **names: Any) -> list[dict]:
        """AUC, accuracy at 0.5, and detection at 5 % false positives, from scores of clean and of attacked images."""
        (clean, attacked), names = scores, self.names(**names)
        right = np.concatenate([clean < 0.5, attacked >= 0.5])
        return [
            auc_row(-clean, -attacked, metric="auc", **names),
            mean_row(right, metric="accuracy", **names),
            mean_row(attacked >= threshold_at_fpr(clean), metric="tpr_at_fpr_5", **names),
        ]

    def names(self, **more: Any) -> dict[str, Any]:
        """Columns that name the rows of this case."""
        network = f"{NETWORK}/{self.mode}"
        return {
            "experiment": "nnif",
            "dataset": self.settings.dataset,
            "network": network,
            "seed": self.run.seed,
            **more,
        }


def cases(run: Run, n: int | None = None) -> list[Case]:
    """The run's data set in each mode, with at most ``n`` images of a fast attack."""
    return [Case(run, mode, n) for mode in run.settings.modes]


def scores_of(found: Artifact) -> tuple[np.ndarray, np.ndarray]:
    """Scores of clean and of attacked test images, from :data:`detecting.detect`."""
    return found.tensors["clean"].numpy(), found.tensors["attacked"].numpy()
