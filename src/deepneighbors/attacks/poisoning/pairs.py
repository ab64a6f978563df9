"""Label pairs: the images of secml's tutorial for one pair, and poisoning of several pairs of a set of many classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepneighbors import checks
from deepneighbors.attacks.poisoning.attack import Poisoning, PoisoningResult
from deepneighbors.errors import InputError


@dataclass(frozen=True)
class PairsResult:
    """Poisoning points of several label pairs: together and pair by pair.

    Attributes
    ----------
    x, y
        Images ``(pairs * count, ...)`` and their wrong labels, in the order of the pairs.
    indices
        The training image from which each started, in the whole training set.
    pairs
        Result of each pair; its ``indices`` count the training images of the pair only.
    """

    x: Tensor
    y: Tensor
    indices: Tensor
    pairs: dict[tuple[int, int], PoisoningResult]


def poison_pairs(
    attack: Poisoning,
    x_train: Tensor,
    y_train: Tensor,
    x_val: Tensor,
    y_val: Tensor,
    *,
    pairs: Sequence[tuple[int, int]],
    count: int = 15,
) -> PairsResult:
    """Poison each pair of labels for itself, ``count`` points each, with the training and validation images of the pair.

    Raises
    ------
    InputError
        No pair, a pair of equal labels or named twice, a label that is not in both sets, or what ``attack`` refuses.
    """
    checks.images("x_train", x_train)
    checks.labels("y_train", y_train, len(x_train))
    checks.images("x_val", x_val)
    checks.labels("y_val", y_val, len(x_val))
    _check_pairs(pairs, y_train, y_val, count)
    found, indices = {}, []
    for pair in pairs:
        members, val = (torch.nonzero(_of(pair, y)).flatten() for y in (y_train, y_val))
        result = attack(x_train[members], y_train[members], x_val[val], y_val[val], count=count)
        found[pair[0], pair[1]] = result
        indices.append(members[result.indices])
    parts = found.values()
    return PairsResult(torch.cat([r.x for r in parts]), torch.cat([r.y for r in parts]), torch.cat(indices), found)


def first_images(x: Tensor, y: Tensor, digits: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
    """The first ``count / len(digits)`` images of each digit, in the order of the file: how secml's loader draws MNIST.

    The tutorial takes 600 training images of two digits, the first 100 to train and the others to validate, and 500 test
    images.

    Returns
    -------
    Images ``(count, ...)`` and their labels ``(count,)``.
    """
    checks.points("x", x)
    checks.labels("y", y, len(x))
    if not digits or len(set(digits)) != len(digits):
        raise InputError(f"digits is {tuple(digits)}; at least one label is needed, and none twice")
    checks.whole("count", count, len(digits))
    each, rest = divmod(count, len(digits))
    if rest:
        raise InputError(f"count is {count}; it must be a multiple of the number of digits, {len(digits)}")
    members = [torch.nonzero(y == digit).flatten() for digit in digits]
    for digit, found in zip(digits, members, strict=True):
        if len(found) < each:
            raise InputError(
                f"count is {count}, so {each} images of each label are needed, but label {digit} has {len(found)}"
            )
    order = torch.cat([found[:each] for found in members]).sort().values
    return x[order], y[order]


def _of(pair: tuple[int, int], y: Tensor) -> Tensor:
    return torch.isin(y, torch.tensor(pair, device=y.device))


def _check_pairs(pairs: Sequence[tuple[int, int]], y_train: Tensor, y_val: Tensor, count: int) -> None:
    if not pairs:
        raise InputError("pairs is empty; at least one pair of labels is needed")
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise InputError(f"pairs has {tuple(pair)}; a pair is two different labels")
        for name, y in (("y_train", y_train), ("y_val", y_val)):
            if absent := sorted(set(pair) - set(y.tolist())):
                raise InputError(f"pairs has the label {absent[0]}, which is not in {name}")
        checks.whole(f"count (of the pair {tuple(pair)})", count, 1, int(_of(pair, y_train).sum()))
    if len({frozenset(pair) for pair in pairs}) != len(pairs):
        raise InputError(f"pairs has a pair twice among {len(pairs)}; each pair of labels, in either order, may stand once")
