"""Minimum-norm attack on the vote itself: ours, and the strongest here.

The 2020 attack of Sitawarin & Wagner trades a sum of hinges against the norm and searches its constant. Two changes make
it smaller and some ten times faster. The loss is the (softened) vote: guides count where the vote is decided, at the
current border between the k nearest and the rest, which moves with the image. And the constant is gone: direction and
norm are decoupled (Rony et al. 2019), the radius shrinks while the vote is lost and grows while it holds. Once a round,
the true neighbours are searched again, which is also the exact test of success.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.attacks.base import NORMS, Attack, Best, distance
from deepneighbors.attacks.guides import Guides, check_guides
from deepneighbors.knn import KNNClassifier
from deepneighbors.neighbors import Neighbors


@dataclass(frozen=True)
class Search:
    """Nearest training images of each class by layer, at one iterate, and the votes that follow from them."""

    by_class: dict[str, Neighbors]
    votes: Tensor
    layer_votes: dict[str, Tensor]


@torch.no_grad()
def search(classifier: KNNClassifier, x: Tensor, count: int) -> Search:
    """Find the ``count >= k`` nearest images of each class; the k nearest of all are among them, so this is exact."""
    found, layer_votes = {}, {}
    for layer, rows in classifier.features(x).items():
        near = classifier.indexes_[layer].class_kneighbors(rows, count, classifier.labels_, classifier.classes_)
        # Equal distances by index, as in the classifier's own search.
        indices, by_index = near.indices.flatten(1).sort(dim=1)
        distances, by_distance = near.distances.flatten(1).gather(1, by_index).sort(dim=1, stable=True)
        nearest = Neighbors(distances[:, : classifier.k], indices.gather(1, by_distance[:, : classifier.k]))
        layer_votes[layer] = classifier.votes({layer: nearest})
        found[layer] = near
    return Search(found, torch.stack(list(layer_votes.values())).sum(0), layer_votes)


class SoftVote:
    """Votes of one layer for the true label minus those for the target, softened at a border between the guides.

    With one layer the border lies where the vote tips: between the guide of the target that would make its majority and the
    guide of the true class that would then drop out. With several layers no layer decides alone, so the border is that of
    the k nearest, and every vote counts.

    Weighing costs one pass over the guides; between two weighings the loss is linear in them, one product with a single
    vector, so that a step costs little more than the network.
    """

    def __init__(self, classifier: KNNClassifier, layer: str, found: Search, y: Tensor, target: Tensor, softness: float):
        rows = torch.arange(len(y), device=y.device)
        near, votes = found.by_class[layer], found.layer_votes[layer]
        self.half = near.indices.shape[2]
        self.guides = Guides(classifier, layer, torch.cat([near.indices[rows, y], near.indices[rows, target]], 1))
        self.sign = torch.ones(2 * self.half, device=y.device)
        self.sign[self.half :] = -1
        # Votes that the two classes share among the k nearest.
        self.shared = (votes[rows, y] + votes[rows, target]).round().long().clamp(min=1)[:, None]
        self.alone = len(classifier.layers) == 1
        self.classifier, self.softness = classifier, softness

    def border(self, squares: Tensor) -> Tensor:
        """Squared distance ``(n, 1)`` of the border, given those to the guides ``(n, 2 m)``: true class, then target."""
        if self.alone:
            majority = self.shared // 2 + 1
            ranks = (self.shared - majority, majority - 1)
            parts = (squares[:, : self.half], squares[:, self.half :])
        else:
            ranks = (self.shared - 1, self.shared)
            parts = (squares, squares)
        last = parts[0].shape[1] - 1
        found = [part.sort(1).values.gather(1, rank.clamp(max=last)) for part, rank in zip(parts, ranks, strict=True)]
        return (found[0] + found[1]) / 2

    def weigh(self, rows: Tensor) -> Tensor:
        """Fix the guides' weights at features ``(n, D)``; returns the hard margin ``(n,)``: votes for y minus target."""
        squares = self.guides(rows.detach())
        border = self.border(squares)
        squares.requires_grad_(True)
        inside = torch.sigmoid((border - squares) / (self.softness * border))
        margin = (self.sign * self._kernel(squares, border) * inside).sum(1)
        (weights,) = torch.autograd.grad(margin.sum(), squares)
        self.mass = weights.sum(1)
        self.pull = torch.bmm(weights[:, None], self.guides.rows).squeeze(1)
        squares = squares.detach()
        return (self.sign * self._kernel(squares, border) * (squares < border)).sum(1)

    def _kernel(self, squares: Tensor, border: Tensor) -> Tensor:
        if self.classifier.weights == "uniform":
            return torch.ones_like(squares)
        return torch.exp(-squares / (self.classifier.temperature * border))

    def __call__(self, rows: Tensor) -> Tensor:
        """The loss ``(n,)``: sum of weighted squared distances to the guides, up to a constant."""
        return self.mass * (rows * rows).sum(1) - 2 * (rows * self.pull).sum(1)


