"""The gradient attack: pull the representation within reach of guide images of another class (Sitawarin & Wagner 2019)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.attacks.base import NORMS, Attack, check_epsilon, linf_ball
from deepneighbors.attacks.guides import Guides, check_guides, nearest_class_guides
from deepneighbors.attacks.penalty import Schedule, TanhBox, minimise
from deepneighbors.errors import InputError
from deepneighbors.knn import KNNClassifier


class GradientAttack(Attack):
    """Minimise ``-sum_l sum_i sigmoid(a (eta_l - d_li))`` over the guides i and layers l, and the perturbation.

    d_li is the distance between the representations of the image and of guide i in layer l; eta_l, the mean distance
    from clean images to their k-th neighbour, is where the sigmoid switches: a soft count of guides among the k nearest.
    L2: a penalty with a search over its constant. Linf: the variable is confined to the ball, no penalty.

    Parameters
    ----------
    guides
        m, guide images of the nearest other class; 75 in the published runs.
    eta
        Threshold of each layer; measured on the attacked images when None.
    steepness
        a; 4 in the released code.
    epsilon
        Radius of the Linf ball; needed for ``norm="linf"`` and only there.
    constant, learning_rate
        First trade-off constant (10 on kNN, 0.5 on DkNN) and Adam's rate (0.1; 0.5 for Linf on DkNN).
    schedule
        Length of the optimisation, see :class:`Schedule`.
    """

    def __init__(self, *, norm: str = "l2", epsilon: float | None = None, guides: int = 75, steepness: float = 4.0,
                 eta: Mapping[str, float] | None = None, constant: float = 1.0, learning_rate: float = 0.1,
                 schedule: Schedule | None = None, batch_size: int = 100):  # fmt: skip
        checks.one_of("norm", norm, NORMS)
        checks.positive("constant", constant)
        checks.positive("steepness", steepness)
        checks.positive("learning_rate", learning_rate)
        check_epsilon(norm, epsilon)
        self.norm, self.epsilon, self.guides, self.steepness = norm, epsilon, guides, steepness
        self.eta, self.constant, self.learning_rate = eta, constant, learning_rate
        self.schedule, self.batch_size = schedule or Schedule(), batch_size

    def check(self, classifier: KNNClassifier, x: Tensor, y: Tensor) -> None:
        """Also refuse too many guides, and an ``eta`` that lacks a layer."""
        super().check(classifier, x, y)
        check_guides(classifier, self.guides)
        missing = [layer for layer in classifier.layers if self.eta and layer not in self.eta]
        if missing:
            raise InputError(f"eta has no threshold for layer {missing[0]!r}; it has {', '.join(self.eta or ())}")

    def run(self, classifier: KNNClassifier, x: Tensor, y: Tensor) -> Tensor:
        """Attack one batch."""
        indices = nearest_class_guides(classifier, x, y, self.guides)
        guides = {layer: Guides(classifier, layer, indices) for layer in classifier.layers}
        eta = self.eta or classifier.radii(x)

        def objective(image: Tensor) -> Tensor:
            soft = torch.zeros(len(image), device=image.device)
            for layer, rows in classifier.features(image).items():
                distances = guides[layer](rows).sqrt()
                soft = soft + torch.sigmoid(self.steepness * (eta[layer] - distances)).sum(1)
            return -soft

        box = TanhBox(x) if self.epsilon is None else TanhBox(x, *linf_ball(x, self.epsilon))
        return minimise(
            classifier.predict, objective, box, x, y, schedule=self.schedule, learning_rate=self.learning_rate,
            constant=self.constant if self.norm == "l2" else None, norm=self.norm,
        )  # fmt: skip
