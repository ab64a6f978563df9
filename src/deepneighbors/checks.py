"""Checks of what users pass in: each raises :class:`InputError` with one sentence before any long work starts."""

from collections.abc import Iterable

import torch
from torch import Tensor

from deepneighbors.errors import InputError


def one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Refuse a value outside a list of names."""
    allowed = list(allowed)
    if value not in allowed:
        raise InputError(f"{name} is {value!r}; allowed are {', '.join(map(str, allowed))}")


def at_least(name: str, value: float, low: float) -> None:
    """Refuse a number below ``low`` (NaN too)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= low:
        raise InputError(f"{name} is {value!r}; it must be a number of at least {low}")


def positive(name: str, value: float) -> None:
    """Refuse a number that is not above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise InputError(f"{name} is {value!r}; it must be a finite number above 0")


_TESTED = 1 << 24  # numbers at a time


def whole(name: str, value: int, low: int, high: int | None = None) -> None:
    """Refuse anything but an integer in ``[low, high]``."""
    bad = isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high)
    if bad:
        limits = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise InputError(f"{name} is {value!r}; it must be a whole number {limits}")


def points(name: str, x: Tensor) -> None:
    """Refuse an empty batch, NaN and infinity."""
    if not isinstance(x, Tensor) or x.ndim < 2:
        raise InputError(f"{name} must be a tensor with one row a sample, got {_describe(x)}")
    if len(x) == 0:
        raise InputError(f"{name} is an empty batch of shape {tuple(x.shape)}; at least one sample is needed")
    # In parts, because the test takes more than the memory of what it tests; one answer, because a GPU waits for each.
    if not bool(
        torch.stack([part.isfinite().all() for part in x.split(max(1, _TESTED * len(x) // max(1, x.numel())))]).all()
    ):
        raise InputError(f"{name} has values that are NaN or infinite; only finite numbers are allowed")


def images(name: str, x: Tensor) -> None:
    """Refuse what :func:`points` refuses, other types than float32, and pixels outside ``[0, 1]``."""
    points(name, x)
    if x.dtype != torch.float32:
        raise InputError(f"{name} has type {x.dtype}; float32 is needed (call .float())")
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        raise InputError(f"{name} has pixels from {low:.4g} to {high:.4g}; they must lie in [0, 1]")


def labels(name: str, y: Tensor, count: int, classes: int | None = None) -> None:
    """Refuse labels that are not int64, not one a sample, or outside ``0 .. classes - 1``."""
    if not isinstance(y, Tensor) or y.ndim != 1 or y.dtype != torch.int64:
        raise InputError(f"{name} must be a vector of integer labels (int64), got {_describe(y)}")
    if count == 0:
        raise InputError(f"{name} belongs to an empty batch; at least one sample is needed")
    if len(y) != count:
        raise InputError(f"{name} has {len(y)} labels for {count} samples; one a sample is needed")
    top = int(y.max())
    if int(y.min()) < 0 or (classes is not None and top >= classes):
        limit = f"0 to {classes - 1}" if classes is not None else "0 or more"
        raise InputError(f"{name} has labels from {int(y.min())} to {top}; allowed are {limit}")


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    return f"{type(value).__name__}"