class VoteMarginAttack(Attack):
    """Smallest perturbation that turns the vote of a kNN or DkNN classifier.

    Parameters
    ----------
    norm
        ``l2`` or ``linf``.
    steps
        Steps of each restart; their size and the change of radius fall to about 1 % on a cosine.
    refresh, weigh
        Steps between two searches of the true neighbours, and between two weighings of the guides. Every refresh is an
        exact test. On pixels weighing is cheap (1); on the layers of a network it is not (5).
    guides
        Nearest images kept of the true and of the target class; at least ``k``.
    targets
        Restarts, each towards the next nearest other class; the nearest result of all counts.
    softness
        Width of the softened vote, as a share of the squared distance at the border.
    polish
        Halvings of the segment from the image to the best result.
    """

    def __init__(self, *, norm: str = "l2", steps: int = 300, refresh: int = 10, weigh: int = 1, guides: int = 75,
                 targets: int = 1, softness: float = 0.05, polish: int = 6, batch_size: int = 100):  # fmt: skip
        checks.one_of("norm", norm, NORMS)
        for name, value in {"steps": steps, "refresh": refresh, "weigh": weigh, "targets": targets}.items():
            checks.whole(name, value, 1)
        checks.whole("polish", polish, 0)
        checks.positive("softness", softness)
        self.norm, self.steps, self.refresh, self.weigh, self.guides = norm, steps, refresh, weigh, guides
        self.targets, self.softness, self.polish, self.batch_size = targets, softness, polish, batch_size

    def check(self, classifier: KNNClassifier, x: Tensor, y: Tensor) -> None:
        """Also refuse too few or too many guides, and more targets than other classes."""
        super().check(classifier, x, y)
        check_guides(classifier, self.guides, classifier.k)
        checks.whole("targets", self.targets, 1, classifier.classes_ - 1)

    def run(self, classifier: KNNClassifier, x: Tensor, y: Tensor) -> Tensor:
        """All restarts on one batch, then the polish."""
        best = Best(x, self.norm)
        best.update(x, classifier.predict(x) != y)
        ranking = self._ranking(search(classifier, x, self.guides), y)
        last = x
        for rank in range(self.targets):
            last = self._descend(classifier, x, y, ranking[:, rank], best)
        return self._polish(classifier, best, best.fill(last), y)

    def _ranking(self, found: Search, y: Tensor) -> Tensor:
        """Other classes, nearest first: by the mean squared distance to the half of the guides that a majority needs."""
        spread = sum((near.distances[:, :, : (near.distances.shape[2] + 1) // 2] ** 2).mean(2)
                     for near in found.by_class.values())  # fmt: skip
        return spread.scatter(1, y[:, None], float("inf")).argsort(1)  # type: ignore[union-attr]

    def _descend(self, classifier: KNNClassifier, x: Tensor, y: Tensor, target: Tensor, best: Best) -> Tensor:
        ball = Ball(self.norm, x)
        for step in range(self.steps):
            searched = step % self.refresh == 0
            if searched:
                found = search(classifier, ball.image, self.guides)
                adversarial = classifier.decide(found.votes) != y
                best.update(ball.image, adversarial)
                layers = {layer: SoftVote(classifier, layer, found, y, target, self.softness) for layer in found.by_class}
            image = ball.image.requires_grad_(True)
            features = classifier.features(image)
            if searched or step % self.weigh == 0:
                margin = torch.stack([layers[layer].weigh(rows) for layer, rows in features.items()]).sum(0)
            if searched:
                needed = _needed_margin(margin, adversarial)
            loss = torch.stack([layers[layer](rows) for layer, rows in features.items()])
            (gradient,) = torch.autograd.grad(loss.sum(), image)
            ball.step(gradient, margin < needed, 0.5 + 0.5 * math.cos(math.pi * step / self.steps))
        best.update(ball.image, classifier.predict(ball.image) != y)
        return ball.image

    def _polish(self, classifier: KNNClassifier, best: Best, x: Tensor, y: Tensor) -> Tensor:
        low = torch.zeros(len(x), device=x.device)
        high = torch.ones_like(low)
        for _ in range(self.polish):
            middle = (low + high) / 2
            tried = torch.lerp(best.origin, x, middle.view(-1, *[1] * (x.ndim - 1)))
            adversarial = classifier.predict(tried) != y
            best.update(tried, adversarial)
            high, low = torch.where(adversarial, middle, high), torch.where(adversarial, low, middle)
        return best.fill(x)


def _needed_margin(margin: Tensor, adversarial: Tensor) -> Tensor:
    """Margin below which an image counts as adversarial until the next search.

    Zero where the two classes' guides tell the truth. Where a third class or tied p-values make them wrong, the exact
    verdict moves the bar to the far side of the margin just seen.
    """
    agrees = adversarial == (margin < 0)
    return torch.where(agrees, 0.0, torch.where(adversarial, margin + 1, margin - 1))


class Ball:
    """An iterate whose norm follows a radius of its own: down while adversarial, up while not (Rony et al. 2019)."""

    growth = 0.05  # relative change of the radius a step, at the start
    search = 0.1  # and until the first success, throughout: a far border is reached whatever the number of steps

    def __init__(self, norm: str, x: Tensor):
        self.norm, self.origin, self.image = norm, x, x.clone()
        self.shape = (-1, *[1] * (x.ndim - 1))
        # The first radius and step: in root mean square a 28th of the box, which is an L2 norm of 1 for 28 x 28 pixels.
        self.rate = x[0].numel() ** 0.5 / 28 if norm == "l2" else 0.05
        self.radius = torch.full((len(x),), self.rate, device=x.device)
        self.arrived = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def step(self, gradient: Tensor, adversarial: Tensor, pace: float) -> None:
        """Move against the gradient, then to the new radius and into [0, 1]; ``pace`` falls from 1 to 0."""
        self.arrived |= adversarial
        growth = self.growth * (0.02 + 0.98 * pace)
        wider = self.radius * torch.where(self.arrived, 1 + growth, 1 + self.search)
        reached = torch.minimum(self.radius, distance(self.norm, self.image.detach(), self.origin))
        self.radius = torch.where(adversarial, reached * (1 - growth), wider)
        delta = self.image.detach() - self.origin - self.rate * (0.01 + 0.99 * pace) * self._direction(gradient)
        self.image = (self.origin + self._project(delta)).clamp(0, 1)

    def _direction(self, gradient: Tensor) -> Tensor:
        if self.norm == "linf":
            return gradient.sign()
        return gradient / gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(self.shape)

    def _project(self, delta: Tensor) -> Tensor:
        radius = self.radius.view(self.shape)
        if self.norm == "linf":
            return delta.clamp(-radius, radius)
        return delta * radius / delta.flatten(1).norm(dim=1).clamp(min=1e-12).view(self.shape)
