"""Backdoors: training images that carry a trigger and a wrong label, and how often the trigger then works.

Triggers are the patch of Gu et al. (2017, BadNets) and the blended image of Chen et al. (2017).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepneighbors import checks
from deepneighbors.attacks.classifier import predict_labels
from deepneighbors.attacks.iterated import check_fraction, check_network, device_of
from deepneighbors.errors import InputError

Trigger = Callable[[Tensor], Tensor]  # images (n, C, H, W) -> images with the trigger

PATTERN = ((-2, -2), (-3, -3), (-2, -4), (-4, -2))  # after the pattern backdoor of Gu et al. (2017)
PIXEL = ((-2, -2),)  # and after their single pixel


@dataclass(frozen=True)
class PatchTrigger:
    """Set pixels of every channel to one value.

    Parameters
    ----------
    pixels
        Pairs of row and column; negative ones count from the bottom and the right.
    value
        In [0, 1]; 1 is white.
    """

    pixels: Sequence[tuple[int, int]] = PATTERN
    value: float = 1.0

    def __post_init__(self) -> None:
        if not self.pixels:
            raise InputError("pixels is empty; name at least one pair of row and column")
        check_fraction("value", self.value)

    @classmethod
    def square(cls, side: int = 4, value: float = 1.0) -> "PatchTrigger":
        """A square in the lower right corner."""
        checks.whole("side", side, 1)
        return cls(tuple((row, column) for row in range(-side, 0) for column in range(-side, 0)), value)

    def __call__(self, x: Tensor) -> Tensor:
        """Images ``(n, C, H, W)`` with the patch."""
        _check_pictures(x)
        height, width = x.shape[-2:]
        for row, column in self.pixels:
            if not (-height <= row < height and -width <= column < width):
                raise InputError(f"pixel ({row}, {column}) lies outside the image; images are {height} x {width}")
        rows, columns = (list(places) for places in zip(*self.pixels, strict=True))
        triggered = x.clone()
        triggered[:, :, rows, columns] = self.value
        return triggered


@dataclass(frozen=True, eq=False)
class BlendedTrigger:
    """Mix every image with one picture: ``(1 - alpha) x + alpha image``.

    Parameters
    ----------
    image
        Picture ``(C, H, W)`` in [0, 1].
    alpha
        Its share, in (0, 1].
    """

    image: Tensor
    alpha: float = 0.2

    def __post_init__(self) -> None:
        checks.images("image", self.image)
        checks.positive("alpha", self.alpha)
        if self.alpha > 1:
            raise InputError(f"alpha is {self.alpha!r}; it must be a number above 0 and at most 1")

    @classmethod
    def noise(cls, shape: Sequence[int], *, alpha: float = 0.2, seed: int = 0) -> "BlendedTrigger":
        """A picture of uniform noise of shape ``(C, H, W)``."""
        checks.whole("seed", seed, 0)
        return cls(torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed)), alpha)

    def __call__(self, x: Tensor) -> Tensor:
        """Images ``(n, C, H, W)`` with the picture in them."""
        _check_pictures(x)
        if x.shape[1:] != self.image.shape:
            raise InputError(f"x has images of shape {tuple(x.shape[1:])}; the trigger's is {tuple(self.image.shape)}")
        return ((1 - self.alpha) * x + self.alpha * self.image.to(x)).clamp(0, 1)


def _check_pictures(x: Tensor) -> None:
    checks.images("x", x)
    if x.ndim != 4:
        raise InputError(f"x has shape {tuple(x.shape)}; a trigger needs images of shape (n, C, H, W)")


@dataclass(frozen=True)
class PoisonedSet:
    """A training set with triggered images in it.

    Attributes
    ----------
    x, y
        All images ``(n, C, H, W)`` and labels ``(n,)``, in the order given.
    indices
        Rows that were poisoned, ascending ``(m,)``.
    """

    x: Tensor
    y: Tensor
    indices: Tensor

    @property
    def mask(self) -> Tensor:
        """Whether each image was poisoned, ``(n,)``."""
        return torch.zeros(len(self.y), dtype=torch.bool, device=self.y.device).index_fill(0, self.indices, True)


def poison(x: Tensor, y: Tensor, trigger: Trigger, *, rate: float, target: int | None, sources: Sequence[int] | None = None,
           classes: int = 10, seed: int = 0) -> PoisonedSet:  # fmt: skip
    """Put the trigger into ``round(rate n)`` images of the source classes, and give them the target's label.

    With the same seed a lower rate poisons a part of what a higher one does.

    Parameters
    ----------
    x, y
        Images ``(n, C, H, W)`` in [0, 1] and labels ``(n,)``.
    rate
        Share of the whole training set, in (0, 1).
    target
        The label to give; None for all-to-all, where label j becomes j + 1, and the last becomes 0.
    sources
        Classes that images are drawn from, all equally likely; all but the target by default. ``[target]`` is the
        clean-label form, in which no label changes; as long as ``y`` stays, the draw does, whatever the images.

    Raises
    ------
    InputError
        A rate outside (0, 1) or one that asks for no image or more than there are, a class that is not in the data, a target
        among several sources.
    """
    _check_pictures(x)
    checks.labels("y", y, len(x), classes)
    checks.whole("seed", seed, 0)
    checks.positive("rate", rate)
    if rate >= 1:
        raise InputError(f"rate is {rate!r}; it must be a number above 0 and below 1")
    sources = _sources(y, target, sources, classes)
    candidates = torch.isin(y, torch.tensor(sources, device=y.device)).nonzero().squeeze(1)
    count = round(rate * len(y))
    if not 1 <= count <= len(candidates):
        asked = f"rate is {rate!r}, which asks for {count} of {len(y)} images"
        raise InputError(f"{asked}; from 1 to {len(candidates)} of the source classes can be poisoned")
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    indices = candidates[order[:count].to(y.device)].sort().values
    images, labels = x.clone(), y.clone()
    images[indices.to(x.device)] = trigger(x[indices.to(x.device)])
    labels[indices] = _goal(y[indices], target, classes)
    return PoisonedSet(images, labels, indices)


def _sources(y: Tensor, target: int | None, sources: Sequence[int] | None, classes: int) -> list[int]:
    """Checked source classes."""
    checks.whole("classes", classes, 2)
    if target is not None:
        checks.whole("target", target, 0, classes - 1)
    present = y.unique().tolist()
    if sources is None:
        others = [label for label in present if label != target]
        if not others:
            raise InputError(f"y has no label but the target {target}; images of another class are needed")
        return others
    if not sources:
        raise InputError("sources is empty; name at least one class")
    for source in sources:
        checks.one_of("source", source, present)
    if target in sources and len(set(sources)) > 1:
        raise InputError(f"target {target} is among the sources {list(sources)}; leave it out, or name it alone")
    return list(sources)


def _goal(y: Tensor, target: int | None, classes: int) -> Tensor:
    """The label that the attacker wants for each image."""
    return (y + 1) % classes if target is None else torch.full_like(y, target)


@dataclass(frozen=True)
class BackdoorScore:
    """What a network does on test images, clean and triggered.

    Attributes
    ----------
    correct
        Whether each clean image gets its label, ``(n,)``.
    indices
        Images of the source classes ``(m,)``.
    hit
        Whether each of these, with the trigger, gets the attacker's label ``(m,)``.
    hit_clean
        The same without the trigger: what counts as success with no backdoor at all.
    """

    correct: Tensor
    indices: Tensor
    hit: Tensor
    hit_clean: Tensor

    @property
    def clean_accuracy(self) -> float:
        """Share of clean images with the right answer."""
        return float(self.correct.float().mean())

    @property
    def success(self) -> float:
        """Attack success rate: share of triggered source images that get the attacker's label."""
        return float(self.hit.float().mean())


