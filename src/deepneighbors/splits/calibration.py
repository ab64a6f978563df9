"""The digits that calibrate Deep kNN, and those that are attacked, as Sitawarin & Wagner (2019) split them."""

import numpy as np
import torch
from torch import Tensor

from deepneighbors import checks


def calibration_split(y: Tensor, *, per_class: int = 75, seed: int = 1234) -> tuple[Tensor, Tensor]:
    """Split test indices as Sitawarin & Wagner's code does: ``per_class`` of each class calibrate, the rest is attacked.

    NumPy's legacy generator is part of the recipe: for each class in order, its ascending indices are shuffled in place
    and the first ``per_class`` are taken.

    Returns
    -------
    calibration (classes * per_class,), attacked (the rest, ascending), both int64.
    """
    generator = np.random.RandomState(seed)
    chosen = []
    for label in range(int(y.max()) + 1):
        indices = np.flatnonzero(y.numpy() == label)
        checks.whole("per_class", per_class, 1, len(indices) - 1)
        generator.shuffle(indices)
        chosen.append(indices[:per_class])
    calibration = np.concatenate(chosen)
    rest = np.setdiff1d(np.arange(len(y)), calibration)
    return torch.from_numpy(calibration), torch.from_numpy(rest)
