"""The minimum-norm attack of Sitawarin & Wagner (2020), by its released rules.

Against the attack of 2019: guides of both classes, found again around the iterate; a threshold that is the current distance
to the k-th neighbour; hinges in place of sigmoids; RMSprop from a small random start.
"""

import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.attacks.base import Attack, Best
from deepneighbors.attacks.guides import Guides, check_guides
from deepneighbors.attacks.penalty import ConstantSearch, Objective, TanhBox
from deepneighbors.attacks.vote_margin import search
from deepneighbors.knn import KNNClassifier

_MARGIN = 1e-5  # slack of each hinge, in squared distance


class MinimumNormAttack(Attack):
    """Minimise ``|delta|^2 + c * sum_l sum_i relu(s_i (d_li^2 - tau_l))`` with a search over c for each image.

    s_i is +1 for the ``guides / 2`` nearest images of the best other class, -1 for as many of the true class. Guides and
    tau_l, the squared distance to the k-th neighbour, are taken again every ``refresh`` steps, which also test success.
    After a success fewer guides act, down to half of ``k``; c falls tenfold while an image has never failed.

    Parameters
    ----------
    guides
        Both classes together; 2 k in the released runs.
    search_steps, steps, refresh
        10, 500 and 50 in the released runs.
    """

    allowed_norms = ("l2",)

    def __init__(self, *, guides: int = 150, search_steps: int = 10, steps: int = 500, refresh: int = 50,
                 learning_rate: float = 0.1, constant: float = 1.0, start_std: float = 0.01, seed: int = 0,
                 batch_size: int = 100):  # fmt: skip
        for name, value in {
            "guides": guides,
            "search_steps": search_steps,
            "steps": steps,
            "refresh": refresh,
        }.items():
            checks.whole(name, value, 1)
        checks.positive("constant", constant)
        self.guides, self.search_steps, self.steps, self.refresh = guides, search_steps, steps, refresh
        self.learning_rate, self.constant, self.start_std = learning_rate, constant, start_std
        self.seed, self.batch_size = seed, batch_size

    def check(self, classifier: KNNClassifier, x: Tensor, y: Tensor) -> None:
        """Also refuse fewer guides of a class than neighbours, which could not change every vote."""
        super().check(classifier, x, y)
        check_guides(classifier, self.guides, 2 * classifier.k, classes=2)

    def run(self, classifier: KNNClassifier, x: Tensor, y: Tensor) -> Tensor:
        """Attack one batch."""
        generator = torch.Generator().manual_seed(self.seed)
        best, box = Best(x, self.norm), TanhBox(x)
        constants = ConstantSearch(len(x), self.constant, device=x.device)
        half, least = self.guides // 2, (classifier.k + 1) // 2
        active = torch.full((len(x),), float(half), device=x.device)
        failed = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        image = x
        for _ in range(self.search_steps):
            w = self.start_std * torch.randn(x.shape, generator=generator).to(x.device)
            square, success = torch.zeros_like(w), torch.zeros_like(failed)
            for step in range(self.steps):
                if step % self.refresh == 0:
                    hinges, adversarial = self._hinges(classifier, box(w), y, active)
                    best.update(box(w), adversarial)
                    success |= adversarial
                w.requires_grad_(True)
                image = box(w)
                loss = constants.value * hinges(image) + ((image - x) ** 2).flatten(1).sum(1)
                (gradient,) = torch.autograd.grad(loss.sum(), w)
                w = w.detach()
                square.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
                w.addcdiv_(gradient, square.sqrt().add_(1e-8), value=-self.learning_rate)
            image = box(w)
            adversarial = classifier.predict(image) != y
            best.update(image, adversarial)
            success |= adversarial
            failed |= ~success
            shrunk = (active - (half - least) / max(1, self.search_steps - 1)).clamp(min=least)
            active = torch.where(success, shrunk, active)
            constants.update(success)
            constants.value = torch.where(failed, constants.value, constants.high / 10)
        return best.fill(image)

    def _hinges(self, classifier: KNNClassifier, image: Tensor, y: Tensor, active: Tensor) -> tuple[Objective, Tensor]:
        """The adversarial term around this iterate, and whether the iterate is adversarial already."""
        half, rows = self.guides // 2, torch.arange(len(y), device=y.device)
        found = search(classifier, image, half)
        spread = sum((near.distances**2).mean(2) for near in found.by_class.values())
        target = spread.scatter(1, y[:, None], float("inf")).argmin(1)  # type: ignore[union-attr]
        acts = torch.arange(half, device=y.device)[None] < active[:, None]
        parts = {}
        for layer, near in found.by_class.items():
            border = near.distances.flatten(1).topk(classifier.k, largest=False).values[:, -1:] ** 2
            pull, push = (Guides(classifier, layer, near.indices[rows, c]) for c in (target, y))
            parts[layer] = (pull, push, border)

        def hinges(image: Tensor) -> Tensor:
            total = torch.zeros(len(image), device=image.device)
            for layer, features in classifier.features(image).items():
                pull, push, border = parts[layer]
                inside = (pull(features) - border + _MARGIN).relu() + (border - push(features) + _MARGIN).relu()
                total = total + (acts * inside).sum(1)
            return total

        return hinges, classifier.decide(found.votes) != y
