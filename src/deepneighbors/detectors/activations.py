"""The activations of a network on its training images, computed once and shared by all detectors."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepneighbors import checks
from deepneighbors.errors import InputError
from deepneighbors.networks import activations, check_layers
from deepneighbors.networks.thin_resnet import pooled

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingActivations:
    """A network, its training images ``(N, ...)`` in [0, 1], their true labels ``(N,)`` and pooled activations by layer.

    Queries are computed as the training images were: ``batch_size`` at a time and in order. That matters only for a network
    whose output for an image depends on its batch (batch norm with the statistics of the batch). Cohen, Sapiro & Giryes
    (2020) evaluate such a network in batches of 125; clean and adversarial images then belong in separate calls.

    Use :meth:`compute`; the constructor is for activations that are already known.
    """

    network: nn.Module
    images: Tensor
    labels: Tensor
    pooled: Mapping[str, Tensor]
    batch_size: int = 125

    def __post_init__(self) -> None:
        _check(self.network, self.images, self.labels, list(self.pooled), self.batch_size)
        for layer, rows in self.pooled.items():
            checks.points(f"the activations of layer {layer!r}", rows)
            if rows.ndim != 2 or len(rows) != len(self.images):
                expected = f"one vector for each of the {len(self.images)} training images is needed"
                raise InputError(f"the activations of layer {layer!r} have shape {tuple(rows.shape)}; {expected}")

    @classmethod
    def compute(cls, network: nn.Module, images: Tensor, labels: Tensor, layers: Sequence[str],
                *, batch_size: int = 125) -> "TrainingActivations":  # fmt: skip
        """Run the network once over the training images, on the device where they lie.

        Raises
        ------
        InputError
            Images, labels or layers that do not fit, or a network in training mode.
        """
        _check(network, images, labels, layers, batch_size)
        return cls(network, images, labels, _run(network, images, layers, batch_size), batch_size)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose activations are known."""
        return tuple(self.pooled)

    @property
    def classes(self) -> int:
        """Number of labels."""
        return int(self.labels.max()) + 1

    def query(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Pooled activations ``(n, C)`` of other images, by layer."""
        self.check_images("x", x)
        return _run(self.network, x.to(self.images.device), layers, self.batch_size)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of other images."""
        self.check_images("x", x)
        return torch.cat([self.network(part) for part in x.to(self.images.device).split(self.batch_size)])

    def check_images(self, name: str, x: Tensor) -> None:
        """Refuse what are no images in [0, 1], or images of another shape than the training images."""
        checks.images(name, x)
        if x.shape[1:] != self.images.shape[1:]:
            expected = tuple(self.images.shape[1:])
            raise InputError(f"{name} has images of shape {tuple(x.shape[1:])}; those of the training images is {expected}")

    def check_layers(self, layers: Sequence[str]) -> None:
        """Refuse layers whose activations are not known, and none at all."""
        if not layers:
            raise InputError(f"layers is empty; name at least one of {', '.join(self.layers)}")
        for layer in layers:
            checks.one_of("layer", layer, self.layers)


def _check(network: nn.Module, images: Tensor, labels: Tensor, layers: Sequence[str], batch_size: int) -> None:
    checks.images("images", images)
    checks.labels("labels", labels, len(images))
    checks.whole("batch_size", batch_size, 1)
    check_layers(network, layers)
    training = [name or "the network itself" for name, module in network.named_modules() if module.training]
    if training:
        raise InputError(f"network is in training mode ({training[0]}); call network.eval() first")


@torch.no_grad()
def _run(network: nn.Module, x: Tensor, layers: Sequence[str], batch_size: int) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for part in _batches(x, batch_size):
        for layer, activation in activations(network, part, layers).items():
            parts[layer].append(pooled(activation))
    return {layer: torch.cat(rows) for layer, rows in parts.items()}


def _batches(x: Tensor, batch_size: int) -> Iterator[Tensor]:
    for start in range(0, len(x), batch_size):
        yield x[start : start + batch_size]
        log.info("activations: %d of %d images", min(start + batch_size, len(x)), len(x))
