"""The feature adversary (Sabour et al. 2016), with which Papernot & McDaniel (2018) evaluate DkNN.

The image is changed until its representation in one layer is that of a guide: the training image of another class whose
representation is nearest.
"""

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from deepneighbors import checks
from deepneighbors.attacks.base import NORMS, Attack, check_epsilon, linf_ball
from deepneighbors.attacks.guides import Guides, nearest_class_guides
from deepneighbors.attacks.penalty import ClipBox, Objective, Schedule, minimise
from deepneighbors.knn import KNNClassifier


class FeatureAdversary(Attack):
    """Minimise the squared distance to the guide's representation in the first layer of the classifier.

    L2: ``c D + |delta|^2`` on a clipped change by Adam, with a search over c. Linf: D alone in the ball by L-BFGS-B, jointly
    over a batch; the objective separates, so the batch only shares the line search.

    Parameters
    ----------
    epsilon
        Radius of the Linf ball; needed for ``norm="linf"``.
    constant, learning_rate
        100 and 0.01 in the released code.
    """

    def __init__(self, *, norm: str = "l2", epsilon: float | None = None, constant: float = 100.0,
                 learning_rate: float = 0.01, schedule: Schedule | None = None, batch_size: int = 64):  # fmt: skip
        checks.one_of("norm", norm, NORMS)
        checks.positive("constant", constant)
        check_epsilon(norm, epsilon)
        self.norm, self.epsilon, self.constant, self.learning_rate = norm, epsilon, constant, learning_rate
        self.schedule, self.batch_size = schedule or Schedule(released=True), batch_size

    def run(self, classifier: KNNClassifier, x: Tensor, y: Tensor) -> Tensor:
        """Attack one batch."""
        layer = classifier.layers[0]
        guides = Guides(classifier, layer, nearest_class_guides(classifier, x, y, 1))

        def objective(image: Tensor) -> Tensor:
            return guides(classifier.features(image, (layer,))[layer]).squeeze(1)

        if self.epsilon is not None:
            return _in_ball(objective, x, *linf_ball(x, self.epsilon))
        return minimise(
            classifier.predict, objective, ClipBox(x), x, y, schedule=self.schedule,
            learning_rate=self.learning_rate, constant=self.constant,
        )  # fmt: skip


def _in_ball(objective: Objective, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Minimise the mean objective of a batch between two images by L-BFGS-B."""

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        image = torch.from_numpy(flat).to(x).view_as(x).requires_grad_(True)
        total = objective(image).mean()
        (gradient,) = torch.autograd.grad(total, image)
        return float(total.detach()), gradient.flatten().cpu().double().numpy()

    bounds = np.stack([low.flatten().cpu().numpy(), high.flatten().cpu().numpy()], 1)
    answer = minimize(value_and_gradient, x.flatten().cpu().double().numpy(), jac=True, method="L-BFGS-B", bounds=bounds)
    found = torch.from_numpy(answer.x).to(x).view_as(x)
    return torch.minimum(torch.maximum(found, low), high)
