"""Softmax regression with weight decay and smoothed labels: loss, gradients, exact Hessian, and its optimum.

This is the last layer of a network on its frozen embedding. With e the embedding extended by a 1, p the softmax and y the
smoothed label, the gradient of one image is the outer product of ``p - y`` and e, and the Hessian of the mean loss is
``mean((diag(p) - p p^T) (x) e e^T)`` plus the decay on the weights, not on the biases.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from deepneighbors import checks
from deepneighbors.errors import InputError

_CHUNK = 4096  # rows whose Gram blocks are formed at once


def extend(features: Tensor) -> Tensor:
    """Features ``(n, d)`` with a column of ones, for the bias: ``(n, d + 1)``."""
    return torch.cat([features, features.new_ones(len(features), 1)], 1)


def residuals(theta: Tensor, features: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Softmax minus smoothed label ``(n, K)``: with the features, the gradient of each image.

    ``theta`` (K, d + 1) holds weights and, last, biases. The label y stands for ``1 - smoothing`` at y and
    ``smoothing / K`` everywhere.
    """
    classes = len(theta)
    softmax = (extend(features) @ theta.T).softmax(1)
    return softmax - (1 - smoothing) * one_hot(labels, classes).to(softmax) - smoothing / classes


def losses(theta: Tensor, features: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of each image with its smoothed label, ``(n,)``, without the decay."""
    return cross_entropy(extend(features) @ theta.T, labels, reduction="none", label_smoothing=smoothing)


def gradients(theta: Tensor, features: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Gradient of each image's loss, ``(n, K (d + 1))``, without the decay."""
    rows = residuals(theta, features, labels, smoothing)
    return (rows[:, :, None] * extend(features)[:, None, :]).flatten(1)


def decay_mask(theta: Tensor) -> Tensor:
    """1 at weights and 0 at biases, like ``theta``."""
    mask = torch.ones_like(theta)
    mask[:, -1] = 0
    return mask


def hessian(theta: Tensor, features: Tensor, weight_decay: float, sample_weight: Tensor | None = None) -> Tensor:
    """Exact Hessian ``(K (d + 1), K (d + 1))`` of the mean loss with decay, in the type and on the device of ``theta``.

    One weighted Gram matrix a pair of classes: ``N K (K - 1) d^2`` operations and no matrix an image. Its only null vector,
    with a decay above 0, is the same number on every bias; every gradient is orthogonal to it.
    """
    (classes, width), last = theta.shape, len(theta) - 1
    blocks = theta.new_zeros(classes, classes, width, width)
    for start in range(0, len(features), _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = extend(features[part].to(theta))
        softmax = (rows @ theta.T).softmax(1)
        scaled = rows if sample_weight is None else rows * sample_weight[part, None].to(rows)
        for a in range(last):
            # (diag(p) - p p^T) of class a against classes a, a + 1, ...
            weights = -softmax[:, a, None] * softmax[:, a:last]
            weights[:, 0] += softmax[:, a]
            weighted = (weights[:, :, None] * scaled[:, None, :]).flatten(1)
            blocks[a, a:last] += (weighted.T @ rows).view(last - a, width, width)
    for a in range(last):
        blocks[a + 1 : last, a] = blocks[a, a + 1 : last]
    # Probabilities sum to 1, so the blocks of a row sum to 0: the last class follows from the others.
    blocks[:last, last] = blocks[last, :last] = -blocks[:last, :last].sum(1)
    blocks[last, last] = -blocks[last, :last].sum(0)
    full = blocks.permute(0, 2, 1, 3).reshape(classes * width, classes * width) / len(features)
    return full + torch.diag(weight_decay * decay_mask(theta).flatten())


def fit_softmax(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    weight_decay: float,
    smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    start: Tensor | None = None,
    tolerance: float = 1e-9,
    iterations: int = 100,
) -> Tensor:
    """The optimum of the mean loss plus ``weight_decay / 2 * |W|^2``, by Newton's method in float64.

    Parameters
    ----------
    features, labels
        Embeddings ``(N, d)`` and labels ``(N,)``.
    sample_weight
        Weights ``(N,)`` in the sum that is divided by N; ones when None. Removing an image is a weight of zero.
    start
        First ``theta``; zeros when None.
    tolerance
        Largest gradient entry at the answer.

    Returns
    -------
    ``theta`` (classes, d + 1), float64: weights and, last, biases. The biases add up to those of ``start``.

    Raises
    ------
    InputError
        Bad shapes or values, and a problem that does not converge in ``iterations``.
    """
    checks.points("features", features)
    checks.labels("labels", labels, len(features), classes)
    checks.positive("weight_decay", weight_decay)
    rows, count = features.double(), len(features)
    weights = rows.new_ones(count) if sample_weight is None else sample_weight.to(rows)
    theta = rows.new_zeros(classes, rows.shape[1] + 1) if start is None else start.to(rows).clone()
    mask = weight_decay * decay_mask(theta)
    # The Hessian's null vector: with it added the matrix can be factorised, and no step has a part along it.
    common = ((1 - decay_mask(theta)) / classes**0.5).flatten()

    def objective(at: Tensor) -> Tensor:
        return (weights * losses(at, rows, labels, smoothing)).sum() / count + 0.5 * (mask * at * at).sum()

    value = objective(theta)
    for _ in range(iterations):
        pull = (weights[:, None] * residuals(theta, rows, labels, smoothing)).T @ extend(rows) / count + mask * theta
        if pull.abs().max() <= tolerance:
            return theta
        curvature = hessian(theta, rows, weight_decay, weights) + torch.outer(common, common)
        step = torch.cholesky_solve(pull.flatten()[:, None], torch.linalg.cholesky(curvature)).view_as(theta)
        size = 1.0
        while objective(theta - size * step) > value + 1e-14 and size > 1e-6:
            size /= 2
        theta = theta - size * step
        value = objective(theta)
    raise InputError(f"softmax regression has a gradient of {float(pull.abs().max()):.2g} after {iterations} Newton steps; "
                     f"allow more iterations or a tolerance above {tolerance}")  # fmt: skip