def attack_success(network: nn.Module, x: Tensor, y: Tensor, trigger: Trigger, *, target: int | None,
                   sources: Sequence[int] | None = None, batch_size: int = 500) -> BackdoorScore:  # fmt: skip
    """Show a network test images ``(n, C, H, W)`` with labels ``(n,)``, clean and with the trigger.

    Parameters
    ----------
    target, sources
        As in :func:`poison`, but the target is never a source: its own images cannot show success.

    Raises
    ------
    InputError
        A network in training mode, labels that it does not have, a class that is not in the data.
    """
    check_network(network)
    _check_pictures(x)
    checks.labels("y", y, len(x))
    if sources is not None and target in sources:
        raise InputError(f"target {target} is among the sources {list(sources)}; its own images cannot show success")
    checks.whole("batch_size", batch_size, 1)
    device = str(device_of(network, x))
    clean, classes = predict_labels(network, x, batch_size, device)
    y = y.to(x.device)
    checks.labels("y", y, len(x), classes)
    sources = _sources(y, target, sources, classes)
    indices = torch.isin(y, torch.tensor(sources, device=y.device)).nonzero().squeeze(1)
    goal = _goal(y[indices], target, classes)
    found, _ = predict_labels(network, trigger(x[indices]), batch_size, device)
    return BackdoorScore(clean == y, indices, found == goal, clean[indices] == goal)
