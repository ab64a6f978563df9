"""Training, validation and test images of the NNIF paper, as the code of Cohen, Sapiro & Giryes (2020) draws them."""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from deepneighbors import checks
from deepneighbors.data import Dataset
from deepneighbors.errors import InputError

log = logging.getLogger(__name__)
SEED = 15101985  # of the authors' experiments; their later release has another
SVHN_TRAIN, SVHN_TEST = (73_257, 50_000), (26_032, 10_000)  # images of the official files, and drawn from them


@dataclass(frozen=True)
class Split:
    """Indices, ascending: ``train`` and ``validation`` into the training images, ``test`` into the test images."""

    train: Tensor
    validation: Tensor
    test: Tensor


def validation_split(dataset: Dataset, *, validation: int = 1000, seed: int = SEED) -> Split:
    """Draw ``validation`` images of the training set, stratified by label; the rest trains, all test images test.

    For CIFAR in its official order this gives the paper's own lists. Of the official SVHN, 50,000 training and 10,000 test
    images are drawn first, by the same generator as in the authors' code; of another copy of SVHN all are used.

    Raises
    ------
    InputError
        ``validation`` is below the number of classes, or leaves too few training images for a stratified draw.
    """
    checks.whole("seed", seed, 0)
    pool, test = torch.arange(len(dataset.y_train)), torch.arange(len(dataset.y_test))
    if dataset.name == "svhn":
        pool, test = _svhn(len(pool), len(test))
    classes = dataset.classes
    checks.whole("validation", validation, classes, len(pool) - classes)
    labels = dataset.y_train[pool].numpy()
    if np.bincount(labels, minlength=classes).min() < 2:
        raise InputError(f"{dataset.name} has a class with fewer than two training images; a stratified split needs two")
    kept, held = train_test_split(
        np.arange(len(pool)), test_size=validation, random_state=np.random.RandomState(seed), shuffle=True, stratify=labels
    )
    return Split(pool[np.sort(kept)], pool[np.sort(held)], test)


def _svhn(train: int, test: int) -> tuple[Tensor, Tensor]:
    """Official files by the authors' draw, which needs their sizes; any other copy whole."""
    if (train, test) != (SVHN_TRAIN[0], SVHN_TEST[0]):
        log.info("SVHN here has %d and %d images, not the official %d and %d; all are used", train, test, SVHN_TRAIN[0],
                 SVHN_TEST[0])  # fmt: skip
        return torch.arange(train), torch.arange(test)
    generator = np.random.RandomState(SEED)
    drawn = [np.sort(generator.choice(size, count, replace=False)) for size, count in (SVHN_TRAIN, SVHN_TEST)]
    return torch.from_numpy(drawn[0]), torch.from_numpy(drawn[1])
