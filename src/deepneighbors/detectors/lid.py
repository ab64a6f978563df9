"""Local intrinsic dimensionality as a detector (Ma et al. 2018)."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.detectors.activations import TrainingActivations
from deepneighbors.detectors.base import MODES, Detector
from deepneighbors.errors import InputError
from deepneighbors.networks import activations


def lid(distances: Tensor) -> Tensor:
    """Maximum-likelihood LID ``(...,)`` from the k nearest distances ``(..., k)``, ascending: ``-k / sum_i log(d_i / d_k)``.

    Always finite: a distance of 0 gives 0, its limit; k equal distances give ``1 / eps`` (about 8e6), where differences
    drown in single precision and the formula would be infinite. For points drawn uniformly from a ball in D dimensions
    around the query the expectation is ``D k / (k - 2)``. Ma et al. (2018), equation 4.
    """
    distances = distances.double()
    ratios = torch.where(distances > 0, distances / distances[..., -1:], 0.0)
    return -1 / ratios.log().mean(-1).clamp(max=-torch.finfo(torch.float32).eps)


class LID(Detector):
    """LID of an image among clean reference images in each layer, by L2 distance between flattened activations.

    Parameters
    ----------
    training
        The network with its training images.
    layers
        Layers used; one feature each.
    k
        Neighbours; Cohen, Sapiro & Giryes (2020) search the even numbers from 10 to 40.
    mode
        ``faithful``: the references of an image are the clean images of its own minibatch, given as ``reference``, and the
        smallest distance is dropped. For a clean image that is the 0 to itself, for an adversarial one usually the
        distance to the clean image that it was made from, which no defender has. Of a short last minibatch the references
        are the last full minibatch of clean images.
        ``clean``: the references are training images, the same for all queries, drawn with ``seed``; nothing is dropped.
    minibatch
        Reference images.
    """

    def __init__(self, training: TrainingActivations, layers: Sequence[str], *, k: int = 20, mode: str = "clean",
                 minibatch: int = 100, seed: int = 0):  # fmt: skip
        training.check_layers(layers)
        checks.one_of("mode", mode, MODES)
        checks.whole("minibatch", minibatch, 3, len(training.images) if mode == "clean" else None)
        checks.whole("k", k, 2, minibatch - (mode == "faithful"))
        checks.whole("seed", seed, 0)
        self.training, self.layers, self.k, self.mode = training, tuple(layers), k, mode
        self.minibatch, self.seed = minibatch, seed

    def features(self, x: Tensor, *, reference: Tensor | None = None) -> np.ndarray:
        """LID by layer, ``(n, layers)``; in faithful mode ``reference`` (n, ...) are the clean images behind ``x``."""
        return lid(self.distances(x, self.k, reference=reference)).numpy()

    @torch.no_grad()
    def distances(self, x: Tensor, k: int, *, reference: Tensor | None = None) -> Tensor:
        """The k smallest distances ``(n, layers, k)``, ascending; their first columns serve every smaller k."""
        self._check(x, k, reference)
        parts = []
        for queries, references, skipped in self._minibatches(x, reference):
            found = activations(self.training.network, queries, self.layers)
            layers = [_nearest(found[layer], references[layer], k, drop=self.mode == "faithful") for layer in self.layers]
            parts.append(torch.stack(layers, 1)[skipped:].cpu())
        return torch.cat(parts)

    def _minibatches(self, x: Tensor, reference: Tensor | None) -> Iterator[tuple[Tensor, dict[str, Tensor], int]]:
        """Queries, activations of their references, and how many of the first queries an earlier minibatch had already."""
        device, network = self.training.images.device, self.training.network
        fixed = activations(network, self._drawn(), self.layers) if self.mode == "clean" else {}
        for start in range(0, len(x), self.minibatch):
            # A short last minibatch is filled up from the one before, so that all have as many references.
            begin = max(0, min(start, len(x) - self.minibatch))
            part = slice(begin, begin + self.minibatch)
            clean = fixed if reference is None or fixed else activations(network, reference[part].to(device), self.layers)
            yield x[part].to(device), clean, start - begin

    def _drawn(self) -> Tensor:
        order = torch.randperm(len(self.training.images), generator=torch.Generator().manual_seed(self.seed))
        return self.training.images[order[: self.minibatch].to(self.training.images.device)]

    def _check(self, x: Tensor, k: int, reference: Tensor | None) -> None:
        self.training.check_images("x", x)
        if self.mode == "clean":
            checks.whole("k", k, 2, self.minibatch)
            return
        if reference is None:
            raise InputError("reference is None; LID in faithful mode needs the clean image behind each image")
        self.training.check_images("reference", reference)
        if len(reference) != len(x):
            raise InputError(f"reference has {len(reference)} images for {len(x)} in x; one for each is needed")
        checks.whole("k", k, 2, min(self.minibatch, len(x)) - 1)


def _nearest(queries: Tensor, references: Tensor, k: int, *, drop: bool) -> Tensor:
    """The k smallest distances ``(n, k)``, ascending, without the very smallest where ``drop``."""
    # By differences: the matrix product would leave a rounding error in place of the 0 between an image and itself.
    exact = "donot_use_mm_for_euclid_dist"
    pairs = torch.cdist(queries.flatten(1), references.flatten(1), compute_mode=exact)
    return pairs.topk(k + drop, dim=1, largest=False).values[:, int(drop) :]
