"""The sets of a poisoning attack: checked tensors, and the float64 rows with labels -1 and +1 that the learners use."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.errors import InputError


def check_sets(
    x_train: Tensor, y_train: Tensor, x_val: Tensor, y_val: Tensor, x_test: Tensor | None, y_test: Tensor | None
) -> tuple[int, int]:
    """Refuse images and labels that do not fit together; returns the two labels of the training set, the lower first."""
    checks.images("x_train", x_train)
    checks.labels("y_train", y_train, len(x_train))
    classes = sorted(set(y_train.tolist()))
    if len(classes) != 2:
        raise InputError(f"y_train has the labels {classes}; exactly two are needed (poison_pairs takes more)")
    _check_evaluation("val", x_val, y_val, x_train, classes)
    if x_test is not None or y_test is not None:
        _check_evaluation("test", x_test, y_test, x_train, classes)
    return classes[0], classes[1]


def _check_evaluation(name: str, x: Tensor | None, y: Tensor | None, x_train: Tensor, classes: list[int]) -> None:
    if x is None or y is None:
        raise InputError(f"{'x' if x is None else 'y'}_{name} is None; images and labels are needed together")
    checks.images(f"x_{name}", x)
    checks.labels(f"y_{name}", y, len(x))
    if x.shape[1:] != x_train.shape[1:]:
        raise InputError(f"x_{name} has images of shape {tuple(x.shape[1:])}; x_train has {tuple(x_train.shape[1:])}")
    if strange := sorted(set(y.tolist()) - set(classes)):
        raise InputError(f"y_{name} has the label {strange[0]}, which is not in the training labels {classes}")


def rows(x: Tensor) -> np.ndarray:
    """Float64 rows ``(n, d)``; where all pixels are levels of 8 bits, the levels over 255 in full precision.

    The descent amplifies the rounding of float32, so the published figures need the full precision.
    """
    pixels = x.detach().cpu().flatten(1).double().numpy()
    levels = np.rint(pixels * 255)
    return levels / 255 if np.allclose(pixels * 255, levels, rtol=0, atol=1e-4) else pixels


def signs(y: Tensor, classes: Sequence[int]) -> np.ndarray:
    """Labels as -1 (the first class) and +1, ``(n,)``."""
    return np.where(y.cpu().numpy() == classes[1], 1.0, -1.0)


def labels(y: np.ndarray, classes: Sequence[int]) -> Tensor:
    """Inverse of :func:`signs`."""
    return torch.tensor(classes)[torch.from_numpy(y > 0).long()]
