"""Choose the layer of the Intermediate Level Attack on the source alone, by disturbance curves (Huang et al. 2019).

ILAP is run at each layer in turn. Its curve says how far it moves the features of every layer, in units of how far the
guide moves them. A curve that is highest at the attacked layer itself shows that the attack reaches there what it aims
at; of such layers the latest is chosen. No other network is asked, so the choice can be made before a transfer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepneighbors import checks
from deepneighbors.attacks.ila import ILAP
from deepneighbors.attacks.iterated import device_of
from deepneighbors.errors import InputError
from deepneighbors.networks import activations


@dataclass(frozen=True)
class LayerChoice:
    """The chosen layer, and why.

    Attributes
    ----------
    layer
        Name of the layer.
    candidates
        Layers that were attacked, in forward order.
    peaks
        Those of them whose own curve is highest at themselves, in forward order.
    curves
        Mean disturbance ``(candidates, layers)``; see :func:`disturbance_curves`.
    """

    layer: str
    candidates: tuple[str, ...]
    peaks: tuple[str, ...]
    curves: Tensor


def choose_layer(network: nn.Module, x: Tensor, guide: Tensor, layers: Sequence[str], *,
                 candidates: Sequence[str] | None = None, epsilon: float, steps: int = 10,
                 step_size: float | None = None, batch_size: int = 100) -> LayerChoice:  # fmt: skip
    """The latest candidate whose own disturbance curve peaks at itself.

    Where no curve does, the layer is taken whose curve comes nearest to it, by the ratio of its height at the layer to its
    peak; the paper leaves this case open.

    Parameters
    ----------
    network
        The source, in evaluation mode.
    x, guide
        Images ``(n, ...)`` in [0, 1], and adversarial images of the source that guide the attack.
    layers
        Names of modules in forward order; the curves run over them.
    candidates
        Those of ``layers`` that may be chosen; all when None.
    epsilon, steps, step_size, batch_size
        Of :class:`deepneighbors.attacks.ila.ILAP`.

    Raises
    ------
    InputError
        A candidate that is not among the layers, or a guide that changes nothing in some layer.
    """
    chosen = tuple(layers if candidates is None else candidates)
    curves = disturbance_curves(
        network, x, guide, layers, candidates=chosen, epsilon=epsilon, steps=steps, step_size=step_size,
        batch_size=batch_size,
    )  # fmt: skip
    own = curves[torch.arange(len(chosen)), [list(layers).index(layer) for layer in chosen]]
    reached = own / curves.max(1).values
    best = int((reached == reached.max()).nonzero()[-1])
    peaks = tuple(layer for layer, share in zip(chosen, reached.tolist(), strict=True) if share == 1)
    return LayerChoice(chosen[best], chosen, peaks, curves)


def disturbance_curves(network: nn.Module, x: Tensor, guide: Tensor, layers: Sequence[str], *,
                       candidates: Sequence[str] | None = None, epsilon: float, steps: int = 10,
                       step_size: float | None = None, batch_size: int = 100) -> Tensor:  # fmt: skip
    """Mean of ``|F_j(z) - F_j(x)| / |F_j(x') - F_j(x)|`` over images, z from ILAP at candidate l along the guide x'.

    The length is the Euclidean one of all features of layer j. Images whose guide leaves layer j as it is have no
    disturbance there and are left out of its mean.

    Returns
    -------
    Row l, column j: ``(candidates, layers)``.
    """
    chosen = tuple(layers if candidates is None else candidates)
    if not chosen:
        raise InputError(f"candidates is empty; name at least one of {', '.join(layers)}")
    for layer in chosen:
        checks.one_of("candidate", layer, layers)
    known = _features(network, x, layers, batch_size)
    guided = _lengths(network, guide, known, layers, batch_size)
    if not bool((guided > 0).any(0).all()):
        layer = layers[int((guided > 0).any(0).int().argmin())]
        raise InputError(f"the guide changes nothing in layer {layer!r}; give images that differ from x")
    curves = []
    for layer in chosen:
        attack = ILAP(layer, epsilon=epsilon, steps=steps, step_size=step_size, batch_size=batch_size)
        moved = _lengths(network, attack(network, x, guide=guide).x, known, layers, batch_size)
        curves.append((moved / guided).where(guided > 0, torch.nan).nanmean(0))
    return torch.stack(curves)


@torch.no_grad()
def _features(network: nn.Module, x: Tensor, layers: Sequence[str], batch_size: int) -> list[list[Tensor]]:
    """Features ``(n, D)`` of each layer, one list a batch."""
    return list(_batches(network, x, layers, batch_size))


def _batches(network: nn.Module, x: Tensor, layers: Sequence[str], batch_size: int) -> Iterator[list[Tensor]]:
    device = device_of(network, x)
    for part in x.split(batch_size):
        yield [found.flatten(1) for found in activations(network, part.to(device), layers).values()]


@torch.no_grad()
def _lengths(network: nn.Module, z: Tensor, known: list[list[Tensor]], layers: Sequence[str], batch_size: int) -> Tensor:
    """How far images ``z`` lie from the known features, ``(n, layers)``, on the CPU."""
    rows = []
    for new, old in zip(_batches(network, z, layers, batch_size), known, strict=True):
        rows.append(torch.stack([(a - b).norm(dim=1) for a, b in zip(new, old, strict=True)], 1).cpu())
    return torch.cat(rows)
