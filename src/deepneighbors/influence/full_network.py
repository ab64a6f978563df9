"""Influence through all parameters of a network, as the code of Cohen et al. (2020) computes it, for many queries at once.

That code takes gradients of one image at a time, so batch norm, which uses the statistics of its batch there, is instance
norm; and it follows LiSSA for one query after the other with the same sequence of mini-batches. Here images are batched
(instance norm keeps them independent), gradients of training images are shared by all queries, and one recursion
carries all queries.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.functional import cross_entropy

from deepneighbors import checks
from deepneighbors.errors import InputError

log = logging.getLogger(__name__)
Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Recursion:
    """LiSSA (Agarwal et al. 2017) as darkon runs it; the defaults are those of Cohen et al. (2020) for validation images.

    ``u <- v + (1 - damping) u - H u / scale`` over ``depth`` mini-batches of ``batch_size`` training images in their order,
    from ``u = v``; the answer is ``u / scale``, averaged over ``repeats`` that go on where the last one ended. Test images
    have a depth of 5, and the training images are then a subset of 5,000.
    """

    scale: float = 200.0
    damping: float = 0.01
    repeats: int = 5
    depth: int = 49
    batch_size: int = 200

    def __post_init__(self) -> None:
        checks.positive("scale", self.scale)
        checks.at_least("damping", self.damping, 0)
        for name in ("repeats", "depth", "batch_size"):
            checks.whole(name, getattr(self, name), 1)


class FullNetworkInfluence:
    """Scores ``<g_z, LiSSA(g_t)> / N`` over all parameters of a network.

    Parameters
    ----------
    network
        For the gradient of single images: in evaluation mode, its output for an image independent of the batch. For the
        released procedure a :class:`deepneighbors.networks.ThinResNet` with ``statistics="instance"``.
    batch_network
        For the Hessian of mini-batches: the same parameters, there with ``statistics="batch"``. ``network`` when None.
    weight_decay
        L2 penalty on parameters of more than one dimension; part of the Hessian (it only adds a constant to the scores).
    smoothing
        Label smoothing of the loss.
    recursion
        None leaves the Hessian out: the inner product of two gradients.
    chunk
        Images whose gradients are held at once: ``chunk * parameters * 4`` bytes.
    """

    def __init__(self, network: nn.Module, batch_network: nn.Module | None = None, *, weight_decay: float = 4e-4,
                 smoothing: float = 0.0, recursion: Recursion | None = Recursion(), chunk: int = 50):  # fmt: skip
        self.network, self.batch_network = network, batch_network or network
        for module in (self.network, self.batch_network):
            if module.training:
                raise InputError("a network is in training mode; call network.eval() first")
        checks.at_least("weight_decay", weight_decay, 0)
        checks.at_least("smoothing", smoothing, 0)
        checks.whole("chunk", chunk, 1)
        self.weight_decay, self.smoothing, self.recursion, self.chunk = weight_decay, smoothing, recursion, chunk
        self.parameters_: Parameters = {name: p.detach() for name, p in network.named_parameters()}

    def scores(self, x: Tensor, y: Tensor, queries: Tensor, labels: Tensor) -> Tensor:
        """Influence ``(T, N)`` of training images ``(N, ...)`` with labels ``y`` on queries ``(T, ...)`` with ``labels``."""
        directions = torch.cat(list(self.gradients(queries, labels)))
        if self.recursion is not None:
            directions = self.inverse_products(directions, x, y)
        parts = [directions @ rows.T for rows in self.gradients(x, y)]
        return torch.cat(parts, 1) / len(x)

    def gradients(self, x: Tensor, y: Tensor) -> Iterator[Tensor]:
        """Gradients of single images without the decay, flattened, ``chunk`` at a time: ``(chunk, P)``."""
        checks.images("x", x)
        checks.labels("y", y, len(x))

        def loss(parameters: Parameters, image: Tensor, label: Tensor) -> Tensor:
            return self._loss(self.network, parameters, image[None], label[None])

        single = vmap(grad(loss), in_dims=(None, 0, 0))
        for images, targets in zip(x.split(self.chunk), y.split(self.chunk), strict=True):
            found = single(self.parameters_, images, targets)
            yield torch.cat([part.flatten(1) for part in found.values()], 1)

    def inverse_products(self, directions: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """LiSSA on all rows of ``directions`` (T, P) at once, over mini-batches of the training images."""
        chosen = self.recursion or Recursion()
        needed = chosen.repeats * chosen.depth * chosen.batch_size
        if needed > len(x):
            raise InputError(
                f"LiSSA takes {needed} training images ({chosen.repeats} x {chosen.depth} x {chosen.batch_size}), "
                f"got {len(x)}"
            )
        total = torch.zeros_like(directions)
        start = 0
        for repeat in range(chosen.repeats):
            u = directions.clone()
            for _ in range(chosen.depth):
                part = slice(start, start + chosen.batch_size)
                u = directions + (1 - chosen.damping) * u - self.hessian_products(u, x[part], y[part]) / chosen.scale
                start += chosen.batch_size
            total += u / chosen.scale
            log.info("LiSSA: repeat %d of %d, %d mini-batches", repeat + 1, chosen.repeats, chosen.depth)
        return total / chosen.repeats

    def hessian_products(self, directions: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Hessian of the mean loss of one mini-batch, with decay, times each row of ``directions`` (T, P)."""

        def gradient(parameters: Parameters) -> Parameters:
            return grad(lambda at: self._loss(self.batch_network, at, x, y))(parameters)

        def product(direction: Tensor) -> Tensor:
            tangent = self._unflatten(direction)
            moved = jvp(gradient, (self.parameters_,), (tangent,))[1]
            decayed = [part + self.weight_decay * tangent[name] * (part.ndim > 1) for name, part in moved.items()]
            return torch.cat([part.flatten() for part in decayed])

        return vmap(product, chunk_size=self.chunk)(directions)

    def _loss(self, network: nn.Module, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(network, parameters, (x,)), y, label_smoothing=self.smoothing)

    def _unflatten(self, direction: Tensor) -> Parameters:
        sizes = [p.numel() for p in self.parameters_.values()]
        parts = direction.split(sizes)
        return {name: part.view_as(p) for (name, p), part in zip(self.parameters_.items(), parts, strict=True)}
