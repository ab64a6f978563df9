"""Choice of the training images that an attack moves towards or away from."""

import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.errors import InputError
from deepneighbors.knn import KNNClassifier


def check_guides(classifier: KNNClassifier, count: int, least: int = 1, *, classes: int = 1) -> None:
    """Refuse fewer than ``least`` guides, and more than the smallest class has (``classes`` of them share the count)."""
    sizes = torch.bincount(classifier.labels_, minlength=classifier.classes_)
    if int(sizes.min()) == 0:
        raise InputError(f"class {int(sizes.argmin())} has no training image; this attack needs guides of every class")
    checks.whole("guides", count, least, classes * int(sizes.min()))


def nearest_class_guides(classifier: KNNClassifier, x: Tensor, y: Tensor, count: int) -> Tensor:
    """The ``count`` nearest images of the class, other than ``y``, whose ``count`` nearest are nearest on average.

    Distances are measured in the first layer, and averaged squared (Sitawarin & Wagner 2019, released code).

    Returns
    -------
    Indices ``(n, count)`` into the training images.
    """
    layer = classifier.layers[0]
    check_guides(classifier, count)
    with torch.no_grad():
        rows = classifier.features(x, (layer,))[layer]
    found = classifier.indexes_[layer].class_kneighbors(rows, count, classifier.labels_, classifier.classes_)
    spread = (found.distances**2).mean(2)
    spread.scatter_(1, y[:, None], float("inf"))
    return found.indices[torch.arange(len(x), device=x.device), spread.argmin(1)]


class Guides:
    """Guide images of each sample in one layer: rows ``(n, m, D)`` of the database, gathered once.

    Calling it with rows ``(n, D)`` gives squared distances ``(n, m)`` from one batched product, without differences.
    """

    def __init__(self, classifier: KNNClassifier, layer: str, indices: Tensor):
        self.rows = classifier.indexes_[layer].database_[indices]
        self.squares = (self.rows * self.rows).sum(2)

    def __call__(self, rows: Tensor) -> Tensor:
        # As rows times a transpose: on the CPU five times faster than guides times a column, and so is its gradient.
        product = torch.bmm(rows[:, None], self.rows.transpose(1, 2)).squeeze(1)
        squares = (rows * rows).sum(1, keepdim=True) + self.squares
        return (squares - 2 * product).clamp(min=1e-12)
