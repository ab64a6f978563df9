"""Deep k-nearest neighbours: conformal prediction on the neighbours of a network's layers (Papernot & McDaniel 2018)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepneighbors import checks
from deepneighbors.errors import InputError
from deepneighbors.knn import KNNClassifier
from deepneighbors.networks import activations, check_layers


@dataclass(frozen=True)
class Prediction:
    """What DkNN says of ``n`` images: labels, p-values (n, classes), credibility and confidence (n,), votes (n, classes)."""

    labels: Tensor
    p_values: Tensor
    credibility: Tensor
    confidence: Tensor
    votes: Tensor


class DeepKNN(KNNClassifier):
    """DkNN: the k nearest training points in each of several layers vote, and calibration turns votes into p-values.

    Nonconformity of an image with label j: the number of its neighbours, over all layers, with another label (0 to
    ``k * layers``). p_j: the share of calibration images whose nonconformity with their true label is at least that.
    Prediction: the label of the largest p (the smallest such label on ties). Credibility: the largest p.
    Confidence: one minus the second largest. Papernot & McDaniel (2018), algorithm 1.

    Parameters
    ----------
    network
        Any module in evaluation mode. Features are computed without changing it.
    layers
        Names of its modules whose outputs are used, in forward order.
    trim_zeros
        Drop calibration images of nonconformity 0, as cleverhans does (it raises every credibility below 1).
    k, metric, weights, temperature, backend, memory_gib
        As in :class:`deepneighbors.knn.KNNClassifier`.

    Attributes
    ----------
    calibration_
        Sorted nonconformity of the calibration images with their true labels.
    """

    def __init__(self, network: nn.Module, layers: tuple[str, ...], *, k: int = 75, metric: str = "cosine",
                 weights: str = "uniform", temperature: float = 0.1, trim_zeros: bool = False, backend: str = "torch",
                 memory_gib: float = 0.5):  # fmt: skip
        super().__init__(
            k=k,
            metric=metric,
            weights=weights,
            temperature=temperature,
            backend=backend,
            memory_gib=memory_gib,
        )
        self.network, self.layers, self.trim_zeros = network, tuple(layers), trim_zeros
        check_layers(network, self.layers)

    def fit(self, x: Tensor, y: Tensor) -> "DeepKNN":
        """Index the layers of the training images ``(N, ...)`` in [0, 1] with labels ``(N,)``; forgets a calibration."""
        training = [name or "the network itself" for name, module in self.network.named_modules() if module.training]
        if training:
            raise InputError(f"network is in training mode ({training[0]}); call network.eval() first")
        checks.labels("y", y, len(x))
        if int(y.max()) == 0:
            raise InputError("y has the label 0 only; Deep kNN compares p-values of two classes or more")
        super().fit(x, y)
        self.__dict__.pop("calibration_", None)
        return self

    def _activations(self, x: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        for layer in layers:
            checks.one_of("layer", layer, self.layers)
        return activations(self.network, x, layers)

    @torch.no_grad()
    def _databases(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        rows: dict[str, Tensor] = {}
        for start in range(0, len(x), 500):
            for layer, part in self._activations(x[start : start + 500], self.layers).items():
                part = part.flatten(1)
                if layer not in rows:
                    rows[layer] = part.new_empty(len(x), part.shape[1])
                rows[layer][start : start + len(part)] = part
        yield from rows.items()

    def calibrate(self, x: Tensor, y: Tensor) -> "DeepKNN":
        """Learn the distribution of nonconformity from held-out images ``(n, ...)`` with their true labels ``(n,)``."""
        self._check_fitted()
        checks.images("x", x)
        checks.labels("y", y, len(x), self.classes_)
        scores = self.nonconformity(self.votes(self.kneighbors(x)))
        own = scores.gather(1, y.to(scores.device)[:, None]).flatten()
        own = own[own > 0] if self.trim_zeros else own
        if len(own) == 0:
            raise InputError("every calibration image has nonconformity 0, so trim_zeros leaves none; set it to False")
        self.calibration_ = own.sort().values
        return self

    def nonconformity(self, votes: Tensor) -> Tensor:
        """``k * layers - votes``: neighbours with another label, for each label (n, classes)."""
        return self.k * len(self.layers) - votes

    def conformal_p_values(self, votes: Tensor) -> Tensor:
        """Share of calibration images at least as nonconforming, for each label: (n, classes), in [0, 1]."""
        self.check_ready()
        calibration = self.calibration_.to(votes)
        below = torch.searchsorted(calibration, self.nonconformity(votes).contiguous())
        # Not 1 - below / n, which rounds twice: a p-value of 75 / 750 has to compare equal to 0.1.
        return (len(calibration) - below) / len(calibration)

    def check_ready(self) -> None:
        """Refuse a model that has no calibration yet."""
        self._check_fitted()
        if not hasattr(self, "calibration_"):
            raise InputError("DeepKNN was asked for p-values before calibrate; call calibrate with held-out images first")

    def decide(self, votes: Tensor) -> Tensor:
        """Label of the largest p-value; the smallest such label on ties."""
        return self.conformal_p_values(votes).argmax(1)

    def evaluate(self, x: Tensor) -> Prediction:
        """Labels, p-values, credibility and confidence of images from one search."""
        return self.conclude(self.votes(self.kneighbors(x)))

    def conclude(self, votes: Tensor) -> Prediction:
        """The same from votes ``(n, classes)``."""
        p_values = self.conformal_p_values(votes)
        top = p_values.topk(2, dim=1).values
        return Prediction(p_values.argmax(1), p_values, top[:, 0], 1 - top[:, 1], votes)

    def p_values(self, x: Tensor) -> Tensor:
        """p-value of each label, ``(n, classes)``."""
        return self.evaluate(x).p_values

    def credibility(self, x: Tensor) -> Tensor:
        """Largest p-value, ``(n,)``."""
        return self.evaluate(x).credibility

    def confidence(self, x: Tensor) -> Tensor:
        """One minus the second largest p-value, ``(n,)``."""
        return self.evaluate(x).confidence
