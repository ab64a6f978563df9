"""An attack that knows the credibility filter: in a fixed ball, raise the p-value of a wrong label."""

import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.attacks.base import NORMS, Attack, distance
from deepneighbors.attacks.guides import check_guides
from deepneighbors.attacks.vote_margin import SoftVote, search
from deepneighbors.dknn import DeepKNN
from deepneighbors.errors import InputError
from deepneighbors.knn import KNNClassifier


class CredibleAttack(Attack):
    """Move votes of every layer to one wrong label, and keep the misclassified iterate of highest credibility.

    The loss is that of :class:`VoteMarginAttack`, which goes on beyond the decision border: each vote lowers the
    nonconformity of the wrong label. Momentum steps of falling size, projected on the ball and on [0, 1].

    Parameters
    ----------
    norm, epsilon
        The ball. The 2019 paper's Linf examples have 0.2.
    steps, refresh, weigh, guides, softness
        As in :class:`VoteMarginAttack`. Wider vote softness reaches beyond the border.
    """

    def __init__(self, *, norm: str = "linf", epsilon: float = 0.2, steps: int = 200, refresh: int = 10, weigh: int = 5,
                 guides: int = 75, softness: float = 0.2, batch_size: int = 64):  # fmt: skip
        checks.one_of("norm", norm, NORMS)
        checks.positive("epsilon", epsilon)
        checks.positive("softness", softness)
        for name, value in {"steps": steps, "refresh": refresh, "weigh": weigh}.items():
            checks.whole(name, value, 1)
        self.norm, self.epsilon, self.steps, self.refresh, self.weigh = norm, epsilon, steps, refresh, weigh
        self.guides, self.softness, self.batch_size = guides, softness, batch_size

    def check(self, classifier: KNNClassifier, x: Tensor, y: Tensor) -> None:
        """Also refuse a classifier without credibility, and too few or too many guides."""
        super().check(classifier, x, y)
        check_guides(classifier, self.guides, classifier.k)
        if not isinstance(classifier, DeepKNN):
            raise InputError(f"CredibleAttack needs a DeepKNN with credibility, got {type(classifier).__name__}")

    def run(self, classifier: KNNClassifier, x: Tensor, y: Tensor) -> Tensor:
        """Attack one batch."""
        assert isinstance(classifier, DeepKNN)
        best, best_score = x.clone(), torch.full((len(x),), -1.0, device=x.device)
        image, momentum = x, torch.zeros_like(x)
        for step in range(self.steps):
            if step % self.refresh == 0:
                found = search(classifier, image, self.guides)
                self._keep(classifier, image, y, found.votes, best, best_score)
                target = found.votes.scatter(1, y[:, None], -1.0).argmax(1)
                layers = {layer: SoftVote(classifier, layer, found, y, target, self.softness) for layer in found.by_class}
            image = image.detach().requires_grad_(True)
            features = classifier.features(image)
            if step % self.weigh == 0:
                for layer, rows in features.items():
                    layers[layer].weigh(rows)
            loss = torch.stack([layers[layer](rows) for layer, rows in features.items()])
            (gradient,) = torch.autograd.grad(loss.sum(), image)
            size = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, *[1] * (x.ndim - 1))
            momentum = 0.9 * momentum + gradient / size
            image = self._project(x, image.detach() - self._stride(momentum) * (1.02 - step / self.steps))
        self._keep(classifier, image, y, classifier.votes(classifier.kneighbors(image)), best, best_score)
        return torch.where((best_score >= 0).view(-1, *[1] * (x.ndim - 1)), best, image)

    @staticmethod
    def _keep(classifier: DeepKNN, image: Tensor, y: Tensor, votes: Tensor, best: Tensor, best_score: Tensor) -> None:
        said = classifier.conclude(votes)
        better = (said.labels != y) & (said.credibility > best_score)
        best[better], best_score[better] = image.detach()[better], said.credibility[better]

    def _stride(self, momentum: Tensor) -> Tensor:
        if self.norm == "linf":
            return 0.1 * self.epsilon * momentum.sign()
        size = momentum.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, *[1] * (momentum.ndim - 1))
        return 0.1 * self.epsilon * momentum / size

    def _project(self, x: Tensor, image: Tensor) -> Tensor:
        delta = image - x
        if self.norm == "linf":
            delta = delta.clamp(-self.epsilon, self.epsilon)
        else:
            size = distance("l2", image, x).clamp(min=self.epsilon).view(-1, *[1] * (x.ndim - 1))
            delta = delta * self.epsilon / size
        return (x + delta).clamp(0, 1)
