"""Training of the classifiers: plain and adversarial (Madry et al. 2018), reproducible from one seed."""

import logging
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deepneighbors import checks
from deepneighbors.device import resolve

log = logging.getLogger(__name__)

Perturb = Callable[[nn.Module, Tensor, Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def fit_classifier(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    one_cycle: bool = False,
    seed: int = 0,
    device: str = "cpu",
    loss: Loss = cross_entropy,
    optimizer: MakeOptimizer | None = None,
    perturb: Perturb | None = None,
    after_epoch: Callable[[int, torch.optim.Optimizer], None] | None = None,
) -> nn.Module:
    """Train a classifier in place; ends in evaluation mode.

    Parameters
    ----------
    x, y
        Images ``(N, channels, height, width)`` in [0, 1] and labels ``(N,)``.
    one_cycle
        One warm-up and decay over all steps, which reaches 98.8 % on MNIST in two epochs; otherwise a constant rate.
    loss
        Mean loss of a batch from logits ``(n, classes)`` and labels ``(n,)``.
    optimizer
        Makes the optimiser from the parameters; Adam at ``learning_rate`` when None.
    perturb
        Replaces each batch by ``perturb(network, x, y)``: adversarial training, or augmentation.
    after_epoch
        Called with the epoch (from 1) and the optimiser, the network being in evaluation mode: validation, checkpoints, or
        a change of the learning rate.
    """
    checks.images("x", x)
    checks.labels("y", y, len(x))
    checks.whole("epochs", epochs, 1)
    checks.whole("batch_size", batch_size, 1)
    checks.positive("learning_rate", learning_rate)
    device = resolve(device)
    generator = torch.Generator().manual_seed(seed)
    network.to(device)
    solver = optimizer(network.parameters()) if optimizer else torch.optim.Adam(network.parameters(), lr=learning_rate)
    steps = epochs * -(-len(x) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(solver, learning_rate, total_steps=steps) if one_cycle else None
    for epoch in range(1, epochs + 1):
        network.train()
        total = 0.0
        for batch in torch.randperm(len(x), generator=generator).split(batch_size):
            inputs, targets = x[batch].to(device), y[batch].to(device)
            if perturb is not None:
                inputs = perturb(network, inputs, targets)
            value = loss(network(inputs), targets)
            solver.zero_grad(set_to_none=True)
            value.backward()
            solver.step()
            if schedule is not None:
                schedule.step()
            total += float(value.detach()) * len(batch)
        log.info("epoch %d of %d: loss %.4f", epoch, epochs, total / len(x))
        network.eval()
        if after_epoch is not None:
            after_epoch(epoch, solver)
    return network


@torch.no_grad()
def predict_logits(network: nn.Module, x: Tensor, *, batch_size: int = 1000, device: str = "cpu") -> Tensor:
    """Logits ``(n, classes)`` on the CPU, in batches."""
    checks.images("x", x)
    checks.whole("batch_size", batch_size, 1)
    device = resolve(device)
    network.to(device).eval()
    return torch.cat([network(batch.to(device)).cpu() for batch in x.split(batch_size)])


def accuracy(network: nn.Module, x: Tensor, y: Tensor, *, device: str = "cpu") -> float:
    """Share of samples whose largest logit is the label, 0 to 1."""
    checks.labels("y", y, len(x))
    return float((predict_logits(network, x, device=device).argmax(1) == y).float().mean())


def pgd_l2(*, epsilon: float, steps: int, step_size: float, start_std: float = 0.2, seed: int = 0) -> Perturb:
    """Projected gradient ascent on the cross-entropy in an L2 ball, for adversarial training.

    Start: Gaussian noise of standard deviation ``start_std`` a pixel; each step moves ``step_size`` along the unit
    gradient, then projects on the ball of radius ``epsilon`` and on [0, 1].
    """
    checks.positive("epsilon", epsilon)
    checks.whole("steps", steps, 1)
    checks.positive("step_size", step_size)
    generator = torch.Generator().manual_seed(seed)

    def perturb(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=generator).to(x.device)
        delta = start_std * noise
        for step in range(steps + 1):
            size = delta.flatten(1).norm(dim=1).clamp(min=epsilon).view(-1, 1, 1, 1)
            moved = (x + delta * (epsilon / size)).clamp(0, 1)
            if step < steps:
                delta = moved - x + step_size * _unit_gradient(network, moved.clone(), y)
        return moved

    return perturb


def _unit_gradient(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(cross_entropy(network(x), y, reduction="sum"), x)
    return gradient / gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
